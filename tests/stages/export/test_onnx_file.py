"""onnxruntime alone serves an ONNX file, as README shows, with the labels of stages.predict."""

import json
import os
import re
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.config.sections import Data
from shared.data.image_ops import center_crop
from shared.data.images import decode_image
from shared.runtime.errors import UserError
from stages.export import onnx_file
from stages.export.export import _without_another_int8
from stages.export.network import Deployed, load
from stages.predict import predict
from tests.support.exported import artifact, refused, run
from tests.support.photos import class_folders, make_folder

ROOT = Path(__file__).parents[3]
CLASSES = ['a "b"', r"c\nd", "é<script>"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An artifact with odd names of classes, its ONNX files beside it, and what was printed."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    root = tmp_path_factory.mktemp("onnx")
    photos = class_folders(root / "photos", 20, classes=CLASSES)
    data = Data(train=str(photos), image_size=8, workers=0, mean=(0.5, 0.4, 0.3))
    path = artifact(root / "r/s", sorted(CLASSES), data=data)
    with redirect_stdout(StringIO()) as printed:
        assert run(path, "--to", "onnx", "--int8") == 0
    return path, printed.getvalue()


def readme_example() -> str:
    """The code in README that serves an ONNX file."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "onnxruntime" in block]
    return code


def serve(monkeypatch, folder: Path, files: list[Path]) -> list[tuple]:
    """What the example prints."""
    rows = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["serve.py", *map(str, files)])
    exec(readme_example(), {"print": lambda *row: rows.append(row)})
    return rows


def test_what_is_printed(exported):
    path, printed = exported
    assert f"{path}/model.onnx: " in printed
    # 12 test images are few
    assert "on 48 training images, the same class on all" in printed
    assert "README.md, Out of the house" in printed
    assert re.search(r"int8: .* of 12 test images; top-1 [\d.]+%, float [\d.]+%", printed)
    assert f"{path}/model.int8.onnx: " in printed


def test_the_example_gives_the_labels_of_predict(exported, tmp_path, monkeypatch):
    path, _ = exported
    assert not re.search(r"\b(torch|timm|shared|stages)\b", readme_example())
    (tmp_path / "student.onnx").write_bytes((path / "model.onnx").read_bytes())
    names = [f"{i}.png" for i in range(40)]
    folder = make_folder(tmp_path / "new", names, size=(8, 8))
    files = [folder / name for name in names]
    rows = serve(monkeypatch, tmp_path, files)
    expected = list(predict(path, files))
    assert [label for *_, label in rows] == [label for _, label, _ in expected]
    assert len({label for *_, label in rows}) > 1
    np.testing.assert_allclose([p for _, p, _ in rows], [p for *_, p in expected], atol=1e-5)


def test_the_example_reads_transparency_palettes_and_16_bits_as_predict(
    exported, tmp_path, monkeypatch
):
    path, _ = exported
    (tmp_path / "student.onnx").write_bytes((path / "model.onnx").read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    color, files = Image.fromarray(noise), []
    grey = Image.fromarray(noise[..., 0].astype(np.uint16) * 200)
    palette = color.convert("RGB").quantize(16)
    palette.info["transparency"] = 3
    of_kind = {"rgba": color, "la": color.convert("LA"), "grey16": grey, "palette": palette}
    for name, image in {**of_kind, "grey": color.convert("L")}.items():
        image.save(tmp_path / f"{name}.png")
        files.append(tmp_path / f"{name}.png")
    rows = serve(monkeypatch, tmp_path, files)
    expected = [p for *_, p in predict(path, files)]
    np.testing.assert_allclose([p for _, p, _ in rows], expected, atol=1e-5)


def test_the_metadata(exported):
    onnx = pytest.importorskip("onnx")
    path, _ = exported
    for name in ("model.onnx", "model.int8.onnx"):
        model = onnx.load(path / name)
        notes = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
        assert notes["classes"] == sorted(CLASSES)
        assert notes["source"]["weights_sha256"] == load(path).meta["weights_sha256"]
        batch, *shape = model.graph.input[0].type.tensor_type.shape.dim
        assert batch.dim_param
        assert [d.dim_value for d in shape] == [3, 8, 8]
        content = (path / name).read_bytes()
        assert b".py" not in content  # lines of code, and paths of this machine
        assert str(ROOT).encode() not in content
    assert (path / "model.int8.onnx").stat().st_size < (path / "model.onnx").stat().st_size / 2


def test_small_weights_of_another_export_do_not_stay_beside(exported, tmp_path):
    path, _ = exported
    out, small = tmp_path / "m.onnx", tmp_path / "m.int8.onnx"
    small.write_bytes((path / "model.int8.onnx").read_bytes())
    assert _without_another_int8(load(path), out) == []
    assert small.exists()
    (line,) = _without_another_int8(load(path, 0), out)  # the features of the same network
    assert f"{small} is removed" in line
    assert not small.exists()
    small.write_bytes(b"of somebody")
    assert _without_another_int8(load(path, 0), out) == []
    assert small.exists()


def test_an_operator_that_onnx_lacks(tmp_path, capfd, monkeypatch):
    pytest.importorskip("onnxscript")
    path = artifact(tmp_path / "r/s", ["a", "b"])
    monkeypatch.setattr(
        Deployed, "forward", lambda self, images: torch.special.bessel_j1(images).mean((2, 3))
    )
    err = refused(capfd, path, "--to", "onnx")
    assert "cannot be written as ONNX" in err
    assert "bessel_j1" in err
    assert "choose --to torchscript" in err
    assert not (path / "model.onnx").exists()


@pytest.mark.parametrize("missing", [("onnx",), ("onnxruntime",), onnx_file.PACKAGES])
def test_without_the_extra(tmp_path, capfd, monkeypatch, missing):
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None if name in missing else "there")
    path = artifact(tmp_path / "r/s", ["a", "b"])
    err = refused(capfd, path, "--to", "onnx")
    assert f"--to onnx needs {', '.join(missing)}, not installed here" in err
    assert "pip install -e '.[export]'" in err


def test_a_network_too_large_for_one_file(tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setattr(onnx_file, "LARGEST", 1000)
    source = load(artifact(tmp_path / "r/s", ["a", "b"]))
    with pytest.raises(UserError, match=r"GiB of weights.* less than 2 GiB"):
        onnx_file.write(source, tmp_path / "x.onnx")


def test_a_file_that_onnxruntime_cannot_run(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="onnxruntime cannot run the exported file") as caught:
        onnx_file.load(tmp_path / "x.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [None, 1])
def test_the_labels_of_predict_on_500_photos(tmp_path, layer):
    pytest.importorskip("onnxscript")
    data = Data(train=str(class_folders(tmp_path / "photos", 10)), image_size=36, workers=0)
    path = artifact(tmp_path / "r/s", ["a", "b", "c"], data=data, from_layer=1)
    arguments = [] if layer is None else ["--layer", layer]
    assert run(path, "--to", "onnx", "-o", tmp_path / "student.onnx", *arguments) == 0
    outputs = onnx_file.load(tmp_path / "student.onnx")
    names = [f"{i}.png" for i in range(500)]
    folder = make_folder(tmp_path / "new", names, size=(50, 40))
    files = [folder / name for name in names]
    # the pixels of stages.predict, not rounded
    shown = torch.cat([center_crop(decode_image(str(file))[None], 36) for file in files])
    if layer is not None:
        assert outputs(shown).shape == (500, 8)
        return
    expected = [label for _, label, _ in predict(path, files)]
    assert [["a", "b", "c"][k] for k in outputs(shown).argmax(1)] == expected


def test_onnxruntime_reports_to_nobody():
    """The line that turns it off stands before whatever imports it."""
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
