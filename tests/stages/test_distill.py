"""Stage 3: who teaches whom, with which loss, and what it refuses."""

import json
import math
import shutil
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from shared.config.schema import Config
from shared.runtime.artifacts import is_outdated, read_meta
from shared.runtime.tensors import sha256
from shared.training.device import to_inference
from shared.training.stage import Stage
from stages import distill
from tests.support.photo_run import files, refused, run
from tests.support.photos import class_folders, make_folder
from tests.support.sources import opened
from tests.support.stop import STOPPED, stopped_at


def test_self_distillation_first_in_distillation_alone(photos, finished, tmp_path):
    teacher = finished / "finetune-2perclass-seed0"
    options = [f"--distill.teacher={teacher}", "--distill.self_first=true"]
    out = [f"--output={tmp_path}", f"--data.train={photos}"]
    assert run(distill.main, *out, *options) == 0
    names = ["distill-2perclass-seed0", "self-distill-2perclass-seed0"]
    assert sorted(meta.parent.name for meta in tmp_path.glob("r/*/meta.json")) == names
    student, itself = (
        json.loads((tmp_path / "r" / name / "meta.json").read_text()) for name in names
    )
    teacher_meta = json.loads((teacher / "meta.json").read_text())
    assert itself["settings"]["parent"] == teacher_meta["weights_sha256"]
    assert [meta["from_layer"] for meta in (teacher_meta, itself, student)] == [1, 1, 0]
    assert student["settings"]["parent"] == itself["weights_sha256"]
    assert student["labels"] == teacher_meta["labels"]


@pytest.mark.parametrize("method", ["distill", "self-distill"])
def test_a_student_from_published_weights(method, finished, photos, tmp_path, capfd, monkeypatch):
    """Only the student starts from them: self-distillation copies the teacher's network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    weights = tmp_path / "weights.safetensors"
    torch.manual_seed(5)
    published = timm.create_model("test_efficientnet").state_dict()
    save_file(published, weights)
    options = [
        f"--output={tmp_path}",
        f"--data.train={photos}",
        f"--distill.teacher={finished / 'finetune-2perclass-seed0'}",
        f"--distill.self_first={str(method == 'self-distill').lower()}",
        "--distill.student=test_efficientnet",
        "--distill.steps=1",
        "--distill.learning_rate=1e-9",
    ]
    message = refused(capfd, distill.main, *options, "--distill.student_pretrained=true")
    assert "--distill.student_pretrained: the published weights of 'test_efficientnet'" in message
    assert not (tmp_path / "r/distill-2perclass-seed0").exists()
    options.append(f"--distill.student_pretrained={weights}")
    assert run(distill.main, *options) == 0
    student = load_file(tmp_path / "r/distill-2perclass-seed0/model.safetensors")
    for key in ("conv_stem.weight", "conv_head.weight"):
        torch.testing.assert_close(student[f"encoder.{key}"], published[key], rtol=0, atol=1e-4)
    meta = json.loads((tmp_path / "r/distill-2perclass-seed0/meta.json").read_text())
    assert meta["settings"]["weights"] == sha256(weights)
    weights.write_bytes(weights.read_bytes() + b" ")  # other weights under the same name
    assert "was made with weights=" in refused(capfd, distill.main, *options)


def test_teacher_of_other_classes(capfd, tmp_path, finished):
    teacher = f"--distill.teacher={finished / 'finetune-2perclass-seed0'}"
    other = class_folders(tmp_path / "other", 5, classes="abd")
    message = refused(
        capfd, distill.main, f"--output={tmp_path / 'o'}", teacher, f"--data.train={other}"
    )
    assert "they must be the same" in message
    assert str(finished / "finetune-2perclass-seed0") in message
    # images without classes are all right
    bare = make_folder(tmp_path / "bare", [f"{i}.png" for i in range(12)])
    assert run(distill.main, f"--output={tmp_path / 'o'}", teacher, f"--data.train={bare}") == 0


def test_teacher_of_other_labels(capfd, tmp_path, photos, finished):
    """The student's folder and its row of the table would say the wrong number of labels."""
    teacher = finished / "finetune-2perclass-seed0"
    out = [f"--output={tmp_path}", f"--data.train={photos}", f"--distill.teacher={teacher}"]
    message = refused(capfd, distill.main, *out, "--labels=3perclass")
    assert f"the teacher {teacher} was trained with --labels 2perclass" in message
    assert "now it is 3perclass; give the same" in message
    assert files(tmp_path) == {}


