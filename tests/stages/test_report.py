"""The command: python -m stages.report. Its grids are tested in tests/shared/runs."""

import json
import re

import pytest

import pipeline
from shared.config.methods import CLASSIFIERS
from shared.runs.results import advice_text, collect, results_text
from shared.runtime.files import write_atomically
from stages.report import main
from tests.support.photo_run import run as run_tiny


@pytest.fixture
def run(tmp_path):
    """Finished artifacts of every method, and of pretraining."""
    base = {"encoder": "x", "image_size": 8, "weights_sha256": "0"}
    for stage in CLASSIFIERS:
        row = {"stage": stage, "labels": "1pct", "n_labels": 14, "seed": 0, "parameters": 12345}
        meta = {"kind": "classifier", **base, "result": row | {"top1": 0.5, "seconds": 61.4}}
        write_atomically(tmp_path / f"{stage}-1pct-seed0/meta.json", json.dumps(meta))
    write_atomically(tmp_path / "pretrain/meta.json", json.dumps({"kind": "encoder", **base}))
    return tmp_path


def test_command(run, capsys, tmp_path_factory):
    assert main([str(run)]) == 0
    text = capsys.readouterr().out.rstrip("\n")
    table, advice = text.split("\n\n")
    assert table == results_text(collect(run))
    assert len(table.splitlines()) == 2 + len(CLASSIFIERS)
    assert advice == advice_text(run, collect(run))
    assert advice.startswith("1pct: Deploy: distilled student (")
    for wrong in (run / "nowhere", tmp_path_factory.mktemp("empty")):
        assert main([str(wrong)]) == 2
        assert capsys.readouterr().err == f"error: no finished classifier in {wrong}\n"
    (wrong / "variants").mkdir()
    assert main([str(wrong)]) == 2
    assert capsys.readouterr().err.endswith("those of its tables come with --table NAME\n")
    (run / "pretrain/meta.json").write_text("{")
    assert main([str(run)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_a_given_pretraining_counts_in_the_budget_and_for_baselines(
    photos, finished, tmp_path, capsys
):
    """The features are those of the network that the option names, and so is their cost."""
    given = finished / "pretrain"
    table = tmp_path / "mine.yaml"
    table.write_text(
        'title: t\nseeds: 1\nrows:\n  LR: {method: "baseline: logistic regression, features"}\n'
        "  tuned: {method: finetune}\n  fitted: {method: features-logistic}\ncolumns:\n  x: {}\n"
    )
    options = [f"--data.train={photos}", f"--output={tmp_path}", f"--table={table}"]
    options += [f"--{section}.init={given}" for section in ("linear", "finetune", "classical")]
    assert run_tiny(pipeline.main, *options) == 0
    text = capsys.readouterr().out
    assert "failed" not in text
    budget = text[text.index("Budget of one run") :]
    assert re.search(r"tuned +2 \+ 2; \d+ s", budget)
    assert re.search(r"fitted +2; \d+ s", budget)
    assert not (tmp_path / "r/pretrain").exists()
    options[2] = f"--table={table.with_name('other.yaml')}"
    table.with_name("other.yaml").write_text(
        "title: t\nseeds: 1\nmetric: top5\nrows:\n  a: {}\ncolumns:\n  x: {}\n"
    )
    assert run_tiny(pipeline.main, *options) == 2
    assert (
        "metric=top5 is for more than 5 classes, and the images have 3" in capsys.readouterr().err
    )


def test_unknown_table(run, capsys):
    write_atomically(run / "config.yaml", "")
    for name in ("nowhere", ""):
        assert main([str(run), "--table", name]) == 2
        assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: the following arguments are required: runs/NAME"),
        (["a", "b"], "error: unrecognized arguments: b"),
        (["a", "--table"], "error: argument --table: expected one argument"),
    ],
)
def test_bad_call(arguments, message, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"{message} (see --help)\n"


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(
        "usage: python -m stages.report [-h] [--table NAME] runs/NAME"
    )
