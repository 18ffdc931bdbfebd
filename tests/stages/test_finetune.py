"""Stage 2: what it starts from, what it freezes and keeps, and what it refuses."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from shared.config.labelset import LabelSet
from shared.config.schema import Config
from shared.config.sections import Data, Finetune, Supervised
from shared.data.batches import plain_batches
from shared.data.labels import Labels, draw_labels
from shared.networks.build import build_classifier, freeze_beginning, keep_layers, load_contrastive
from shared.runtime.checkpoints import checkpoints
from shared.runtime.errors import UserError
from stages import finetune, pretrain
from tests.support.photo_run import files, refused, run
from tests.support.photos import class_folders
from tests.support.pretext import upright
from tests.support.sources import opened
from tests.support.stop import STOPPED, stopped_at


def test_fine_tuning_with_a_frozen_beginning(photos, finished, tmp_path):
    """Stem and first group keep weights and statistics, everything else is trained."""
    pretrained = finished / "pretrain"
    options = [
        f"--finetune.init={pretrained}",
        "--finetune.freeze_after_block=1",
        "--finetune.batch_norm=batch",
        "--finetune.encoder_rate=1",
    ]
    out = [f"--output={tmp_path}", f"--data.train={photos}"]
    assert run(finetune.main, *out, *options) == 0
    before = load_file(pretrained / "model.safetensors")
    after = load_file(tmp_path / "r/finetune-2perclass-seed0/model.safetensors")
    moved = {
        name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])
    }
    expected = {
        name
        for name in before.keys() & after.keys()
        if not name.startswith(("encoder.stem.", "encoder.groups.0."))
    }
    assert moved == expected
    assert len(before.keys() & after.keys()) - len(moved) > 10


def test_one_label_per_class_and_class_means(tmp_path, photos, finished):
    """No image differs from its class's mean: the spread is that of the means."""
    assert (
        run(
            finetune.main,
            f"--output={tmp_path}",
            f"--data.train={photos}",
            "--labels=1perclass",
            f"--finetune.init={finished / 'pretrain'}",
            "--finetune.linear_init=class_means",
        )
        == 0
    )
    weights = load_file(tmp_path / "r/finetune-1perclass-seed0/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert weights["linear.weight"].any()


def test_head_layer_that_the_artifact_lacks(capfd, tmp_path, photos, finished):
    message = refused(
        capfd,
        finetune.main,
        f"--output={tmp_path}",
        f"--data.train={photos}",
        f"--finetune.init={finished / 'pretrain'}",
        "--finetune.from_layer=4",
    )
    assert "from_layer=4: cannot keep 4 layers of a projection head of 3: choose 0 to 3" in message


def test_blocks_that_cannot_be_frozen(capfd, tmp_path, photos, finished):
    out = [
        f"--output={tmp_path}",
        f"--data.train={photos}",
        f"--finetune.init={finished / 'pretrain'}",
    ]
    message = refused(capfd, finetune.main, *out, "--finetune.freeze_after_block=4")
    assert "finetune.freeze_after_block: after_block is 4; this encoder has 3 groups" in message
    message = refused(capfd, finetune.main, *out, "--finetune.freeze_after_block=-2")
    assert "finetune.freeze_after_block must be 0 or more" in message
    assert files(tmp_path) == {}


# ---------------------------------------------------------------------------------------- networks
def options_of(photos, finished, output) -> list[str]:
    start = [f"--{section}.init={finished / 'pretrain'}" for section in ("finetune", "linear")]
    return [f"--output={output}", f"--data.train={photos}", *start]


def artifact(output, method: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Weights and ``meta.json`` of a classifier."""
    folder = output / f"r/{method}-2perclass-seed0"
    return load_file(folder / "model.safetensors"), json.loads((folder / "meta.json").read_text())


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_layers_of_the_head_are_kept(photos, finished, tmp_path, kept):
    """With rate 0 below the linear layer they are those of pretraining, to the bit."""
    options = [f"--finetune.from_layer={kept}", "--finetune.encoder_rate=0"]
    options.append("--finetune.batch_norm=frozen")
    assert run(finetune.main, *options_of(photos, finished, tmp_path), *options) == 0
    weights, meta = artifact(tmp_path, "finetune")
    assert meta["from_layer"] == kept
    pretrained = load_file(finished / "pretrain/model.safetensors")
    layers = {name.split(".")[1] for name in weights if name.startswith("layers.")}
    assert layers == {str(layer) for layer in range(kept)}
    for name, tensor in weights.items():
        if name.startswith("linear."):
            assert tensor.any()  # it started at zero
        else:
            assert torch.equal(tensor, pretrained[name.replace("layers.", "head.layers.")]), name


@pytest.mark.parametrize("rate", [0, 1])
def test_a_fresh_head_keeps_the_encoder_alone(photos, finished, tmp_path, rate):
    """The layers start at random, with the full rate whatever the encoder's."""
    options = ["--finetune.fresh_head=true", "--finetune.from_layer=2"]
    options += [f"--finetune.encoder_rate={rate}", "--finetune.batch_norm=frozen"]
    options.append("--finetune.steps=30")
    assert run(finetune.main, *options_of(photos, finished, tmp_path), *options) == 0
    weights, meta = artifact(tmp_path, "finetune")
    assert meta["from_layer"] == 2
    pretrained = load_file(finished / "pretrain/model.safetensors")
    for name in (name for name in weights if name.endswith("weight")):
        before = pretrained.get(name.replace("layers.", "head.layers."))
        if name.startswith("encoder."):
            assert torch.equal(weights[name], before) == (rate == 0), name
        elif name.endswith("dense.weight"):  # N(0, 0.01^2) and a few updates
            assert not torch.allclose(weights[name], before, atol=0.03), name
        elif name.startswith("layers."):
            assert not torch.equal(weights[name], torch.ones_like(before)), name
    for layer in (0, 1):  # frozen statistics are those of pretraining, which these have not
        variance = weights[f"layers.{layer}.norm.running_var"]
        assert not torch.allclose(variance, torch.ones_like(variance), rtol=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["finetune.fresh_head=true", "finetune.from_layer=0"], "must be false where no layer"),
        (["linear.fresh_head=true", "linear.from_layer=1"], "a frozen layer cannot learn"),
        (["supervised.fresh_head=true"], "all of this network starts at random"),
    ],
)
def test_a_fresh_head_that_is_none_is_refused(capfd, photos, finished, tmp_path, options, message):
    given = [f"--{option}" for option in options]
    recipe = options_of(photos, finished, tmp_path)
    assert message in refused(capfd, finetune.main, *recipe, *given)
    assert files(tmp_path) == {}


