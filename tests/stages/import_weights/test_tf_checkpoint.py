"""TensorFlow's checkpoint files: which path names one, checksums, tensors."""

import os
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.runtime.errors import UserError
from stages.import_weights import tf_checkpoint
from stages.import_weights.recognise import trace_linear_input
from stages.import_weights.tf_checkpoint import (
    OBJECT_GRAPH,
    Entry,
    Node,
    checksum,
    open_checkpoint,
    read_graphs,
)
from tests.support.tensorflow_files import (
    SAVED,
    TF1,
    TF2,
    message,
    varint,
    write_index,
    write_tensors,
)


def test_every_way_to_name_a_checkpoint(golden_checkpoints):
    prefix = golden_checkpoints / TF1 / "model.ckpt-1000"
    for path in (prefix.parent, prefix, f"{prefix}.index", f"{prefix}.data-00000-of-00001"):
        assert open_checkpoint(Path(path)).prefix == prefix
    saved = golden_checkpoints / SAVED
    for path in (saved, saved / "saved_model.pb", saved / "variables"):
        assert open_checkpoint(path).format == "TF2 SavedModel"
    assert open_checkpoint(golden_checkpoints / TF2).format == "TF2 checkpoint"


def test_a_tensor_is_what_was_written_and_may_be_changed(tmp_path):
    scalar, matrix = np.float32(3).reshape(()), np.arange(6, dtype=np.float32).reshape(2, 3)
    prefix = write_tensors(tmp_path / "ckpt", [("a/scalar", scalar), ("a/matrix", matrix)])
    checkpoint = open_checkpoint(prefix)
    for key, expected in (("a/scalar", scalar), ("a/matrix", matrix)):
        tensor = checkpoint.read(key)
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, expected)
        tensor += 1
        np.testing.assert_array_equal(checkpoint.read(key), expected)


def slow_crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@given(st.binary(max_size=100))
def test_checksum(data):
    assert checksum(data) == masked(slow_crc32c(data))


def test_checksum_of_a_large_tensor():
    assert google_crc32c.value(b"123456789") == 0xE3069283  # RFC 3720, B.4
    assert checksum(b"123456789") == masked(0xE3069283)
    data = bytearray((1 << 20) + 5)
    data[0], data[3], data[-1] = 1, 2, 3
    whole = checksum(bytes(data))
    assert whole == masked(slow_crc32c(bytes(data)))
    data[3] ^= 128
    assert checksum(bytes(data)) != whole


# ------------------------------------------------------------------------------- hostile files
TERABYTE = 2**40  # of a sparse file: it takes no room, and hours to hash


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("ckpt.data-00000-of-00001", "bytes, but its tensors 24; copy it again"),
        ("ckpt.data-00001-of-00002", "bytes, but its tensors 0; copy it again"),
        ("ckpt.meta", "bytes, so it is no graph"),
        ("ckpt.index", "it is larger than"),
    ],
)
def test_a_sparse_terabyte_is_not_read_to_its_end(file, says, tmp_path):
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    prefix = write_tensors(tmp_path / "ckpt", [("a/matrix", matrix)])
    with (tmp_path / file).open("ab") as lengthened:
        lengthened.truncate(TERABYTE)
    with pytest.raises(UserError, match=says):
        open_checkpoint(prefix)


def test_a_data_file_may_be_padded_or_empty(tmp_path):
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    prefix = write_tensors(tmp_path / "ckpt", [("a/matrix", matrix)])
    with (tmp_path / "ckpt.data-00000-of-00001").open("ab") as padded:
        padded.write(bytes(4096))
    (tmp_path / "ckpt.data-00001-of-00002").touch()
    np.testing.assert_array_equal(open_checkpoint(prefix).read("a/matrix"), matrix)


def with_rows(folder: Path, rows: list[tuple[bytes, bytes]], handles: int = 1) -> Path:
    """An index of one block of rows, which is named several times."""
    content = b""
    for key, value in rows:  # none shares its begin with the one before
        content += varint(0) + varint(len(key)) + varint(len(value)) + key + value

    def block(content: bytes) -> bytes:
        content += struct.pack("<2I", 0, 1)
        return content + b"\0" + struct.pack("<I", checksum(content + b"\0"))

    out = block(content)
    handle = varint(0) + varint(len(out) - 5)
    blocks = b"".join(
        varint(0) + varint(1) + varint(len(handle)) + b"k" + handle for _ in range(handles)
    )
    footer = varint(0) + varint(0) + varint(len(out)) + varint(len(block(blocks)) - 5)
    magic = struct.pack("<Q", 0xDB4775248B80FB57)
    (folder / "c.index").write_bytes(out + block(blocks) + footer.ljust(40, b"\0") + magic)
    return folder / "c"


