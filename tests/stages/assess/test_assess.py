"""Stage 4 at toy size: its two files, what is done again and when, what fails, bad input."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from shared.config.command_line import load_config
from shared.config.sections import ASSESSMENTS
from shared.data.sources import open_data
from shared.runs import assessment
from shared.runs.results import collect
from shared.runtime.errors import CannotWriteError, UserError
from shared.runtime.lock import held
from shared.runtime.stop import StopRequest
from stages import distill, finetune, pretrain
from stages.assess import assess
from tests.support.assessed import TINY, call, folder, read, refused
from tests.support.photos import class_folders

DONE = [part for part in ASSESSMENTS if part != "transfer"]  # by default


@pytest.fixture(scope="module")
def assessed(trained, photos):
    """The trained run with everything measured, two other data sets included."""
    other = class_folders(photos.parent / "other", 10, classes="xy", size=(9, 5))
    options = [f"--assess.ood={other}", f"--assess.transfer={other}"]
    assert call(trained, photos, *options) == 0
    return trained


@pytest.fixture
def quick(monkeypatch):
    """Every part does nothing but remember that it was done; returns what was."""
    done: list[str] = []

    def remember(name):
        def part(inputs):
            done.append(name)
            return {"n": 1}, {"array": np.arange(3)}

        return part

    for name in ASSESSMENTS:
        monkeypatch.setitem(assess.PARTS, name, remember(name))
    monkeypatch.setattr(assessment, "mismatch", lambda *_, **__: "")  # they measure nothing
    monkeypatch.setattr(assess, "assessment_text", lambda assessment: "the table")
    monkeypatch.setattr(assess.label_part, "files", lambda config: [])
    monkeypatch.setattr(assess.label_part, "next_command", lambda config: "")
    return done


# ---------------------------------------------------------------------------------- content
def test_the_report_does_not_take_it_for_a_classifier(assessed):
    assert {row["stage"] for row in collect(assessed / "r")} == {"supervised", "finetune"}
    meta = json.loads((folder(assessed) / "meta.json").read_text())
    assert meta["kind"] == "assessment"
    assert meta["versions"]["scikit-learn"]


def test_the_table_is_printed(assessed, photos, capsys):
    before = (folder(assessed) / "assess.json").read_bytes()
    other = (
        f"--assess.ood={photos.parent / 'other'}",
        f"--assess.transfer={photos.parent / 'other'}",
    )
    assert call(assessed, photos, *other) == 0
    printed = capsys.readouterr().out
    assert "assess: already done" in printed
    for words in (
        "head, layer 2 (8)",
        "k-means",
        "AUROC noise",
        "fine-tuned teacher",
        "label spreading",
        "linear evaluation on",
    ):
        assert words in printed
    assert (folder(assessed) / "assess.json").read_bytes() == before
    assert call(assessed, photos, *other, "--assess.parts=clusters") == 0  # it alone is asked for
    printed = capsys.readouterr().out
    assert "k-means" in printed
    assert "AUROC noise" not in printed


def test_numbers(assessed):
    numbers = read(assessed)
    assert [part for part in ASSESSMENTS if part in numbers] == list(ASSESSMENTS)
    assert numbers["failed"] == {}
    assert numbers["seconds"].keys() == numbers["made_from"].keys() == set(ASSESSMENTS)
    about = numbers["about"]
    assert (about["n_labels"], about["n_train"], about["n_test"]) == (9, 36, 9)
    assert about["classifiers"].keys() == {"supervised", "finetune"}
    assert numbers["hashes"].keys() == {"encoder", "supervised", "finetune"}
    assert all(h["before"] == h["after"] for h in numbers["hashes"].values())

    rows = numbers["linear"]["rows"]
    assert [(row["layer"], row["labels"], row["n_labels"]) for row in rows] == [
        (layer, labels, n) for labels, n in (("3perclass", 9), ("all", 36)) for layer in range(3)
    ]
    assert all(row["chosen_by"] == "validation" and 0 <= row["knn"] <= 1 for row in rows)
    assert numbers["linear"]["best_layer"].keys() == {"3perclass", "all"}

    stages = {"supervised", "finetune"}
    harm = numbers["corruptions"]
    assert harm["accuracy"].keys() == harm["mean"].keys() == harm["clean"].keys() == stages
    for stage in stages:
        of_stage = [share for name in harm["names"] for share in harm["accuracy"][stage][name]]
        assert len(of_stage) == 55
        assert np.mean(of_stage) == pytest.approx(harm["mean"][stage])
        assert harm["clean"][stage] == pytest.approx(numbers["classifiers"][stage]["top1"])
    ood = numbers["ood"]
    assert list(ood["sets"].values()) == [9, 9, 4]  # the other set's test part
    assert all(0 <= share <= 1 for of in ood["auroc"].values() for share in of.values())
    assert (numbers["transfer"]["n_train"], numbers["transfer"]["n_test"]) == (16, 4)
    table = numbers["baselines"]["rows"]
    assert [row["input"] for row in table] == ["pixels"] * 4 + ["features"] * 4
    assert {row["n_labels"] + row["n_unlabeled"] for row in table} == {9, 36}


def test_arrays(assessed):
    arrays = np.load(folder(assessed) / "assess.npz")
    assert arrays["map/tsne"].shape == arrays["map/tsne_pixels"].shape == (9, 2)
    assert arrays["neighbours/query_images"].shape == (9, 8, 8, 3)
    assert arrays["neighbours/images"].shape == (9, 8, 8, 8, 3)
    assert arrays["neighbours/images"].dtype == np.uint8
    assert (np.diff(arrays["neighbours/similarity"], axis=1) <= 1e-6).all()
    assert np.bincount(arrays["neighbours/query_targets"]).tolist() == [3, 3, 3]
    assert arrays["corruptions/examples"].shape == (11, 5, 8, 8, 3)
    for stage in ("supervised", "finetune"):
        mine = {k.removeprefix(f"classifiers/{stage}/"): v for k, v in arrays.items()}
        right = mine["targets"] == mine["predictions"]
        assert mine["confusion"].trace() == right.sum()
        assert mine["confusion"].sum(1).tolist() == [3, 3, 3]
        assert sorted(mine["mistakes"]) == np.flatnonzero(~right).tolist()
        assert (np.diff(mine["confidence"][mine["mistakes"]]) <= 0).all()
        assert len(mine["mistake_images"]) == len(mine["mistakes"])


def test_the_classifiers_rows_are_those_of_their_stages(assessed):
    numbers = read(assessed)["classifiers"]
    for stage in ("supervised", "finetune"):
        meta = json.loads((assessed / f"r/{stage}-3perclass-seed0/meta.json").read_text())
        for key in ("top1", "nll", "ece", "parameters", "n_labels"):
            assert numbers[stage][key] == pytest.approx(meta["result"][key], abs=1e-5)


def test_pictures_are_the_images(assessed, photos):
    """Positions, targets and pictures belong together."""
    config = load_config([*TINY, f"--data.train={photos}"], "", "")[0]
    train, test = open_data(config.data, config.label_set)
    arrays = np.load(folder(assessed) / "assess.npz")
    queries, near = arrays["neighbours/query_positions"], arrays["neighbours/positions"]
    assert (test.labels[queries] == arrays["neighbours/query_targets"]).all()
    assert (train.labels[near] == arrays["neighbours/targets"]).all()
    pictures = torch.from_numpy(arrays["neighbours/images"]).permute(0, 1, 4, 2, 3)
    assert torch.equal(pictures, train.pixels[torch.from_numpy(near)])
    pictures = torch.from_numpy(arrays["neighbours/query_images"]).permute(0, 3, 1, 2)
    assert torch.equal(pictures, test.pixels[torch.from_numpy(queries)])


# ---------------------------------------------------------------------------------- again
def left_lock(path):
    """What a process leaves that is killed as it gives its lock back."""
    file = path.with_name(f".{path.name}.lock")
    with held(path):
        note = json.loads(file.read_text())
    gone = subprocess.Popen(["true"])
    gone.wait()
    file.write_text(json.dumps({**note, "pid": gone.pid}))
    return file


def test_only_what_changed_is_done_again(copy, photos, quick):
    assert call(copy, photos) == 0
    assert quick == DONE
    quick.clear()
    lock = left_lock(folder(copy))
    assert call(copy, photos) == 0
    assert not lock.exists()
    assert call(copy, photos, "--assess.parts=map,ood") == 0
    assert quick == []
    assert call(copy, photos, "--assess.map_points=20") == 0
    assert quick == ["map"]
    quick.clear()
    options = [*TINY, f"--data.train={photos}", f"--output={copy}"]
    assert distill.main(options) == 0
    assert call(copy, photos, "--assess.map_points=20") == 0
    assert quick == ["classifiers", "corruptions", "ood"]
    quick.clear()
    assert call(copy, photos, "--force=assess", "--assess.parts=ood", "--assess.map_points=20") == 0
    assert quick == ["ood"]
    assert [part for part in ASSESSMENTS if part in read(copy)] == DONE  # the others are kept


def test_which_classifiers_there_are_is_told_anew(copy, photos, quick):
    assert call(copy, photos) == 0
    file = folder(copy) / "assess.json"
    numbers = json.loads(file.read_text())
    known = numbers["about"].pop("classifiers")
    file.write_text(json.dumps(numbers))
    assert call(copy, photos, "--force=assess", "--assess.parts=neighbours") == 0
    assert json.loads(file.read_text())["about"]["classifiers"] == known


def test_a_failing_part_costs_itself_alone(copy, photos, quick, monkeypatch, capfd):
    def fails(inputs):
        raise UserError("no such place")

    with monkeypatch.context() as patch:
        patch.setitem(assess.PARTS, "clusters", fails)
        message = refused(capfd, copy, photos)
    assert "1 of 9 parts failed" in message
    assert "clusters: no such place" in message
    numbers = read(copy)
    assert numbers["failed"] == {"clusters": "no such place"}
    assert "clusters" not in numbers
    assert quick == [part for part in DONE if part != "clusters"]
    assert "map/array" in np.load(folder(copy) / "assess.npz")
    assert not (folder(copy) / "meta.json").exists()
    quick.clear()
    assert call(copy, photos) == 0
    assert quick == ["clusters"]
    assert read(copy)["failed"] == {}
    assert (folder(copy) / "meta.json").exists()


def test_a_defect_shows_its_traceback_and_costs_its_part(copy, photos, quick, monkeypatch, capfd):
    def fails(inputs):
        return {}["missing"]

    monkeypatch.setitem(assess.PARTS, "map", fails)
    assert call(copy, photos) == 2
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert "KeyError" in err
    assert len(quick) == 8


def test_a_signal_stops_after_the_part_in_hand(copy, photos, quick, monkeypatch):
    def stops(inputs):
        StopRequest.received = signal.SIGTERM
        return {"n": 1}, {}

    with monkeypatch.context() as patch:
        patch.setitem(assess.PARTS, "neighbours", stops)
        assert call(copy, photos) == 128 + signal.SIGTERM
        assert quick == ["linear"]
        patch.setitem(assess.PARTS, DONE[-1], stops)
        assert call(copy, photos) == 128 + signal.SIGTERM
    assert call(copy, photos) == 0  # nothing is left to measure
    assert quick == [part for part in DONE[:-1] if part != "neighbours"]
    assert (folder(copy) / "meta.json").exists()


@pytest.mark.parametrize(("name", "calls"), [("save_assessment", len(DONE)), ("write_meta", 0)])
def test_what_is_measured_but_not_ended_is_ended(name, calls, copy, photos, quick, monkeypatch):
    """The disk is full after the last part was saved."""
    whole, well = getattr(assess, name), iter(range(calls))

    def fails(*arguments):
        if next(well, None) is None:
            raise CannotWriteError("no room")
        whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(assess, name, fails)
        assert call(copy, photos) == 2
    quick.clear()
    assert call(copy, photos) == 0
    assert quick == []
    assert read(copy)["hashes"]
    assert (folder(copy) / "meta.json").exists()


def test_damaged_files_are_measured_again(copy, photos, quick, capfd):
    assert call(copy, photos) == 0
    for name in ("assess.json", "assess.npz"):
        quick.clear()
        file = folder(copy) / name
        file.write_bytes(file.read_bytes()[:-20])
        assert call(copy, photos) == 0
        assert "is damaged" in capfd.readouterr().err
        assert quick == DONE


def test_a_file_without_seconds_is_continued(copy, photos, quick):
    assert call(copy, photos) == 0
    numbers = read(copy)
    del numbers["seconds"]
    (folder(copy) / "assess.json").write_text(json.dumps(numbers))
    quick.clear()
    part = DONE[0]
    assert call(copy, photos, f"--assess.parts={part}", "--force=assess") == 0
    assert quick == [part]
    assert read(copy)["seconds"].keys() == {part}
    assert [part for part in ASSESSMENTS if part in read(copy)] == DONE


def test_a_network_that_changed_is_noticed(copy, photos, quick, monkeypatch):
    def trains(inputs):
        next(inputs.pretrained.encoder.buffers()).add_(1)
        return {}, {}

    monkeypatch.setitem(assess.PARTS, "linear", trains)
    with pytest.raises(AssertionError, match="changed a network"):
        call(copy, photos)


def test_features_alone_where_there_is_no_classifier(copy, photos, quick):
    for stage in ("supervised", "finetune"):
        shutil.rmtree(copy / f"r/{stage}-3perclass-seed0")
    assert call(copy, photos) == 0
    assert quick == ["linear", "neighbours", "clusters", "map", "baselines", "labels"]


def test_at_most_max_images_are_looked_at(copy, photos, quick):
    assert call(copy, photos, "--assess.max_images=12") == 0
    about = read(copy)["about"]
    assert (about["n_train"], about["n_train_seen"]) == (36, 12)


# ---------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data.split_seed=1"], ["was trained on other images", "--data options"]),
        (["--data.split_seed=1", "--labels=2perclass"], ["pretrain was trained on other images"]),
        (["--data.image_size=6"], ["was trained with data.image_size=8, now it is 6"]),
        (["--assess.parts=map,transfer"], ["assess.parts=transfer", "--assess.transfer"]),
        (["--labels=2perclass", "--assess.parts=ood"], ["no finished classifier", "2perclass"]),
        (["--run=other"], ["no such artifact folder", "other/pretrain"]),
        (["--linear.init=r/nowhere"], ["no such artifact folder: r/nowhere"]),
    ],
)
def test_refused(copy, photos, quick, capfd, options, words):
    message = refused(capfd, copy, photos, *options)
    assert all(word in message for word in words), message
    assert quick == []


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--assess.parts=maps", "assess.parts must be one of 'all', 'linear', 'neighbours'"),
        ("--assess.map_points=3", "assess.map_points must be 10 or more, got 3"),
        ("--assess.max_images=0", "assess.max_images must be 10 or more"),
    ],
)
def test_impossible_options(option, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        assess.main([*TINY, option])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("part", ["ood", "transfer"])
def test_another_data_set_that_is_not_there(copy, photos, capfd, part):
    message = refused(
        capfd, copy, photos, f"--assess.{part}=nowhere.parquet", f"--assess.parts={part}"
    )
    assert f"{part}: no such folder or file: nowhere.parquet" in message


@pytest.mark.slow
def test_two_processes_measure_the_same(assessed, photos, copy):
    """Images are divided among them, and chance is that of the batch, not of the process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    other = photos.parent / "other"
    (copy / "r").rename(copy / "digits")  # the recipe's name: torchrun takes --run for its own
    options = [
        *TINY[1:],
        f"--data.train={photos}",
        f"--output={copy}",
        f"--assess.ood={other}",
        f"--assess.transfer={other}",
    ]
    command = [*launcher, "-m", "stages.assess", *options]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("k-means") == 1
    (copy / "digits").rename(copy / "r")
    one, two = read(assessed), read(copy)
    for part in ASSESSMENTS:
        assert json.dumps(two[part]) == json.dumps(one[part]), part


