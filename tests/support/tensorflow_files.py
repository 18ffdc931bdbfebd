"""A writer of TensorFlow's checkpoint formats, as small as the tests need it."""

import struct
from pathlib import Path

import numpy as np

from stages.import_weights.tf_checkpoint import OBJECT_GRAPH, Entry, checksum, open_checkpoint

TF1, TF2, SAVED = "tf1_r18_cifar_ft1", "tf2_r18_cifar", "tf2_r18_cifar_saved_model"  # recorded ones


def varint(number: int) -> bytes:
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def message(*fields: tuple[int, int | bytes | str]) -> bytes:
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(content)) + content
    return out


def write_index(prefix: Path, entries: dict[str, Entry], shards: int = 1, block: int = 1000):
    rows = [(b"", message((1, shards)))]
    for key, entry in sorted(entries.items()):
        shape = message(*((2, message((1, side))) for side in entry.shape))
        fields = [(1, entry.dtype), (2, shape), (3, entry.shard), (4, entry.offset)]
        value = message(*fields, (5, entry.size)) + varint(6 << 3 | 5)
        rows.append((key.encode(), value + struct.pack("<I", entry.checksum)))
    out, handles, first = b"", [], 0

    def add_block(rows) -> bytes:
        nonlocal out
        content, restarts, before = b"", [], b""
        for i, (key, value) in enumerate(rows):
            shared = 0
            while i % 16 and before[: shared + 1] == key[: shared + 1] and shared < len(before):
                shared += 1
            if i % 16 == 0:
                restarts.append(len(content))
            content += varint(shared) + varint(len(key) - shared) + varint(len(value))
            content += key[shared:] + value
            before = key
        content += struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))
        handle = varint(len(out)) + varint(len(content))
        out += content + b"\0" + struct.pack("<I", checksum(content + b"\0"))
        return handle

    while first < len(rows):
        block_rows = rows[first : first + block]
        handles.append((block_rows[-1][0], add_block(block_rows)))
        first += block
    footer = varint(0) + varint(0) + add_block(handles)
    magic = struct.pack("<Q", 0xDB4775248B80FB57)
    prefix.with_name(prefix.name + ".index").write_bytes(out + footer.ljust(40, b"\0") + magic)


def write_tensors(prefix: Path, tensors, graph: bytes | None = None) -> Path:
    """A checkpoint of (key, array) pairs, which may be made one at a time."""
    entries, offset = {}, 0
    with prefix.with_name(prefix.name + ".data-00000-of-00001").open("wb") as file:
        for key, array in tensors:
            data = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
            file.write(data)
            entries[key] = Entry(1, array.shape, 0, offset, data.size, checksum(data.tobytes()))
            offset += data.size
        if graph is not None:
            content, entries[OBJECT_GRAPH] = string_tensor(graph, 0, offset)
            file.write(content)
    write_index(prefix, entries)
    return prefix


def string_tensor(text: bytes, shard: int, offset: int) -> tuple[bytes, Entry]:
    length = struct.pack("<I", len(text))
    summed = struct.pack("<I", checksum(length)) + text
    content = varint(len(text)) + summed
    return content, Entry(7, (), shard, offset, len(content), checksum(length + summed))


def object_graph(names: dict[str, str], shortcut_layers: int = 2) -> bytes:
    """Key -> variable name, in objects without structure but for one list of shortcut layers."""
    variables = [
        message((2, message((1, "VARIABLE_VALUE"), (2, name), (3, key))))
        for key, name in names.items()
    ]
    layers = [message((1, message((1, 0), (2, str(i))))) for i in range(shortcut_layers)]
    block = message((1, message((1, 1), (2, "shortcut_layers"))))
    return message(*((1, node) for node in [block, b"".join(layers), *variables]))


def rewrite(folder: Path, source: Path, entries: dict[str, Entry], names=None) -> Path:
    """A checkpoint with other entries and (TF2) names but the data of ``source``."""
    original, prefix = open_checkpoint(source), folder / "ckpt"
    if names is None and original.objects:
        names = {key: original.names[key] for key in entries}
    shards = 1 if names is None else 2
    data = original.prefix.with_name(original.prefix.name + ".data-00000-of-00001")
    (folder / f"ckpt.data-00000-of-0000{shards}").symlink_to(data)
    entries = dict(entries)
    if names is not None:
        content, entries[OBJECT_GRAPH] = string_tensor(object_graph(names), 1, 0)
        (folder / "ckpt.data-00001-of-00002").write_bytes(content)
    write_index(prefix, entries, shards)
    return prefix
