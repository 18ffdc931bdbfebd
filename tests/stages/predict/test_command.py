"""Predictions for files are those of the evaluation; all images have their row, or are listed."""

import csv
import io
import json
import os
import shutil
import signal
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from shared.config.labelset import LabelSet
from shared.config.sections import Data
from shared.data.label_files import read_csv
from shared.data.labels import draw_labels
from shared.data.sources import open_data
from shared.networks.build import build_classifier
from shared.runtime import lock
from shared.runtime.stage_folder import StageFolder
from shared.training.evaluate import over_images
from shared.training.predictor import Predictor
from shared.training.stage import settings_of_test_images
from stages.predict import command, main, predict
from tests.support.command_line import load
from tests.support.exported import artifact
from tests.support.photos import class_folders, make_folder, process


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

    ids = np.arange(len(test))
    rows, _ = over_images(lambda batch, *_: model.eval()(batch), test, ids, data, process())
    logits = torch.from_numpy(rows)
    files = [root / name for name in test.names]
    predictions = list(predict(folder.path, files))
    assert [file for file, _, _ in predictions] == files
    assert [label for _, label, _ in predictions] == [train.classes[i] for i in logits.argmax(1)]
    expected = logits.softmax(1).amax(1).numpy()
    # in memory not through uint8 again as in a worker
    exact = loading == "workers"
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


# ------------------------------------------------------------------------------- folders, all forms
NEW = [*(f"{i}.png" for i in range(6)), "sub/deep/x.png", "sub/line\nbreak.png", 'q"u,o.png']


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A classifier of a run with 12 test images, an encoder, and a folder of new images."""
    root = tmp_path_factory.mktemp("predict")
    photos = class_folders(root / "photos", 20, size=(20, 18))
    data = Data(train=str(photos), image_size=8, antialias=True, workers=0)
    artifact(root / "classifier", ["a", "b", "c"], data=data, from_layer=1)
    artifact(root / "encoder", data=data)
    make_folder(root / "new", NEW, size=(20, 18))
    return root


@pytest.fixture
def here(run, tmp_path, monkeypatch):
    """A folder of one's own with links to the artifacts and a copy of the images."""
    shutil.copytree(run / "new", tmp_path / "new")
    for name in ("classifier", "encoder"):
        (tmp_path / name).symlink_to(run / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command.StopRequest, "listen", lambda: None)
    monkeypatch.setattr(command.StopRequest, "received", None)
    return tmp_path


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def printed(capsys, *arguments: str) -> list[dict[str, str]]:
    assert main([*arguments, "--workers", "0"]) == 0
    return table(capsys.readouterr().out)


def test_a_folder_with_all_that_is_below(here, capsys):
    rows = printed(capsys, "classifier", "new")
    assert sorted(row["file"] for row in rows) == sorted(f"new/{name}" for name in NEW)
    expected = {
        str(file): label
        for file, label, _ in predict(here / "classifier", [here / row["file"] for row in rows])
    }
    assert {str(here / row["file"]): row["label"] for row in rows} == expected


def test_a_formula_in_a_name_is_marked_and_read_back(here, capsys):
    shutil.copy("new/0.png", "=cmd.png")
    (row,) = printed(capsys, "classifier", "=cmd.png")
    assert row["file"] == "'=cmd.png"
    call = ["classifier", "=cmd.png", "-o", "p.csv", "--workers", "0"]
    assert main(call) == 0
    assert read_csv(here / "p.csv").rows == [("=cmd.png", row["label"])]
    before = (here / "p.csv").read_bytes()
    assert main(call) == 0  # its row is known
    assert (here / "p.csv").read_bytes() == before


