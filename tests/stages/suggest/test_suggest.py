"""The command on a run: what it writes, what it keeps, what it refuses; suggested label sets."""

import base64
import io
import json
import re
import shutil
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import pipeline
from shared.config.labelset import LabelSet
from shared.config.sections import Data
from shared.data.label_files import read_csv
from shared.data.labels import draw_labels
from shared.data.sources import look_at
from shared.runtime.artifacts import read_meta
from shared.runtime.errors import UserError
from stages import finetune, pretrain, report
from stages.suggest import suggest
from tests.support.photo_run import TINY, files, refused, run
from tests.support.photos import make_folder

NAMES = [f"{i:02d}.png" for i in range(56)]
ODD = ["=1+1.png", 'a "b", c.png', "naïve.png", "sub/x;y.png"]


def call(*arguments: object) -> int:
    """The command alone: it takes no recipe."""
    return run(lambda argv: suggest.main(argv[len(TINY) :]), *arguments)


def reported(argv) -> int:
    """The report, which takes no recipe either."""
    return report.main(argv[len(TINY) :])


def refusal(capfd, *arguments: object) -> str:
    return refused(capfd, lambda argv: suggest.main(argv[len(TINY) :]), *arguments)


@pytest.fixture(scope="module")
def unlabeled(tmp_path_factory):
    """A run that pretrained on images without classes; nobody may change it."""
    folder = tmp_path_factory.mktemp("unlabeled")
    make_folder(folder / "p", [*NAMES, *ODD])
    options = [f"--data.train={folder / 'p'}", f"--output={folder / 'out'}", "--labels=1pct"]
    assert run(pretrain.main, *options) == 0
    before = files(folder)
    yield folder / "out/r"
    assert files(folder) == before


def filled(file, number: int, label=lambda row: "=ab"[row % 3]):
    """Give the first rows of a file a label, as a person would in an editor."""
    rows = read_csv(file).rows
    suggested = [label(i) if i < number and not old else old for i, (_, old) in enumerate(rows)]
    text = suggest.csv_text((name, new) for (name, _), new in zip(rows, suggested, strict=True))
    file.write_text(text)
    return read_csv(file)


# ------------------------------------------------------------------------------- what it writes
@pytest.mark.parametrize("by", ["typiclust", "kmeans", "random"])
def test_a_file_and_a_sheet_and_no_image(by, unlabeled, tmp_path, capsys):
    assert call(unlabeled, "--budget", 12, "--by", by, "--out", tmp_path) == 0
    assert sorted(f.name for f in tmp_path.iterdir()) == ["to_label.csv", "to_label.html"]
    rows = read_csv(tmp_path / "to_label.csv").rows
    assert len({name for name, _ in rows} & {*NAMES, *ODD}) == 12
    assert {label for _, label in rows} == {""}
    html = (tmp_path / "to_label.html").read_text()
    assert html.count("data:image/png;base64,") == 12
    assert "--labels " + str(tmp_path / "to_label.csv") in capsys.readouterr().out


def test_the_sheet_shows_the_images_not_their_small_copies(tmp_path):
    """The network sees 8 pixels; a person could not tell what is on them."""
    photos = make_folder(tmp_path / "p", NAMES[:10], size=(120, 90))
    cache = ["--data.cache=9", f"--data.cache_folder={tmp_path / 'cache'}"]
    options = [f"--data.train={photos}", f"--output={tmp_path / 'out'}", "--labels=1pct"]
    assert run(pretrain.main, *options, *cache) == 0
    assert call(tmp_path / "out/r", "--budget", 4) == 0
    html = (tmp_path / "out/r/to_label.html").read_text()
    contents = re.findall(r'<img src="data:image/jpeg;base64,(.*?)"', html)
    sizes = [Image.open(io.BytesIO(base64.b64decode(content))).size for content in contents]
    assert sizes == [(120, 90)] * 4


def test_every_name_comes_back(unlabeled, tmp_path):
    assert call(unlabeled, "--budget", 60, "--out", tmp_path) == 0
    file = tmp_path / "to_label.csv"
    assert {name for name, _ in read_csv(file).rows} == {*NAMES, *ODD}
    assert file.read_bytes().startswith(b"\xef\xbb\xbffile,label\n")  # Excel reads it as UTF-8
    assert "\n'=1+1.png,\n" in file.read_text()


