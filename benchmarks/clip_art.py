"""A set of small pictures in colours, with classes, from Debian's package of clip-art.

    apt-get download openclipart-png && dpkg -x openclipart-png_*.deb unpacked
    python -m benchmarks.clip_art unpacked/usr/share/openclipart/png clipart

The pictures are in the public domain. They are not part of this repository. Of 14 classes at most
340 pictures each are taken, in the order of a hash of their names. They are shrunk to 64 pixels on
white. Duplicates are left out. A fifth, by another hash, goes to ``lockbox`` and the rest to
``dev``.
"""

import argparse
import hashlib
import re
from pathlib import Path

from PIL import Image

CLASSES = [
    "animals",
    "buildings",
    "computer",
    "education",
    "food",
    "geography",
    "office",
    "people",
    "plants",
    "recreation",
    "shapes",
    "signs_and_symbols",
    "tools",
    "transportation",
]
AT_MOST, SIDE = 340, 64


def hashed(text: str) -> int:
    """A number that only the text decides."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def shrunk(path: Path) -> Image.Image | None:
    """The picture on white, of `SIDE` pixels; None where it cannot be read or is too large."""
    try:
        picture = Image.open(path).convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    if max(picture.size) > 4000:
        return None
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", (SIDE, SIDE), "white")
    white.alpha_composite(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return white.convert("RGB")


def main() -> None:
    """Write the pictures and say how many there are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a folder with a folder for each class")
    parser.add_argument("out", type=Path, help="a new folder")
    arguments = parser.parse_args()
    seen: set[bytes] = set()
    number = {"dev": 0, "lockbox": 0}
    for of_class in CLASSES:
        names = [
            str(file.relative_to(arguments.source))
            for file in (arguments.source / of_class).rglob("*.png")
        ]
        kept = 0
        for name in sorted(sorted(names), key=hashed):
            if kept >= AT_MOST:
                break
            picture = shrunk(arguments.source / name)
            if picture is None or picture.tobytes() in seen:
                continue
            seen.add(picture.tobytes())
            short = re.sub(r"[^\w]+", "_", name.removesuffix(".png"))[-80:]
            part = "lockbox" if hashed(short) % 5 == 0 else "dev"
            folder = arguments.out / part / of_class
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{short}.png")
            kept, number[part] = kept + 1, number[part] + 1
    print(number)


if __name__ == "__main__":
    main()