def test_layers_are_kept_for_a_tenth_of_the_labels(tmp_path):
    """The paper's choice, where the recipe has none: 2 of 20 images, and 3."""
    photos = class_folders(tmp_path / "photos", 20, classes="ab")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("labels: 1pct\n")
    splits = opened(photos, test_fraction=0.5)
    assert len(splits.train) == 20
    out = [f"--config={recipe}", f"--data.train={photos}", "--data.test_fraction=0.5"]
    out.append(f"--output={tmp_path}")
    assert run(pretrain.main, *out) == 0
    for labels, kept in (("1perclass", 1), ("2perclass", 0)):
        assert run(finetune.main, *out, f"--labels={labels}") == 0
        meta = tmp_path / f"r/finetune-{labels}-seed0/meta.json"
        assert json.loads(meta.read_text())["from_layer"] == kept


def test_linear_evaluation_trains_the_linear_layer_alone(photos, finished, tmp_path):
    options = options_of(photos, finished, tmp_path)
    assert run(finetune.main, *options, "--method=linear", "--linear.encoder_rate=1") == 0
    weights, meta = artifact(tmp_path, "linear")
    assert (
        meta["settings"]["parent"]
        == json.loads((finished / "pretrain/meta.json").read_text())["weights_sha256"]
    )
    pretrained = load_file(finished / "pretrain/model.safetensors")
    encoder = [name for name in weights if name.startswith("encoder.")]
    assert all(torch.equal(weights[name], pretrained[name]) for name in encoder)
    assert {*weights} - {*encoder} == {"linear.weight", "linear.bias"}
    assert weights["linear.weight"].any()