def test_one_file_grows_and_trains(unlabeled, tmp_path, capsys):
    """Fill some, suggest more, train, suggest more: all from one file, which is half filled."""
    copy = shutil.copytree(unlabeled, tmp_path / "out/r")
    file = copy / "to_label.csv"
    assert call(copy, "--budget", 12) == 0
    first = filled(file, 9)
    assert call(copy, "--budget", 10, "--labels", file) == 0
    assert "9 labels so far" in capsys.readouterr().out
    second = read_csv(file).rows
    assert second[:9] == first.labeled
    assert [label for _, label in second[9:]] == [""] * 10
    assert not {name for name, _ in second[9:]} & {name for name, _ in second[:9]}
    filled(file, 17)
    options = [f"--data.train={unlabeled.parents[1] / 'p'}", f"--output={copy.parent}"]
    assert run(finetune.main, *options, f"--labels={file}") == 0
    assert "17 labels of 3 classes, 2 rows without a label" in capsys.readouterr().out
    assert call(copy, "--budget", 4) == 0  # the run's own file of labels
    printed = capsys.readouterr().out
    assert "17 labels so far" in printed
    assert "clusters without a label, first where finetune-to_label-seed0 is least sure" in printed
    assert [row[1] for row in read_csv(file).rows].count("") == 4


def test_images_to_test_with_are_others(unlabeled, tmp_path, capsys):
    """By lot, in a file of their own, which grows; then the pipeline's, for ``--data.test``."""
    copy = shutil.copytree(unlabeled, tmp_path / "out/r")
    assert call(copy, "--budget", 12) == 0
    train = {name for name, _ in filled(copy / "to_label.csv", 12).rows}
    file = copy / "to_test.csv"
    assert call(copy, "--budget", 30, "--test") == 0
    assert f"--labels {copy / 'to_label.csv'} --data.test {file}\n" in capsys.readouterr().out
    first = filled(file, 25, lambda row: "=ab"[row % 3])
    assert len(first.rows) == 30
    assert not train & {name for name, _ in first.rows}
    assert call(copy, "--budget", 10, "--test") == 0  # what was not labeled may come again
    second = read_csv(file).rows
    assert second[:25] == first.labeled
    assert len({name for name, _ in second}) == 35
    assert not train & {name for name, _ in second}
    assert call(copy, "--budget", 13, "--labels", copy / "to_label.csv") == 0
    more = {name for name, _ in read_csv(copy / "to_label.csv").rows}
    assert not more & {name for name, _ in second}
    options = [f"--data.train={unlabeled.parents[1] / 'p'}", f"--output={copy.parent}"]
    options += [f"--labels={copy / 'to_label.csv'}", f"--data.test={file}"]
    assert run(finetune.main, *options) == 0
    with np.load(copy / "finetune-to_label-seed0/predictions.npz") as tested:
        assert len(tested["predictions"]) == 25
    assert "12 labels of 3 classes" in capsys.readouterr().out


def test_labels_do_not_matter_in_the_first_round(finished, tmp_path, monkeypatch):
    """A run on class folders: the choice is the same with other classes, which get buttons."""

    def with_other_labels(*arguments):
        splits = original(*arguments)
        train = replace(
            splits.train, labels=splits.train.labels[::-1].copy(), classes=("x", "y", "z")
        )
        return splits._replace(train=train)

    assert call(finished, "--budget", 9, "--out", tmp_path / "a") == 0
    original = suggest.open_run
    monkeypatch.setattr(suggest, "open_run", with_other_labels)
    assert call(finished, "--budget", 9, "--out", tmp_path / "b") == 0
    tables = [(tmp_path / out / "to_label.csv").read_text() for out in "ab"]
    assert tables[0] == tables[1]
    for out, classes in (("a", ["a", "b", "c"]), ("b", ["x", "y", "z"])):
        html = (tmp_path / out / "to_label.html").read_text()
        data = re.findall(r'id="data">(.*?)</script>', html)[0]
        assert json.loads(data)["classes"] == classes


