"""Published weights of timm's networks in place of stage 1."""

import os
import pickle
from types import SimpleNamespace

import pytest
import timm
import torch
from accelerate import Accelerator
from huggingface_hub import constants
from safetensors.torch import save_file

import pipeline
from shared.networks.build import load_classifier, load_contrastive
from shared.runs.forecast import measure
from shared.runtime.tensors import sha256
from stages import distill, finetune, pretrain
from stages.export import network as exported
from stages.export import timm_folder
from tests.support.command_line import load
from tests.support.exported import artifact
from tests.support.imported import fails, meta_of, run
from tests.support.photos import class_folders
from tests.support.published import NETWORKS, describe, publish
from tests.support.toy_run import TINY

FEW = ["--labels=1perclass", "--classical.enabled=false", "--finetune.batch_size=8"]
FEW += ["--distill.batch_size=8", "--supervised.batch_size=8", "--linear.batch_size=8"]
BYOB = "test_byobnet"  # timm's own network for tests: 0.5 million parameters


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file of BYOB's weights."""
    file = tmp_path_factory.mktemp("published") / "weights.safetensors"
    publish(BYOB, file)
    return file


# What becomes of the weights.


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_the_encoder_is_the_published_one(name, suffix, tmp_path, capsys):
    file = tmp_path / f"weights{suffix}"
    tensors = publish(name, file)
    assert run(f"timm:{name}={file}", tmp_path / "pretrain") == 0
    known, meta = timm.get_pretrained_cfg(name), meta_of(tmp_path / "pretrain")
    assert (meta["kind"], meta["encoder"], meta["image_size"]) == ("encoder", name, 224)
    assert meta["mean"] == list(known.mean)
    assert meta["std"] == list(known.std)
    assert meta["antialias"] is True
    assert meta["settings"]["interpolation"] == "bicubic"
    assert meta["settings"]["sha256"] == sha256(file)
    assert sha256(file) in capsys.readouterr().out
    model, _ = load_contrastive(tmp_path / "pretrain")
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(value, tensors[key])
    images, whole = torch.rand(2, 3, 224, 224), timm.create_model(name, num_classes=0)
    whole.load_state_dict(model.encoder.state_dict())
    with torch.no_grad():
        assert torch.equal(model.eval()(images), whole.eval()(images))


def test_an_export_for_timm_comes_back(tmp_path, capsys):
    """Its classifier, of other classes than any encoder's, is left out."""
    source = artifact(tmp_path / "classifier", ["a", "b", "c"])
    timm_folder.write(exported.load(source), tmp_path / "timm")
    assert run(f"timm:{tmp_path / 'timm'}", tmp_path / "pretrain") == 0
    before, _ = load_classifier(source)
    after, meta = load_contrastive(tmp_path / "pretrain")
    assert meta["image_size"] == 8
    for name, tensor in before.encoder.state_dict().items():
        assert torch.equal(tensor, after.encoder.state_dict()[name])


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pth"])
def test_a_terabyte_of_zeros_is_refused_at_once(suffix, tmp_path, capsys):
    file = tmp_path / f"weights{suffix}"
    with file.open("wb") as made:
        made.truncate(10**12)
    assert "weights" in fails(capsys, f"timm:{BYOB}={file}", tmp_path / "pretrain")


@pytest.mark.parametrize("form", ["folder", "file", "file without prefix", "name and file"])
def test_what_lies_beside_the_weights_says_how_they_see(form, tmp_path):
    tensors = publish(BYOB, tmp_path / "model.safetensors")
    size = [3, 96, 96]
    describe(BYOB, tmp_path, input_size=size, mean=[0.1, 0.2, 0.3], std=[1, 2, 3], crop_pct=1)
    file = tmp_path / "model.safetensors"
    source = {
        "folder": f"timm:{tmp_path}",
        "file": f"timm:{file}",
        "file without prefix": file,
        "name and file": f"timm:{BYOB}={file}",
    }[form]
    assert run(source, tmp_path / "out") == 0
    meta = meta_of(tmp_path / "out")
    assert (meta["encoder"], meta["image_size"]) == (BYOB, 96)
    assert (meta["mean"], meta["std"]) == ([0.1, 0.2, 0.3], [1, 2, 3])
    model, _ = load_contrastive(tmp_path / "out")
    assert torch.equal(model.encoder.state_dict()["stem.conv.weight"], tensors["stem.conv.weight"])


