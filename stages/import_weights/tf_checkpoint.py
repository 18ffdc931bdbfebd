"""TensorFlow's checkpoint files, read without TensorFlow.

A checkpoint is ``PREFIX.index``, a sorted table of named entries in LevelDB's format, and
``PREFIX.data-00000-of-00001`` (or several), the bytes of the tensors. TF1 calls an entry by its
variable's name. TF2 calls it by a path through Python objects and adds one entry that holds the
graph of these objects, with the variables' names; the ``variables`` folder of a SavedModel is such
a checkpoint too. The formats are those of tensorflow/core/lib/io/format.h, util/tensor_bundle/ and
protobuf/{tensor_bundle,trackable_object_graph,meta_graph,saved_model}.proto.
"""

import glob
import math
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from shared.runtime.errors import UserError
from shared.runtime.files import did_you_mean, read_bytes

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
# Bounds: bytes of a graph, of an index and of an object graph; fields of a file; tensors; letters.
GRAPH_BYTES, MOST_BYTES, MOST_FIELDS, MOST_TENSORS, LONGEST_KEY = 2**28, 2**26, 2**24, 2**16, 4096
UNUSED = 2**20  # bytes of a data file of no tensor, beside as many as all tensors have
FLOAT = 1  # tensorflow/core/framework/types.proto
MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)  # the last bytes of an index


class Entry(NamedTuple):
    """Where one tensor lies: ``size`` bytes at ``offset`` of file number ``shard``."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int


class Node(NamedTuple):
    """One operation of a computation graph and the names of the operations it reads."""

    op: str
    inputs: list[str]


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; its tensors are read one at a time.

    Attributes:
        format: TF1 or TF2 checkpoint, TF1 or TF2 SavedModel.
        prefix: path of its files without ``.index``.
        shards: number of its data files.
        entries: key -> where the tensor lies; the object graph is not among them.
        names: key -> the variable's name; TF1's keys are the names.
        objects: TF2's object graph: for each object its attributes, name -> number of an object.
        graph_file: the file that holds the computation graph, if there is one.
    """

    format: str
    prefix: Path
    shards: int
    entries: dict[str, Entry]
    names: dict[str, str]
    objects: list[dict[str, int]]
    graph_file: Path | None

    def read(self, key: str) -> np.ndarray:
        """One tensor as a new float32 array, in TensorFlow's order of dimensions.

        Raises:
            UserError: where it has another type, or its bytes do not match their checksum.
        """
        entry = self.entries[key]
        if entry.dtype != FLOAT or entry.size != 4 * math.prod(entry.shape):
            raise UserError(f"{key} in {self.prefix} is not a plain float32 tensor")
        data = _bytes(self.prefix, self.shards, entry)
        if checksum(data) != entry.checksum:
            raise UserError(
                f"{key} in {_shard(self.prefix, self.shards, entry.shard)} is damaged (its bytes do"
                " not match their checksum); copy the file again"
            )
        return np.frombuffer(data, "<f4").reshape(entry.shape).copy()