# ------------------------------------------------------------------------------ what is refused
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", 61], "--budget 61, but 60 images have no label yet; give at most 60"),
        (["--budget", 0], "--budget must be 1 or more, got 0"),
        (["--budget", "ten"], "argument --budget: it is a number of images, such as 30, got 'ten'"),
        ([], "the following arguments are required: --budget"),
        (["--budget", 3, "--by", "luck"], "argument --by: invalid choice: 'luck'"),
        (["--budget", 3, "--labels", "no.csv"], "cannot read the label file no.csv"),
        (["--budget", 3, "--labels", "5%"], "labels must be 1pct, 10pct"),
        (["--budget", 3, "--labels", "2perclass"], "but the images have no labels"),
        (["--budget", 3, "--seed", -1], "--seed must be 0 to 2**32 - 1, got -1"),
        (["--budget", 3, "--seed", 2**32], "--seed must be 0 to 2**32 - 1, got 4294967296"),
    ],
)
def test_bad_options(options, message, unlabeled, tmp_path, capfd):
    assert message in refusal(capfd, unlabeled, *options, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("none.png,cat", "names 1 unknown images: none.png"),
        ('"00.png,cat', "a quote that is never closed"),
        ("00.png,cat\n00.png,dog", "gives several labels to 00.png"),
        (",cat", "a label, but no image"),
    ],
)
def test_bad_labels(rows, message, unlabeled, tmp_path, capfd):
    file = tmp_path / "labels.csv"
    file.write_text(f"file,label\n{rows}\n")
    assert message in refusal(capfd, unlabeled, "--budget", 3, "--labels", file, "--out", tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["labels.csv"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label\n00.png,cat\n01.png,\n", "has 1 labels that would be lost"),
        ("file,label\f00.png,a\f", "has further columns, which would be lost"),  # one line, to csv
        ("file;label;who\n00.png;;ann\n", "has further columns, which would be lost"),
        ('file,label\n"00.png,\n', "a quote that is never closed"),
        ("File,Label,Notes\n00.png,,mine\n", "has further columns, which would be lost"),
        ("file,class,notes\n00.png,,mine\n", "has further columns, which would be lost"),
        ("sep=;\nfile;class;notes\n00.png;;mine\n", "has further columns, which would be lost"),
    ],
)
def test_what_somebody_wrote_is_not_overwritten(content, message, unlabeled, tmp_path, capfd):
    file = tmp_path / "to_label.csv"
    file.write_text(content)
    assert message in refusal(capfd, unlabeled, "--budget", 3, "--out", tmp_path)
    assert file.read_text() == content


def test_a_file_without_any_label_is_the_first_round(unlabeled, tmp_path, capfd):
    for _ in range(2):  # the second time the empty file lies there
        assert call(unlabeled, "--budget", 5, "--out", tmp_path) == 0
    file = tmp_path / "to_label.csv"
    assert call(unlabeled, "--budget", 5, "--labels", file, "--out", tmp_path) == 0
    options = [f"--data.train={unlabeled.parents[1] / 'p'}", f"--output={tmp_path / 'runs'}"]
    message = refused(capfd, pipeline.main, *options, f"--labels={file}")
    assert "has no label yet; write classes into it" in message
    file.write_text(file.read_text().replace(",\n", ",-1\n"))
    assert "has no label yet" in refused(capfd, pipeline.main, *options, f"--labels={file}")
    file.write_text("file,label\n")
    assert "has no label yet" in refused(capfd, pipeline.main, *options, f"--labels={file}")


def test_a_folder_that_no_run_can_be_called(unlabeled, tmp_path, capfd):
    copy = shutil.copytree(unlabeled, tmp_path / "my run")
    message = refusal(capfd, copy, "--budget", 3)
    assert "run must be letters" in message
    assert "rename the folder" in message
    (copy / "mine.yaml").write_text(f"title: t\nseeds: 1\n{ROWS}{SUGGESTED}")
    assert "rename the folder" in refused(capfd, reported, copy, "--table", copy / "mine.yaml")


def test_the_seed_is_that_of_the_clusters_alone(finished, tmp_path, capsys):
    """The same classifier is asked, and the same labels are known."""
    copy = shutil.copytree(finished, tmp_path / "r")
    told = []
    for seed in (0, 1):
        capsys.readouterr()
        arguments = ["--budget", 3, "--labels", "2perclass", "--seed", seed, "--out", tmp_path]
        assert call(copy, *arguments) == 0
        told += re.findall(r".*suggested: .*", capsys.readouterr().out)
        (tmp_path / "to_label.csv").unlink()
    assert told[0] == told[1]
    assert "first where finetune-2perclass-seed0 is least sure" in told[0]


