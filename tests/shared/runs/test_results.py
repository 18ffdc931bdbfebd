"""The table is a pure function of the rows."""

import copy
import json
import random
import shutil

import pytest

from shared.config.methods import CLASSIFIERS
from shared.runs.results import collect, results_text, write_results
from shared.runtime.files import write_atomically


def row(stage="finetune", labels="1pct", seed=0, **changes) -> dict:
    return {
        "stage": stage,
        "labels": labels,
        "n_labels": 14,
        "seed": seed,
        "parameters": 12345,
        "top1": 0.5,
        "top5": 0.9,
        "nll": 1.25,
        "ece": 0.125,
        "seconds": 61.4,
        **changes,
    }


def cells(text: str) -> list[list[str]]:
    """The table's lines, cut at two spaces or more."""
    lines = [line for line in text.splitlines() if not line.startswith("---")]
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]


def test_one_row():
    head, line = cells(results_text([row()]))
    assert head == [
        "model",
        "labels",
        "parameters",
        "top-1 %",
        "top-5 %",
        "NLL",
        "ECE %",
        "seconds",
    ]
    assert line == [
        "fine-tuned teacher",
        "1pct (14)",
        "12,345",
        "50.0",
        "90.0",
        "1.250",
        "12.5",
        "61",
    ]


def test_several_seeds_become_mean_and_interval():
    """± is half the 95% interval of the mean, as in every other table."""
    rows = [row(seed=s, top1=t) for s, t in enumerate((0.5, 0.6, 0.8))]
    rows.append(row("distill", top1=0.7))
    head, first, second, (note,) = cells(results_text(rows))
    assert head[-1] == "n"
    assert (first[-1], second[-1]) == ("3", "1")
    assert first[3] == "63.3 ± 37.9"  # t = 4.303, deviation 15.28, over the root of 3
    assert note.startswith("±: half the 95% interval of the mean")
    assert first[5] == "1.250 ± 0.000"
    assert second[3] == "70.0"
    assert "±" not in " ".join(second)


def test_top5_is_missing_for_few_classes():
    few = {key: value for key, value in row().items() if key != "top5"}
    head, line = cells(results_text([few]))
    assert "top-5 %" not in head
    assert len(line) == len(head)
    head, first, second = cells(results_text([few, row("distill")]))
    assert first[head.index("top-5 %")] == "-"
    assert second[head.index("top-5 %")] == "90.0"


def test_rows_without_any_measurement():
    """No test images."""
    bare = {k: v for k, v in row().items() if k not in ("top1", "top5", "nll", "ece")}
    assert cells(results_text([bare]))[0] == ["model", "labels", "parameters", "seconds"]


def test_label_sets_stay_apart():
    rows = [row(labels=labels, top1=top1) for labels, top1 in (("1pct", 0.1), ("mine", 0.3))]
    assert [line[1] for line in cells(results_text(rows))[1:]] == ["1pct (14)", "mine (14)"]


def test_pure():
    rows = [row(stage, seed=seed) for seed in (0, 1) for stage in CLASSIFIERS]
    before = copy.deepcopy(rows)
    assert results_text(rows) == results_text(rows)
    assert rows == before
    assert len(results_text(rows).splitlines()) == 3 + len(CLASSIFIERS)
    assert len({len(line) for line in results_text(rows).splitlines()[:2]}) == 1


@pytest.fixture
def run(tmp_path):
    """Finished artifacts as the stages leave them, in no order, one not finished."""
    rows = [
        row(stage, labels, seed, n_labels=n)
        for labels, n in (("10pct", 144), ("1pct", 14))
        for seed in (1, 0)
        for stage in CLASSIFIERS
    ]
    random.Random(0).shuffle(rows)
    base = {"encoder": "x", "image_size": 8, "weights_sha256": "0"}
    for r in rows:
        path = tmp_path / f"{r['stage']}-{r['labels']}-seed{r['seed']}/meta.json"
        write_atomically(path, json.dumps({"kind": "classifier", **base, "result": r}))
    write_atomically(tmp_path / "pretrain/meta.json", json.dumps({"kind": "encoder", **base}))
    write_atomically(tmp_path / "distill-5pct-seed0/settings.json", "{}")
    return tmp_path


