"""Files of tensors and of arrays, their hashes, and what is asked of tensors that were read.

A file is written beside its name and moved into place. It is read with safetensors or numpy without
pickle: nothing loaded is ever executed.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast
from zipfile import ZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shared.runtime.errors import UserError
from shared.runtime.files import open_regular, temporary_folder, write_atomically

# Bounds in bytes: the arrays of a file; the header of a safetensors file.
ARRAYS, HEADER = 2**32, 2**24


def save_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """Save named tensors and text notes in one safetensors file, atomically.

    Raises:
        CannotWriteError: the disk is full or not writable.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(file: BinaryIO) -> None:
        # safetensors writes under a name of its own first, which `clean` does not know
        with temporary_folder(path.parent) as folder:
            try:
                save_file(plain, folder / path.name, dict(notes))
            except SafetensorError as error:  # so it says that the disk is full, too
                raise OSError(str(error)) from error
            (folder / path.name).replace(file.name)

    write_atomically(path, write)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Save named arrays in one compressed .npz file, atomically.

    Raises:
        CannotWriteError: the disk is full or not writable.
    """
    write_atomically(path, lambda file: np.savez_compressed(file, **cast(Any, arrays)))


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what ``save_arrays`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, no regular file, or its arrays take more than ``ARRAYS`` bytes.
    """
    try:
        with open_regular(path) as file:
            with ZipFile(file) as members:
                if sum(member.file_size for member in members.infolist()) > ARRAYS:
                    raise ValueError(f"its arrays take more than {ARRAYS:,} bytes")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
    except FileNotFoundError:
        raise
    except Exception as error:  # of many kinds, by what is damaged
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error


class UnreadableError(UserError):
    """A file of tensors cannot be read; the message goes on after its name."""


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what ``save_tensors`` wrote.

    Raises:
        UnreadableError: it is missing, truncated or no safetensors file.
    """
    try:
        with open_regular(path), safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except FileNotFoundError as error:
        raise UnreadableError("does not exist") from error
    except Exception as error:  # of many kinds, by what is damaged
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableError(f"is truncated or not a safetensors file ({reason})") from error


def sha256(path: Path) -> str:
    """Hash of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    """Hash of named tensors on CPU and text notes, 64 hexadecimal digits."""
    parts = hashlib.sha256(json.dumps(notes, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        parts.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        parts.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return parts.hexdigest()


class MisfitError(UserError):
    """Tensors are not those of the network that they should be of."""


def require_size(file: Path, expected: Mapping[str, Tensor]) -> None:
    """MisfitError where a file is larger than these tensors and a header, before it is read."""
    most = sum(value.nbytes for value in expected.values()) + HEADER
    if file.is_file() and (size := file.stat().st_size) > most:
        raise MisfitError(f"it has {size:,} bytes, at most {most:,} are needed")


def require_fitting(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """MisfitError where names, shapes or dtypes are others than those of a network."""
    for name in sorted(expected.keys() - tensors.keys()):
        raise MisfitError(f"{name} is missing")
    for name in sorted(tensors.keys() - expected.keys()):
        raise MisfitError(f"{name[:100]!r} is not the network's")
    for name, value in expected.items():
        there, wanted = (f"{tuple(x.shape)} {x.dtype}" for x in (tensors[name], value))
        if there != wanted:
            raise MisfitError(f"{name} is {there}, needed is {wanted}")


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """MisfitError where a tensor of floating-point numbers has one that is not finite."""
    for name, value in tensors.items():
        if not is_finite(value):
            raise MisfitError(f"{name[:100]!r} has numbers that are not finite")


def is_finite(value: Tensor) -> bool:
    """Whether all numbers of a tensor of any dtype are."""
    if not value.is_floating_point():
        return True
    wide = value.float() if value.itemsize == 1 else value  # torch asks no number of 8 bits
    return bool(wide.isfinite().all())