def test_no_run_and_no_pretraining_and_no_images(unlabeled, tmp_path, capfd):
    assert "no such run: " in refusal(capfd, tmp_path / "none", "--budget", 3)
    (tmp_path / "r").mkdir()
    assert "has no pretrained network" in refusal(capfd, tmp_path / "r", "--budget", 3)
    stage = unlabeled / "pretrain"
    assert f"a stage; give that of its run: {unlabeled}" in refusal(capfd, stage, "--budget", 3)
    copy = shutil.copytree(unlabeled, tmp_path / "out/r")
    config, photos = copy / "config.yaml", tmp_path / "p"
    config.write_text(config.read_text().replace(str(unlabeled.parents[1] / "p"), str(photos)))
    photos.mkdir()
    assert "no images in" in refusal(capfd, copy, "--budget", 3)
    (photos / "x.png").write_text("no image")
    assert "not an image" in refusal(capfd, copy, "--budget", 3)
    config.unlink()
    assert str(config) in refusal(capfd, copy, "--budget", 3)


def test_extra_unlabeled_images_and_bad_names_are_not_suggested(tmp_path, capfd):
    """A file of labels can name neither."""
    make_folder(tmp_path / "p", [f"{i}.png" for i in range(12)] + [" a.png", "unlabeled/b.png"])
    make_folder(tmp_path / "more", ["c.png", "d.png"])
    options = [f"--data.train={tmp_path / 'p'}", f"--data.unlabeled={tmp_path / 'more'}"]
    assert run(pretrain.main, *options, f"--output={tmp_path}", "--labels=1pct") == 0
    assert "but 13 images have no label yet" in refusal(capfd, tmp_path / "r", "--budget", 14)
    assert call(tmp_path / "r", "--budget", 13) == 0
    assert "note: not suggested:  a.png" in capfd.readouterr().out
    names = [name for name, _ in read_csv(tmp_path / "r/to_label.csv").rows]
    assert sorted(names) == sorted([*(f"{i}.png" for i in range(12)), "unlabeled/b.png"])


# -------------------------------------------------------------------------- --labels <n>suggested
@pytest.mark.parametrize("labels", ["6suggested", "6random"])
def test_the_pipeline_chooses_after_pretraining(labels, photos, tmp_path, capfd):
    options = [f"--data.train={photos}", f"--output={tmp_path}", f"--labels={labels}"]
    options.append("--classical.enabled=false")
    assert run(pipeline.main, *options) == 0
    printed = capfd.readouterr().out
    assert "6 of them with a label" in printed
    rows = read_csv(tmp_path / f"r/finetune-{labels}-seed0/labels.csv").rows
    assert len(rows) == 6
    choice = tmp_path / "r/6suggested-seed0.json"
    assert choice.is_file() is (labels == "6suggested")
    if choice.is_file():
        assert sorted(json.loads(choice.read_text())["files"]) == sorted(name for name, _ in rows)
    before = files(tmp_path)
    assert run(pipeline.main, *options) == 0
    assert files(tmp_path) == before
    options[2] = options[2].replace("6", "600")
    assert "training images have a label" in refused(capfd, pipeline.main, *options)


def table_of(folder, rows: str, head: str = "") -> str:
    """The option of a table with two repetitions of six suggested labels."""
    file = folder / "mine.yaml"
    file.write_text(
        f"title: Suggested\nseeds: [0, 1]\n{head}rows:\n{rows}"
        "columns:\n  suggested: {labels: 6suggested}\n"
    )
    return f"--table={file}"


VARIED = "vary: {pretrain.seed: [0, 7]}\n"


def test_a_table_compares_suggested_labels(photos, tmp_path, capfd):
    """One choice a draw, made after the pretraining, although another row comes first."""
    rows = "  supervised: {method: supervised}\n  tuned: {method: finetune}\n"
    rows += "  longer: {method: finetune, finetune.steps: 3}\n"
    options = [f"--data.train={photos}", f"--output={tmp_path}", table_of(tmp_path, rows)]
    assert run(pipeline.main, *options) == 0
    assert "failed" not in capfd.readouterr().out
    assert len(list(tmp_path.glob("r/tables/mine/*"))) > 0
    choices = sorted(f.relative_to(tmp_path / "r").as_posix() for f in tmp_path.rglob("6*.json"))
    assert choices == ["6suggested-seed0.json", "6suggested-seed1.json"]
    for seed in (0, 1):
        files_of = tmp_path.rglob(f"*-6suggested-seed{seed}/labels.csv")
        assert len({file.read_text() for file in files_of}) == 1


