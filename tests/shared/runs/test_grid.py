"""Tables read, cells expanded, artifacts shared: no training."""

import json
import os
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, cast

import pytest
from accelerate import Accelerator

from shared.config.command_line import load_config
from shared.config.schema import RECIPES
from shared.runs import grid
from shared.runs.grid import (
    Cell,
    _Clock,
    _slug,
    expand,
    fill,
    in_order,
    make_job,
    read_cell,
    read_cells,
    require_published,
)
from shared.runs.table import load_table
from shared.runtime.errors import UserError
from shared.runtime.files import write_atomically
from shared.runtime.lock import BusyError
from shared.runtime.stop import Stopped, StopRequest
from tests.support.photos import process
from tests.support.tables import write

SLOW = {"pretext_fashion"}  # pretext_colour has its rows, and one more
TABLES = [
    pytest.param(file.stem, marks=[pytest.mark.slow] if file.stem in SLOW else [])
    for file in sorted((RECIPES / "tables").glob("*.yaml"))
]
TUNING = [pytest.param(str(file), id=file.stem) for file in (RECIPES / "tuning").glob("*.yaml")]


@pytest.fixture(scope="module")
def config():
    return load_config(["--output=out"], "test", "")[0]


@pytest.mark.parametrize("name", TABLES + TUNING)
def test_our_tables_have_no_impossible_cell(name, config):
    table = load_table(name)
    assert table.title
    vary = {option: values[-1:] for option, values in table.vary.items()}  # one is as good as all
    table = replace(table, seeds=table.seeds[-1:], vary=vary)
    cells = expand(table, config)
    assert len(cells) == len(table.rows) * len(table.columns)
    assert [cell.impossible for cell in cells if cell.impossible] == []
    if table.paper:
        assert table.paper["cells"].keys() <= table.rows.keys()


# What the paper says (arXiv 2006.10029): section 3.1 and Table 1; rates times sqrt(1024).
PAPER_FINETUNING = (
    {  # network -> rate; column -> epochs
        "simclr_resnet50_1x_sk0": 0.005,
        "simclr_resnet50_1x_sk1": 0.002,
        "simclr_resnet50_2x_sk0": 0.002,
        "simclr_resnet152_1x_sk0": 0.005,
        "simclr_resnet152_3x_sk1": 0.002,
    },
    {"fine-tuned 1%": 60, "fine-tuned 10%": 30, "fine-tuned 100%": 30},
)


@pytest.fixture(scope="module")
def imagenet():
    return load_config(["--output=out", "--config=configs/imagenet.yaml"], "test", "")[0]


def test_table1_has_the_papers_settings(imagenet):
    table, (rates, epochs) = load_table("table1"), PAPER_FINETUNING
    rows = {row: x for row, x in table.rows.items() if x["model.encoder"] in rates}
    assert (len(table.rows), len(rows)) == (13, 5)
    for cell in expand(replace(table, rows=rows), imagenet):
        assert cell.job, cell.impossible
        config, encoder = cell.job.config, rows[cell.row]["model.encoder"]
        assert config.model.encoder == encoder
        if cell.method == "supervised":
            cfg = config.supervised
            assert (cfg.optimizer, cfg.learning_rate, cfg.epochs) == ("sgd", 0.1, 90)
            assert (cfg.learning_rate_scaling, cfg.weight_decay) == ("linear", 1e-4)
            assert (cfg.augmentation, config.labels) == ("crop", "100pct")
            continue
        (pretraining,) = cell.job.parents
        cfg = pretraining.config.pretrain
        assert (cfg.memory, cfg.memory_momentum, cfg.temperature) == (65536, 0.999, 0.1)
        assert (cfg.epochs, cfg.batch_size, cfg.optimizer) == (800, 4096, "lars")
        assert (cfg.learning_rate, cfg.learning_rate_scaling, cfg.warmup_epochs) == (
            0.1,
            "sqrt",
            40,
        )
        if cell.method == "finetune":
            cfg = config.finetune
            assert (cfg.epochs, cfg.learning_rate) == (epochs[cell.column], rates[encoder])
            assert (cfg.batch_size, cfg.weight_decay, cfg.warmup_epochs) == (1024, 0, 0)
            labels = {"fine-tuned 1%": 0.01, "fine-tuned 10%": 0.1, "fine-tuned 100%": 1}
            kept = cfg.kept_layers(round(1e6 * labels[cell.column]), 1_000_000, 3)
            assert kept == (0 if cell.column == "fine-tuned 100%" else 1)