def test_collect(run):
    rows = collect(run)
    order = list(CLASSIFIERS)
    keys = [(r["n_labels"], r["labels"], r["seed"], order.index(r["stage"])) for r in rows]
    assert keys == sorted(keys)
    assert len(rows) == 4 * len(CLASSIFIERS)
    assert write_results(run) == rows
    lines = (run / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_a_method_of_another_version_is_left_out(run, capsys):
    path = run / "old-method-1pct-seed0/meta.json"
    meta = {"kind": "classifier", "encoder": "x", "image_size": 8, "weights_sha256": "0"}
    write_atomically(path, json.dumps({**meta, "result": row("old-method")}))
    assert len(collect(run)) == 4 * len(CLASSIFIERS)
    line = "left out, because this version has no such method: 'old-method-1pct-seed0'\n"
    assert capsys.readouterr().err == line


def test_what_was_made_from_something_redone_is_left_out(tmp_path, capsys):
    """Teachers given by path count too; what is gone, and notes of earlier versions, do not."""

    def artifact(
        name: str, weights: str, parent: str | None = None, of: str = "", **changes
    ) -> None:
        meta = {
            "kind": "classifier",
            "encoder": "x",
            "image_size": 8,
            "weights_sha256": weights,
            "settings": {"parent": of},
            "parent": parent,
            "stage": name,
            **changes,
        }
        folder = f"{name}-1pct-seed0" if "result" in changes else name
        write_atomically(tmp_path / "run" / folder / "meta.json", json.dumps(meta))

    def stages() -> list[str]:
        return [r["stage"] for r in collect(tmp_path / "run")]

    artifact("pretrain", "p1")
    artifact("../other", "o1")
    artifact("finetune", "f1", "../pretrain", "p1", result=row("finetune"))
    artifact("distill", "d1", "../finetune-1pct-seed0", "f1", result=row("distill"))
    artifact("linear", "l1", "../../other", "o1", result=row("linear"))
    artifact("self-distill", "s1", "../../gone", "g1", result=row("self-distill"))
    artifact("supervised", "u1", result=row("supervised"))
    everything = ["supervised", "linear", "finetune", "self-distill", "distill"]
    assert stages() == everything
    assert capsys.readouterr().err == ""
    artifact("pretrain", "p2")
    assert stages() == ["supervised", "linear", "self-distill"]  # the teacher, and its student
    says = capsys.readouterr().err
    assert "redone: distill-1pct-seed0, finetune-1pct-seed0; redo them with --force" in says
    artifact("finetune", "f2", "../pretrain", "p2", result=row("finetune"))
    assert stages() == ["supervised", "linear", "finetune", "self-distill"]
    artifact("distill", "d2", "../finetune-1pct-seed0", "f2", result=row("distill"))
    assert stages() == everything
    artifact("../other", "o2")
    assert stages() == ["supervised", "finetune", "self-distill", "distill"]
    write_atomically(
        tmp_path / "run/linear-1pct-seed0/meta.json",
        json.dumps(
            {
                "kind": "classifier",
                "encoder": "x",
                "image_size": 8,
                "weights_sha256": "l1",
                "settings": {"parent": "o1"},
                "result": row("linear"),
            }
        ),
    )
    assert stages() == everything


def test_a_copied_folder_is_no_further_seed(run, capsys):
    before = collect(run)
    capsys.readouterr()
    shutil.copytree(run / "finetune-1pct-seed0", run / "finetune-copy")
    assert collect(run) == before
    assert "finetune-copy holds finetune-1pct-seed0" in capsys.readouterr().err


def test_equal_seeds_have_the_interval_of_the_images():
    rows = [row(seed=seed, top1=1.0, n_test=15) for seed in range(3)]
    text = results_text(rows)
    assert "100.0 [78.2, 100.0]" in text
    assert "in brackets, where all are equal" in text


@pytest.mark.parametrize(
    ("labels", "before", "after", "differ"),
    [
        ("to_label", {"labels": "a"}, {"labels": "b"}, "labels"),
        ("14suggested", {"labels": "a"}, {"labels": "b"}, "labels"),
        (
            "to_label",
            {"labels": "a", "images": "x"},
            {"labels": "b", "images": "y"},
            "labels, images",
        ),
        (
            "1pct",
            {"labels": "a", "test_images": "x"},
            {"labels": "b", "test_images": "y"},
            "test images",
        ),
        ("1pct", {"labels": "a"}, {"labels": "b"}, ""),  # drawn anew for each seed
        ("to_label", {"labels": "a", "test_images": None}, {"labels": "a", "test_images": "y"}, ""),
        ("to_label", {}, {"labels": "a"}, ""),
        ("1pct", {"finetune.steps": 2}, {"finetune.steps": 5}, "finetune.steps"),
        ("1pct", {"finetune.steps": None}, {"finetune.steps": 5}, "finetune.steps"),
    ],
)
def test_a_mean_over_other_data_is_said(tmp_path, capsys, labels, before, after, differ):
    for seed, settings in enumerate((before, after, after)):
        meta = {"kind": "classifier", "encoder": "x", "image_size": 8, "weights_sha256": "0"}
        meta |= {"settings": settings, "result": row(labels=labels, seed=seed)}
        write_atomically(tmp_path / f"finetune-{labels}-seed{seed}/meta.json", json.dumps(meta))
    assert len(collect(tmp_path)) == 3
    note = (
        f"note: the seeds of {labels} differ in their {differ}; means over them, of finetune, mix"
    )
    said = capsys.readouterr().err
    assert said.startswith(note) if differ else said == ""
