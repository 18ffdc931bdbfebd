"""TensorFlow's checkpoint files: which path names one, checksums, tensors."""

from pathlib import Path

import google_crc32c
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.import_weights.tf_checkpoint import checksum, open_checkpoint
from tests.support.tensorflow_files import SAVED, TF1, TF2, write_tensors


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