def test_tables_2_and_3_have_the_papers_networks(imagenet):
    pairs = {
        "table2": ("simclr_resnet50_2x_sk1", {"simclr_resnet50_1x_sk0"}),
        "table3": ("simclr_resnet152_3x_sk1", {"simclr_resnet50_1x_sk0", "simclr_resnet50_2x_sk1"}),
    }
    for name, (teacher, students) in pairs.items():
        cells = expand(load_table(name), imagenet)
        jobs = [job for job in in_order(cells) if job.method not in ("pretrain",)]
        taught = [job for job in jobs if job.method == "distill"]
        assert {job.config.distill.student for job in taught} == students
        assert {(job.config.distill.temperature, job.config.distill.epochs) for job in taught} == {
            (1, 400)
        }
        assert {job.config.model.encoder for job in jobs if job.method == "finetune"} == {teacher}
        tuned = {
            (job.config.labels, job.config.finetune.epochs)
            for job in jobs
            if job.method == "finetune"
        }
        assert tuned == {("1pct", 60), ("10pct", 30)}
        first = [job.config.pretrain for job in in_order(cells) if job.method == "pretrain"]
        assert {(cfg.memory, cfg.memory_momentum) for cfg in first} == {(65536, 0.999)}


def test_figures_from_memory_say_so():
    """Wherever they are printed; the others were compared with public copies."""
    cells = {name: (load_table(name).paper or {})["cells"] for name in ("table2", "table3")}
    marked = {
        name: [str(x).endswith("(from memory)") for row in c.values() for x in row.values()]
        for name, c in cells.items()
    }
    assert all(marked["table2"])
    assert sum(marked["table3"]) == 2
    assert "from memory" in str(cells["table3"]["distilled ResNet-50 2x SK"])


def test_jobs_come_once_and_after_their_parents(config):
    jobs = in_order(expand(load_table("table3_small"), config))
    paths = [job.path for job in jobs]
    assert len(set(paths)) == len(paths)
    for job in jobs:
        assert all(paths.index(parent.path) < paths.index(job.path) for parent in job.parents)
    assert [job.method for job in jobs].count("pretrain") == 5  # one for each repetition


def test_what_is_as_in_the_recipe_lies_in_the_run(config):
    """So what the pipeline made is used, and it finds what the grid made."""
    cells = expand(load_table("label_efficiency"), changed(config, data={"hold_out": "lockbox"}))
    of_recipe = [cell for cell in cells if cell.vary == {"pretrain.seed": 0}]
    assert len(of_recipe) == len(cells) / 5
    for cell in of_recipe:
        assert cell.job is not None
        assert cell.job.path == Path(f"out/digits/{cell.method}-{cell.labels}-seed{cell.seed}")
        assert cell.job.config.finetune == config.finetune
        assert cell.job.config.distill == config.distill


def changed(config, **sections):
    return replace(config, **{k: replace(getattr(config, k), **v) for k, v in sections.items()})


def test_folders_say_what_differs_and_parents_are_shared(config):
    variant = changed(config, finetune={"from_layer": 2}, distill={"temperature": 0.5})
    job = make_job("distill", variant, config)
    folder = Path("out/digits/variants")
    both = "finetune.from_layer-2_distill.temperature-0.5"
    assert job.path == folder / both / "distill-1pct-seed0"
    (teacher,) = job.parents
    assert teacher.path == folder / "finetune.from_layer-2/finetune-1pct-seed0"
    assert job.config.distill.teacher == str(teacher.path)
    (pretrained,) = teacher.parents
    assert pretrained.path == Path("out/digits/pretrain")
    assert teacher.config.finetune.init == str(pretrained.path)
    assert teacher.config.distill == config.distill  # it does not depend on it