def test_top_k_and_all_probabilities(here, capsys):
    rows = printed(capsys, "classifier", "new", "--top_k", "3", "--probabilities")
    expected = Predictor("classifier")([row["file"] for row in rows]).probabilities
    for row, probabilities in zip(rows, expected, strict=True):
        by_class = [float(row[f"probability:{name}"]) for name in "abc"]
        np.testing.assert_allclose(by_class, probabilities, atol=1e-5)
        ranked = [row["label"], row["label_2"], row["label_3"]]
        assert ranked == ["abc"[k] for k in np.argsort(-probabilities)]
        assert float(row["probability_2"]) == pytest.approx(np.sort(probabilities)[1], abs=1e-4)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(("folder", "layer"), [("classifier", 1), ("encoder", 0), ("encoder", 2)])
def test_features(here, suffix, folder, layer):
    out = here / f"f{suffix}"
    assert main([folder, "new", "--features", str(layer), "-o", str(out), "--workers", "0"]) == 0
    if suffix == ".csv":
        rows = table(out.read_bytes().decode())
        width = sum(name.startswith("feature_") for name in rows[0])
        features = [[float(row[f"feature_{i}"]) for i in range(width)] for row in rows]
    else:
        lines = out.read_bytes().decode().split("\n")[:-1] if suffix == ".jsonl" else []
        rows = list(map(json.loads, lines)) or parquet.read_table(out).to_pylist()
        features = [row["features"] for row in rows]
    expected = Predictor(folder, layer).features([row["file"] for row in rows])
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert ("label" in rows[0]) == (folder == "classifier")


@pytest.mark.parametrize("inside", ["bytes", "paths"])
def test_a_parquet_file(here, capsys, inside):
    names = [f"{i}.png" for i in range(3)]
    encoded = [(here / "new" / name).read_bytes() for name in names]
    if inside == "bytes":
        column = [{"bytes": content, "path": None} for content in encoded]
        path = here / "x.parquet"
    else:
        column, path = names, here / "new/x.parquet"
    parquet.write_table(pa.table({"image": column}), path)
    rows = printed(capsys, "classifier", str(path))
    assert [row["file"] for row in rows] == (["0", "1", "2"] if inside == "bytes" else names)
    of_files = printed(capsys, "classifier", *(f"new/{name}" for name in names))
    assert [row["probability"] for row in rows] == [row["probability"] for row in of_files]
    both = printed(capsys, "classifier", "new/4.png", str(path), "new/5.png")
    assert [both[0]["file"], both[1]["file"], both[-1]["file"]] == [
        "new/4.png",
        f"{path}/{rows[0]['file']}",
        "new/5.png",
    ]


def refused(capsys, *arguments: str) -> str:
    assert main([*arguments, "--workers", "0"]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["p.csv", "p.parquet"])
def test_other_images_of_the_same_names_are_refused(here, capsys, monkeypatch, name):
    """Else the rows of the first passed for those of the second."""
    for folder in ("one", "two"):
        (here / folder).mkdir()
        shutil.copy(here / f"new/{len(folder)}.png", here / folder / "x.png")
        row = {"bytes": (here / folder / "x.png").read_bytes(), "path": None}
        parquet.write_table(pa.table({"image": [row]}), here / folder / "x.parquet")
    classifier, file = str(here / "classifier"), str(here / name)
    options = ["-o", file, "--workers", "0"]
    assert main([classifier, "one/x.parquet", *options]) == 0
    before = (here / name).read_bytes()
    assert "one/x.parquet, now they are in" in refused(
        capsys, classifier, "two/x.parquet", *options
    )
    assert (here / name).read_bytes() == before
    shutil.move(here / name, here / "other")
    (here / f"{name}.meta.json").unlink()
    monkeypatch.chdir(here / "one")
    assert main([classifier, "x.png", *options]) == 0
    monkeypatch.chdir(here / "two")
    assert "choose another -o, or remove" in refused(capsys, classifier, "x.png", *options)
    monkeypatch.chdir(here / "one")
    assert main([classifier, ".", *options]) == 0  # more images
    os.utime("x.png", (2**31, 2**31))
    shutil.copy("x.png", "y.png")
    assert main([classifier, "y.png", *options]) == 0
    assert "1 image changed after the row was written: x.png" in refused(
        capsys, classifier, "x.png", *options
    )
    earlier = os.stat("y.png").st_mtime - 100
    shutil.copy(here / "new/5.png", "z.png")
    os.utime("z.png", (earlier, earlier))
    assert main([classifier, "z.png", *options]) == 0
    os.replace("z.png", "y.png")  # with the time of an older one
    assert "1 image changed after the row was written: y.png" in refused(
        capsys, classifier, "y.png", *options
    )