def test_a_name_of_the_hub_is_taken_from_its_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    name = "test_byobnet.r160_in1k"
    repository = tmp_path / "cache" / f"models--timm--{name}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    file = repository / "snapshots" / ("0" * 40) / "model.safetensors"
    publish(BYOB, file)
    for source in (f"timm:{name}", f"timm:timm/{name}"):
        out = tmp_path / source.replace("/", "-")
        assert run(source, out, "--image-size=64") == 0
        meta = meta_of(out)
        assert (meta["encoder"], meta["image_size"]) == (BYOB, 64)  # without the weights' tag
        assert meta["settings"]["source"] == f"timm:{name}"
        assert meta["settings"]["sha256"] == sha256(file)


def test_positions_of_a_transformer_follow_the_image_size(tmp_path):
    publish("test_vit", tmp_path / "weights.bin")
    assert run(f"timm:test_vit={tmp_path / 'weights.bin'}", tmp_path / "a", "--image-size=64") == 0
    model, meta = load_contrastive(tmp_path / "a")
    assert meta["image_size"] == 64
    assert model.eval()(torch.rand(1, 3, 64, 64)).isfinite().all()


# What is refused, in one line that names it.


class Executed:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("suffix", [".bin", ".pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_executed(suffix, zipped, tmp_path, capsys):
    file, made = tmp_path / f"weights{suffix}", tmp_path / "made"
    content = {"stem.conv.weight": Executed(made)}
    if zipped:
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    line = fails(capsys, f"timm:{BYOB}={file}", tmp_path / "out")
    assert "without executing it" in line
    assert line.endswith("; give a .safetensors file\n")
    assert "trusted" not in line
    assert not made.exists()


def test_files_that_hold_no_weights_of_the_network(published, tmp_path, capsys):
    out, file = tmp_path / "out", tmp_path / "weights.safetensors"
    line = fails(capsys, f"timm:resnet18={published}", out)
    assert "holds no weights of 'resnet18': no conv1.weight of 64x3x7x7" in line
    publish("resnet34", file)
    line = fails(capsys, f"timm:resnet18={file}", out)
    assert "of a larger network than 'resnet18': layer" in line
    file.write_bytes(published.read_bytes()[:1000])
    assert "is no safetensors file" in fails(capsys, f"timm:{BYOB}={file}", out)
    other = tmp_path / "weights.bin"
    for content in ([1, 2], {"epoch": 3}, {}):
        torch.save(content, other)
        line = fails(capsys, f"timm:{BYOB}={other}", out)
        assert "holds something else than the named tensors" in line or "is no file of" in line
    save_file({"x": torch.ones(2)}, file)
    assert "holds no weights of" in fails(capsys, f"timm:{BYOB}={file}", out)


def test_names_that_are_not_known(published, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert "did you mean resnet50" in fails(capsys, "timm:resnet5O", out)
    assert "did you mean resnet50." in fails(capsys, "timm:resnet50.a1_in2k", out)
    assert "did you mean" in fails(capsys, f"timm:test_byobnot={published}", out)
    assert "names no model; give timm:NAME" in fails(capsys, "timm:", out)
    line = fails(capsys, "timm:simclr_resnet18_1x_sk0", out)
    assert "no published weights of it; give timm:NAME=FILE" in line
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    line = fails(capsys, "timm:resnet50.a1_in1k", out)
    assert "timm/resnet50.a1_in1k/model.safetensors cannot be reached" in line
    assert "HF_HUB_OFFLINE is set" in line
    assert line.endswith("connect, or give timm:NAME=FILE\n")


def test_sources_that_do_not_say_what_they_are(published, tmp_path, capsys):
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    for source in (f"timm:{published}", published):
        line = fails(capsys, source, out)
        assert f"give timm:NAME={published}" in line
    assert "holds neither model.safetensors" in fails(capsys, f"timm:{empty}", out)
    assert "does not exist" in fails(capsys, f"timm:{BYOB}={tmp_path / 'no.bin'}", out)
    (tmp_path / "notes.txt").write_text("")
    line = fails(capsys, f"timm:{BYOB}={tmp_path / 'notes.txt'}", out)
    assert "is no file of weights; give one of .safetensors" in line


@pytest.mark.parametrize(
    ("seen", "named"),
    [
        ({"input_size": [1, 64, 64]}, "1 x 64 x 64"),
        ({"input_size": [3, 64, 32]}, "3 x 64 x 32"),
        ({"input_size": 64}, "input_size is 64, needed is a list"),
        ({"input_size": [3, 64.0, 64.0]}, "an item of input_size is 64.0, needed is int"),
        ({"input_size": [3, 10**9, 10**9]}, "images of 1e+09 pixels a side; at most 16,384"),
        ({"input_size": []}, "square images of 3 channels"),
        ({"mean": [0.5]}, "three numbers each, not [0.5]"),
        ({"mean": "\u001b[31m"}, "mean is '\\x1b[31m', needed is a list"),
        ({"mean": ["0.5"] * 3}, "an item of mean is '0.5', needed is float"),
        ({"mean": [True] * 3}, "an item of mean is True, needed is float"),
        ({"mean": [1e30] * 3}, "three numbers each"),  # every stage would refuse the artifact
        ({"mean": [10**400] * 3}, "an item of mean is too large a number"),
        ({"std": [0, 1, 1]}, "data.std must be greater than 0"),
        ({"std": [1, 1, float("nan")]}, "three numbers each"),
        ({"interpolation": ["bicubic"]}, "interpolation is ['bicubic'], needed is str"),
        ({"interpolation": "x" * 5000}, "longer than 40 characters"),
        ({"crop_pct": "0.9"}, "crop_pct is '0.9', needed is float"),
        ({"crop_pct": float("nan")}, "crop_pct is nan, needed is a share"),
        ({"crop_pct": -1}, "crop_pct is -1, needed is a share"),
    ],
)
def test_notes_that_cannot_be(seen, named, tmp_path, capsys):
    publish(BYOB, tmp_path / "model.safetensors")
    describe(BYOB, tmp_path, **seen)
    line = fails(capsys, f"timm:{tmp_path}", tmp_path / "out")
    assert named in line
    assert "\u001b" not in line


def test_damaged_notes(tmp_path, capsys):
    publish(BYOB, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    line = fails(capsys, f"timm:{tmp_path}", tmp_path / "out")
    assert "fetch the model's folder again, or remove config.json" in line
    assert "--force" not in line
    (tmp_path / "config.json").write_text(f'{{"architecture": "{BYOB}", "pretrained_cfg": [3]}}')
    line = fails(capsys, f"timm:{tmp_path}", tmp_path / "out")  # else it would see as timm's own do
    assert "config.json is damaged (pretrained_cfg is [3], needed is an object)" in line
    for text in ("[]", '{"architecture": 3}', '{"architecture": "\\u001b[31m"}'):
        (tmp_path / "config.json").write_text(text)
        line = fails(capsys, f"timm:{tmp_path}", tmp_path / "out")
        assert "\u001b" not in line


# Where it goes on from here.


def imported_run(file, output, name: str = BYOB, size: int = 32) -> list[str]:
    """A run with published weights in place of stage 1, and its options."""
    folder = output / "r/pretrain"
    assert run(f"timm:{name}={file}", folder, f"--image-size={size}") == 0
    return [*TINY[3:], *FEW, f"--output={output}", "--run=r"]


def test_the_pipeline_goes_on_from_it(published, tmp_path, capsys):
    """Its recipe is that of the digits: 8 pixels, a head of 3 layers, mean 0."""
    options = imported_run(published, tmp_path)
    before = meta_of(tmp_path / "r/pretrain")
    assert pipeline.main(options) == 0
    out = capsys.readouterr().out
    assert "from the imported network: data.image_size 32, data.mean [0.485, 0.456, 0.406]" in out
    assert "pretrain: done, by the imported weights in" in out
    assert meta_of(tmp_path / "r/pretrain") == before
    for method in ("finetune", "linear", "supervised", "distill"):
        meta = meta_of(tmp_path / f"r/{method}-1perclass-seed0")
        assert (meta["image_size"], meta["from_layer"]) == (32, 0)
        assert (meta["mean"], meta["antialias"]) == ([0.485, 0.456, 0.406], True)
        assert meta["encoder"] == ("simclr_resnet8_1x_sk0" if method == "distill" else BYOB)
    tuned = meta_of(tmp_path / "r/finetune-1perclass-seed0")
    assert tuned["settings"]["parent"] == before["weights_sha256"]
    assert pipeline.main(options) == 0  # all is done
    assert capsys.readouterr().out.count("already done") == 5
    assert pipeline.main([*options, "--force=pretrain"]) == 0  # what is made from it, and not it
    out = capsys.readouterr().out
    assert "which --force leaves as they are" in out
    assert out.count("already done") == 2
    assert meta_of(tmp_path / "r/pretrain") == before
    assert pretrain.main([*options, "--force=all"]) == 0
    assert meta_of(tmp_path / "r/pretrain") == before


def test_settings_fitted_to_own_images_leave_it(published, tmp_path, capsys):
    """Images of 40 x 30 pixels on a CPU, where networks of their own see 30 pixels at most."""
    photos = class_folders(tmp_path / "photos", 10, size=(40, 30))
    tested = [f for c in photos.iterdir() for f in sorted(c.iterdir())[:2]]
    rows = [f"{file.relative_to(photos)},{file.parent.name}\n" for file in tested]
    (tmp_path / "test.csv").write_text("file,label\n" + "".join(rows))
    options = [*imported_run(published, tmp_path, size=64), f"--data.train={photos}"]
    options += [f"--data.test={tmp_path / 'test.csv'}"]
    options += [f"--data.cache_folder={tmp_path}", "--labels=2perclass", "--pretrain.steps=9"]
    assert pipeline.main(options) == 0
    out = capsys.readouterr().out
    assert "Chosen: the imported network and its student" in out
    assert "at 64 pixels" in out
    assert "epochs of pretraining" not in out
    assert "; 6 for testing\n" in out
    assert "on 6 test images; " in out  # and not: stage 1 saw them, which was trained elsewhere
    assert meta_of(tmp_path / "r/finetune-2perclass-seed0")["image_size"] == 64
    assert pipeline.main(options) == 0  # as it was chosen
    assert capsys.readouterr().out.count("already done") == 5


def test_flags_win_over_it(published, tmp_path, capsys):
    options = [*imported_run(published, tmp_path), "--data.image_size=48"]
    assert finetune.main([*options, "--data.mean=[0.5,0.5,0.5]"]) == 0
    assert "image_size" not in capsys.readouterr().out.partition("from the imported")[2][:60]
    meta = meta_of(tmp_path / "r/finetune-1perclass-seed0")
    assert (meta["image_size"], meta["mean"]) == (48, [0.5, 0.5, 0.5])
    assert meta["std"] == [0.229, 0.224, 0.225]
    assert finetune.main([*options, "--force=finetune", "--finetune.from_layer=1"]) == 2
    line = capsys.readouterr().err
    assert "cannot keep 1 layers of a projection head of 0" in line


def test_a_transformer_takes_no_other_size(tmp_path, capsys):
    publish("test_vit", tmp_path / "weights.bin")
    options = imported_run(tmp_path / "weights.bin", tmp_path, "test_vit")
    capsys.readouterr()
    assert finetune.main([*options, "--data.image_size=64"]) == 2
    line = capsys.readouterr().err
    assert "test_vit for images of 32 pixels, now it is 64" in line
    assert "import them again with --image-size 64" in line


def test_an_option_names_it(published, tmp_path):
    options = imported_run(published, tmp_path)
    for method in ("finetune", "linear"):
        named = [f"--{method}.init={tmp_path / 'r/pretrain'}", "--run=other"]
        assert finetune.main([*options, *named, f"--method={method}"]) == 0
        meta = meta_of(tmp_path / f"other/{method}-1perclass-seed0")
        assert (meta["encoder"], meta["image_size"], meta["from_layer"]) == (BYOB, 32, 0)


def test_the_plan_measures_no_pretraining(published, tmp_path):
    config = load(*imported_run(published, tmp_path))
    every = pipeline.to_train(SimpleNamespace(config=config, flags=frozenset(), origin="open"))
    assert "pretrain" not in every
    stages = {name: every[name] for name in ("finetune", "distill")}
    lines, *_ = measure(config, Accelerator(), stages, 0.5)
    assert [line.stage for line in lines] == ["finetune", "distill"]
    assert (tmp_path / "r/pretrain/model.safetensors").exists()


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS[:2]]


@pytest.mark.parametrize("name", [*SLOW, NETWORKS[2]])
def test_teacher_and_student_of_every_kind(name, tmp_path):
    """At the published size: imported teacher, and a student that starts from published weights."""
    file = tmp_path / "weights.safetensors"
    publish(name, file)
    assert run(f"timm:{name}={file}", tmp_path / "r/pretrain") == 0
    options = [*TINY[3:], *FEW, f"--output={tmp_path}", "--run=r", "--data.test_fraction=0.02"]
    options += ["--finetune.steps=2", "--distill.steps=2", f"--distill.student={name}"]
    options += [f"--distill.student_pretrained={file}"]
    assert finetune.main(options) == 0
    assert distill.main(options) == 0
    for method in ("finetune", "distill"):
        model, meta = load_classifier(tmp_path / f"r/{method}-1perclass-seed0")
        assert (meta["encoder"], meta["image_size"]) == (name, 224)
        with torch.no_grad():
            logits = model.eval()(torch.rand(2, 3, 224, 224))
        assert logits.shape == (2, 10)
        assert logits.isfinite().all()


# ------------------------------------------------------------------------------- what is expected
@pytest.mark.parametrize("form", ["{}", "sha256:{}", "upper"])
def test_the_expected_hash_is_taken_and_shown(form, published, tmp_path, capsys):
    digest = sha256(published)
    text = digest.upper() if form == "upper" else form.format(digest)
    assert run(f"timm:{BYOB}={published}", tmp_path / "out", "--expect", text) == 0
    assert f"sha256 {digest}" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["0" * 64, "abc", "", "g" * 64])
def test_another_hash_is_refused_before_anything_is_read(
    text, published, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("shared.networks.encoders.load_state_dict", None)  # not called
    error = fails(capsys, f"timm:{BYOB}={published}", tmp_path / "out", "--expect", text)
    assert "--expect" in error or sha256(published) in error


def test_nothing_is_downloaded_that_was_not_asked_for(published, tmp_path, monkeypatch, capsys):
    def connect(*args, **options):
        raise AssertionError("a connection was made")

    monkeypatch.setattr("socket.socket.connect", connect)
    assert run(f"timm:{BYOB}={published}", tmp_path / "out") == 0
    describe(BYOB, tmp_path, mean=[0.5] * 3)
    publish(BYOB, tmp_path / "model.safetensors")
    assert run(f"timm:{tmp_path}", tmp_path / "again") == 0