def test_pretraining_options_do_not_touch_supervised_training(config):
    variant = changed(config, pretrain={"temperature": 0.3}, linear={"steps": 7})
    assert make_job("supervised", variant, config).path.parent == config.folder
    assert make_job("finetune", variant, config).path.parent == (
        config.folder / "variants/pretrain.temperature-0.3"
    )
    job = make_job("finetune", variant, config)
    assert job.parents[0].path.parent == job.path.parent
    assert job.config.finetune.init is None  # it lies beside it


def test_rows_of_scikit_learn_depend_on_the_images_or_the_pretraining(config):
    variant = changed(config, pretrain={"temperature": 0.3}, augment={"flip": 0.1})
    assert make_job("pixels-svm", variant, config).path.parent == config.folder
    assert make_job("pixels-svm", variant, config).parents == ()
    larger = changed(config, data={"image_size": 9})
    assert make_job("pixels-svm", larger, config).path.parent.name == "data.image_size-9"
    row = make_job("features-logistic", variant, config)
    assert [parent.path.parent for parent in row.parents] == [row.path.parent]
    elsewhere = changed(config, classical={"init": "runs/other/pretrain"})
    row = make_job("features-logistic", elsewhere, config)
    assert (row.parents, row.config.classical.init) == ((), "runs/other/pretrain")


def test_different_numbers_have_folders_of_their_own():
    """And the usual ones those that they always had."""
    numbers = [0.1234567, 0.1234568, 0.5, -0.5, 7, -7, 10_000_001.0, 10_000_002.0, 1e-7]
    slugs = [_slug({"pretrain.temperature": number}) for number in numbers]
    assert len(set(slugs)) == len(numbers)
    assert slugs[2] == "pretrain.temperature-0.5"
    usual = {"distill.images": "all", "distill.self_first": True, "pretrain.epochs": 100.0}
    text = "distill.images-all_distill.self_first-True_pretrain.epochs-100"
    assert _slug(usual | {"pretrain.init": None}) == f"{text}_pretrain.init-None"


def test_the_result_of_a_row_without_a_network_is_read(config, tmp_path):
    own = replace(config, output=str(tmp_path))
    result = {"stage": "pixels-svm", "labels": "1pct", "n_labels": 14, "seed": 0, "top1": 0.5}
    result |= {"parameters": 9, "seconds": 1.0}
    meta = {"kind": "predictions", "encoder": "x", "image_size": 8, "weights_sha256": "0"}
    job = make_job("pixels-svm", own, own)
    write_atomically(job.path / "meta.json", json.dumps(meta | {"settings": {}, "result": result}))
    cell = Cell("row", "column", "pixels-svm", "1pct", 0, {}, job)
    line = read_cell(cell, own.folder, {})
    assert (line["status"], line["result"]["top1"]) == ("done", 0.5)


def test_self_distillation_is_shared_by_all_students(config):
    jobs = [
        make_job("distill", changed(config, distill={"self_first": True, "student": s}), config)
        for s in (config.distill.student, "simclr_resnet14_1x_sk0")
    ]
    assert len({job.path for job in jobs}) == 2
    for job in jobs:
        (teacher,) = job.parents
        assert teacher.path == config.folder / "self-distill-1pct-seed0"
        assert job.config.distill.teacher == str(teacher.path)
        assert not job.config.distill.self_first
    averaged = {"self_first": True, "self_ema": 0.9, "self_confidence": 0.5}
    job = make_job("distill", changed(config, distill=averaged), config)
    name = "distill.self_ema-0.9_distill.self_confidence-0.5"
    assert job.parents[0].path == config.folder / f"variants/{name}/self-distill-1pct-seed0"
    assert job.parents[0].config.distill.self_ema == 0.9
    assert job.path.parent.name == f"distill.self_first-True_{name}"
    assert (job.config.distill.self_ema, job.config.distill.self_first) == (0, False)
    recipe = changed(config, distill={"self_first": True})
    job = make_job("distill", recipe, recipe)  # where it is the recipe's own way
    assert job.path == config.folder / "distill-1pct-seed0"
    assert job.config.distill.self_first
    assert job.config.distill.teacher is None