def open_checkpoint(path: Path) -> Checkpoint:
    """Read everything but the tensors, and check that all their bytes are there.

    Args:
        path: the folder of a checkpoint or of a SavedModel, the prefix of a checkpoint
            (``model.ckpt-250228``), or one of its files.

    Raises:
        UserError: where a file is missing, truncated, damaged or not TensorFlow's.
    """
    prefix = _find_prefix(path)
    index = _with_ending(prefix, ".index")
    with _damage_to(index):
        message = Messages()
        table = dict(_table(read_bytes(index, MOST_BYTES)))
        if len(table) > MOST_TENSORS:
            raise ValueError(f"it has more than {MOST_TENSORS:,} tensors")
        header = message(table.pop(""))
        shards = _one(header, 1)
        if _one(header, 2):
            raise ValueError("its numbers are big-endian")
        entries = {key: _entry(message, value) for key, value in table.items()}
    ends: dict[Path, int] = dict.fromkeys(_data_files(prefix), 0)  # of the last tensor in each
    for entry in entries.values():
        shard = _shard(prefix, shards, entry.shard)
        ends[shard] = max(ends.get(shard, 0), entry.offset + entry.size)
    for shard, end in ends.items():
        _check_size(shard, end)

    graph = entries.pop(OBJECT_GRAPH, None)
    names, objects = {key: key for key in entries}, []
    if graph is not None:
        with _damage_to(_shard(prefix, shards, graph.shard)):
            if graph.size > MOST_BYTES:
                raise ValueError(f"its object graph has more than {MOST_BYTES:,} bytes")
            content = _string(_bytes(prefix, shards, graph), graph.checksum)
            graph_names, objects = _object_graph(content)
            names |= {key: name for key, name in graph_names.items() if key in entries}
    saved_model = prefix.parent.parent / "saved_model.pb"
    in_saved_model = prefix.name == "variables" and saved_model.exists()
    graph_file = saved_model if in_saved_model else _with_ending(prefix, ".meta")
    if graph_file.is_file() and graph_file.stat().st_size > GRAPH_BYTES:  # not always read
        raise UserError(
            f"{graph_file} has more than {GRAPH_BYTES:,} bytes, so it is no graph; remove it"
        )
    return Checkpoint(
        format=f"TF{1 if graph is None else 2} {'SavedModel' if in_saved_model else 'checkpoint'}",
        prefix=prefix,
        shards=shards,
        entries=entries,
        names=names,
        objects=objects,
        graph_file=graph_file if graph_file.is_file() else None,
    )


def files_of(path: Path) -> list[Path]:
    """The files that `open_checkpoint` reads of a checkpoint: index, data, computation graph.

    Raises:
        UserError: where there is no checkpoint.
    """
    prefix = _find_prefix(path)
    saved = prefix.name == "variables"
    graph = prefix.parent.parent / "saved_model.pb" if saved else _with_ending(prefix, ".meta")
    files = (_with_ending(prefix, ".index"), *_data_files(prefix), graph)
    return [file for file in files if file.is_file()]


def read_graphs(file: Path) -> Iterator[dict[str, Node]]:
    """The computation graphs of ``saved_model.pb`` or of a ``.meta`` file, name -> operation.

    A graph's functions come as graphs of their own.

    Raises:
        UserError: where the file is damaged.
    """
    with _damage_to(file):
        content, message = read_bytes(file, GRAPH_BYTES), Messages()
        meta_graphs = message(content)[2] if file.name == "saved_model.pb" else [content]
        for meta_graph in map(message, meta_graphs):
            for graph in map(message, meta_graph.get(2, [])):
                yield _nodes(message, graph.get(1, []))
                for library in map(message, graph.get(2, [])):
                    for function in map(message, library.get(1, [])):
                        yield _nodes(message, function.get(3, []))