ONE = varint(1 << 3) + varint(1)


@pytest.mark.parametrize(
    ("rows", "handles", "says"),
    [
        ([(b"", ONE)], 500, "its blocks overlap"),
        ([(b"", b"\x08" + b"\xff" * 9000)], 1, "longer than 10 bytes"),
        ([(b"", ONE), (b"k" * 5000, ONE)], 1, "a name is longer than 4,096 bytes"),
        ([(b"", message((1, b"x")))], 1, "a field is no integer"),
        ([(b"", ONE), (b"k", message((2, 5)))], 1, "a field is no message"),
        ([(b"", ONE), (b"k", message((2, message((2, message((1, 2**40)))))))], 1, "has the shape"),
        ([(b"k", ONE)], 1, "no ''"),
    ],
)
def test_a_hostile_index_is_refused_at_once(rows, handles, says, tmp_path):
    with pytest.raises(UserError, match="truncated, damaged or not TensorFlow's") as caught:
        open_checkpoint(with_rows(tmp_path, rows, handles))
    assert says in str(caught.value)


@pytest.mark.parametrize("latest", [".", "..", "", "../elsewhere/..", "/"])
def test_a_checkpoint_does_not_lead_out_of_its_folder(latest, tmp_path):
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{latest}"\n')
    with pytest.raises(UserError, match="holds 0 checkpoints"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("objects", [5, 2**40, 2**64 - 1])
def test_an_object_graph_that_names_objects_it_lacks(objects, tmp_path):
    graph = message((1, message((1, message((1, objects), (2, "shortcut_layers"))))))
    prefix = write_tensors(tmp_path / "c", [("a", np.ones(1, np.float32))], graph)
    with pytest.raises(UserError, match="names an object that it lacks"):
        open_checkpoint(prefix)


def test_an_object_graph_of_a_sparse_terabyte_is_not_read(tmp_path):
    """Its entry says that it is so large, and the file is as large as that."""
    prefix = write_tensors(tmp_path / "c", [("a", np.ones(1, np.float32))])
    os.truncate(tmp_path / "c.data-00000-of-00001", TERABYTE)
    write_index(prefix, {OBJECT_GRAPH: Entry(7, (), 0, 0, TERABYTE, 0)})
    with pytest.raises(UserError, match="its object graph has more than 67,108,864 bytes"):
        open_checkpoint(prefix)


def test_an_index_of_too_many_tensors_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tf_checkpoint, "MOST_TENSORS", 3)
    one = np.ones(1, np.float32)
    assert open_checkpoint(write_tensors(tmp_path / "few", [("a", one), ("b", one)])).entries
    prefix = write_tensors(tmp_path / "many", [(name, one) for name in "abc"])
    with pytest.raises(UserError, match="it has more than 3 tensors"):
        open_checkpoint(prefix)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (message((2, message((1, message((1, "a"), (2, "Add"))), (1, b"")))), ""),
        (message((2, message(*((1, b"") for _ in range(9))))), "it has more than 9 fields"),
        (message((2, bytes(8))), "a field is cut off, or has the number 0"),
        (bytes(2**20), "a field is cut off, or has the number 0"),
    ],
)
def test_a_graph_is_read_within_bounds(content, says, tmp_path, monkeypatch):
    """In all its messages together; a field of a byte or two takes a hundred in memory."""
    monkeypatch.setattr(tf_checkpoint, "MOST_FIELDS", 9)
    (tmp_path / "c.meta").write_bytes(content)
    if not says:
        assert [*read_graphs(tmp_path / "c.meta")] == [{"a": Node("Add", []), "": Node("", [])}]
        return
    with pytest.raises(UserError, match=says):
        list(read_graphs(tmp_path / "c.meta"))


def nodes(**of: tuple[str, list[str]]) -> dict[str, Node]:
    linear = "head_supervised/linear_layer/dense/MatMul"
    named = {"linear": linear, "head": "head_contrastive/nl_0/dense/MatMul"}
    full = lambda name: named.get(name, name)  # noqa: E731
    return {full(n): Node(op, [full(i) for i in inputs]) for n, (op, inputs) in of.items()}


@pytest.mark.parametrize(
    "graph",
    [
        nodes(linear=("MatMul", [])),
        nodes(linear=("MatMul", ["a"]), a=("Identity", ["a"])),
        nodes(linear=("MatMul", ["a"]), a=("Identity", ["b"]), b=("StopGradient", ["a"])),
        nodes(linear=("MatMul", ["a"]), a=("Identity", [])),
        nodes(linear=("MatMul", ["linear"])),
    ],
)
def test_a_graph_in_a_circle_or_without_inputs_is_followed_to_its_end(graph):
    answer = trace_linear_input([graph], "so")
    assert answer is not None
    assert answer.layer == 0
