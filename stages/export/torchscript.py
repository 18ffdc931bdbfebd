"""TorchScript: one file for ``torch.jit.load``, in Python or C++, without this code."""

import warnings
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import torch

from shared.runtime.errors import UserError
from stages.export.images import Function
from stages.export.network import Source

LONGEST = 2**20  # bytes of what a file says of its source


def write(source: Source, path: Path) -> None:
    """Write the traced network; the notes are extra files in it, one for each key.

    torch calls TorchScript deprecated, but still reads and writes it.

    Raises:
        UserError: the network cannot be traced.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the deprecation, and guesses that the check answers
        try:
            traced = torch.jit.trace(source.network, source.example)
        except Exception as error:  # each network that cannot be traced fails in its own way
            raise UserError(
                f"encoder {source.meta['encoder']} cannot be written as TorchScript:"
                f" {' '.join(str(error).split())[:200]}; choose --to onnx"
            ) from error
        content = BytesIO()  # torch's own writer ends the process where the disk is full
        torch.jit.save(traced, content, _extra_files=source.notes())
        path.write_bytes(content.getbuffer())


def load(path: Path) -> Function:
    """The file as a function."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.load(path)


def notes(path: Path) -> dict[str, str] | None:
    """What an exported file says of its source; None where it is no file of an export."""
    try:
        with ZipFile(path) as file:
            name = next(n for n in file.namelist() if n.split("/")[1:] == ["extra", "source"])
            with file.open(name) as source:
                text = source.read(LONGEST + 1)
        return {"source": text.decode()} if len(text) <= LONGEST else None
    except Exception:  # encrypted, cut off, damaged, or no archive: each fails in its own way
        return None