# --------------------------------------------------------------------------------- images that fail
BAD = {
    "text.jpg": b"no image",
    "empty.png": b"",
    "\x1b[31mred.png": b"x",
}


def spoil(new) -> list[str]:
    for name, content in BAD.items():
        (new / name).write_bytes(content)
    whole = (new / "0.png").read_bytes()
    (new / "cut.png").write_bytes(whole[: len(whole) // 2])
    os.mkfifo(new / "fifo.png")
    return [*BAD, "cut.png"]


@pytest.mark.parametrize("batch_size", ["1", "3", "64"])
def test_skipped_images_cost_no_others(here, capsys, batch_size):
    bad = spoil(here / "new")
    arguments = ["classifier", "new", "missing.png", "new/fifo.png", "--on_error", "skip"]
    assert main([*arguments, "--workers", "0", "--batch_size", batch_size]) == 0
    out, err = capsys.readouterr()
    assert sorted(row["file"] for row in table(out)) == sorted(f"new/{name}" for name in NEW)
    assert f"skipped {len(bad) + 2} of {len(NEW) + len(bad) + 2} images:" in err
    for name in ("text.jpg", "empty.png", "cut.png", "fifo.png", "missing.png"):
        assert f"{name}: " in err
    assert "\x1b" not in err


def test_skipped_images_are_listed_beside_the_file(here, capsys):
    bad = spoil(here / "new")
    assert main(["classifier", "new", "--on_error", "skip", "-o", "p.csv", "--workers", "0"]) == 0
    assert len(table((here / "p.csv").read_text())) == len(NEW)
    assert len(json.loads((here / "p.csv.meta.json").read_text())["skipped"]) == len(bad)
    assert f"skipped {len(bad)} of" in capsys.readouterr().err


def test_an_image_that_stops_loses_no_row_that_is_written(here, capsys):
    (here / "new/3.png").write_bytes(b"no image")
    call = ["classifier", "new", "-o", "p.csv", "--workers", "0", "--batch_size", "1"]
    assert main(call) == 2
    err = capsys.readouterr().err
    assert "cannot read new/3.png: not an image; remove it or give --on_error skip" in err
    assert "3 rows are in p.csv, and the same command goes on" in err
    assert err.count("\n") == 1
    first = (here / "p.csv").read_bytes()
    assert main([*call, "--on_error", "skip"]) == 0
    assert (here / "p.csv").read_bytes().startswith(first)
    files = [row["file"] for row in table((here / "p.csv").read_bytes().decode())]
    assert sorted(files) == sorted(f"new/{name}" for name in NEW if name != "3.png")


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.parquet"])
def test_goes_on_after_a_signal(here, capsys, monkeypatch, name):
    seen = []

    class Blocks(Predictor):
        def over(self, images, ids):
            for outputs in super().over(images, ids):
                seen.append(outputs.positions)
                if len(seen) == 2:
                    command.StopRequest.received = signal.SIGTERM
                yield outputs

    monkeypatch.setattr(command, "Predictor", Blocks)
    call = ["classifier", "new", "-o", name, "--workers", "0", "--batch_size", "2"]
    assert main(call) == 128 + signal.SIGTERM
    assert "stopped as asked: 4 rows are in p." in capsys.readouterr().err
    monkeypatch.setattr(command.StopRequest, "received", None)
    assert main(call) == 0
    assert sum(map(len, seen)) == len(NEW)  # none twice
    assert main(call) == 0
    assert sum(map(len, seen)) == len(NEW)
    assert f"{len(NEW)} rows in {name}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.parquet"])