def test_from_scratch_needs_no_pretraining(photos, tmp_path):
    """The teacher's network, or the student's."""
    out = [f"--output={tmp_path}", f"--data.train={photos}"]
    student = "--distill.student=simclr_resnet8_2x_sk0"
    for method, encoder in (("supervised", "1x"), ("supervised-student", "2x")):
        assert run(finetune.main, *out, student, f"--method={method}") == 0
        meta = artifact(tmp_path, method)[1]
        assert meta["encoder"] == f"simclr_resnet8_{encoder}_sk0"
        assert "parent" not in meta["settings"]


def test_a_method_of_another_stage_is_refused():
    for name in ("distill", "lineal"):
        with pytest.raises(ValueError, match=f"linear, finetune, not '{name}'"):
            finetune.run(Config(), Accelerator(cpu=True), name)


# ---------------------------------------------------------------------------------------- rotation
ROTATION = "--finetune.auxiliary=rotation"


def test_without_rotation_nothing_changes(photos, finished, tmp_path, capfd):
    """An artifact that knows neither option stays valid; the weight alone is refused."""
    options = options_of(photos, finished, tmp_path)
    plain = load_file(finished / "finetune-2perclass-seed0/model.safetensors")
    weight = "--finetune.auxiliary_weight=0.7"
    assert "is an option of finetune.auxiliary=rotation" in refused(
        capfd, finetune.main, *options, weight
    )
    assert run(finetune.main, *options, "--finetune.from_layer=1") == 0
    weights, meta = artifact(tmp_path, "finetune")
    assert all(torch.equal(weights[name], plain[name]) for name in plain)
    for option in ("auxiliary", "auxiliary_weight"):
        del meta["settings"][f"finetune.{option}"]
    (tmp_path / "r/finetune-2perclass-seed0/meta.json").write_text(json.dumps(meta))
    assert run(finetune.main, *options, "--finetune.from_layer=1") == 0
    assert "already done" in capfd.readouterr().out
    assert "auxiliary=none, now it is rotation" in refused(
        capfd, finetune.main, *options, "--finetune.from_layer=1", ROTATION
    )


@pytest.mark.parametrize("batch_norm", ["batch", "frozen"])
def test_rotation_goes_on_to_the_same_bits_and_leaves_a_plain_classifier(
    photos, finished, tmp_path, monkeypatch, batch_norm
):
    aided = ["--finetune.from_layer=1", f"--finetune.batch_norm={batch_norm}", ROTATION]
    aided += ["--finetune.steps=4"]
    assert run(finetune.main, *options_of(photos, finished, tmp_path / "whole"), *aided) == 0
    whole, meta = artifact(tmp_path / "whole", "finetune")
    plain = load_file(finished / "finetune-2perclass-seed0/model.safetensors")
    assert {name: x.shape for name, x in whole.items()} == {n: x.shape for n, x in plain.items()}
    before = json.loads((finished / "finetune-2perclass-seed0/meta.json").read_text())
    assert meta["result"]["parameters"] == before["result"]["parameters"]

    options = [*options_of(photos, finished, tmp_path), *aided]
    with stopped_at(2, monkeypatch):
        assert run(finetune.main, *options) == STOPPED
    assert run(finetune.main, *options) == 0
    resumed, _ = artifact(tmp_path, "finetune")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("linear.auxiliary=rotation", "linear.auxiliary must be none, because a frozen encoder"),
        ("finetune.auxiliary_weight=0", "finetune.auxiliary_weight must be greater than 0"),
        ("finetune.encoder_rate=0", "finetune.auxiliary=rotation has nothing to teach"),
        ("finetune.freeze_after_block=3", "finetune.auxiliary=rotation has nothing to teach"),
    ],
)
def test_rotation_that_can_teach_nothing(capfd, photos, finished, tmp_path, option, message):
    options = [*options_of(photos, finished, tmp_path), "--finetune.from_layer=0", ROTATION]
    assert message in refused(capfd, finetune.main, *options, f"--{option}")
    assert files(tmp_path) == {}