def hashes(run_folder, seed: int) -> set[str]:
    """Of the labels of all that was made with suggested ones of a draw."""
    metas = [read_meta(f.parent) for f in run_folder.rglob(f"*-6suggested-seed{seed}/meta.json")]
    return {meta["labels"]["hash"] for meta in metas}


@pytest.mark.parametrize("base", ["", "data.hold_out: tuning"])
def test_each_pretraining_of_a_table_suggests_its_own_labels(base, photos, tmp_path, capfd):
    """All rows of a repetition have them, whatever network or pretraining they have themselves."""
    other = tmp_path / "other"
    given = [f"--data.train={photos}", f"--output={other}", "--labels=1pct"]
    assert run(pretrain.main, *given, *([f"--{base.replace(': ', '=')}"] if base else [])) == 0
    table = tmp_path / "mine.yaml"
    table.write_text(
        f"title: Suggested\nseeds: [0, 1]\nbase: {{{base}}}\nvary: {{pretrain.seed: [0, 7]}}\n"
        f"rows:\n  given: {{method: finetune, finetune.init: {other / 'r/pretrain'}}}\n"
        "  pixels: {method: pixels-svm}\n  supervised: {method: supervised}\n"
        "  wider: {method: supervised, model.encoder: simclr_resnet8_2x_sk0}\n"
        "  tuned: {method: finetune}\n  longer: {method: finetune, finetune.steps: 3}\n"
        "  student: {method: distill}\n  neighbours: {method: features-logistic}\n"
        "columns:\n  suggested: {labels: 6suggested}\n"
    )
    options = [f"--data.train={photos}", f"--output={tmp_path / 'out'}", f"--table={table}"]
    assert run(pipeline.main, *options) == 0
    out = capfd.readouterr().out
    assert "failed" not in out
    assert "missing" not in out
    made = tmp_path / "out/r"
    choices = [json.loads(f.read_text()) for f in sorted(made.glob("6*.json"))]
    pretrained = made.rglob("*pretrain/meta.json")
    weights = {read_meta(f.parent)["weights_sha256"] for f in pretrained}
    assert {choice["made_from"]["weights"] for choice in choices} == weights
    assert len(choices) == len(weights) == 2
    for seed in (0, 1):
        assert len(hashes(made, seed)) == 1
        assert len(list(made.rglob(f"*-6suggested-seed{seed}/meta.json"))) == 8
    before = {f: t for f, t in files(made).items() if "tables" not in str(f)}
    assert run(pipeline.main, *options) == 0  # nothing is missing
    assert {f: t for f, t in files(made).items() if "tables" not in str(f)} == before


def test_a_table_tells_cells_whose_labels_are_suggested_no_more(photos, tmp_path, capfd):
    table = table_of(
        tmp_path, "  supervised: {method: supervised}\n  pixels: {method: pixels-svm}\n", VARIED
    )
    options = [f"--data.train={photos}", f"--output={tmp_path}", table]
    assert run(pipeline.main, *options) == 0
    text = (tmp_path / "r/tables/mine/table.md").read_text()
    assert re.search(r"\| supervised \| 2; \d+ s \|", text)  # no updates of stage 1
    file = tmp_path / "r/6suggested-seed1-by-pretrain.seed-7.json"
    choice = json.loads(file.read_text())
    told = []
    for changed in ({"labels": "0" * 16}, {"made_from": {"weights": "0", "images": "0"}}):
        file.write_text(json.dumps(choice | changed))
        capfd.readouterr()
        assert run(reported, tmp_path / "r", "--table=mine") == 0
        told.append(capfd.readouterr().out)
    assert "was made with other labels than are suggested now" in told[0]
    assert "were suggested by another" in told[1]


def test_a_plan_measures_rows_that_only_lack_their_suggested_labels(photos, tmp_path, capfd):
    table = tmp_path / "mine.yaml"
    text = "title: Suggested\nseeds: [0, 1]\nvary: {pretrain.seed: [5, 7]}\nrows:\n"
    columns = "columns:\n  suggested: {labels: 6suggested}\n"
    table.write_text(f"{text}  linear: {{method: linear}}\n{columns}")
    options = [f"--data.train={photos}", f"--output={tmp_path}", f"--table={table}"]
    options.append("--labels=6suggested")
    assert run(pipeline.main, *options) == 0
    table.write_text(f"{text}  supervised: {{method: supervised}}\n{columns}")
    assert run(pipeline.main, *options, "--plan=true") == 0
    assert re.search(r"supervised +2 ", capfd.readouterr().out)


