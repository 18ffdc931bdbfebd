"""What `stages.predict` is asked for."""

from pathlib import Path

from shared.data.images import USUAL
from stages.predict.arguments import parser


def test_files_and_defaults():
    asked = parser().parse_args(["runs/a", "b.jpg", "c"])
    assert (asked.artifact, asked.images) == (Path("runs/a"), [Path("b.jpg"), Path("c")])
    assert asked.features is None
    assert asked.max_pixels == USUAL.max_pixels
    assert parser().parse_args(["runs/a", "b.jpg", "--features"]).features == 0
