"""The contact sheet: one HTML file with a thumbnail of each image, on which a person gives labels.

It needs no other file, no network and no server. Its policy allows our own style and script by
their hashes and nothing else, so a name that slipped through the escaping could do nothing.
"""

import base64
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from shared.runtime.media import html_text, printable

HERE = Path(__file__).parent
THUMBNAIL = 192  # pixels of the longer side, at most
SMALL = 64  # smaller images stay lossless and are shown with their pixels as squares


def thumbnail(image: Tensor) -> str:
    """An image (3, H, W) uint8, shrunk to ``THUMBNAIL`` where it is larger, as a ``data:`` URI."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    kind = "PNG" if max(picture.size) <= SMALL else "JPEG"
    file = io.BytesIO()
    picture.save(file, kind, quality=80)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def sheet(
    title: str,
    file_name: str,
    kept: Sequence[tuple[str, str]],
    names: Sequence[str],
    thumbnails: Sequence[str],
    classes: Sequence[str],
) -> str:
    """The sheet as HTML.

    Args:
        title: what the images are.
        file_name: of the CSV file that the sheet saves.
        kept: names and labels of images that have one; they come first in the saved file.
        names: of the images to label, in order of worth.
        thumbnails: of these images, from `thumbnail`.
        classes: known classes, which get a button.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        finalize=html_text,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    css, script = ((HERE / name).read_text() for name in ("sheet.css", "sheet.js"))
    data = {
        "file": file_name,
        "kept": list(kept),
        "names": list(names),
        "classes": list(classes),
        # what a person typed is kept by the browser under this name until the sheet changes
        "key": _sha256("\n".join([file_name, *names, *thumbnails])),
    }
    cards = [(printable(n), t) for n, t in zip(names, thumbnails, strict=True)]
    return environment.get_template("to_label.html").render(
        title=title,
        data=data,
        cards=cards,
        css=Markup(css),
        script=Markup(script),
        css_hash=_sha256(css),
        script_hash=_sha256(script),
    )


def _sha256(text: str) -> str:
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).digest()
    return base64.b64encode(digest).decode()