ROWS = "rows:\n  supervised: {method: supervised}\n"
SUGGESTED = "columns:\n  suggested: {labels: 6suggested}\n"


def test_a_report_knows_by_which_pretraining_labels_were_suggested(photos, tmp_path, capfd):
    table = tmp_path / "mine.yaml"
    table.write_text(f"title: t\nseeds: 1\n{ROWS}{SUGGESTED}")
    data = f"--data.train={photos}"
    for name, seed in (("a", 0), ("b", 7)):
        options = [data, f"--output={tmp_path / name}", f"--pretrain.seed={seed}"]
        assert run(pretrain.main, *options, "--labels=1pct") == 0
    options = [data, f"--output={tmp_path}", f"--table={table}"]
    assert run(pipeline.main, *options, f"--suggested_by={tmp_path / 'a/r'}") == 0
    assert run(pipeline.main, *options, f"--suggested_by={tmp_path / 'b/r'}") == 2
    capfd.readouterr()
    run(reported, tmp_path / "r", "--table=mine")
    told = capfd.readouterr()
    assert "with other labels than are suggested now" in told.out + told.err


def test_corrected_classes_keep_the_suggested_images(photos, tmp_path):
    """The choice saw no class; what was made with the old ones is made again when it is forced."""
    folder = tmp_path / "p"
    make_folder(folder, NAMES)
    classes = {name: "ab"[i % 2] for i, name in enumerate(NAMES)}
    listed = folder / "metadata.csv"
    options = [
        f"--data.train={folder}",
        f"--output={tmp_path}",
        f"--table={tmp_path / 'mine.yaml'}",
    ]
    (tmp_path / "mine.yaml").write_text(f"title: t\nseeds: 1\n{ROWS}{SUGGESTED}")
    chosen = []
    for corrected in (classes, {name: {"a": "b", "b": "a"}[c] for name, c in classes.items()}):
        rows = (f"{name},{c}\n" for name, c in corrected.items())
        listed.write_text(f"file_name,label\n{''.join(rows)}")
        assert run(pipeline.main, *options, *(["--force=all"] if chosen else [])) == 0
        chosen += [json.loads((tmp_path / "r/6suggested-seed0.json").read_text())]
    assert chosen[0]["files"] == chosen[1]["files"]
    assert chosen[0]["labels"] != chosen[1]["labels"]


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        (
            f"vary: {{model.head_layers: [1, 3], finetune.from_layer: [1, 2]}}\n{ROWS}",
            ["--model.head_layers=3", "--finetune.from_layer=2"],
            "finetune.from_layer must be 0 to 1",
        ),
        (
            f"{ROWS}  big: {{method: supervised, data.image_size: 16}}\n",
            [],
            "one pretraining, which has data.image_size=8 and not 16; set it in the table's base",
        ),
    ],
)
def test_what_cannot_be_suggested_is_refused(text, options, told, photos, tmp_path, capfd):
    table = tmp_path / "mine.yaml"
    table.write_text(f"title: t\nseeds: [0, 1]\n{text}{SUGGESTED}")
    given = [f"--data.train={photos}", f"--output={tmp_path}", f"--table={table}", *options]
    assert run(pipeline.main, *given) in (0, 2)
    out = capfd.readouterr()
    assert told in out.out + out.err