def test_rotation_is_learned_beside_the_classes(tmp_path):
    """From scratch, on pictures with an upper side."""
    for label in "ab":
        upright(tmp_path / "photos" / label, number=24)
    options = ["--method=supervised", "--labels=16perclass", "--supervised.auxiliary=rotation"]
    options += ["--supervised.steps=40", "--supervised.batch_size=32", "--augment.rotate=0"]
    out = [f"--output={tmp_path}", f"--data.train={tmp_path / 'photos'}"]
    assert run(finetune.main, *out, *options) == 0
    log = tmp_path / "r/supervised-16perclass-seed0/metrics.jsonl"
    first, *_, last = map(json.loads, log.read_text().splitlines())
    assert first["rotation_loss"] > 1
    assert last["rotation_loss"] < 0.5
    assert last["rotation_top1"] > 0.9
    assert last["rotation_top1_of_chance"] == 0.25


# ------------------------------------------------------------------------------------------ freeze
def trained_parts(cfg: Finetune, whole: bool = False) -> set[str]:
    """Parts of a classifier of three groups of blocks and one kept layer that have gradients."""
    description = {
        "encoder": "simclr_resnet8_1x_sk0",
        "head": {"layers": 2, "width": 8, "out": 8},
        "image_size": 8,
        "classes": ["a", "b"],
        "from_layer": 1,
    }
    model = build_classifier(description)
    freeze_beginning(model, cfg, whole)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {re.sub(r"(encoder\.(?:groups\.\d|stem)|\w+).*", r"\1", name) for name in names}


def test_what_is_frozen():
    groups = [f"encoder.groups.{k}" for k in range(3)]
    everything = {"encoder.stem", *groups, "layers", "linear"}
    assert trained_parts(Finetune()) == everything
    assert trained_parts(Finetune(freeze_after_block=0)) == everything - {"encoder.stem"}
    assert trained_parts(Finetune(freeze_after_block=2)) == {groups[2], "layers", "linear"}
    assert trained_parts(Finetune(freeze_after_block=3)) == {"layers", "linear"}
    assert trained_parts(Finetune(), whole=True) == {"linear"}
    assert trained_parts(Finetune(freeze_after_block=0), whole=True) == {"linear"}


def test_blocks_that_are_not_there_name_the_option_of_the_method():
    with pytest.raises(UserError, match=r"^supervised\.freeze_after_block: after_block is 4"):
        trained_parts(Supervised(freeze_after_block=4))


# ----------------------------------------------------------------------------------- linear layer
def test_class_means_make_the_nearest_mean_classifier(photos, finished):
    """Logits are -|x - m|^2 / (2 variance), up to a number that all classes share."""
    config = Config(data=Data(train=str(photos), image_size=8, workers=0))
    splits = opened(photos, image_size=8, workers=0)
    labels = draw_labels(splits, LabelSet.parse("4perclass"), seed=0)
    model = keep_layers(load_contrastive(finished / "pretrain")[0], 1, 3)
    finetune.start_from_class_means(model, splits.train, labels, config, torch.device("cpu"))
    ((images, ids),) = plain_batches(splits.train, labels.ids, config.data, 99, "cpu")
    assert ids.tolist() == labels.ids.tolist()
    with torch.no_grad():
        x, logits = model.features(images), model(images)
    targets = torch.from_numpy(labels.targets)
    means = torch.stack([x[targets == label].mean(0) for label in range(3)])
    squares = torch.cdist(x, means).square()  # (12, 3)
    variance = squares[torch.arange(12), targets].mean()
    shared = logits + squares / (2 * variance)
    torch.testing.assert_close(shared, shared[:, :1].expand(12, 3), rtol=1e-4, atol=1e-3)
    assert torch.equal(logits.argmax(1), squares.argmin(1))
    assert len(logits.argmax(1).unique()) == 3


