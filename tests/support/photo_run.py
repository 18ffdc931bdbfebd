"""A run at toy size on a folder of tiny photos, and commands that are refused."""

import hashlib
from pathlib import Path

from shared.config.schema import RECIPES
from shared.data.sources import OPENED

STEPS = ("pretrain", "finetune", "linear", "supervised", "distill")


TINY = [
    f"--config={RECIPES / 'digits.yaml'}",  # as its settings are, not fitted to the photos
    "--run=r",
    "--precision=no",
    "--threads=1",
    "--data.image_size=8",
    "--data.workers=0",
    "--model.encoder=simclr_resnet8_1x_sk0",
    "--model.head_width=8",
    "--model.head_out=8",
    *(
        f"--{stage}.{option}"
        for stage in STEPS
        for option in ("steps=2", "batch_size=8", "warmup_epochs=0", "log_every_steps=1")
    ),
    "--labels=2perclass",
]


def run(main, *arguments: object) -> int:
    """The exit code."""
    OPENED.clear()
    try:
        return main([*TINY, *map(str, arguments)])
    except SystemExit as stopped:  # what the parser raises
        return int(str(stopped.code))


def refused(capfd, main, *arguments: object) -> str:
    """The one line that the command ends with."""
    capfd.readouterr()
    code = run(main, *arguments)
    err = capfd.readouterr().err
    assert code == 2, err
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err


def files(path: Path) -> dict[str, str]:
    """Every file below, with its hash."""
    return {
        str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in path.rglob("*")
        if f.is_file()
    }
