"""The part ``labels`` of toy runs: its files, what goes back into ``--labels``, what is refused."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from accelerate import Accelerator

from shared.config.command_line import load_config, override
from shared.data.images import Splits
from shared.data.label_files import read_csv
from shared.data.labels import draw_labels
from shared.data.pixels import Pixels
from shared.data.sources import open_data
from shared.runtime.errors import UserError
from stages import pretrain
from stages.assess import label_part
from stages.assess.inputs import open_inputs
from stages.assess.parts import wanted_parts
from stages.page.assessment import Assessment, LabelSet
from stages.page.assessment import _labels as shown
from tests.support.assessed import TINY, call, refused
from tests.support.photos import make_folder

pytest.importorskip("cleanlab")
ONLY = "--assess.parts=labels"
ODD = ["=1+1.png", 'a "b", c.png', "naïve <b>.png", "line\nbreak.png", "@x/-1.png"]


def config_for(output, photos, *options):
    return load_config([*TINY, f"--data.train={photos}", f"--output={output}", *options], "", "")[0]


def table(path):
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A run on images without classes, with odd names, twins, and a file of their labels."""
    folder = tmp_path_factory.mktemp("odd")
    names = [*ODD, *(f"{i:02d}.png" for i in range(40))]
    make_folder(folder / "p", names)
    shutil.copy(folder / "p/00.png", folder / "p/twin.png")
    rows = [(name, "=cat" if i % 2 else "dog <i>") for i, name in enumerate(names)]
    with (folder / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("photo", "class"), *rows, ("twin.png", "")])
    options = [*TINY, f"--data.train={folder / 'p'}", f"--output={folder / 'out'}"]
    options += [f"--labels={folder / 'mine.csv'}"]
    assert pretrain.main(options) == 0
    return folder


# ------------------------------------------------------------------------------------ round trips
@pytest.mark.parametrize("labels", ["100pct", "4perclass", "20random"])
def test_a_corrected_file_is_a_label_set(trained, photos, tmp_path, capfd, labels):
    shutil.copytree(trained / "r/pretrain", tmp_path / "runs/r/pretrain")
    output = tmp_path / "runs"
    assert call(output, photos, f"--labels={labels}", ONLY) == 0
    printed = capfd.readouterr().out
    file = output / f"r/assess-{labels}-seed0/{labels}-to-check.csv"
    assert f"--labels {file}" in printed
    config = config_for(output, photos, f"--labels={labels}")
    drawn = draw_labels(open_data(config.data, config.label_set), config.label_set, 0)
    rows = table(file)
    assert list(rows[0]) == ["file", "label", "suggested", "score"]
    assert len(rows) == len(drawn.ids)
    suspected = [bool(row["suggested"]) for row in rows]
    assert suspected == sorted(suspected, reverse=True)  # first
    text = file.read_text()
    first = rows[0]
    other = {"a": "b", "b": "c", "c": "a"}[first["label"]]
    file.write_text(text.replace(f"{first['file']},{first['label']}", f"{first['file']},{other}"))
    corrected = override(config, {"labels": str(file)})
    splits = open_data(corrected.data, corrected.label_set)
    again = draw_labels(splits, corrected.label_set, 0)
    assert np.array_equal(again.ids, drawn.ids)
    changed = again.targets != drawn.targets
    assert splits.train.names[again.ids[changed]].tolist() == [first["file"]]


def test_labels_of_a_file_with_odd_names(odd, capfd):
    options = [f"--labels={odd / 'mine.csv'}", ONLY]
    assert call(odd / "out", odd / "p", *options) == 0
    printed = capfd.readouterr().out
    assert "line\nbreak" not in printed
    folder = odd / "out/r/assess-mine-seed0"
    rows, source = read_csv(folder / "mine-to-check.csv").rows, read_csv(odd / "mine.csv").rows
    assert sorted(rows) == sorted(source)  # those held out for testing, and the one without label
    config = config_for(odd / "out", odd / "p", options[0])
    ours = open_data(config.data, config.label_set)
    checked = override(config, {"labels": str(folder / "mine-to-check.csv")})
    theirs = open_data(checked.data, checked.label_set)
    assert ours.train.fingerprint == theirs.train.fingerprint
    assert np.array_equal(ours.train.held_out, theirs.train.held_out)
    for file in folder.glob("*.csv"):
        for row in table(file):
            assert not any(cell[:1] in "=+@\t\r" and cell for cell in row.values()), row
    (group,) = json.loads((folder / "assess.json").read_text())["labels"]["twins"]
    assert [twin["file"] for twin in group] == ["00.png", "twin.png"]
    assert [row["file"] for row in table(folder / "twins.csv")] == ["00.png", "twin.png"]
    blocks = list(shown(Assessment(folder, LabelSet.of_tag("mine"))))
    assert not any(
        "\n" in cell for block in blocks for row in getattr(block, "rows", []) for cell in row
    )


def test_a_lost_file_is_written_again_and_an_edited_one_is_kept(trained, photos, tmp_path, capfd):
    shutil.copytree(trained / "r/pretrain", tmp_path / "runs/r/pretrain")
    output = tmp_path / "runs"
    assert call(output, photos, "--labels=100pct", ONLY) == 0
    folder = output / "r/assess-100pct-seed0"
    (folder / "twins.csv").unlink()
    file = folder / "100pct-to-check.csv"
    edited = file.read_text().replace(",a,", ",b,")
    file.write_text(edited)
    assert call(output, photos, "--labels=100pct", ONLY) == 0
    assert (folder / "twins.csv").exists()
    assert "kept as 100pct-to-check.1.csv" in capfd.readouterr().out
    assert (folder / "100pct-to-check.1.csv").read_text() == edited
    assert call(output, photos, "--labels=100pct", ONLY) == 0
    assert "already done" in capfd.readouterr().out


