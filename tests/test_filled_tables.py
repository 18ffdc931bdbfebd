"""A grid at toy size: filled, resumed, with a cell that fails, and read without training."""

import json
import re
import subprocess
import sys
from functools import partial

import pytest
import yaml

import pipeline
from shared.runtime.stop import Stopped
from stages import finetune, report

TINY = [
    "--model.encoder=simclr_resnet8_1x_sk0",
    "--model.head_width=32",
    "--model.head_out=16",
    "--pretrain.steps=2",
    "--pretrain.batch_size=32",
    "--pretrain.warmup_epochs=0",
    "--finetune.steps=2",
    "--supervised.steps=2",
    "--supervised.warmup_epochs=0",
    "--distill.steps=2",
    "--distill.batch_size=32",
    "--distill.warmup_epochs=0",
    "--precision=no",
    "--threads=1",
]
HOT = {"finetune.optimizer": "sgd", "finetune.learning_rate": 1e9}  # found as it trains
TABLE = {
    "title": "Toy",
    "base": {"supervised.steps": 1},  # the flag above wins
    "seeds": 2,
    "worth": "supervised",
    "rows": {
        "supervised": {"method": "supervised"},
        "tuned": {"method": "finetune"},
        "hot": {"method": "finetune", **HOT},
        "student": {"method": "distill", "distill.images": "labeled"},
    },
    "columns": {"1%": {"labels": "1pct"}, "10%": {"labels": "10pct"}},
}
STATUS = {"supervised": "done", "tuned": "done", "hot": "failed", "student": "done"}


def call(folder, table=TABLE, *options: str) -> int:
    file = folder / "toy.yaml"
    file.write_text(yaml.safe_dump(table, sort_keys=False))
    return pipeline.main([*TINY, f"--output={folder}", f"--table={file}", *options])


def made(folder) -> dict[str, int]:
    metas = sorted((folder / "digits").rglob("meta.json"))
    return {str(meta.parent.relative_to(folder)): meta.stat().st_mtime_ns for meta in metas}


def cells(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "digits/tables/toy/cells.jsonl").open()]


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    assert call(folder) == 0
    return folder


def test_fills_and_shares(filled):
    lines = cells(filled)
    assert len(lines) == 2 * 4 * 2
    assert all(line["status"] == STATUS[line["row"]] for line in lines)
    messages = {line["message"] for line in lines if line["row"] == "hot"}
    assert len(messages) == 1
    assert messages.pop().startswith("the loss is nan at step 1 of finetune")
    names = [
        f"{m}-{t}-seed{s}"
        for m in ("finetune", "supervised")
        for t in ("1pct", "10pct")
        for s in (0, 1)
    ]
    students = [
        f"variants/distill.images-labeled/distill-{t}-seed{s}"
        for t in ("1pct", "10pct")
        for s in (0, 1)
    ]
    assert sorted(made(filled)) == sorted(f"digits/{n}" for n in ["pretrain", *names, *students])
    folder = filled / "digits/tables/toy"
    assert "failed [1]" in (folder / "table.md").read_text()
    for line in lines:
        if line["status"] == "done":
            meta = json.loads((filled / "digits" / line["folder"] / "meta.json").read_text())
            assert line["result"] == meta["result"]
            assert meta["settings"].get("supervised.steps", 2) == 2


def test_second_call_trains_nothing(filled, capsys):
    before, lines = made(filled), cells(filled)
    assert call(filled) == 0
    assert made(filled) == before
    assert cells(filled) == lines
    printed = capsys.readouterr().out
    announced = [line for line in printed.splitlines() if " steps of " in line]
    assert len(announced) == 4  # that of each hot cell, which is tried again
    assert all(re.search(r"learning rate (1e\+09|5e\+08)", line) for line in announced)
    assert "What the labels are worth" in printed


