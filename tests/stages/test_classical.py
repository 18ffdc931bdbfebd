"""The rows of scikit-learn: what they learn from, what is saved, what is left out."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import pipeline
from shared.config.labelset import LabelSet
from shared.config.schema import Config
from shared.config.sections import Data
from shared.data.labels import draw_labels
from shared.data.sources import open_data
from shared.networks.build import load_classifier, load_contrastive
from shared.runs.grid import make_job
from shared.runs.results import collect, results_text
from shared.runtime.artifacts import read_meta, read_predictions
from shared.training.evaluate import predict, state_hash
from stages import classical, distill
from tests.support.command_line import load
from tests.support.imported import run as import_weights
from tests.support.photo_run import run
from tests.support.photos import class_folders, make_folder
from tests.support.published import publish

LABELS = LabelSet.parse("2perclass")
ON_PIXELS = [*classical.ROWS]


def folders(output) -> list[str]:
    return sorted(path.parent.name for path in output.glob("r/*/meta.json"))


def test_alone_it_makes_the_rows_that_need_no_network(photos, tmp_path, capsys):
    options = [f"--data.train={photos}", f"--output={tmp_path}"]
    assert run(classical.main, *options) == 0
    assert "features-logistic: left out, because this run has no" in capsys.readouterr().out
    rows = collect(tmp_path / "r")
    assert [row["stage"] for row in rows] == ON_PIXELS
    for row in rows:
        folder = tmp_path / "r" / f"{row['stage']}-{row['labels']}-seed0"
        assert not (folder / "model.safetensors").exists()
        said = read_predictions(folder)
        assert (said["predictions"] == said["targets"]).mean() == pytest.approx(row["top1"])
        assert row["parameters"] > 0
        assert ("nll" in row) == (not row["stage"].endswith("svm"))
    assert results_text(rows).count("\n") == 5
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("predictions.npz")}
    assert run(classical.main, *options) == 0
    assert "pixels-svm: already done" in capsys.readouterr().out
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("predictions.npz")}
    assert run(classical.main, *options, "--classical.from_layer=2") == 0  # of rows on features
    assert "pixels-svm: already done" in capsys.readouterr().out
    for option in ("data.image_size=16", "classical.pixel_images=4"):
        assert run(classical.main, *options, f"--{option}") == 2
        assert f"was made with {option.partition('=')[0]}" in capsys.readouterr().err
    few = [f"--output={tmp_path / 'few'}", "--classical.pixel_images=4"]
    assert run(classical.main, *options, *few) == 0
    assert "gradients-svm: learns from 4 of the labels, by lot" in capsys.readouterr().out
    teacher = tmp_path / "r" / f"pixels-svm-{rows[0]['labels']}-seed0"
    assert run(distill.main, *options, f"--distill.teacher={teacher}") == 2
    assert "models of scikit-learn are not saved" in capsys.readouterr().err


@pytest.fixture(scope="module")
def on_features(finished, photos, tmp_path_factory):
    """Folder of the row on features."""
    output = tmp_path_factory.mktemp("features")
    options = [f"--data.train={photos}", f"--output={output}"]
    assert run(classical.main, *options, f"--classical.init={finished / 'pretrain'}") == 0
    return output / "r/features-logistic-2perclass-seed0"


def test_the_row_on_features_is_a_classifier_like_others(on_features, finished):
    model, meta = load_classifier(on_features)
    assert meta["settings"]["parent"] == read_meta(finished / "pretrain")["weights_sha256"]
    assert meta["from_layer"] == 0
    assert {"nll", "ece", "top1"} <= meta["result"].keys()
    pretrained, _ = load_contrastive(finished / "pretrain")
    assert state_hash(model.encoder) == state_hash(pretrained.encoder)


@pytest.mark.parametrize("layers", [0, 1])
def test_neighbours_vote_where_they_are_asked_for(
    layers, on_features, finished, photos, tmp_path, monkeypatch
):
    assert not list(on_features.parent.glob("features-neighbours*"))  # not by default
    monkeypatch.setattr(classical, "made_by", lambda _: ["features-neighbours"])
    options = [f"--data.train={photos}", f"--output={tmp_path}", "--classical.neighbours=true"]
    options += [f"--classical.init={finished / 'pretrain'}", f"--classical.from_layer={layers}"]
    assert run(classical.main, *options) == 0
    (row,) = collect(tmp_path / "r")
    folder = tmp_path / "r/features-neighbours-2perclass-seed0"
    meta, said = json.loads((folder / "meta.json").read_text()), read_predictions(folder)
    assert (said["predictions"] == said["targets"]).mean() == pytest.approx(row["top1"])
    assert {"nll", "ece"} <= row.keys()
    assert not (folder / "model.safetensors").exists()
    assert meta["hyper"] == {"neighbours": 6, "temperature": 0.07}
    assert meta["settings"]["parent"] == read_meta(finished / "pretrain")["weights_sha256"]
    assert meta["settings"]["classical.from_layer"] == layers
    frozen = load_contrastive(finished / "pretrain")[0]
    kept = [*frozen.encoder.parameters(), *frozen.head.layers[:layers].parameters()]
    width = frozen.head.widths[layers]
    assert row["parameters"] == sum(p.numel() for p in kept) + 6 * width


def test_layers_of_the_head_below_the_regression(
    on_features, finished, photos, tmp_path, capsys, monkeypatch
):
    """An artifact of a version without the option is one of the encoder's output."""
    monkeypatch.setattr(classical, "made_by", lambda _: ["features-logistic"])
    row = tmp_path / "r" / on_features.name
    shutil.copytree(on_features, row)
    meta = json.loads((row / "meta.json").read_text())
    assert meta["settings"].pop("classical.from_layer") == 0
    (row / "meta.json").write_text(json.dumps(meta))
    options = [f"--data.train={photos}", f"--output={tmp_path}"]
    options.append(f"--classical.init={finished / 'pretrain'}")
    assert run(classical.main, *options) == 0
    assert "features-logistic: already done" in capsys.readouterr().out
    deeper = [*options, "--classical.from_layer=1"]
    assert run(classical.main, *deeper) == 2
    assert "was made with classical.from_layer=0, now it is 1" in capsys.readouterr().err
    assert run(classical.main, *deeper, "--force=features-logistic") == 0
    model, meta = load_classifier(row)
    assert (meta["from_layer"], len(model.layers)) == (1, 1)
    pretrained, _ = load_contrastive(finished / "pretrain")
    assert state_hash(model.layers[0]) == state_hash(pretrained.head.layers[0])
    student = ["--distill.taught_by=features-logistic", "--distill.steps=1"]
    assert run(distill.main, *deeper, *student) == 0
    made = read_meta(tmp_path / "r/distill-2perclass-seed0")
    assert (made["parent"], made["settings"]["parent"]) == (
        f"../{row.name}",
        meta["weights_sha256"],
    )