def checksum(data: bytes) -> int:
    """CRC-32C in the form in which TensorFlow stores it (tensorflow/core/lib/hash/crc32c.h)."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@contextmanager
def _damage_to(file: Path) -> Iterator[None]:
    """Turn an error of the parsers below into one line that names the file."""
    try:
        yield
    except (LookupError, ValueError, OverflowError, OSError, struct.error) as error:
        reason = f"no {error}" if isinstance(error, LookupError) else error
        raise UserError(
            f"{file} is truncated, damaged or not TensorFlow's ({reason}); copy it again"
        ) from error


def _with_ending(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)


def _shard(prefix: Path, shards: int, number: int) -> Path:
    return _with_ending(prefix, f".data-{number:05}-of-{shards:05}")


def _data_files(prefix: Path) -> list[Path]:
    return sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*-of-*"))


def _bytes(prefix: Path, shards: int, entry: Entry) -> bytes:
    with _shard(prefix, shards, entry.shard).open("rb") as file:
        file.seek(entry.offset)
        return file.read(entry.size)


def _find_prefix(path: Path) -> Path:
    if not path.is_dir():
        name = re.sub(r"(?<=.)\.(index|meta|data-[0-9]+-of-[0-9]+)$", "", path.name)
        prefix = path.with_name(name)
        if path.name == "saved_model.pb":
            prefix = path.parent / "variables" / "variables"
        if _with_ending(prefix, ".index").is_file():
            return prefix
        if not path.exists():
            beside = f"(nor {prefix.name}.index beside it)"
            raise UserError(f"no such checkpoint: {path} {beside}{did_you_mean(path)}")
        raise UserError(
            f"{path} is no TensorFlow checkpoint: give a folder, a prefix that has an .index file,"
            " or a SavedModel folder"
        )
    if (path / "saved_model.pb").exists():
        return _find_prefix(path / "saved_model.pb")
    if (path / "checkpoint").is_file():  # which checkpoint of the folder is the latest
        latest = re.search(
            r'^model_checkpoint_path: "(.+)"',
            _text_of(path / "checkpoint"),
            re.MULTILINE,
        )
        # of its own folder: a name such as .. would lead out of it, or round in a circle
        name = latest[1].replace("\\", "/").rpartition("/")[2] if latest else ""
        if name and len(name.encode()) < 200 and not (path / name).is_dir():
            return _find_prefix(path / name)
    indices = sorted(path.glob("*.index"))
    if len(indices) != 1:
        advice = "give the folder of a TensorFlow checkpoint or SavedModel"
        if indices:
            advice = "name one of them: " + ", ".join(index.stem for index in indices[:5])
        raise UserError(f"{path} holds {len(indices)} checkpoints (*.index); {advice}")
    return indices[0].with_suffix("")


def _text_of(file: Path) -> str:
    try:
        return read_bytes(file, 2**20).decode(errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error


def _check_size(file: Path, needed: int) -> None:
    """UserError where a data file has fewer bytes than its tensors, or far more."""
    if not file.is_file():
        raise UserError(f"{file} is missing; the tensors are in it")
    size = file.stat().st_size
    if size < needed:
        raise UserError(f"{file} is truncated: {size:,} of {needed:,} bytes; copy it again")
    if size > 2 * needed + UNUSED:  # its hash would be of them too
        raise UserError(f"{file} has {size:,} bytes, but its tensors {needed:,}; copy it again")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An integer in groups of 7 bits, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError("an integer is longer than 10 bytes")


def _table(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Keys and values of a sorted table: a block of blocks, found from the file's last bytes."""
    footer = data[-48:]
    if len(footer) < 48 or footer[-8:] != MAGIC:
        raise ValueError("its last bytes are not those of an index")
    at = 0
    for _ in range(2):  # skips the position and size of another block, unused here
        _, at = _varint(footer, at)
    left = len(data)
    for _, handle in _block(data, footer[at:]):
        start, end = _place(handle)
        left -= end - start
        if left < 0:
            raise ValueError("its blocks overlap")
        for key, value in _block(data, handle):
            yield key.decode(), value


def _place(handle: bytes) -> tuple[int, int]:
    """Where a block begins and ends."""
    start, at = _varint(handle, 0)
    size, _ = _varint(handle, at)
    return start, start + size