def test_leaks_between_training_and_test_come_first(trained, photos):
    config = config_for(trained, photos, "--labels=100pct")
    inputs = open_inputs(config, Accelerator(cpu=True))
    train, test = inputs.splits
    assert test is not None
    assert train.pixels is not None
    assert test.pixels is not None
    pixels = train.pixels[:].clone()
    pixels[1] = pixels[0]
    pixels[9] = test.pixels[4]
    copied = Splits(replace(train, pixels=Pixels.of(pixels)), test)
    part = label_part.labels(replace(inputs, splits=copied))
    assert part is not None
    numbers, arrays = part
    leak, within = numbers["twins"]
    assert [twin["set"] for twin in leak] == ["training", "test"]
    assert [twin["file"] for twin in leak] == [train.names[9], test.names[4]]
    assert [twin["set"] for twin in within] == ["training", "training"]
    stored = arrays["twins"]
    assert np.array_equal(stored[0], stored[1])
    assert np.array_equal(stored[0], test.pixels[4].permute(1, 2, 0).numpy())
    shutil.rmtree(config.folder_of("assess"))


# -------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize("parts", ["labels", "map,labels", "labels,linear"])
def test_without_cleanlab(copy, photos, capfd, monkeypatch, parts):
    monkeypatch.setattr(label_part, "find_spec", lambda name: None)
    message = refused(capfd, copy, photos, f"--assess.parts={parts}")
    assert "assess.parts=labels: it needs cleanlab" in message
    assert "pip install -e '.[labels]'" in message
    assert not list(copy.glob("r/assess-*"))  # nothing was computed


@pytest.mark.parametrize("targets", [[0, 1, 2], [0, 0, 0, 0, 1, 2], [1, 1, 0]])
def test_fewer_than_two_classes_with_two_labels(trained, photos, capfd, targets):
    config = config_for(trained, photos)
    inputs = open_inputs(config, Accelerator(cpu=True))
    few = inputs.labels._replace(ids=inputs.labels.ids[: len(targets)], targets=np.array(targets))
    inputs = replace(inputs, labels=few)
    with pytest.raises(UserError, match="labels: --labels 3perclass has too few"):
        wanted_parts(override(config, {"assess.parts": "labels"}), inputs)
    assert "labels" not in wanted_parts(config, inputs)
    assert "assess: without labels: --labels 3perclass has too few" in capfd.readouterr().out


def test_one_label_per_class_by_the_command(copy, photos, capfd):
    message = refused(capfd, copy, photos, "--labels=1perclass", ONLY)
    assert "two classes at least need two labels each" in message
    assert not list(copy.glob("r/assess-*"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("file,label\na/0.png,a\na/1.png,a\n", "none of the classes b, c"),
        ("file,label\na/0.png,\n", "has no label yet"),
        ("file,score,rank\na/0.png,0.5,1\n", "has no column called label"),
    ],
)
def test_files_of_one_class_or_none(copy, photos, tmp_path, capfd, content, words):
    (tmp_path / "l.csv").write_text(content)
    assert words in refused(capfd, copy, photos, f"--labels={tmp_path / 'l.csv'}", ONLY)


@pytest.mark.parametrize("labels", ["1pct", "100pct", "2perclass"])
def test_images_without_labels(odd, capfd, labels):
    message = refused(capfd, odd / "out", odd / "p", f"--labels={labels}", ONLY)
    assert "the images have no labels; give a CSV file" in message


@pytest.mark.parametrize("parts", ["labels", "all", "all,labels"])
def test_without_test_images(trained, photos, capfd, parts):
    config = config_for(trained, photos, "--labels=100pct", f"--assess.parts={parts}")
    inputs = open_inputs(config, Accelerator(cpu=True))
    inputs = replace(inputs, splits=Splits(inputs.splits.train, None))
    assert wanted_parts(config, inputs) == ["labels"]
    noted = "there are no labeled test images" in capfd.readouterr().out
    assert noted == ("all" in parts)
    assert inputs.about()["n_test"] == 0
    part = label_part.labels(inputs)
    assert part is not None
    assert part[0]["looked_at"] == {"training": 36}
    with pytest.raises(UserError, match=r"assess.parts=map: there are no labeled test images"):
        wanted_parts(override(config, {"assess.parts": "map"}), inputs)
    shutil.rmtree(config.folder_of("assess"))


def test_features_that_tell_no_class_doubt_no_label(trained, photos):
    config = config_for(trained, photos, "--labels=100pct")
    inputs = open_inputs(config, Accelerator(cpu=True))
    targets = np.random.default_rng(0).permutation(inputs.labels.targets)
    inputs = replace(inputs, labels=inputs.labels._replace(targets=targets))
    part = label_part.labels(inputs)
    assert part is not None
    assert part[0]["agreement"] < 0.5
    assert part[0].get("largest_class") == pytest.approx(1 / 3)
    assert part[0]["suspects"] == []
    rows = table(label_part.files(config)[0])
    assert len(rows) == 36
    assert {row["suggested"] for row in rows} == {""}
    shutil.rmtree(config.folder_of("assess"))


@pytest.mark.parametrize(
    ("option", "given"),
    [("label", "suggested"), ("label", "score"), ("image", "label")],
)
def test_the_command_overrides_options_that_would_choose_another_column(
    trained, photos, option, given
):
    config = config_for(trained, photos)
    plain = label_part.next_command(config)
    config = override(config, {f"data.{option}_column": given})
    column = {"label": "label", "image": "file"}[option]
    assert label_part.next_command(config) == f"{plain} --data.{option}_column {column}"