def test_a_student_depends_on_the_teacher_that_is_named(config):
    regression = changed(config, distill={"taught_by": "features-logistic"})
    deeper = changed(regression, classical={"from_layer": 2})
    job, other = (make_job("distill", variant, config) for variant in (regression, deeper))
    teachers = [parent.path for parent in (*job.parents, *other.parents)]
    row = "features-logistic-1pct-seed0"
    assert teachers == [
        config.folder / row,
        config.folder / "variants/classical.from_layer-2" / row,
    ]
    assert other.path.parent.name == "classical.from_layer-2_distill.taught_by-features-logistic"
    assert job.path != other.path
    assert make_job("published", deeper, config).path.parent == config.folder


def test_a_student_of_several_teachers_depends_on_all(config):
    """One of them lies in the run's folder, the other where its options have led."""
    both = changed(
        config,
        distill={"taught_by": ("features-logistic", "finetune")},
        finetune={"from_layer": 2},
    )
    job = make_job("distill", both, config)
    teachers = [
        config.folder / "features-logistic-1pct-seed0",
        config.folder / "variants/finetune.from_layer-2/finetune-1pct-seed0",
    ]
    assert [parent.path for parent in job.parents] == teachers
    assert job.config.distill.teacher_folders == tuple(map(str, teachers))
    name = "finetune.from_layer-2_distill.taught_by-features-logistic-finetune"
    assert job.path.parent.name == name
    cells = [Cell("", "", "distill", "1pct", 0, {}, job)]
    methods = [each.method for each in in_order(cells)]
    assert methods == ["pretrain", "features-logistic", "finetune", "distill"]
    given = changed(both, finetune={"init": "elsewhere"}, pretrain={"temperature": 0.5})
    job = make_job("distill", given, config)  # the regression still is on this pretraining
    assert "pretrain.temperature-0.5" in job.path.parent.name
    given = changed(given, classical={"init": "elsewhere"})
    assert "pretrain" not in make_job("distill", given, config).path.parent.name


def test_given_pretraining_needs_no_job(config):
    variant = changed(config, finetune={"init": "runs/r50/pretrain"})
    job = make_job("finetune", variant, config)
    assert job.parents == ()
    assert job.config.finetune.init == "runs/r50/pretrain"


def test_impossible_cells_keep_their_reason(config, tmp_path):
    rows = {"good": {}, "deep": {"finetune.from_layer": 9}, "odd": {"pretrain.temperature": "warm"}}
    cells = expand(load_table(write(tmp_path, rows=rows, seeds=2)), config)
    assert [(c.row, c.seed) for c in cells] == [(r, s) for s in (0, 1) for r in rows]
    assert "from_layer" in cells[1].impossible
    assert "pretrain.temperature must be a number" in cells[2].impossible
    assert cells[0].job is not None
    assert cells[1].job is None