def test_two_at_a_time_do_not_mix_their_rows(here, capsys, monkeypatch, name):
    def busy(path, patience, advice):
        raise lock.BusyError(f"{path} is in use; {advice}")

    with monkeypatch.context() as patch:
        patch.setattr(lock, "take", busy)
        assert main(["classifier", "new", "-o", name]) == 2
    assert f"{name} is in use; choose another -o" in capsys.readouterr().err
    assert not (here / name).exists()
    (here / name).symlink_to(here / "elsewhere.csv")
    assert main(["classifier", "new", "-o", name]) == 2
    assert "is a link" in capsys.readouterr().err
    assert not (here / "elsewhere.csv").exists()
    (here / name).unlink()


# --------------------------------------------------------------------------------------- abstaining
@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.parquet"])
def test_abstains_after_a_temperature(here, capsys, monkeypatch, name):
    monkeypatch.setattr(command, "fit_temperature", lambda logits, targets: 0.02 * len(targets))
    files = sorted(f"new/{name}" for name in NEW)
    logits = np.log(Predictor("classifier")(files).probabilities)
    expected = np.exp(logits / 0.24)  # 12 test images
    expected = (expected / expected.sum(1, keepdims=True)).max(1)
    threshold = f"{np.median(expected):.6f}"
    assert main(["classifier", "new", "--abstain", threshold, "-o", name, "--workers", "0"]) == 0
    if name == "p.csv":
        rows = table((here / name).read_bytes().decode())
    elif name == "p.jsonl":
        rows = [json.loads(line) for line in (here / name).read_bytes().splitlines()]
    else:
        rows = parquet.read_table(here / name).to_pylist()
    rows.sort(key=lambda row: row["file"])
    actual = [float(row["probability"]) for row in rows]
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    unsure = expected < float(threshold)
    assert [not row["label"] for row in rows] == unsure.tolist()
    err = capsys.readouterr().err
    assert "temperature 0.240, fitted on 12 test images of the run" in err
    assert f"no label in {unsure.sum()} of {len(NEW)} rows" in err


def test_the_temperature_of_the_first_call_stays(here, monkeypatch):
    call = ["--abstain", "0.5", "-o", "p.csv", "--workers", "0", "classifier", "new/0.png"]
    assert main(call) == 0
    monkeypatch.setattr(command, "fit_temperature", lambda *_: pytest.fail("fitted again"))
    assert main([*call, "new/1.png"]) == 0
    assert len(table((here / "p.csv").read_text())) == 2