def test_self_training_sees_images_without_a_label(
    on_features, finished, photos, tmp_path, capsys, monkeypatch
):
    """It is a classifier like the others; where all images are labeled it is the regression."""
    monkeypatch.setattr(classical, "made_by", lambda _: ["features-logistic"])
    options = [f"--data.train={photos}", f"--output={tmp_path}", "--classical.self_training=true"]
    options.append(f"--classical.init={finished / 'pretrain'}")
    assert run(classical.main, *options) == 0
    model, meta = load_classifier(tmp_path / "r" / on_features.name)
    assert meta["hyper"].keys() == {"C", "threshold"}
    assert f"self-training took {meta['self_labeled']} of " in capsys.readouterr().out
    assert not torch.equal(model.linear.weight, load_classifier(on_features)[0].linear.weight)
    assert run(classical.main, *options[:2], options[3]) == 2
    told = "was made with classical.self_training=True, now it is False"
    assert told in capsys.readouterr().err
    weights = []
    for choice in (True, False):
        out = [f"--output={tmp_path / str(choice)}", f"--classical.self_training={choice}"]
        assert run(classical.main, *options[:1], *out, options[3], "--labels=100pct") == 0
        (path,) = (tmp_path / str(choice) / "r").glob("features-logistic-*")
        weights.append(load_classifier(path)[0].linear.weight)
    assert torch.equal(*weights)


def test_self_training_never_sees_what_is_held_out(finished, tmp_path, monkeypatch):
    """At most so many others, and none of the images that are for testing."""
    photos = make_folder(tmp_path / "photos", [f"{i}.png" for i in range(40)])
    listed = tmp_path / "listed.csv"
    listed.write_text("file,label\n" + "".join(f"{i}.png,{'abc'[i % 3]}\n" for i in range(24)))
    seen = []
    original = classical.outputs_of

    def noted(forward, images, ids, *rest):
        seen.append(set(ids.tolist()))
        return original(forward, images, ids, *rest)

    monkeypatch.setattr(classical, "outputs_of", noted)
    monkeypatch.setattr(classical, "made_by", lambda _: ["features-logistic"])
    out = [f"--data.train={photos}", f"--output={tmp_path}", f"--labels={listed}"]
    out += [f"--classical.init={finished / 'pretrain'}", "--classical.self_training=true"]
    assert run(classical.main, *out) == 0
    label_set = LabelSet.parse(str(listed))
    splits = open_data(Data(train=str(photos), image_size=8, workers=0), label_set, False)
    labeled = set(draw_labels(splits, label_set, 0).ids.tolist())
    assert len(splits.train) == 40 > len(splits.train.training_ids)  # some are for testing
    assert seen == [set(splits.train.training_ids.tolist())]
    assert labeled < seen[0]
    monkeypatch.setattr(classical, "FEATURE_OTHERS", 3)
    assert run(classical.main, *out, "--force=features-logistic") == 0
    assert (len(seen[1]), labeled < seen[1]) == (len(labeled) + 3, True)