def test_report_trains_nothing_and_names_what_is_wrong(filled, capsys):
    """Missing, made with other settings, made from another parent, and a damaged line."""
    before = made(filled)
    run = filled / "digits"
    names = ("finetune-1pct-seed0", "supervised-1pct-seed0", "supervised-10pct-seed1")
    metas = {name: run / name / "meta.json" for name in names}
    kept = {name: file.read_text() for name, file in metas.items()}
    try:
        metas["supervised-1pct-seed0"].unlink()
        other = kept["supervised-10pct-seed1"].replace(
            '"supervised.steps": 2', '"supervised.steps": 5'
        )
        metas["supervised-10pct-seed1"].write_text(other)
        redone = json.loads(kept["finetune-1pct-seed0"])
        redone["settings"]["parent"] = "0" * 64
        metas["finetune-1pct-seed0"].write_text(json.dumps(redone))
        with (run / "tables/toy/cells.jsonl").open("a") as file:
            file.write("{half")
        assert report.main([str(run), "--table", "toy"]) == 0
    finally:
        for name, file in metas.items():
            file.write_text(kept[name])
    printed = capsys.readouterr()
    assert "1 line damaged and left out" in printed.err
    places = {(line["row"], line["column"], line["seed"]): line for line in cells(filled)}
    assert places["supervised", "1%", 0]["status"] == "missing"
    assert "supervised.steps=5, now it is 2" in places["supervised", "10%", 1]["message"]
    assert "another" in places["tuned", "1%", 0]["message"]
    assert "another" in places["student", "1%", 0]["message"]  # what is made from it, too
    assert places["tuned", "1%", 1]["status"] == "done"
    assert made(filled).keys() == before.keys()
    assert "1 of 2" in printed.out


def test_other_settings_in_the_folder_cost_their_cells(filled, capsys):
    assert call(filled, TABLE, "--finetune.learning_rate=0.5") == 0
    error = capsys.readouterr().err
    assert error.count("\n") == 4 + 1  # one for each fine-tuned classifier, one for hot
    assert "was made with finetune.learning_rate=0.001, now it is 0.5" in error
    status = {line["row"]: line["status"] for line in cells(filled)}
    assert status == {**STATUS, "tuned": "failed", "student": "failed"}


def test_nothing_finished(tmp_path, capsys):
    nothing = {**TABLE, "rows": {"hot": TABLE["rows"]["hot"]}, "worth": None}
    assert call(tmp_path, nothing) == 2
    assert "no finished cell" in capsys.readouterr().err
    assert not list(tmp_path.rglob("cells.jsonl"))
    assert call(tmp_path, {"title": "x"}) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert report.main([str(tmp_path / "digits"), "--table", "nowhere"]) == 2
    assert "no table 'nowhere'" in capsys.readouterr().err


def test_a_stop_leaves_the_table_so_far(tmp_path, monkeypatch, capsys):
    def stop(config, accelerator, method):
        if method == "finetune":
            raise Stopped("stopped as asked")
        return finetune.run(config, accelerator, method)

    stages = {m: partial(stop, method=m) for m in ("finetune", "supervised")} | {
        "pretrain": pipeline.stages()["pretrain"]
    }
    monkeypatch.setattr(pipeline, "stages", lambda: stages)
    assert call(tmp_path) == 143
    status = {(line["row"], line["seed"]): line["status"] for line in cells(tmp_path)}
    assert status["supervised", 0] == "done"
    assert status["tuned", 0] == status["supervised", 1] == "missing"
    assert "stopped as asked" in capsys.readouterr().err


def test_another_recipe_leaves_a_finished_table_alone(filled, capsys):
    assert call(filled, TABLE) == 0
    before = cells(filled)
    assert call(filled, TABLE, "--data.split_seed=7") == 2
    assert "no finished cell" in capsys.readouterr().err
    assert cells(filled) == before


@pytest.mark.slow
def test_two_commands_share_a_table(tmp_path):
    """Each makes some of it, and the weights are those that one command alone makes."""
    folders = [tmp_path / name for name in ("alone", "shared")]
    for folder in folders:
        folder.mkdir()
    assert call(folders[0]) == 0
    arguments = [*TINY, f"--output={folders[1]}", f"--table={folders[0] / 'toy.yaml'}"]
    command = [sys.executable, "pipeline.py", *arguments]
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    written = [process.communicate()[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    made_by = [set(re.findall(r"(\S+): done in", text)) for text in written]
    assert all(made_by)
    hashes = [
        {
            str(meta.relative_to(folder)): json.loads(meta.read_text())["weights_sha256"]
            for meta in (folder / "digits").rglob("meta.json")
        }
        for folder in folders
    ]
    assert hashes[0] == hashes[1]
    status = [[line["status"] for line in cells(folder)] for folder in folders]
    assert status[0] == status[1]
    assert sum(text.count(": done in") for text in written) == len(hashes[1])