def test_a_run_without_images_cannot_abstain(run, here, capsys):
    artifact(here / "moved", ["a", "b"], data=Data(train="gone", image_size=8, workers=0))
    artifact(here / "others", ["x", "y", "z"], data=Data(train=str(run / "photos"), image_size=8))
    artifact(here / "imported", ["a", "b"])
    (here / "imported/config.yaml").unlink()
    reasons = {
        "moved": "which cannot be opened",
        "others": "but their classes are others now: a, b, c",
        "imported": "has no config.yaml",
    }
    for folder, reason in reasons.items():
        assert main([folder, "new", "--abstain", "0.5"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: --abstain fits a temperature on labeled images of the run")
        assert reason in err
        assert err.count("\n") == 1


# ----------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encoder", "new"], "holds an encoder, which knows no classes; give --features"),
        (["encoder", "new", "--features", "--top_k", "2"], "--top_k needs a classifier"),
        (["encoder", "new", "--features", "--abstain", "0.5"], "--abstain needs a classifier"),
        (["encoder", "new", "--features", "3"], "has the layers 0 (the encoder's output) to 2"),
        (["classifier", "new", "--features", "-1"], "and no layer -1"),
        (["classifier", "new", "--top_k", "4"], "--top_k 4: there are 3 classes"),
        (["classifier", "new", "--top_k", "0"], "--top_k must be 1 or more, got 0"),
        (["classifier", "new", "--batch_size", "0"], "--batch_size must be 1 or more"),
        (["classifier", "new", "--workers", "-1"], "--workers must be 0 or more"),
        (["classifier", "new", "--abstain", "1.5"], "--abstain must be in (0, 1], got 1.5"),
        (["classifier", "new", "--abstain", "nan"], "--abstain must be in (0, 1], got nan"),
        (["classifier", "new", "-o", "p.txt"], "must end in .csv, .jsonl, .parquet"),
        (["classifier", "new", "-o", "new/0.png/p.csv"], "cannot write new/0.png/p.csv"),
        (["classifier", "gone"], "no such file or folder: gone"),
        (["classifier", "gone", "--on_error", "skip"], "no such file or folder: gone"),
        (["classifier", "new/0.png", "gone.png"], "no such file or folder: gone.png"),
        (["classifier", "empty"], "no images in empty"),
        (["classifier", "gone.parquet"], "no such file or folder: gone.parquet"),
        (["classifier", "text.jpg"], "cannot read text.jpg: not an image; remove it or give --on_"),
        (["classifier", "text.jpg", "--on_error", "skip"], "none of 1 image can be read: cannot"),
        (["classifier", "new", "--max_pixels", "99"], "and --max_pixels allows 99"),
        (["classifier", "fifo.png"], "cannot read fifo.png: no such file"),
        (["classifier", "fifo.parquet"], "fifo.parquet is not a .parquet file"),
        (["gone", "new"], "no such artifact folder: gone"),
    ],
)
def test_refused_in_one_line(here, capsys, arguments, message):
    (here / "empty").mkdir()
    (here / "text.jpg").write_bytes(b"no image")
    os.mkfifo(here / "fifo.png")
    os.mkfifo(here / "fifo.parquet")
    before = {path.name for path in here.iterdir()}
    assert main([*arguments, "--workers", "0"] if "--workers" not in arguments else arguments) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert {path.name for path in here.iterdir()} == before


def test_a_file_that_is_cut_off(here, capsys):
    whole = (here / "new/0.png").read_bytes()
    (here / "cut.png").write_bytes(whole[:-100])
    assert main(["classifier", "cut.png"]) == 2
    assert "or --load_truncated\n" in capsys.readouterr().err
    assert len(printed(capsys, "classifier", "cut.png", "--load_truncated")) == 1


@pytest.mark.parametrize("case", ["test", "other test", "no test", "other labels", "learned"])
def test_the_temperature_is_of_images_that_were_not_learned(tmp_path, case):
    photos = class_folders(tmp_path / "photos", 5, classes="ab")
    labels = "100pct" if case == "learned" else "2perclass"
    config = load(f"--data.train={photos}", f"--labels={labels}", "--data.test_fraction=0.4")
    splits = open_data(config.data, config.label_set)
    drawn = draw_labels(splits, config.label_set, config.seed)
    then = settings_of_test_images(splits)
    if case != "test":
        then = {"test_images": "other"}
    if case == "no test":
        splits = splits._replace(test=None)
    digest = "other" if case == "other labels" else drawn.hash
    meta = cast(Any, {"settings": then, "labels": {"hash": digest}})
    images, ids, what = command._not_learned(splits, config, meta)
    assert (images is splits.test) == (case == "test")
    if case == "test":
        assert (len(ids), what) == (4, "test images of the run")
    elif case in ("other test", "no test"):
        assert len(ids) == 2
        assert set(ids).isdisjoint(drawn.ids)
        assert what == "images of the run whose labels it has not seen"
    else:
        assert len(ids) == 0
