"""More labels never cost a pretraining: a file of labels that grows, corrections, new images."""

import json
import re
import shutil

import datasets
import pytest

import pipeline
from stages import finetune, pretrain
from tests.support.photo_run import refused, run
from tests.support.photos import class_folders, make_folder

CLASSIFIERS = ("supervised", "supervised-student", "linear", "finetune", "distill")


def write(folder, number: int, **corrected: str):
    """``labels.csv`` with so many labels of two classes."""
    labels = {f"{i:02d}": "ab"[i % 2] for i in range(number)} | corrected
    rows = "".join(f"{name}.png,{label}\n" for name, label in labels.items())
    (folder / "labels.csv").write_text("file,label\n" + rows)


def made(folder) -> dict[str, tuple[int, dict]]:
    """When each artifact was finished, and its meta."""
    files = (folder / "out/r").glob("*/meta.json")
    return {f.parent.name: (f.stat().st_mtime_ns, json.loads(f.read_text())) for f in files}


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A run with 10 labels, and the command that made it."""
    folder = tmp_path_factory.mktemp("grown")
    make_folder(folder / "p", [f"{i:02d}.png" for i in range(60)])
    write(folder, 10)
    command = [f"--output={folder / 'out'}", f"--data.train={folder / 'p'}"]
    command.append(f"--labels={folder / 'labels.csv'}")
    assert run(pipeline.main, *command) == 0
    return folder, command


def test_labels_grow_and_are_corrected_and_stage_1_is_trained_once(grown, capsys):
    folder, command = grown
    before, labels = made(folder), 10
    for number, corrected in ((50, {}), (50, {"03": "a"})):
        write(folder, number, **corrected)
        capsys.readouterr()
        assert run(pipeline.main, *command) == 0
        printed = capsys.readouterr().out
        after = made(folder)
        assert after["pretrain"] == before["pretrain"]
        for method in CLASSIFIERS:
            assert after[f"{method}-labels-seed0"][0] > before[f"{method}-labels-seed0"][0]
        (line,) = [line for line in printed.splitlines() if "the pretraining is kept" in line]
        for method in (*CLASSIFIERS, "pixels-svm", "features-logistic"):
            assert f" {method}," in line or f" {method} are made again;" in line
        assert "stage 1 saw them without their labels" in printed
        before, labels = after, number
    rows = [json.loads(line) for line in (folder / "out/r/results.jsonl").open()]
    held_out = int(re.search(r"(\d+)(?: \w+)* for testing", printed)[1])
    assert {row["n_labels"] for row in rows} == {labels - held_out}
    given = (folder / "out/r/finetune-labels-seed0/labels.csv").read_text()
    assert "03.png,a" in given
    assert run(pipeline.main, *command) == 0
    assert made(folder) == before
    assert "made again" not in capsys.readouterr().out


@pytest.mark.parametrize("kept", ["lockbox", "tuning"])
def test_a_file_of_labels_with_a_lockbox(kept, grown, tmp_path, capsys):
    """Its images are named like all others, and no class is said to lack test images."""
    folder, command = grown
    write(folder, 60)
    own = [*command, f"--output={tmp_path}", f"--data.hold_out={kept}"]
    assert run(pipeline.main, *own) == 0
    printed = capsys.readouterr()
    told = printed.out + printed.err
    assert "were drawn for testing, and one trains" not in told
    assert re.search(r"60 labels of 2 classes, \d+ rows of images for testing", told)
    write(folder, 10)


def test_two_files_of_labels_need_one_test_set(grown, tmp_path, capfd):
    """Before anything trains: their test images are drawn by the names that are labeled."""
    folder, command = grown
    for number in (20, 60):
        write(folder, number)
        (folder / "labels.csv").rename(folder / f"first{number}.csv")
    files = {number: folder / f"first{number}.csv" for number in (20, 60)}
    table = tmp_path / "mine.yaml"
    columns = "".join(f'  "{number}": {{labels: {file}}}\n' for number, file in files.items())
    rows = "  scratch: {method: supervised}\n"
    table.write_text(f"title: t\nseeds: 1\nrows:\n{rows}columns:\n{columns}")
    own = [command[1], f"--output={tmp_path}", f"--table={table}"]
    message = refused(capfd, pipeline.main, *own)
    assert f"labels={files[60]} and labels={files[20]} draw different test images" in message
    assert "--data.test" in message
    assert not list(tmp_path.glob("r/supervised*"))
    rows = "".join(f"  s{n}: {{labels: {files[n]}, data.image_size: {8 + n % 8}}}\n" for n in files)
    columns = "  scratch: {method: supervised}\n"
    table.write_text(f"title: t\nseeds: 1\nrows:\n{rows}columns:\n{columns}")
    assert "draw different test images" in refused(capfd, pipeline.main, *own)  # shown otherwise
    table.write_text(
        f"title: t\nseeds: [0, 1]\nrows:\n{columns}  twice: {{method: supervised-student}}\n"
        f"columns:\n  x: {{}}\nvary: {{labels: [{files[20]}, {files[60]}]}}\n"
    )
    assert run(pipeline.main, *own) == 0  # whose rows are compared within a repetition
    assert "failed" not in capfd.readouterr().out
    shutil.rmtree(tmp_path / "r")
    rows = "  scratch: {method: supervised}\n"
    columns = "".join(f'  "{number}": {{labels: {file}}}\n' for number, file in files.items())
    table.write_text(f"title: t\nseeds: 1\nrows:\n{rows}columns:\n{columns}")
    assert run(pipeline.main, *own, "--plan=true") == 2
    tested = tmp_path / "test.csv"
    tested.write_text("file,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(50, 60)))
    own.append(f"--data.test={tested}")
    assert run(pipeline.main, *own, "--plan=true", "--labels=1pct") == 0  # with the table's labels
    assert run(pipeline.main, *own) == 0
    assert "failed" not in capfd.readouterr().out
    write(folder, 10)


def test_classifiers_never_see_what_is_held_out(grown, monkeypatch):
    folder, command = grown
    write(folder, 50)
    seen = {}

    def batches(self, images, ids, *rest, **options):
        seen.setdefault(self.method, set()).update(images.names[ids])
        return original(self, images, ids, *rest, **options)

    original = pretrain.Stage.batches
    monkeypatch.setattr(pretrain.Stage, "batches", batches)
    assert run(pipeline.main, *command, "--force=all", "--classical.enabled=false") == 0
    assert len(seen["pretrain"]) == 60
    held_out = seen["pretrain"] - seen["distill"]
    assert 4 < len(held_out) < 20
    for method in CLASSIFIERS:
        assert held_out.isdisjoint(seen[method]), method


def test_new_images_are_counted_and_the_pretraining_is_kept(grown, tmp_path, capfd):
    shutil.copytree(grown[0], tmp_path / "x")
    folder = tmp_path / "x"
    command = [f"--output={folder / 'out'}", f"--data.train={folder / 'p'}"]
    command.append(f"--labels={folder / 'labels.csv'}")
    before = made(folder)
    make_folder(folder / "p", [f"x{i}.png" for i in range(70)][60:])
    capfd.readouterr()
    assert run(pipeline.main, *command) == 0
    printed = capfd.readouterr().out
    assert "note: 10 of 70 images are new; " in printed
    assert "--pretrain.init" in printed
    after = made(folder)
    assert after["pretrain"] == before["pretrain"]
    assert after["distill-labels-seed0"][0] > before["distill-labels-seed0"][0]
    # one of another size: then none of them is in memory
    make_folder(folder / "p", ["wide.png"], size=(9, 8))
    assert run(pretrain.main, *command) == 0
    assert "note: 11 of 71 images are new" in capfd.readouterr().out
    assert made(folder)["pretrain"] == before["pretrain"]
    # an image that stage 1 saw is another one now
    make_folder(folder / "p", ["y.png", "00.png"])
    assert "the training images have changed" in refused(capfd, pretrain.main, *command)


def test_a_pretraining_goes_on_from_another(grown, tmp_path, capfd):
    folder, command = grown
    source = folder / "out/r"
    command = [*command, f"--output={tmp_path}"]
    hashes = set()
    for init in ([], [f"--pretrain.init={source}"], [f"--pretrain.init={source / 'pretrain'}"]):
        assert run(pretrain.main, *command, *init, "--force=pretrain") == 0
        meta = json.loads((tmp_path / "r/pretrain/meta.json").read_text())
        hashes.add(meta["weights_sha256"])
    assert len(hashes) == 2
    parent = json.loads((source / "pretrain/meta.json").read_text())["weights_sha256"]
    assert meta["settings"]["parent"] == parent
    assert run(finetune.main, *command) == 0
    assert "was made with parent=" in refused(capfd, pretrain.main, *command)
    for option in ("--model.head_out=4", "--model.encoder=simclr_resnet14_1x_sk0"):
        message = refused(capfd, pretrain.main, *command, *init, "--run=new", option)
        assert "does not fit the network that --model and --data describe" in message
    own = f"--pretrain.init={tmp_path / 'r'}"
    message = refused(capfd, pretrain.main, *command, own, "--force=pretrain")
    assert "is what this run makes; give another --run" in message
    message = refused(capfd, pretrain.main, *command, "--run=new", "--pretrain.init=nowhere")
    assert "no such artifact folder: nowhere" in message


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_labels_in_a_metadata_file_grow_likewise(tmp_path, capsys, form):
    make_folder(tmp_path / "p", [f"{i:02d}.png" for i in range(60)])
    command = [f"--output={tmp_path}", f"--data.train={tmp_path / 'p'}", "--labels=100pct"]
    made_before = {}
    for number in (20, 30):
        rows = {
            "file_name": [f"{i:02d}.png" for i in range(60)],
            "label": ["ab"[i % 2] if i < number else None for i in range(60)],
        }
        table = datasets.Dataset.from_dict(rows)
        save = {"csv": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}[form]
        save(str(tmp_path / f"p/metadata.{form}"))
        assert run(pretrain.main, *command) == 0
        assert run(finetune.main, *command) == 0
        made_now = {f.parent.name: f.stat().st_mtime_ns for f in tmp_path.glob("r/*/meta.json")}
        if made_before:
            assert made_now["pretrain"] == made_before["pretrain"]
            assert made_now["finetune-100pct-seed0"] > made_before["finetune-100pct-seed0"]
            printed = capsys.readouterr().out
            (line,) = [x for x in printed.splitlines() if x.startswith("finetune: made again")]
            what = line.removeprefix("finetune: made again, with other ").split(", ")
            assert {"labels"} <= {*what} <= {"labels", "images", "test images"}
        made_before = made_now


@pytest.mark.parametrize("split", ["train/", ""])
def test_new_images_in_class_folders_are_counted(tmp_path, capfd, split):
    """With a test split of its own the pretraining is kept; else the held-out part is another."""
    photos = class_folders(tmp_path / f"p/{split}", 10)
    if split:
        class_folders(tmp_path / "p/test", 4)
    command = [f"--output={tmp_path}", f"--data.train={tmp_path / 'p'}"]
    alone = ["--classical.enabled=false", *command]
    assert run(pretrain.main, *command) == 0
    assert run(finetune.main, *command) == 0
    make_folder(photos, ["a/new0.png", "a/new1.png", "b/new2.png", "c/new3.png"])
    message = refused(capfd, pipeline.main, *alone)
    if split:
        assert "4 of 34 training images are new; " in message
        assert "--force finetune or" in message
    else:
        assert "training images are new, " in message
        assert "of the earlier ones are gone or for testing" in message
        assert "--force pretrain or" in message
    assert f"--run NEW --pretrain.init {tmp_path / 'r/pretrain'}" in message
