"""A new row to compare with is one row of the methods: everything in this room follows from it."""

import json
from dataclasses import replace

import pytest

from shared.config.command_line import load_config
from shared.config.methods import CLASSIFIERS, METHODS, Method
from shared.runs.cost import Counts, cost_of
from shared.runs.grid import expand, in_order, make_job, require_made_so
from shared.runs.results import collect, results_text
from shared.runs.table import load_table
from shared.runtime.errors import UserError
from shared.runtime.files import write_atomically
from tests.support.tables import write

COPY = Method(
    "linear-copy",
    "a copy of linear evaluation",
    "copy",
    "#000000",
    "x",
    stage="finetune",
    section="linear",
    made_from=("pretrain",),
    depends=("linear",),
    frozen=True,
)


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(METHODS, COPY.name, COPY)
    monkeypatch.setitem(CLASSIFIERS, COPY.name, COPY)
    return load_config(["--output=out"], "test", "")[0]


def test_the_grid_knows_it(config, tmp_path):
    rows = {
        "copy": {"method": "linear-copy"},
        "short": {"method": "linear-copy", "linear.steps": 3},
    }
    cells = expand(load_table(write(tmp_path, rows=rows, seeds=1)), config)
    assert [cell.impossible for cell in cells] == ["", ""]
    jobs = {job.path: job for job in in_order(cells)}
    variant = config.folder / "variants/linear.steps-3/linear-copy-1pct-seed0"
    own = [config.folder / "pretrain", config.folder / "linear-copy-1pct-seed0"]
    assert list(jobs) == [*own, variant]
    assert jobs[variant].config.linear.init == str(config.folder / "pretrain")


def test_it_depends_on_its_own_options_and_its_pretraining(config):
    def folder(**sections):
        parts = {name: replace(getattr(config, name), **of) for name, of in sections.items()}
        return make_job("linear-copy", replace(config, **parts), config).path.parent.name

    assert folder(finetune={"steps": 3}, distill={"steps": 3}) == config.run
    assert folder(pretrain={"temperature": 0.3}) == "pretrain.temperature-0.3"
    linear = replace(config.linear, init="runs/other/pretrain")
    job = make_job("linear-copy", replace(config, linear=linear), config)
    assert job.parents == ()
    assert job.config.linear.init == "runs/other/pretrain"


def test_results_and_settings_know_it(config, tmp_path):
    run = tmp_path / "digits"
    result = {"stage": "linear-copy", "labels": "1pct", "n_labels": 14, "seed": 0}
    result |= {"parameters": 10, "top1": 0.5, "nll": 1.0, "ece": 0.1, "seconds": 1.0}
    meta = {"kind": "classifier", "encoder": "x", "image_size": 8, "weights_sha256": "0"}
    meta |= {"result": result, "settings": {"linear.momentum": 0.5}}
    write_atomically(run / "linear-copy-1pct-seed0/meta.json", json.dumps(meta))
    assert "a copy of linear evaluation" in results_text(collect(run))
    base = replace(config, output=str(tmp_path))
    job = make_job("linear-copy", base, base)
    with pytest.raises(UserError, match=r"made with linear\.momentum=0\.5, now it is"):
        require_made_so(job)


def test_the_plan_knows_it(config):
    counts = Counts(1437, 14, 360, 10)
    assert cost_of("linear-copy", config, counts, "no") == cost_of("linear", config, counts, "no")