FROZEN = {"finetune.encoder_rate": 0}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rows": {"a": {}, "b": {"linear.steps": "1e30"}}}, "row b, column x: linear.steps must"),
        ({"rows": {"a": {}, "b": {"finetune.from_layer": 9}}}, "row b, column x: finetune.from_l"),
        ({"columns": {"x": {}, "y": {"data.std": 10**400}}}, "row a, column y: data.std must be"),
        ({"base": {"pretrain.temperature": 0}}, "row a, column x: pretrain.temperature must be"),
        ({"vary": {"pretrain.temperature": [1, 0]}, "seeds": 2}, "row a, column x: pretrain.temp"),
        ({"columns": {"x": {"labels": "1pct"}, "y": {"labels": "no.csv"}}}, "row a, column y: ca"),
        ({"rows": {"a": {"labels": "pipe.csv"}}, "columns": {"x": {}}}, "row a, column x: cannot"),
        (
            {"rows": {"a": {}, "b": {"model.encoder": "resnet5"}}},
            "row b, column x: --model",
        ),
        (
            {"rows": {"a": {}, "b": {"method": "distill", "distill.student": "x"}}},
            "row b, column x",
        ),
        # what needs the data, or a network
        (
            {"columns": {"x": {}, "y": {"labels": "999perclass"}}},
            "row a, column y: labels=999perclass: the smallest class has 139 images",
        ),
        (
            {"columns": {"x": {}, "y": {"labels": "2000suggested"}}},
            "row a, column y: labels=2000suggested: only 1,437 training images",
        ),
        (
            {"columns": {"x": {}, "y": {"labels": "none.csv"}}},
            "row a, column y: none.csv has no label yet",
        ),
        (
            {"rows": {"a": {}, "b": {"method": "linear", "linear.warmup_epochs": 10**6}}},
            "row b, column x: linear.warmup_epochs=1000000.0 is",
        ),
        (
            {"rows": {"a": {}, "b": {"pretrain.warmup_epochs": 1000}}},
            "row b, column x: pretrain.warmup_epochs=1000.0 is",
        ),
        (
            {"rows": {"a": {}, "b": {"finetune.freeze_after_block": 9}}},
            "row b, column x: finetune.freeze_after_block: after_block is 9",
        ),
        (
            {"rows": {"a": {}, "b": {"finetune.auxiliary": "rotation"}}, "base": FROZEN},
            "row b, column x: finetune.auxiliary=rotation has nothing to teach",
        ),
        (
            {"rows": {"a": {}, "b": {"method": "distill", "distill.student": "test_vit"}}},
            "row b, column x: encoder test_vit at 8 pixels",
        ),
        (
            {"rows": {"a": {}, "b": {"pretrain.task": "colour"}}},
            "row b, column x: pretrain.task=colour needs images with colours",
        ),
        ({"vary": {"data.split_seed": [0, 1]}, "base": {"labels": "999perclass"}, "seeds": 2}, ""),
        (
            {"rows": {"a": {}, "b": {"method": "pixels-svm", "classical.pixel_images": 9}}},
            "row b, column x: classical.pixel_images must be 10 or more, one of each class, got 9",
        ),
        (
            {"worth": "a", "columns": {"x": {}, "y": {"pretrain.seed": 1}}},
            "table mine: worth=a: what labels are worth is read off a curve",
        ),
    ],
)
def test_what_can_never_be_made_is_refused_before_anything_trains(
    changes, says, config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.csv")
    Path("none.csv").write_text("file,label\n0,\n")
    parts = {"rows": {"a": {}}, "columns": {"x": {}}, "seeds": 1} | changes
    config = replace(config, table=write(tmp_path, **parts), output=str(tmp_path / "runs"))
    with pytest.raises(UserError) as refused:
        grid.fill(config, Accelerator(cpu=True), {})
    assert str(refused.value).startswith(says)
    assert not (tmp_path / "runs").exists()


def test_a_cell_alone_may_be_impossible(config, tmp_path, capsys):
    """A layer that only the deeper heads have."""
    rows = {"low": {}, "high": {"finetune.from_layer": 4}}
    columns = {"3": {}, "4": {"model.head_layers": 4}}
    cells = expand(load_table(write(tmp_path, rows=rows, columns=columns, seeds=2)), config)
    grid.require_possible(cells, Accelerator(cpu=True))
    error = capsys.readouterr().err
    assert error.startswith("impossible: row high, column 3: finetune.from_layer must be")
    assert error.count("\n") == 1


def test_labels_that_one_row_alone_cannot_draw_are_said_before_anything_trains(
    config, tmp_path, capsys, monkeypatch
):
    """The rest of the table is made; nothing that needs those labels is begun."""
    rows = {"tuned": {}, "alone": {"labels": "1pct", "method": "supervised"}}
    columns = {"few": {"finetune.steps": 9}, "late": {"finetune.warmup_epochs": 10**6}}
    made: list[str] = []
    monkeypatch.setattr(grid, "_make", lambda jobs, *_: made.extend(job.method for job in jobs))
    name = write(tmp_path, rows=rows, columns=columns, seeds=1)
    config = replace(config, table=name, output=str(tmp_path / "runs"))
    with pytest.raises(UserError, match="no finished cell"):
        grid.fill(config, Accelerator(cpu=True), {})
    error = capsys.readouterr().err
    assert error.startswith("impossible: row tuned, column late: finetune.warmup_epochs=")
    assert made == ["pretrain", "finetune", "supervised"]


def test_what_is_done_is_not_asked_again(config, tmp_path):
    """Its data and its teacher may be gone."""
    rows = {"a": {"labels": "999perclass", "method": "supervised"}}
    config = replace(config, output=str(tmp_path))
    (cell,) = expand(load_table(write(tmp_path, rows=rows, columns={"x": {}}, seeds=1)), config)
    accelerator = Accelerator(cpu=True)
    assert "999perclass" in grid.with_reasons([cell], accelerator)[0].impossible
    cell.job.path.mkdir(parents=True)
    (cell.job.path / "meta.json").write_text("{}")
    assert grid.with_reasons([cell], accelerator) == [cell]


def test_a_row_keeps_its_method_in_all_columns(config, tmp_path):
    rows = {"a": {"pretrain.task": "rotation"}, "b": {"method": "supervised"}}
    columns = {
        f"{method} {labels}": {"method": method, "labels": labels}
        for labels, method in product(["1pct", "10pct"], ["linear", "features-neighbours"])
    }
    table = load_table(write(tmp_path, rows=rows, columns=columns, seeds=1))
    cells = expand(table, config)
    assert [cell.method for cell in cells] == ["linear", "features-neighbours"] * 2 + [
        "supervised"
    ] * 4
    folders = [cell.job.path.name for cell in cells if cell.job]
    assert folders[4:] == [f"supervised-{n}pct-seed0" for n in (1, 1, 10, 10)]
    methods = Counter(job.method for job in in_order(cells))
    assert methods == {"pretrain": 1, "linear": 2, "features-neighbours": 2, "supervised": 2}


def test_vary_gives_every_seed_a_value_of_its_own(config, tmp_path):
    table = load_table(write(tmp_path, seeds=[3, 4], vary={"pretrain.seed": [0, 1]}))
    cells = expand(table, config)
    assert [(c.seed, c.vary["pretrain.seed"]) for c in cells] == [(3, 0), (4, 1)]
    assert len({c.job.path for c in cells if c.job}) == 2


def test_damaged_lines_are_named(tmp_path, capsys):
    good = (
        '{"row": "a", "column": "b", "method": "m", "labels": "1pct", "seed": 0, "vary": {},'
        ' "status": "missing", "message": "", "folder": "", "result": {}}'
    )
    file = tmp_path / "cells.jsonl"
    file.write_text(f'{good}\n{{"row": \n[1]\n{good}\n')
    assert len(read_cells(file)) == 2
    error = capsys.readouterr().err
    assert "2 lines damaged" in error
    assert read_cells(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "published", "classical.published": "nowhere"}, "folder: nowhere"),
        ({"method": "finetune", "finetune.init": "nowhere"}, "folder: nowhere"),
        ({"method": "linear", "linear.init": "nowhere"}, "folder: nowhere"),
        ({"pretrain.task": "transitive", "transitive.init": "nowhere"}, "folder: nowhere"),
        (
            {"method": "distill", "distill.student_pretrained": "nowhere.safetensors"},
            "--distill.student_pretrained: ",
        ),
    ],
)
def test_published_weights_are_looked_for_before_anything_trains(config, tmp_path, options, says):
    table = write(tmp_path, rows={"ours": {"method": "supervised"}, "theirs": options}, seeds=1)
    config = replace(config, table=str(table), output=str(tmp_path))
    with pytest.raises(UserError, match=says):
        fill(config, cast(Any, process()), {})