class Features(torch.nn.Module):
    """A classifier whose features are given, one row for each image of ``labels``."""

    def __init__(self, rows: torch.Tensor, classes: int):
        super().__init__()
        self.rows, self.linear = rows, torch.nn.Linear(rows.shape[1], classes)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.rows[: len(images)]


def logits_from(photos, rows, targets, classes) -> torch.Tensor:
    """Logits (k, classes) that class means of these features give to the features themselves."""
    config = Config(data=Data(train=str(photos), image_size=8, workers=0))
    train = opened(photos, image_size=8, workers=0).train
    model = Features(torch.tensor(rows), classes)
    labels = Labels(np.arange(len(rows)), np.array(targets))
    finetune.start_from_class_means(model, train, labels, config, torch.device("cpu"))
    assert model.linear.weight.isfinite().all()
    assert model.linear.bias.isfinite().all()
    return model.linear(model.rows)


ROWS = np.random.default_rng(0).normal(3, 1, (6, 16)).astype(np.float32)


def test_class_means_of_a_class_without_labels(photos):
    """It gets no NaN, and is never the answer."""
    for targets in ([0, 0, 0, 2, 2, 2], [1, 1, 1, 2, 2, 2], [0, 0, 0, 0, 3, 3]):
        rows = ROWS + 4 * np.eye(6, 16, dtype=np.float32)[targets]  # apart from one another
        logits = logits_from(photos, rows, targets, classes=4).detach()
        assert logits.argmax(1).tolist() == targets
        absent = [k for k in range(4) if k not in targets]
        present = logits[:, [k for k in range(4) if k in targets]]
        assert (logits[:, absent] <= present.min() + 1e-4).all()


@pytest.mark.parametrize("noise", [0, 1e-7, 1e-5])
@pytest.mark.parametrize("what", ["copies", "constant", "zero"])
def test_class_means_of_nearly_constant_features(photos, noise, what):
    """Rounding errors are no variance: no weights of 1e14."""
    rows = {
        "copies": np.repeat(ROWS[:2], 3, 0),  # the images of a class are copies
        "constant": np.repeat(ROWS[:1], 6, 0),
        "zero": np.zeros_like(ROWS),
    }[what]
    rows = rows + noise * np.random.default_rng(1).normal(size=rows.shape)
    targets = [0, 0, 0, 1, 1, 1]
    logits = logits_from(photos, rows.astype(np.float32), targets, classes=2).detach()
    nll = torch.nn.functional.cross_entropy(logits, torch.tensor(targets))
    assert nll < 1
    if what == "copies":
        assert logits.argmax(1).tolist() == targets


def test_what_was_learned_is_kept_where_testing_fails(
    photos, finished, tmp_path, monkeypatch, capsys
):
    copy = shutil.copytree(finished, tmp_path / "r")
    options = [f"--data.train={photos}", f"--output={tmp_path}", "--seed=7"]

    def fails(*arguments):
        raise UserError("an image cannot be read")

    with monkeypatch.context() as patched:
        patched.setattr("shared.training.stage.predict", fails)
        assert run(finetune.main, *options) == 2
    assert checkpoints(copy / "finetune-2perclass-seed7")
    capsys.readouterr()
    assert run(finetune.main, *options) == 0
    assert "goes on from step 2 of 2" in capsys.readouterr().out