@pytest.mark.parametrize("processes", [1, 2])
def test_a_lost_process_is_no_failed_part(processes, monkeypatch, capsys):
    """Nothing else can be measured then; of one process the same words are some part's defect."""

    def fails(inputs):
        raise RuntimeError("gloo/transport/tcp/pair.cc:543 Connection closed by peer")

    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setitem(assess.PARTS, "map", fails)
    inputs = SimpleNamespace(
        accelerator=SimpleNamespace(wait_for_everyone=lambda: None), is_main=True
    )
    assessment = {"failed": {}, "seconds": {}}
    if processes > 1:
        with pytest.raises(RuntimeError, match="closed by peer"):
            assess.measure("map", inputs, "", assessment, {})
        assert capsys.readouterr().err == ""
    else:
        assess.measure("map", inputs, "", assessment, {})
        assert "closed by peer" in assessment["failed"]["map"]


def test_one_test_image_has_no_map(quick, photos, tmp_path, capsys):
    one = class_folders(tmp_path / "one", 1, classes="a")
    test = f"--data.test={one}"
    command = [*TINY, f"--data.train={photos}", f"--output={tmp_path}", test]
    assert pretrain.main(command) == 0
    assert finetune.main(command) == 0
    assert call(tmp_path, photos, test) == 0
    assert "a map needs two labeled test images or more" in capsys.readouterr().out
    assert sorted(quick) == sorted({*DONE} - {"map"})