# ----------------------------------------------------------------------------------------- teacher
def another_teacher(finished: Path, folder: Path, **changes) -> Path:
    """The fine-tuned network with other weights, and what ``meta.json`` says of it changed."""
    shutil.copytree(finished / "finetune-2perclass-seed0", folder)
    weights = load_file(folder / "model.safetensors")
    weights["linear.bias"] += torch.tensor([0.0, 3.0, -1.0])
    save_file(weights, folder / "model.safetensors")
    meta = json.loads((folder / "meta.json").read_text())
    meta |= {"weights_sha256": sha256(folder / "model.safetensors"), **changes}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def test_several_teachers_are_averaged(photos, finished, tmp_path, monkeypatch, capsys):
    """The student learns the mean of their probabilities, and goes on where it was stopped."""
    first = finished / "finetune-2perclass-seed0"
    second = another_teacher(finished, tmp_path / "second")
    logits, learned, loss = [], [], distill.distillation_loss

    def remember(model, config, accelerator):
        teacher = to_inference(model, config, accelerator)
        return lambda images: logits.append(teacher(images)) or logits[-1]

    monkeypatch.setattr(distill, "to_inference", remember)
    monkeypatch.setattr(
        distill, "distillation_loss", lambda s, t, *rest: learned.append(t) or loss(s, t, *rest)
    )
    options = [f"--data.train={photos}", "--distill.temperature=2"]
    both = [*options, f"--distill.teacher=[{first}, {second}]"]
    with stopped_at(1, monkeypatch):
        assert run(distill.main, *both, f"--output={tmp_path / 'o'}") == STOPPED
    for output in ("o", "whole"):
        assert run(distill.main, *both, f"--output={tmp_path / output}") == 0
    means = [(a / 2).softmax(1) / 2 + (b / 2).softmax(1) / 2 for a, b in pairs(logits)]
    for target, mean in zip(learned, means, strict=True):
        torch.testing.assert_close(target, mean)
    made, whole = (tmp_path / output / "r/distill-2perclass-seed0" for output in ("o", "whole"))
    assert sha256(made / "model.safetensors") == sha256(whole / "model.safetensors")
    meta = read_meta(made)
    assert [(made / place).resolve() for place in meta["parent"]] == [first, second]
    hashes = [read_meta(teacher)["weights_sha256"] for teacher in (first, second)]
    assert meta["settings"]["parent"] == hashes
    assert not is_outdated(made, meta)
    out = f"--output={tmp_path / 'o'}"
    assert run(distill.main, *both, out) == 0
    assert "distill: already done" in capsys.readouterr().out
    assert run(distill.main, *options, out, f"--distill.teacher={first}") == 2
    assert f"was made with parent={hashes}, now it is {hashes[0]};" in capsys.readouterr().err


