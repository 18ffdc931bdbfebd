"""TorchScript: one file for ``torch.jit.load``, in Python or C++, without this code."""

import warnings
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import torch

from shared.runtime.errors import UserError
from stages.export.images import Function
from stages.export.network import Source


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
    """What an exported file says of itself; None where it is no file of an export."""
    try:
        with ZipFile(path) as file:
            extra = [name for name in file.namelist() if name.split("/")[1:2] == ["extra"]]
            notes_ = {name.split("/")[-1]: file.read(name).decode() for name in extra}
    except (OSError, BadZipFile, ValueError):
        return None
    return notes_ if "source" in notes_ else None