def _block(data: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Entries of the block whose position and size ``handle`` holds."""
    start, end = _place(handle)
    kind, stored_checksum = struct.unpack_from("<BI", data, end)  # after the block
    if checksum(data[start : end + 1]) != stored_checksum:
        raise ValueError("a checksum does not match")
    if kind:
        raise ValueError("it is compressed, which TensorFlow does not do by default")
    (restarts,) = struct.unpack_from("<I", data, end - 4)
    at, end, key = start, end - 4 - 4 * restarts, b""
    while at < end:  # a key is written as what differs from the one before
        shared, at = _varint(data, at)
        rest, at = _varint(data, at)
        length, at = _varint(data, at)
        if shared + rest > LONGEST_KEY:
            raise ValueError(f"a name is longer than {LONGEST_KEY:,} bytes")
        key = key[:shared] + data[at : at + rest]
        at += rest + length
        yield key, data[at - length : at]


class Messages:
    """Reads the protocol buffer messages of one file, up to ``MOST_FIELDS`` fields in all."""

    def __init__(self) -> None:
        self.left = MOST_FIELDS

    def __call__(self, data: bytes) -> dict[int, list[Any]]:
        """A message: field number -> values, integers or bytes; ValueError for a damaged one."""
        if not isinstance(data, bytes):
            raise ValueError("a field is no message")
        fields: dict[int, list[Any]] = {}
        at = 0
        while at < len(data):
            tag, at = _varint(data, at)
            kind = tag & 7
            if kind == 0:
                value, at = _varint(data, at)
            elif kind == 2:
                length, at = _varint(data, at)
                value, at = data[at : at + length], at + length
            elif kind in (1, 5):
                length = 8 if kind == 1 else 4
                value, at = int.from_bytes(data[at : at + length], "little"), at + length
            else:
                raise ValueError(f"wire type {kind}")
            self.left -= 1
            if at > len(data) or tag < 8:
                raise ValueError("a field is cut off, or has the number 0")
            if self.left < 0:
                raise ValueError(f"it has more than {MOST_FIELDS:,} fields")
            fields.setdefault(tag >> 3, []).append(value)
        return fields


def _one(fields: dict[int, list[Any]], field: int) -> int:
    """An integer field; 0 where it is absent."""
    value = fields.get(field, [0])[0]
    if not isinstance(value, int):
        raise ValueError("a field is no integer")
    return value


def _text(fields: dict[int, list[Any]], field: int) -> str:
    return _decoded(fields.get(field, [b""])[0])


def _decoded(value: Any) -> str:
    if not isinstance(value, bytes):
        raise ValueError("a field is no text")
    return value.decode()


def _entry(message: Messages, value: bytes) -> Entry:
    fields = message(value)
    dimensions = message(fields.get(2, [b""])[0]).get(2, [])
    if 7 in fields:
        raise ValueError("a tensor is stored in slices")
    shape = tuple(_one(message(dimension), 1) for dimension in dimensions)
    if any(side >= 2**31 for side in shape) or len(shape) > 8:
        raise ValueError(f"a tensor has the shape {shape[:9]}")
    return Entry(
        dtype=_one(fields, 1),
        shape=shape,
        shard=_one(fields, 3),
        offset=_one(fields, 4),
        size=_one(fields, 5),
        checksum=_one(fields, 6),
    )


def _string(data: bytes, stored_checksum: int) -> bytes:
    """The content of a tensor of one string: its length, a checksum of that, and its bytes."""
    length, start = _varint(data, 0)
    if checksum(struct.pack("<I", length) + data[start:]) != stored_checksum:
        raise ValueError("the checksum of the object graph does not match")
    return data[start + 4 :]


def _object_graph(content: bytes) -> tuple[dict[str, str], list[dict[str, int]]]:
    """Key -> name of the variables, and the attributes of all objects."""
    names, objects, message = {}, [], Messages()
    for node in map(message, message(content).get(1, [])):
        children = map(message, node.get(1, []))
        objects.append({_text(child, 2): _one(child, 1) for child in children})
        for attribute in map(message, node.get(2, [])):
            if name := _text(attribute, 2):
                names[_text(attribute, 3)] = name
    if any(child >= len(objects) for children in objects for child in children.values()):
        raise ValueError("the object graph names an object that it lacks")
    return names, objects


def _nodes(message: Messages, definitions: list[bytes]) -> dict[str, Node]:
    nodes = {}
    for node in map(message, definitions):
        # an input is "node", "node:output", "node:name:output", or "^node", a mere order
        inputs = [_decoded(text).split(":")[0] for text in node.get(3, [])]
        nodes[_text(node, 1)] = Node(_text(node, 2), [i for i in inputs if not i.startswith("^")])
    return nodes