def test_what_the_table_makes_itself_is_not_looked_for(config, tmp_path):
    rows = {"hot": {"method": "finetune", "pretrain.temperature": 0.5}}
    jobs = in_order(expand(load_table(write(tmp_path, rows=rows, seeds=1)), config))
    for job in jobs:
        require_published(job, {other.path for other in jobs})


def test_a_table_can_be_printed_while_it_is_filled(config, tmp_path, monkeypatch):
    name = write(tmp_path, rows={"a": {}}, columns={"x": {}}, seeds=1)
    config = replace(config, table=name, output=str(tmp_path / "runs"))

    def look(*_):
        with pytest.raises(UserError, match="no finished cell"):  # and not: is no run
            grid.report(config.folder, name)
        raise Stopped("looked")

    monkeypatch.setattr(grid, "_make", look)
    with pytest.raises(Stopped, match="looked"):
        grid.fill(config, Accelerator(cpu=True), {})


@pytest.mark.parametrize("linked", ["tables", "tables/label_efficiency"])
def test_no_table_is_written_through_a_link(config, tmp_path, linked, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "label_efficiency").mkdir(parents=True)
    (elsewhere / "notes.tmp").write_text("precious")
    config = replace(config, output=str(tmp_path), run="r")
    link = config.folder / linked
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    table = load_table("label_efficiency")
    monkeypatch.setattr(grid, "read_cell", lambda *_: {"status": "done", "message": ""})
    monkeypatch.setattr(grid, "_refuse_other_images", lambda *_: None)
    monkeypatch.setattr(grid, "summarize", lambda *_: {})
    monkeypatch.setattr(grid, "render", lambda *_: dict.fromkeys(("txt", "md", "csv", "tex"), ""))
    with pytest.raises(UserError, match=r"is a link, and what is written there"):
        grid.write_table(config, table, [None], {})
    assert sorted(f.name for f in elsewhere.iterdir()) == ["label_efficiency", "notes.tmp"]


