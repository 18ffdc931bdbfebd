"""What options allow, readers take."""

import json

import pytest

from shared.config import checks
from shared.runtime.artifacts import read_meta
from tests.support.stage_folder import message

META = {"kind": "encoder", "encoder": "x", "image_size": 8, "weights_sha256": "0"}


@pytest.mark.parametrize(
    ("option", "described"),
    [
        ("image_size", lambda most: {"image_size": most}),
        ("head_width", lambda most: {"head": {"layers": 3, "width": most, "out": 1}}),
        ("head_out", lambda most: {"head": {"layers": 3, "width": 1, "out": most}}),
        ("mean", lambda most: {"mean": [0.0, most, -most]}),
        ("std", lambda most: {"std": [1.0, most, 1.0]}),
        ("from_layer", lambda most: {"from_layer": most}),
    ],
)
def test_what_the_options_allow_is_not_damaged_afterwards(tmp_path, option, described):
    """Else a stage trains to its end, and its own result is refused."""
    most = checks.MOST_OF.get(option, checks.MOST)
    for value, sound in ((most, True), (most + 1, False)):
        meta = {**META, **described(value)}
        (tmp_path / "meta.json").write_text(json.dumps(meta))
        if sound:
            read_meta(tmp_path)
        else:
            assert "is damaged" in message(read_meta, tmp_path)
