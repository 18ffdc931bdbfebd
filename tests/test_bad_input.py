"""Bad input of every kind: exit code 2, one line on standard error, and nothing is lost."""

import errno
import json
import pickle
import shutil
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from huggingface_hub import constants

import pipeline
from shared.config.labelset import LabelSet
from shared.data.sources import OPENED, open_data
from shared.runtime import tensors
from shared.runtime.errors import UserError
from shared.runtime.stage_folder import StageFolder
from stages import distill, finetune, pretrain
from tests.support.photo_run import files, refused, run
from tests.support.photos import class_folders, make_folder

COMMANDS = [pipeline.main, pretrain.main, finetune.main, distill.main]


@pytest.fixture(autouse=True)
def precision_of_each():
    """Each test's commands choose their precision, whatever those before had chosen."""
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """10 images each of the classes a, b and c."""
    return class_folders(tmp_path_factory.mktemp("photos"), 10)


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """A whole run of the pipeline on them; nobody may change it."""
    output = tmp_path_factory.mktemp("finished")
    assert run(pipeline.main, f"--data.train={photos}", f"--output={output}") == 0
    before = files(output)
    yield output / "r"
    assert files(output) == before


@pytest.fixture
def copied(finished, tmp_path):
    """The same, to be damaged."""
    shutil.copytree(finished, tmp_path / "out/r")
    return tmp_path / "out/r"