def test_other_rows_do_not_depend_on_self_training(tmp_path):
    base = load(f"--output={tmp_path}")
    config = replace(base, classical=replace(base.classical, self_training=True))
    for method in (*ON_PIXELS, "features-neighbours", "published", "linear", "distill"):
        assert make_job(method, config, base).path == make_job(method, base, base).path, method
    assert make_job("features-logistic", config, base).path.parent.name.startswith("classical.self")


def test_predictions_are_those_of_the_saved_model(on_features, finished, photos):
    noted = read_predictions(on_features)
    data = Data(train=str(photos), image_size=8, workers=0)
    splits = open_data(data, LABELS, False)
    model, _ = load_classifier(on_features)
    said = predict(model, splits.test, data, Accelerator(cpu=True))
    assert noted["predictions"].tolist() == said.predictions.tolist()
    assert noted["targets"].tolist() == splits.test.labels[noted["positions"]].tolist()
    assert read_predictions(finished / "pretrain") is None
    with pytest.raises(ValueError, match=r"stages\.classical makes"):
        classical.run(Config(), Accelerator(cpu=True), "finetune")


@pytest.mark.parametrize("classes", [[0, 1], [0, 1, 2], [0, 2]])
def test_the_linear_layer_gives_the_probabilities_of_the_regression(classes):
    rng = np.random.default_rng(0)
    targets = np.repeat(classes, 8)
    rows = (rng.normal(size=(len(targets), 5)) + 2 * np.eye(5)[targets] + 3).astype(np.float32)

    class Model:
        linear = torch.nn.Linear(5, 3).requires_grad_(False)

    fitted = classical.set_linear_layer(Model(), rows, targets, 0)
    probabilities = Model.linear(torch.from_numpy(rows)).softmax(1).numpy()
    scale = np.sqrt(rows.var(0).mean())
    wanted = fitted.model.predict_proba((rows - rows.mean(0)) / scale)
    np.testing.assert_allclose(probabilities[:, classes], wanted, atol=1e-4)
    assert probabilities.sum() - probabilities[:, classes].sum() < 1e-6


def test_left_out_with_a_line(photos, tmp_path, monkeypatch, capsys):
    options = [f"--data.train={photos}", f"--output={tmp_path}"]
    monkeypatch.setattr(classical, "CLASSES_FITTED", 2)
    assert run(classical.main, *options) == 0
    said = capsys.readouterr().out
    assert said.count("left out, because there are 3 classes, more than 2") == len(ON_PIXELS)
    assert folders(tmp_path) == []


def test_nothing_to_test_on_leaves_the_deployable_row(finished, tmp_path, monkeypatch, capsys):
    """One label per class: no image can be held out."""
    root = class_folders(tmp_path / "few", 1)
    make_folder(root, [f"{i}.png" for i in range(6)])
    labels = tmp_path / "labels.csv"
    labels.write_text("file,label\na/0.png,a\nb/0.png,b\nc/0.png,c\n")
    options = [f"--data.train={root}", f"--output={tmp_path}", f"--labels={labels}"]
    options += [f"--classical.init={finished / 'pretrain'}"]
    assert run(classical.main, *options) == 0
    assert "left out, because there are no test images" in capsys.readouterr().out
    assert folders(tmp_path) == ["features-logistic-labels-seed0"]


def test_many_labels_are_bounded_and_every_class_stays():
    targets = np.array([0] * 50 + [1] + [2] * 49)
    kept = classical.by_lot(targets, 10, seed=3)
    assert len(kept) == 10
    assert (np.diff(kept) > 0).all()
    assert set(targets[kept]) == {0, 1, 2}
    assert (classical.by_lot(targets, 1000, seed=3) == np.arange(100)).all()
    assert (kept != classical.by_lot(targets, 10, seed=4)).any()


