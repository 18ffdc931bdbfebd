"""Artifacts with random weights, as the stages leave them, and ``stages.export`` as a command."""

from dataclasses import replace
from pathlib import Path

import torch

from shared.config.command_line import override
from shared.config.schema import Config, dump
from shared.config.sections import Data, Model
from shared.networks.build import build_classifier, build_contrastive, network_meta
from shared.runtime.stage_folder import StageFolder
from stages.export import export
from tests.support.photos import process

DIGITS = [str(digit) for digit in range(10)]
SMALL = Model(encoder="simclr_resnet8_1x_sk0", head_layers=2, head_width=8, head_out=8)


def artifact(
    path: Path,
    classes: list[str] | None = None,
    data: Data | None = None,
    model: Model = SMALL,
    from_layer: int = 0,
    **meta: object,
) -> Path:
    """A classifier where there are classes, else an encoder with its head."""
    data = data or Data(image_size=8, workers=0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    config = override(replace(Config(), data=data, model=model), {})
    folder = StageFolder(path, {"stage": "distill"}, force=False, accelerator=process())
    folder.start(dump(config))
    description = network_meta(model, data)
    torch.manual_seed(0)
    if classes is None:
        network, kind = build_contrastive(description), {"kind": "encoder"}
    else:
        kind = {"kind": "classifier", "classes": classes, "from_layer": from_layer}
        network = build_classifier({**description, **kind})
        torch.nn.init.normal_(network.linear.weight)
    for name, values in network.state_dict().items():  # else a new block is its shortcut
        if name.endswith(("norm.weight", "running_var")):
            values.uniform_(0.5, 1.5)
    folder.finish(network, {**description, **kind, "stage": "distill", **meta})
    return path


def run(*arguments: object) -> int:
    return export.main([*map(str, arguments)])


def refused(capfd, *arguments: object) -> str:
    """The one line that the command ends with."""
    capfd.readouterr()
    code = run(*arguments)
    out, err = capfd.readouterr()
    assert code == 2, err
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err
