"""Predictions for files are those of the evaluation."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from shared.config.labelset import LabelSet
from shared.config.schema import Data
from shared.data.sources import open_data
from shared.networks.build import build_classifier
from shared.runtime.artifacts import StageFolder
from shared.training.evaluate import predict as evaluate
from stages.predict import main, predict
from tests.support.photos import class_folders, process


@pytest.mark.parametrize("antialias", [False, True, None], ids=["no", "yes", "earlier version"])
@pytest.mark.parametrize("loading", ["memory", "workers"])
def test_as_in_the_evaluation(loading, antialias, tmp_path, capsys):
    root = class_folders(tmp_path / "photos", 4, size=(500, 400))
    data = Data(
        train=str(root),
        image_size=36,
        antialias=bool(antialias),
        loading=loading,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
        workers=0,
        test_fraction=0.4,
    )
    train, test = open_data(data, LabelSet.parse("1pct"))
    description = {
        "encoder": "simclr_resnet8_1x_sk0",
        "image_size": 36,
        "from_layer": 0,
        "head": {"layers": 1, "width": None, "out": 8},
        "mean": list(data.mean),
        "std": list(data.std),
        "classes": list(train.classes),
    } | ({} if antialias is None else {"antialias": antialias})
    torch.manual_seed(0)
    model = build_classifier(description)
    torch.nn.init.normal_(model.linear.weight)
    folder = StageFolder(
        tmp_path / "run/distill", {"stage": "distill"}, force=False, accelerator=process()
    )
    folder.start("")
    folder.finish(model, {"kind": "classifier", **description})

    _, logits, _ = evaluate(model, test, data, Accelerator(cpu=True))
    files = [root / name for name in test.names]
    predictions = list(predict(folder.path, files))
    assert [file for file, _, _ in predictions] == files
    assert [label for _, label, _ in predictions] == [train.classes[i] for i in logits.argmax(1)]
    expected = logits.softmax(1).amax(1).numpy()
    # without antialias not through uint8 again as in a worker; with it through the same kernel
    exact = antialias and loading == "workers"
    atol = 1e-5 if exact else 0.02
    np.testing.assert_allclose([p for _, _, p in predictions], expected, atol=atol)

    assert main([str(folder.path), *map(str, files)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "file,label,probability"
    assert len(lines) == 1 + len(files)

    (root / "broken.jpg").write_bytes(b"no image")
    assert main([str(folder.path), str(files[0]), str(root / "broken.jpg")]) == 2
    out, err = capsys.readouterr()
    assert "cannot read" in err
    assert out == ""  # no half table
    assert main([str(tmp_path), "x.jpg"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: the following arguments are required: runs/NAME/STAGE, IMAGE"),
        (["a"], "error: the following arguments are required: IMAGE"),
    ],
)
def test_bad_call(arguments, message, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"{message} (see --help)\n"


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(
        "usage: python -m stages.predict [-h] [--load_truncated]"
    )