def test_an_average_teaches_by_pseudo_labels(photos, finished, tmp_path, monkeypatch):
    """It starts with the teacher's weights, follows the student, is kept, and goes on as it was."""
    teacher = finished / "finetune-2perclass-seed0"
    start, students, learned = load_file(teacher / "model.safetensors"), [], []
    move, loss = distill.move_average, distill.pseudo_label_loss

    def remember(average, model, decay):
        students.append({name: x.clone() for name, x in model.state_dict().items()})
        move(average, model, decay)

    monkeypatch.setattr(distill, "move_average", remember)
    monkeypatch.setattr(
        distill, "pseudo_label_loss", lambda s, t, least: learned.append(least) or loss(s, t, least)
    )
    options = [f"--data.train={photos}", f"--distill.teacher={teacher}", *AVERAGED]
    with stopped_at(1, monkeypatch):
        assert run(distill.main, *options, f"--output={tmp_path / 'o'}") == STOPPED
    for output in ("o", "whole"):
        assert run(distill.main, *options, f"--output={tmp_path / output}") == 0
    itself = "r/self-distill-2perclass-seed0/model.safetensors"
    made = load_file(tmp_path / "whole" / itself)
    assert sha256(tmp_path / "o" / itself) == sha256(tmp_path / "whole" / itself)
    first, second = students[2:]
    for name, value in made.items():
        expected = 0.81 * start[name] + 0.09 * first[name] + 0.1 * second[name]
        statistics = "running" in name or "num_batches" in name
        torch.testing.assert_close(value, second[name] if statistics else expected)
    assert learned == [0.5] * 4
    line = (tmp_path / "whole/r/self-distill-2perclass-seed0/metrics.jsonl").read_text()
    assert '"confident": ' in line
    assert (tmp_path / "whole/r/distill-2perclass-seed0/meta.json").exists()


AVERAGED = [
    *("--distill.self_first=true", "--distill.self_ema=0.9", "--distill.self_confidence=0.5"),
    *("--distill.labeled_weight=0.5", "--distill.labeled_batch_size=4", "--distill.bootstrap=0.1"),
]


def pairs(items: list) -> list[tuple]:
    """(0, 1), (2, 3), ... of a list."""
    return list(zip(items[::2], items[1::2], strict=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": ["a", "c", "b"]}, "know other classes (3 and 3), or in another order"),
        (
            {"labels": {"given": "2perclass", "hash": "0", "number": 6}},
            "made from other labels",
        ),
        ({"image_size": 9}, "was trained with data.image_size=9, now it is 8"),
        ({"mean": [0.5, 0.5, 0.5]}, "was trained with data.mean=[0.5, 0.5, 0.5], now it is"),
        ({"kind": "encoder"}, "holds an artifact of kind encoder, needed is classifier"),
    ],
)
def test_teachers_that_do_not_fit_together(capfd, photos, finished, tmp_path, changes, said):
    first = finished / "finetune-2perclass-seed0"
    other = another_teacher(finished, tmp_path / "second", **changes)
    options = [f"--data.train={photos}", f"--output={tmp_path / 'o'}"]
    message = refused(capfd, distill.main, *options, f"--distill.teacher=[{first}, {other}]")
    assert said in message
    assert str(other) in message
    copied = shutil.copytree(first, tmp_path / "copy")
    message = refused(capfd, distill.main, *options, f"--distill.teacher=[{first}, {copied}]")
    assert "are the same network; give one of them" in message
    assert not list((tmp_path / "o").glob("r/*"))


def test_a_method_of_another_stage_is_refused():
    for name in ("finetune", "destill"):
        with pytest.raises(ValueError, match=f"makes self-distill, distill, not '{name}'"):
            distill.run(Config(), Accelerator(cpu=True), name)


# -------------------------------------------------------------------------------------------- loss
def options_of(photos, finished, output) -> list[str]:
    teacher = finished / "finetune-2perclass-seed0"
    return [f"--output={output}", f"--data.train={photos}", f"--distill.teacher={teacher}"]


def test_labeled_weight_mixes_both_losses(photos, finished, tmp_path, monkeypatch):
    """The rest goes to distillation; the cross-entropy is log 3 before the first update."""

    def two(student_logits, targets, *_):
        assert student_logits.shape == targets.shape == (8, 3)  # without the labeled images
        return 2.0 + 0 * student_logits.sum()

    monkeypatch.setattr(distill, "distillation_loss", two)
    for weight in (0.0, 0.25):
        options = ["--distill.labeled_batch_size=5", f"--distill.labeled_weight={weight}"]
        output = tmp_path / str(weight)
        assert run(distill.main, *options_of(photos, finished, output), *options) == 0
        lines = (output / "r/distill-2perclass-seed0/metrics.jsonl").read_text().splitlines()
        expected = (1 - weight) * 2 + weight * math.log(3)
        assert json.loads(lines[0])["loss"] == pytest.approx(expected, abs=1e-5)