def spoil(path: Path) -> Path:
    """Cut off in the middle, as an interrupted copy leaves a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


# -------------------------------------------------------------------------------- misspelt paths
@pytest.mark.parametrize(
    ("module", "arguments", "meant"),
    [
        ("stages.report", ["runs/phots"], "runs/photos"),
        ("stages.page.__main__", ["runs/phots"], "runs/photos"),
        ("stages.suggest.__main__", ["runs/phots", "--budget=3"], "runs/photos"),
        ("stages.predict.__main__", ["rums/photos/finetun", "x.png"], "runs/photos/finetune"),
        (
            "stages.export.__main__",
            ["runs/phots/finetune", "--to=torchscript"],
            "runs/photos/finetune",
        ),
        ("stages.import_weights.__main__", ["timm:weight.bin", "out"], "weights.bin"),
        ("pipeline", ["--data.train=picture/train.parquet"], "pictures/train.parquet"),
        ("pipeline", ["--labels=labls.csv"], "labels.csv"),
        ("pipeline", ["--config=recip.yaml"], "recipe.yaml"),
        ("pipeline", ["--table=recip.yaml"], "recipe.yaml"),
    ],
)
def test_a_misspelt_path_names_the_one_that_is_there(
    module, arguments, meant, capfd, tmp_path, monkeypatch
):
    for file in ("runs/photos/finetune/x", "pictures/train.parquet", "labels.csv", "weights.bin"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "recipe.yaml").write_text("labels: 1pct\n")
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    with suppress(SystemExit):
        assert import_module(module).main(arguments) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert f"; did you mean {meant}?" in error


# ------------------------------------------------------------------------------- published weights
@pytest.mark.parametrize(
    ("main", "options"),
    [
        (pipeline.main, ["--model.encoder=resnet18", "--model.pretrained=true"]),
        (pipeline.main, ["--distill.student=resnet18", "--distill.student_pretrained=true"]),
        (pipeline.main, ["--model.encoder=resnet18", "--model.pretrained=true", "--plan=true"]),
        (pretrain.main, ["--model.encoder=resnet18", "--model.pretrained=true"]),
    ],
)
def test_weights_that_cannot_be_had_are_refused_before_any_image_is_read(
    main, options, capfd, tmp_path, monkeypatch
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    message = refused(capfd, main, f"--output={tmp_path}", "--data.train=no/such/folder", *options)
    assert "the published weights of 'resnet18' are not in the cache" in message
    assert "_pretrained: " in message or "--model.pretrained: " in message
    assert files(tmp_path) == {}


def test_weights_are_not_needed_again(copied, photos, capfd, monkeypatch):
    """What is done is done, offline too."""
    for name in ("pretrain", "distill-2perclass-seed0"):
        meta = json.loads((copied / name / "meta.json").read_text())
        option = "model.pretrained" if name == "pretrain" else "distill.student_pretrained"
        meta["settings"][option] = True
        (copied / name / "meta.json").write_text(json.dumps(meta))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    options = [f"--data.train={photos}", f"--output={copied.parent}"]
    options.append("--distill.student_pretrained=true")
    assert run(distill.main, *options) == 0
    assert run(pretrain.main, *options, "--model.pretrained=true") == 0
    assert "has no pretrained weights" in refused(capfd, distill.main, *options, "--force=distill")


# ----------------------------------------------------------------------------------------- options
@pytest.mark.parametrize("main", COMMANDS, ids=lambda main: main.__module__)
def test_misspelt_option_wrong_type_and_range(main, capfd, tmp_path):
    out = f"--output={tmp_path}"
    message = refused(capfd, main, out, "--pretrain.tempature=1")
    assert "--pretrain.tempature; did you mean --pretrain.temperature?" in message
    assert "seed must be a whole number, got x" in refused(capfd, main, out, "--seed=x")
    message = refused(capfd, main, out, "--distill.temperature=0")
    assert "distill.temperature must be greater than 0, got 0" in message
    assert "labels must be 1pct" in refused(capfd, main, out, "--labels=1%")
    assert "finetune.from_layer must be 0 to 3" in refused(capfd, main, "--finetune.from_layer=4")
    assert files(tmp_path) == {}


# ------------------------------------------------------------------------------------------ images
@pytest.mark.parametrize("main", [pipeline.main, pretrain.main, finetune.main])
def test_no_such_folder_or_nothing_in_it(main, capfd, tmp_path):
    out = [f"--output={tmp_path / 'out'}", "--method=supervised"]
    assert "no such folder" in refused(capfd, main, *out, "--data.train=/no/such/folder")
    assert "and the hub cannot be reached" in refused(capfd, main, *out, "--data.train=no/hub")
    (tmp_path / "empty").mkdir()
    message = refused(capfd, main, *out, f"--data.train={tmp_path / 'empty'}")
    assert f"no images in {tmp_path / 'empty'}: expected" in message
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nonsense")
    message = refused(capfd, main, *out, f"--data.train={tmp_path / 'bad.parquet'}")
    assert "cannot load" in message
    for option in ("test", "unlabeled"):
        assert "no such folder" in refused(
            capfd, main, *out, "--data.train=digits", f"--data.{option}=/no/such/folder"
        )
    assert not (tmp_path / "out").exists()


def test_folder_with_test_images_alone(capfd, tmp_path):
    root = class_folders(tmp_path / "photos/test", 5).parent
    message = refused(capfd, pretrain.main, f"--output={tmp_path / 'out'}", f"--data.train={root}")
    assert f"{root} has a folder test/ but none called train/" in message
    assert f"move the training images into {root}/train/" in message
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """One cut-off image among 30, in the part that is trained on, and one in the test part."""
    root = class_folders(tmp_path_factory.mktemp("spoiled"), 10)
    OPENED.clear()
    from shared.config.sections import Data

    train, test = open_data(Data(train=str(root)), LabelSet.parse("1pct"))
    return spoil(root / train.names[5]), spoil(root / test.names[2]), root


@pytest.mark.parametrize("loading", ["memory", "workers"])
@pytest.mark.parametrize("workers", [0, 1])
def test_one_unreadable_image_stops_and_is_named(capfd, tmp_path, spoiled, loading, workers):
    bad, bad_test, root = spoiled
    message = refused(
        capfd,
        pretrain.main,
        f"--output={tmp_path}",
        f"--data.train={root}",
        f"--data.loading={loading}",
        f"--data.workers={workers}",
        "--pretrain.batch_size=24",
    )
    assert f"error: cannot read {min(bad, bad_test)}: " in message
    assert "and 1 more of the 30 images cannot be read; remove them or give" in message
    assert files(tmp_path) == {}


@pytest.mark.parametrize("loading", ["memory", "workers"])
def test_unreadable_images_are_skipped_and_counted(capfd, tmp_path, spoiled, loading):
    root = spoiled[2]
    bad, bad_test = (path.relative_to(root) for path in spoiled[:2])
    capfd.readouterr()
    options = [
        f"--output={tmp_path}",
        f"--data.train={root}",
        "--data.on_error=skip",
        f"--data.loading={loading}",
        "--pretrain.batch_size=24",
    ]
    assert run(pretrain.main, *options) == 0
    names = sorted(map(str, (bad, bad_test)))
    says = f"skipped 2 unreadable of 30 images: {', '.join(names)}"
    assert capfd.readouterr().out.count(says) == 1
    assert (tmp_path / "r/skipped.txt").read_text().splitlines() == names
    assert run(finetune.main, *options, "--labels=100pct") == 0
    printed = capfd.readouterr().out
    assert printed.count(says) == 1
    assert "finetune: 22 labels of 3 classes" in printed
    meta = json.loads((tmp_path / "r/finetune-100pct-seed0/meta.json").read_text())
    assert 0 <= meta["result"]["top1"] <= 1


def test_batch_larger_than_the_data_is_allowed(tmp_path, photos):
    """Drawn over several passes."""
    out = [f"--output={tmp_path}", f"--data.train={photos}"]
    assert run(pretrain.main, *out, "--pretrain.batch_size=100") == 0
    assert run(finetune.main, *out, "--finetune.batch_size=50") == 0
    lines = (tmp_path / "r/pretrain/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2
    assert np.isfinite(json.loads(lines[-1])["loss"])


def test_images_of_unequal_size_in_memory(capfd, tmp_path):
    root = class_folders(tmp_path / "p", 5)
    make_folder(root, ["a/wide.png"], size=(9, 8))
    out = [f"--output={tmp_path / 'o'}", f"--data.train={root}"]
    message = refused(capfd, pretrain.main, *out, "--data.loading=memory")
    assert "needs images of one size" in message
    assert run(pretrain.main, *out) == 0  # auto takes workers


# ------------------------------------------------------------------------------------------ labels
def test_labels_that_do_not_fit(capfd, tmp_path, photos, finished):
    out = [f"--output={tmp_path / 'out'}", f"--data.train={photos}", "--method=supervised"]
    message = refused(capfd, finetune.main, *out, "--labels=5pct")
    assert "labels=5pct is 1 of 24 images, fewer than the 3 classes" in message
    assert "take at least 12.5pct or 1perclass" in message
    assert "1perclass to 8perclass" in refused(capfd, finetune.main, *out, "--labels=9perclass")
    missing = tmp_path / "missing.csv"
    assert str(missing) in refused(capfd, finetune.main, *out, f"--labels={missing}")
    good = (finished / "finetune-2perclass-seed0/labels.csv").read_text()
    file = tmp_path / "labels.csv"
    for text, says in [
        (good + "a/99.png,a\n", "names 1 unknown images: a/99.png; remove their rows or give"),
        (good + "a/0.png,zebra\n", "names unknown classes: zebra; the images have a, b, c"),
        (
            "\n".join(good.splitlines()[:3]),
            "has 2 labels of images that training may see, and"
            " none of the classes b, c; give at least one of each",
        ),
        (good.replace("file,label", "nr;class"), "must begin with the line file,label"),
    ]:
        file.write_text(text)
        message = refused(capfd, finetune.main, *out, f"--labels={file}")
        assert f"{file} {says}" in message
        # and the pipeline finds it before it pretrains
        assert f"{file} {says}" in refused(capfd, pipeline.main, *out, f"--labels={file}")
    (tmp_path / "list.txt").write_text("a/0.png\nnobody.png\n")
    message = refused(capfd, finetune.main, *out, f"--labels={tmp_path / 'list.txt'}")
    assert "unknown images: nobody.png" in message
    assert not (tmp_path / "out").exists()
    file.write_text(good)
    assert run(finetune.main, *out, f"--labels={file}") == 0


def test_images_without_labels(capfd, tmp_path):
    root = make_folder(tmp_path / "p", [f"{i}.png" for i in range(12)])
    out = [f"--output={tmp_path / 'out'}", f"--data.train={root}", "--method=supervised"]
    message = refused(capfd, finetune.main, *out)
    assert "labels=2perclass, but the images have no labels; give a CSV file" in message
    assert run(pretrain.main, *out) == 0  # needs none
    rows = "".join(f"{i}.png,{'xy'[i % 2]}\n" for i in range(10))
    (tmp_path / "mine.csv").write_text("file,label\n" + rows)
    assert run(finetune.main, *out, f"--labels={tmp_path / 'mine.csv'}") == 0


# -------------------------------------------------------------------------- networks and schedules
@pytest.mark.parametrize("main", [pipeline.main, pretrain.main])
def test_encoder_that_does_not_exist_or_cannot_take_the_images(main, capfd, tmp_path, photos):
    out = [f"--output={tmp_path}", f"--data.train={photos}"]
    message = refused(capfd, main, *out, "--model.encoder=simclr_resnet51_1x_sk0")
    assert "unknown encoder" in message
    assert "did you mean simclr_resnet" in message
    message = refused(
        capfd, main, *out, "--model.encoder=vit_tiny_patch16_224", "--data.image_size=20"
    )
    assert "vit_tiny_patch16_224 at 20 pixels" in message
    assert "choose another image size" in message


def test_warmup_longer_than_the_run_and_after(capfd, tmp_path, photos):
    """The corrected command must not ask for --force: nothing had been computed."""
    out = [f"--output={tmp_path}", f"--data.train={photos}"]
    message = refused(capfd, pretrain.main, *out, "--pretrain.warmup_epochs=3")
    assert "pretrain.warmup_epochs=3.0 is 9 steps, but the stage has only 2" in message
    assert "make it shorter or train longer" in message
    assert run(pretrain.main, *out) == 0


def test_images_of_another_kind_than_the_artifact_saw(capfd, tmp_path, photos, finished):
    out = [
        f"--output={tmp_path}",
        f"--data.train={photos}",
        f"--finetune.init={finished / 'pretrain'}",
        f"--distill.teacher={finished / 'finetune-2perclass-seed0'}",
    ]
    for main in (finetune.main, distill.main):
        message = refused(capfd, main, *out, "--data.image_size=16")
        assert "was trained with data.image_size=8, now it is 16" in message
        message = refused(capfd, main, *out, "--data.std=[1,1,2]")
        assert "data.std=[1.0, 1.0, 1.0], now it is [1.0, 1.0, 2.0]" in message


# --------------------------------------------------------------------------------------- artifacts
def test_missing_or_unfinished_artifact(capfd, tmp_path, photos, copied):
    out = [f"--output={tmp_path / 'new'}", f"--data.train={photos}"]
    assert "no such artifact folder" in refused(capfd, finetune.main, *out)
    assert "no such artifact folder" in refused(capfd, distill.main, *out)
    (copied / "pretrain/meta.json").unlink()
    before = files(copied)
    message = refused(capfd, finetune.main, *out, f"--finetune.init={copied / 'pretrain'}")
    assert f"{copied / 'pretrain'} holds no finished artifact (no meta.json)" in message
    message = refused(capfd, distill.main, *out, f"--distill.teacher={copied / 'linear'}")
    assert "no such artifact folder" in message
    assert files(copied) == before


def test_artifact_of_the_wrong_kind(capfd, tmp_path, photos, finished):
    out = [f"--output={tmp_path}", f"--data.train={photos}"]
    message = refused(
        capfd, finetune.main, *out, f"--finetune.init={finished / 'finetune-2perclass-seed0'}"
    )
    assert "holds an artifact of kind classifier, needed is encoder" in message
    message = refused(capfd, distill.main, *out, f"--distill.teacher={finished / 'pretrain'}")
    assert "holds an artifact of kind encoder, needed is classifier" in message


@pytest.mark.parametrize("damage", ["cut off", "pickle", "gone", "other network"])
def test_damaged_weights(capfd, tmp_path, photos, copied, damage):
    marker = tmp_path / "executed"
    for name in ("pretrain", "finetune-2perclass-seed0"):
        weights = copied / name / "model.safetensors"
        if damage == "cut off":
            spoil(weights)
        elif damage == "gone":
            weights.unlink()
        elif damage == "pickle":
            weights.write_bytes(pickle.dumps(Bomb(marker)))
        else:
            shutil.copy(copied / "distill-2perclass-seed0/model.safetensors", weights)
            meta = json.loads((weights.parent / "meta.json").read_text())
            meta["encoder"] = "simclr_resnet14_1x_sk0"
            (weights.parent / "meta.json").write_text(json.dumps(meta))
    before = files(copied)
    says = {"gone": "does not exist", "other network": "does not fit the network"}
    out = [f"--output={tmp_path / 'new'}", f"--data.train={photos}"]
    for main, option in (
        (finetune.main, f"--finetune.init={copied / 'pretrain'}"),
        (distill.main, f"--distill.teacher={copied / 'finetune-2perclass-seed0'}"),
    ):
        message = refused(capfd, main, *out, option)
        assert f"{option.partition('=')[2]}/model.safetensors" in message
        assert says.get(damage, "is truncated or not a safetensors file") in message
    assert not marker.exists()
    assert files(copied) == before


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_damaged_meta(capfd, tmp_path, photos, copied):
    out = [f"--output={copied.parent}", f"--data.train={photos}"]
    spoil(copied / "pretrain/meta.json")
    before = files(copied)
    for main in (pretrain.main, finetune.main, pipeline.main):
        assert "meta.json is damaged" in refused(capfd, main, *out, "--seed=1")
    (copied / "pretrain/meta.json").write_text('{"format": "of another program"}')
    assert "it lacks encoder" in refused(capfd, finetune.main, *out, "--seed=1")
    (copied / "pretrain/meta.json").unlink()
    del before["pretrain/meta.json"]
    assert files(copied) == before


def test_made_with_other_settings(capfd, photos, finished):
    out = [f"--output={finished.parent}", f"--data.train={photos}"]
    message = refused(capfd, pretrain.main, *out, "--pretrain.temperature=0.7")
    assert f"{finished / 'pretrain'} was made with pretrain.temperature=" in message
    assert "now it is 0.7; redo it with --force pretrain or choose another --run" in message
    message = refused(capfd, finetune.main, *out, "--finetune.encoder_rate=0.7")
    assert "finetune.encoder_rate=" in message
    assert "now it is 0.7; redo it with --force finetune" in message
    message = refused(capfd, distill.main, *out, "--distill.student=simclr_resnet8_2x_sk0")
    assert "distill.student=" in message
    # `finished` itself checks that no file changed


def test_images_changed_since(capfd, tmp_path, photos):
    root = shutil.copytree(photos, tmp_path / "photos")
    out = [f"--output={tmp_path / 'out'}", f"--data.train={root}"]
    assert run(pretrain.main, *out) == 0
    make_folder(root, ["a/new.png"])
    assert "was made with images=" in refused(capfd, pretrain.main, *out)


def test_output_below_a_file(capfd, tmp_path, photos):
    """As good as a read-only disk."""
    (tmp_path / "file").write_text("not a folder")
    message = refused(
        capfd, pipeline.main, f"--output={tmp_path / 'file/x'}", f"--data.train={photos}"
    )
    assert f"cannot write {tmp_path / 'file/x/r'}" in message
    assert "choose another --run or --output" in message
    assert (tmp_path / "file").read_text() == "not a folder"


def test_full_disk_in_the_middle_of_training(capfd, tmp_path, photos, monkeypatch):
    """The last checkpoint survives, and the same command goes on from it to the same result."""
    arguments = [
        f"--data.train={photos}",
        "--pretrain.steps=6",
        "--pretrain.checkpoint_every_steps=2",
    ]
    assert run(pretrain.main, *arguments, f"--output={tmp_path / 'whole'}") == 0
    save_file = tensors.save_file

    def full(tensors, path, notes):
        if notes.get("step") == "4":
            Path(path).write_bytes(b"the first half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path, notes)

    arguments.append(f"--output={tmp_path / 'full'}")
    with monkeypatch.context() as patch:
        patch.setattr(tensors, "save_file", full)
        message = refused(capfd, pretrain.main, *arguments)
    assert "No space left on device" in message
    assert "goes on from the last checkpoint" in message
    state = tmp_path / "full/r/pretrain/state"
    assert [file.name for file in state.iterdir()] == ["000000002.safetensors"]
    assert not list((tmp_path / "full").rglob("*.tmp"))
    assert run(pretrain.main, *arguments) == 0
    lines = (tmp_path / "full/r/pretrain/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    weights = [
        (tmp_path / name / "r/pretrain/model.safetensors").read_bytes()
        for name in ("whole", "full")
    ]
    assert weights[0] == weights[1]


def test_damaged_checkpoint(capfd, tmp_path, photos, monkeypatch):
    arguments = [
        f"--data.train={photos}",
        f"--output={tmp_path}",
        "--pretrain.steps=4",
        "--pretrain.checkpoint_every_steps=2",
    ]

    def interrupted(*_):
        raise UserError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr(StageFolder, "finish", interrupted)
        assert "stopped here" in refused(capfd, pretrain.main, *arguments)
    state = tmp_path / "r/pretrain/state/000000002.safetensors"
    spoil(state)
    message = refused(capfd, pretrain.main, *arguments)
    assert f"from the checkpoint {state}: it is truncated" in message
    assert state.exists()


def test_force_with_bad_settings_deletes_nothing(capfd, photos, copied):
    """What is wrong is found before the finished artifact goes."""
    before = files(copied)
    out = [f"--output={copied.parent}", f"--data.train={photos}"]
    for main, options in [
        (pretrain.main, ["--force=pretrain", "--pretrain.warmup_epochs=9"]),
        (pretrain.main, ["--force=pretrain", "--model.encoder=simclr_resnet51_1x_sk0"]),
        (finetune.main, ["--force=finetune", "--finetune.warmup_epochs=9"]),
        (finetune.main, ["--force=finetune", "--labels=no.csv"]),
        (distill.main, ["--force=distill", "--distill.student=simclr_resnet51_1x_sk0"]),
        (distill.main, ["--force=distill", "--distill.teacher=nowhere"]),
        (distill.main, ["--force=distill", f"--distill.teacher={copied / 'pretrain'}"]),
        (pipeline.main, ["--force=all", "--labels=no.csv"]),
    ]:
        refused(capfd, main, *out, *options)
        assert files(copied) == before