def test_another_pretraining_can_suggest(finished, photos, tmp_path, capfd):
    options = [f"--data.train={photos}", f"--output={tmp_path}", "--labels=6suggested"]
    for named in (finished, finished / "pretrain"):
        assert run(pipeline.main, *options, f"--suggested_by={named}") == 0
    (choice,) = tmp_path.rglob("6*.json")
    assert choice.name.startswith("6suggested-seed0-by-r-")
    weights = read_meta(finished / "pretrain")["weights_sha256"]
    assert json.loads(choice.read_text())["made_from"]["weights"] == weights
    missing = f"--suggested_by={tmp_path / 'none'}"
    assert str(tmp_path / "none") in refused(capfd, pipeline.main, *options, missing, "--run=s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("itself", [False, True])
def test_a_pretraining_that_the_line_names_suggests_for_a_whole_table(
    itself, finished, photos, tmp_path
):
    table = table_of(
        tmp_path, "  supervised: {method: supervised}\n  tuned: {method: finetune}\n", VARIED
    )
    by = tmp_path / "r" if itself else finished
    options = [f"--data.train={photos}", f"--output={tmp_path}", table]
    assert run(pipeline.main, *options, f"--suggested_by={by}") == 0
    assert [len(hashes(tmp_path / "r", seed)) for seed in (0, 1)] == [1, 1]
    for file in tmp_path.rglob("6*.json"):
        weights = read_meta(by / "pretrain")["weights_sha256"]
        assert json.loads(file.read_text())["made_from"]["weights"] == weights


def with_metadata(folder, classes: dict[str, str]) -> None:
    """The folder's own labels of all images."""
    rows = (f"{name},{label}\n" for name, label in classes.items())
    (folder / "metadata.csv").write_text(f"file_name,label\n{''.join(rows)}")


def test_an_image_that_lost_its_label_is_not_among_the_suggested_ones(tmp_path, capfd):
    """Neither is one that is held out now: nothing trains on a class that is none."""
    folder, classes = tmp_path / "p", {name: "ab"[i % 2] for i, name in enumerate(NAMES)}
    make_folder(folder, NAMES)
    with_metadata(folder, classes)
    options = [f"--data.train={folder}", f"--output={tmp_path}", "--labels=6suggested"]
    assert run(pipeline.main, *options) == 0
    file = tmp_path / "r/6suggested-seed0.json"
    lost = json.loads(file.read_text())["files"][0]
    with_metadata(folder, classes | {lost: ""})
    assert f"6suggested: {lost} of" in refused(capfd, finetune.main, *options)
    assert run(pipeline.main, *options, "--force=all") == 0
    assert lost not in json.loads(file.read_text())["files"]
    made = [read_meta(meta.parent) for meta in tmp_path.glob("r/*6suggested*/meta.json")]
    assert len(made) > 3
    assert {meta["labels"]["number"] for meta in made} == {6}
    for labels in tmp_path.glob("r/*6suggested*/labels.csv"):
        assert lost not in labels.read_text()


@pytest.mark.parametrize("kept", [0, 3, "twice"])
def test_a_damaged_choice_is_told(kept, photos, tmp_path, capfd):
    options = [f"--data.train={photos}", f"--output={tmp_path}", "--labels=6suggested"]
    assert run(pipeline.main, *options) == 0
    file = tmp_path / "r/6suggested-seed0.json"
    choice = json.loads(file.read_text())
    names = choice["files"]
    choice["files"] = [*names[:5], names[0]] if kept == "twice" else names[:kept]
    file.write_text(json.dumps(choice))
    number = {0: "0 images", 3: "3 images", "twice": "5 images"}[kept]
    message = refused(capfd, pipeline.main, *options)
    assert f"names {number} for labels=6suggested; delete it" in message


def test_as_many_are_suggested_as_are_looked_at(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(suggest, "IMAGES", 5)
    options = [f"--data.train={photos}", f"--output={tmp_path}", "--labels=8suggested"]
    assert run(pipeline.main, *options) == 0
    assert len(json.loads((tmp_path / "r/8suggested-seed0.json").read_text())["files"]) == 8


def test_a_lot_of_one_class_says_nothing_of_what_will_be_suggested(photos):
    splits = look_at(Data(train=str(photos), image_size=8), LabelSet.parse("1pct"))
    refusals = 0
    for seed in range(20):
        with suppress(UserError):
            draw_labels(splits, LabelSet.parse("2random"), seed)
            continue
        refusals += 1
        assert len(draw_labels(splits, LabelSet.parse("2suggested").before_choice, seed).ids) == 2
    assert refusals


def test_a_plan_where_the_run_suggests_to_itself_by_name(photos, tmp_path):
    options = [f"--data.train={photos}", f"--output={tmp_path}", "--labels=6suggested"]
    assert run(pipeline.main, *options, f"--suggested_by={tmp_path / 'r'}", "--plan=true") == 0


def test_runs_that_move_together_keep_their_suggestions(photos, tmp_path, monkeypatch, capfd):
    """Or are looked at from another folder."""
    monkeypatch.chdir(tmp_path)
    made = ["--output=runs", f"--data.train={photos}"]
    assert run(pretrain.main, *made, "--run=a", "--labels=1pct") == 0
    table = table_of(tmp_path, "  supervised: {method: supervised}\n")
    assert run(pipeline.main, *made, table, "--suggested_by=runs/a") == 0
    (tmp_path / "else").mkdir()
    shutil.copytree("runs", tmp_path / "else/runs")
    for place, folder in (("else", "runs/r"), ("runs", "r"), ("runs/r", ".")):
        monkeypatch.chdir(tmp_path / place)
        capfd.readouterr()
        assert run(reported, folder, "--table=mine") == 0
        assert "failed" not in capfd.readouterr().out


def test_runs_with_absolute_paths_move_too(photos, tmp_path, capfd):
    made = [f"--output={tmp_path / 'runs'}", f"--data.train={photos}"]
    assert run(pretrain.main, *made, "--run=a", "--labels=1pct") == 0
    table = table_of(tmp_path, "  supervised: {method: supervised}\n")
    assert run(pipeline.main, *made, table, f"--suggested_by={tmp_path / 'runs/a'}") == 0
    (tmp_path / "runs").rename(tmp_path / "moved")
    capfd.readouterr()
    assert run(reported, tmp_path / "moved/r", "--table=mine") == 0
    assert "failed" not in capfd.readouterr().out


def test_a_run_may_be_called_as_its_first_stage(photos, tmp_path):
    options = [f"--data.train={photos}", f"--output={tmp_path}"]
    assert run(pretrain.main, *options, "--run=pretrain", "--labels=1pct") == 0
    by = f"--suggested_by={tmp_path / 'pretrain'}"
    assert run(pipeline.main, *options, "--labels=6suggested", by) == 0


def test_the_name_of_the_suggesting_run_may_be_long(photos, tmp_path):
    options, name = [f"--data.train={photos}", f"--output={tmp_path}"], "n" * 240
    assert run(pretrain.main, *options, f"--run={name}", "--labels=1pct") == 0
    by = f"--suggested_by={tmp_path / name}"
    assert run(pipeline.main, *options, "--labels=6suggested", by) == 0


def test_a_report_tells_baselines_of_another_pretraining(photos, tmp_path, capfd):
    """As it tells of every method."""
    rows = '  LR: {method: "baseline: logistic regression, features"}\n'
    table = table_of(tmp_path, f"{rows}  l: {{method: linear}}\n  s: {{method: supervised}}\n")
    assert run(pipeline.main, f"--data.train={photos}", f"--output={tmp_path}", table) == 0
    assert run(reported, tmp_path / "r", "--table=mine") == 0
    assert "failed" not in capfd.readouterr().out
    meta = tmp_path / "r/pretrain/meta.json"
    choices = {file: json.loads(file.read_text()) for file in tmp_path.glob("r/6*.json")}
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"weights_sha256": "0" * 64}))
    for file, choice in choices.items():  # so that the supervised ones stay right
        made_from = choice["made_from"] | {"weights": "0" * 64}
        file.write_text(json.dumps(choice | {"made_from": made_from}))
    assert run(reported, tmp_path / "r", "--table=mine") == 0
    failed = re.findall(r"(\S+-6suggested-seed0) was made from another", capfd.readouterr().out)
    assert {path.rpartition("/")[2].partition("-")[0] for path in failed} == {"assess", "linear"}


def test_who_suggests_is_not_said_in_vain(finished, photos, tmp_path, capfd):
    options = [f"--data.train={photos}", f"--output={tmp_path}", f"--suggested_by={finished}"]
    message = refused(capfd, pipeline.main, *options, "--labels=4perclass")
    assert "an option of labels=<n>suggested, which is 4perclass" in message
    table = tmp_path / "mine.yaml"
    table.write_text(f"title: t\nseeds: 1\n{ROWS}columns:\n  few: {{labels: 4perclass}}\n")
    message = refused(capfd, pipeline.main, *options, f"--table={table}")
    assert "no row or column of table mine has labels=<n>suggested" in message


def test_a_stage_alone_says_who_chooses(finished, photos, capfd):
    options = [f"--data.train={photos}", f"--output={finished.parent}", "--labels=6suggested"]
    assert "no images are chosen yet; pipeline.py" in refused(capfd, finetune.main, *options)
    assert not list(finished.glob("*suggested*"))