def test_each_distillation_has_its_temperature(photos, finished, tmp_path, monkeypatch):
    temperatures, loss = [], distill.distillation_loss

    def remember(student_logits, targets, temperature, own_share):
        temperatures.append(temperature)
        return loss(student_logits, targets, temperature, own_share)

    monkeypatch.setattr(distill, "distillation_loss", remember)
    options = ["--distill.self_first=true", "--distill.temperature=3"]
    options.append("--distill.self_temperature=0.2")
    assert run(distill.main, *options_of(photos, finished, tmp_path), *options) == 0
    assert temperatures == [0.2, 0.2, 3.0, 3.0]  # two steps each


@pytest.mark.parametrize(
    "use",
    [
        "--distill.images=labeled",
        pytest.param("--distill.labeled_weight=0.5", marks=pytest.mark.slow),
    ],
)
def test_the_labels_that_the_student_sees_are_noted(
    photos, finished, tmp_path, monkeypatch, capfd, use
):
    """Those of another teacher's seed are others. What an earlier version made stays done."""
    options = [*options_of(photos, finished, tmp_path), use, "--seed=1"]
    assert run(distill.main, *options) == 0
    file = tmp_path / "r/distill-2perclass-seed1/meta.json"
    meta = json.loads(file.read_text())
    assert meta["labels"]["hash"] == meta["settings"]["student_labels"]
    assert meta["settings"]["student_labels"] != meta["settings"]["labels"]
    draw = distill.draw_labels
    monkeypatch.setattr(distill, "draw_labels", lambda *arguments: draw(*arguments[:2], 2))
    message = refused(capfd, distill.main, *options)
    assert "the student sees other labels" in message
    del meta["settings"]["student_labels"]
    file.write_text(json.dumps(meta))
    assert run(distill.main, *options) == 0
    assert json.loads(file.read_text()) == meta


@pytest.mark.parametrize(("images", "number"), [("all", 24), ("labeled", 6)])
def test_images_to_distill_on(photos, finished, tmp_path, monkeypatch, images, number):
    ids, batches = [], Stage.batches

    def remember(self, images, positions, *rest, **options):
        ids.append(positions)
        return batches(self, images, positions, *rest, **options)

    monkeypatch.setattr(Stage, "batches", remember)
    options = options_of(photos, finished, tmp_path)
    assert run(distill.main, *options, f"--distill.images={images}") == 0
    assert [len(positions) for positions in ids] == [number]
    assert (tmp_path / "r/distill-2perclass-seed0/meta.json").exists()


def test_the_teacher_may_see_the_plain_image(photos, finished, tmp_path, monkeypatch):
    seen, evaluated = [], distill.to_inference

    def remember(model, config, accelerator):
        teacher = evaluated(model, config, accelerator)
        return lambda images: seen.append(images.clone()) or teacher(images)

    monkeypatch.setattr(distill, "to_inference", remember)
    for view in ("same", "clean"):
        options = [f"--distill.teacher_view={view}", "--data.loading=memory"]
        assert run(distill.main, *options_of(photos, finished, tmp_path / view), *options) == 0
    splits = opened(photos, "2perclass", image_size=8, loading="memory", workers=0)
    plain = {image.numpy().tobytes() for image in splits.train.pixels[:].float() / 255}
    assert len(seen) == 4  # two steps each
    is_plain = [image.numpy().tobytes() in plain for batch in seen for image in batch]
    assert not all(is_plain[:16])
    assert all(is_plain[16:])
