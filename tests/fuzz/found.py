"""What was no answer once, kept as it was in ``found.json``, whatever the generators make today.

    python -m tests.fuzz.found READER SEED "what it was"    keeps one more

A case names its reader, what the answer was, the files that are not those of `PARTS` (their text,
or their bytes, compressed; or what is changed in the usual file), and what the reader is told.
"""

import base64
import json
import os
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tests.fuzz import readers
from tests.support.irregular import IRREGULAR

FILE = Path(__file__).with_name("found.json")
LONGEST = 2000  # characters of a file that is kept as text


class Parts(NamedTuple):
    """The two halves of a reader, by their names in ``readers.py``.

    Attributes:
        begin: makes the files that are there before the hostile ones; empty where there are none.
        read: reads, told of the folder and of what a case notes.
    """

    begin: str
    read: str


PARTS = {
    "metadata": Parts("begin_metadata", "read_photos"),
    "parquet_file": Parts("begin_parquet", "read_parquet"),
    "meta": Parts("begin_artifact", "read_artifact"),
    "weights": Parts("begin_artifact", "read_artifact"),
    "state": Parts("begin_state", "read_state"),
    "results": Parts("begin_run", "read_results"),
    "metrics": Parts("begin_run", "read_metrics"),
    "assessment": Parts("begin_run", "read_assessed"),
    "cells": Parts("", "read_lines_of_cells"),
    "table_text": Parts("", "write_table"),
    "timm": Parts("", "find_weights"),
    "predictions": Parts("", "go_on_predicting"),
}


def cases() -> list[dict[str, Any]]:
    """All that is kept."""
    return json.loads(FILE.read_text())


def read(case: dict[str, Any], folder: Path) -> None:
    """Make the files of a case in an empty folder, and read them."""
    parts = PARTS[case["reader"]]
    _begin(parts, folder)
    for name, content in case["files"].items():
        _write(folder / name, content)
    getattr(readers, parts.read)(folder, *case["told"])


def _begin(parts: Parts, folder: Path) -> None:
    if parts.begin:
        getattr(readers, parts.begin)(folder)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_bytes(content.encode())
    elif "zlib" in content:
        path.write_bytes(zlib.decompress(base64.b64decode(content["zlib"])))
    elif "changed" in content:
        usual = bytearray(path.read_bytes())
        for at, part in content["changed"]:
            usual[at : at + len(part) // 2] = bytes.fromhex(part)
        path.write_bytes(usual)
    else:
        path.unlink(missing_ok=True)
        IRREGULAR[content["irregular"]](path)


def _kept(path: Path, usual: bytes | None) -> Any:
    """A file as a case notes it; None for the usual one."""
    kinds = {"loop": path.is_symlink(), "pipe": path.is_fifo(), "folder": path.is_dir()}
    for kind, is_so in kinds.items():
        if is_so:
            return {"irregular": kind}
    content = path.read_bytes()
    if content == usual:
        return None
    with suppress(UnicodeDecodeError):
        if len(content) <= LONGEST:
            return content.decode()
    if usual is not None and len(usual) == len(content):
        at = [i for i, (a, b) in enumerate(zip(usual, content, strict=True)) if a != b]
        return {"changed": [[i, content[i : i + 1].hex()] for i in at]}
    return {"zlib": base64.b64encode(zlib.compress(content, 9)).decode()}


def keep(reader: str, seed: str, was: str) -> dict[str, Any]:
    """The case that a reader makes of a seed now.

    Raises:
        ValueError: the reader does not read it by its second half.
    """
    parts, told = PARTS[reader], list[Any]()

    def note(folder: Path, *arguments: Any) -> None:
        told.append(arguments)

    before = Path.cwd()
    really: Callable[..., None] = getattr(readers, parts.read)
    with TemporaryDirectory() as place:
        usual, folder = Path(place) / "usual/in", Path(place) / "case/in"
        usual.mkdir(parents=True)
        folder.mkdir(parents=True)
        try:
            _begin(parts, usual)
            os.chdir(folder)
            setattr(readers, parts.read, note)
            readers.READERS[reader](Random(f"{reader} {seed}"), folder)
        finally:
            setattr(readers, parts.read, really)
            os.chdir(before)
        if not told:
            raise ValueError(f"{reader} {seed} was read in another way")
        files = {}
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            there = usual / name
            if (there.is_dir() and path.is_dir()) or there.is_fifo() or name.endswith(".lock"):
                continue
            if path.is_dir() and not there.exists() and any(path.iterdir()):
                continue
            whole = there.read_bytes() if there.is_file() else None
            if (content := _kept(path, whole)) is not None:
                files[name] = content
    return {"reader": reader, "was": was, "told": [*told[0]], "files": files}


def main() -> None:
    """Add a case."""
    reader, seed, was = sys.argv[1:]
    lines = [*cases(), keep(reader, seed, was)]
    FILE.write_text("[\n" + ",\n".join(map(json.dumps, lines)) + "\n]\n")


if __name__ == "__main__":
    main()