def test_the_time_left_does_not_take_that_of_stage_1_for_others(config, tmp_path):
    """A minute of pretraining says nothing of a row of scikit-learn."""
    table = write(tmp_path, rows={"a": {}, "b": {"method": "supervised"}}, seeds=3)
    jobs = in_order(expand(load_table(table), config))
    clock = _Clock(jobs)
    assert clock.left() == ""
    by_method = {job.method: job for job in jobs}
    clock.finish(by_method["pretrain"], 6000)
    assert clock.left() == ", at least a minute left"
    clock.finish(by_method["finetune"], 60)
    assert clock.left() == ", about 5 min left"  # 2 + 3 of a minute


class Others:
    """Another command, which makes an artifact while this one waits, fails at it, or never ends."""

    def __init__(self, monkeypatch, base, end: str) -> None:
        self.base, self.end, self.works = base, end, True
        self.ours: list[str] = []  # what this command makes, in order
        monkeypatch.setattr(grid, "take", self.take)
        monkeypatch.setattr(grid.time, "sleep", self.go_on)

    def take(self, path: Path) -> None:
        if path.name == "pretrain" and self.works:
            raise BusyError(f"{path} is in use: process 7")

    def go_on(self, seconds: float) -> None:
        self.works = False
        if self.end == "makes it":
            self.make(self.base.folder / "pretrain")
        if self.end == "never":
            StopRequest.received = 15

    def make(self, path: Path) -> None:
        path.mkdir(parents=True)
        (path / "meta.json").write_text("{}")

    def stage(self, config, accelerator, method: str) -> None:
        path = config.folder_of(method)
        if not (path / "meta.json").exists():
            self.ours.append(path.name)
            self.make(path)


@pytest.mark.parametrize("end", ["makes it", "dies", "never", "forced"])
def test_what_another_command_makes_is_left_to_it(tmp_path, monkeypatch, capsys, end):
    """Several commands share a table: what one makes, and what needs it, the others do last."""
    base = load_config([f"--output={tmp_path}"], "test", "")[0]
    base = replace(base, force="pretrain") if end == "forced" else base
    table = write(tmp_path, rows={"a": {}, "b": {"method": "supervised"}}, seeds=2)
    jobs = in_order(expand(load_table(table), base))
    others, accelerator = Others(monkeypatch, base, end), process(0, 1)
    accelerator.free_memory = lambda: None
    monkeypatch.setattr(StopRequest, "received", None)
    stages = {m: partial(others.stage, method=m) for m in ("pretrain", "finetune", "supervised")}
    failures: dict[Path, str] = {}
    alone = [f"supervised-1pct-seed{seed}" for seed in (0, 1)]
    rest = [f"finetune-1pct-seed{seed}" for seed in (0, 1)]
    if end == "never":
        with pytest.raises(Stopped):
            grid._make(jobs, accelerator, stages, failures)
        assert others.ours == alone
        return
    grid._make(jobs, accelerator, stages, failures)
    if end == "forced":  # two commands that are to do it again would do so in turns
        assert others.ours == alone
        assert set(failures) == {base.folder / name for name in ("pretrain", *rest)}
        return
    assert not failures
    assert others.ours == [*alone, *["pretrain"] * (end == "dies"), *rest]
    assert capsys.readouterr().err.count("is in use") == 1