@pytest.mark.parametrize("side", [4, 7, 8, 28, 32])
def test_gradients_and_colors(side):
    """An edge is seen where it is and how it lies; a colour wherever it is."""
    rng = np.random.default_rng(0)
    image = rng.random((3, 3, side, side), dtype=np.float32)
    rows = classical.gradients_and_colors(image)
    assert rows.shape[0] == 3
    assert np.isfinite(rows).all()
    colors = rows[:, -64:] * 8  # each part is divided by the root of its length
    np.testing.assert_allclose((colors**2).sum(1), 1, rtol=1e-5)
    shuffled = image.reshape(3, 3, -1)[:, :, rng.permutation(side * side)].reshape(image.shape)
    again = classical.gradients_and_colors(shuffled)
    np.testing.assert_allclose(again[:, -64:], rows[:, -64:], rtol=1e-5)
    assert not np.allclose(again[:, :-64], rows[:, :-64])


def test_the_direction_of_an_edge_is_its_bin():
    steps = np.zeros((2, 3, 8, 8), dtype=np.float32)
    steps[0, :, :, 4:] = 1  # changes from left to right: 0 degrees
    steps[1, :, 4:, :] = 1  # from top to bottom: 90 degrees, between bins 4 and 5
    rows = classical.gradients_and_colors(steps)[:, :-64]
    by_bin = rows.reshape(2, 4, 9, -1).sum((1, 3))
    assert by_bin[0].argmax() == 0
    assert by_bin[1, 4] == pytest.approx(by_bin[1, 5])
    assert by_bin[1, [4, 5]].sum() == pytest.approx(by_bin[1].sum())


def test_two_classes_and_a_class_without_a_label():
    rng = np.random.default_rng(1)
    images = rng.random((30, 3, 8, 8), dtype=np.float32)
    for classes in ([0, 1], [0, 2]):
        targets = np.repeat(classes, 15)
        images[15:, 0] = images[15:, 0] / 2 + 0.5
        pixels = classical.Pixels(images, targets, images[:4], images, np.arange(30))
        for name, fit in classical.ROWS.items():
            row = fit(pixels, 3, 0)
            assert row.logits.shape == (30, 3), name
            assert set(row.logits.argmax(1)) <= set(classes), name
            assert (row.logits.argmax(1) == targets).mean() > 0.9, name


# Published weights.


@pytest.mark.parametrize("cache", [None, 24])
def test_published_weights_see_images_of_their_own_size(photos, tmp_path, cache, capsys):
    """The run's images are of 8 pixels, and its small copies of 24; the weights are for 64."""
    publish("test_byobnet", tmp_path / "weights.bin")
    source, folder = f"timm:test_byobnet={tmp_path / 'weights.bin'}", tmp_path / "published"
    assert import_weights(source, folder, "--image-size=64") == 0
    options = [f"--data.train={photos}", f"--output={tmp_path}", f"--classical.published={folder}"]
    options += [] if cache is None else [f"--data.cache={cache}"]
    assert run(classical.main, *options) == 0
    row = tmp_path / "r/published-2perclass-seed0"
    model, meta = load_classifier(row)
    seen = (meta["image_size"], meta["mean"], meta["antialias"])
    assert seen == (64, [0.485, 0.456, 0.406], True)
    assert meta["settings"]["data.image_size"] != 64  # the run's, which another row needs
    assert meta["parent"] == "../../published"
    mean, std = tuple(meta["mean"]), tuple(meta["std"])
    data = Data(train=str(photos), image_size=64, antialias=True, mean=mean, std=std)
    test = open_data(data, LABELS).test
    said = predict(model.eval(), test, data, Accelerator())
    stored = read_predictions(row)
    np.testing.assert_array_equal(said.predictions, stored["predictions"])
    assert "logistic regression on published weights" in results_text(collect(tmp_path / "r"))
    capsys.readouterr()
    assert run(classical.main, *options) == 0
    assert "published: already done" in capsys.readouterr().out
    assert run(classical.main, *options, "--force=published") == 0


def test_published_weights_that_are_not_there(photos, finished, tmp_path, capsys):
    options = [f"--data.train={photos}", f"--output={tmp_path}"]
    for folder, says in (
        (tmp_path / "none", "no such artifact folder"),
        (finished, "is the folder of a run"),
        (finished / "finetune-2perclass-seed0", "of kind classifier, needed is encoder"),
    ):
        assert run(pipeline.main, *options, f"--classical.published={folder}") == 2
        assert says in capsys.readouterr().err
        assert not list(tmp_path.rglob("meta.json"))  # nothing was trained
