"""A run at toy size that ``stages.assess`` measures."""

import json

from shared.config.schema import RECIPES
from stages.assess import assess

STAGES = ("pretrain", "finetune", "supervised", "linear", "distill")
TINY = [
    f"--config={RECIPES / 'digits.yaml'}",
    "--run=r",
    "--precision=no",
    "--threads=1",
    "--data.image_size=8",
    "--data.workers=0",
    "--model.encoder=simclr_resnet8_1x_sk0",
    "--model.head_width=8",
    "--model.head_out=8",
    "--model.head_layers=2",
    "--distill.student=simclr_resnet8_1x_sk0",
    *(
        f"--{stage}.{option}"
        for stage in STAGES
        for option in ("steps=2", "batch_size=8", "warmup_epochs=0")
    ),
    "--labels=3perclass",
]


def call(output, photos, *options) -> int:
    return assess.main([*TINY, f"--data.train={photos}", f"--output={output}", *options])


def folder(output):
    return output / "r/assess-3perclass-seed0"


def read(output) -> dict:
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads((folder(output) / "assess.json").read_text(), parse_constant=refuse)


def refused(capfd, *arguments) -> str:
    capfd.readouterr()
    assert call(*arguments) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err
