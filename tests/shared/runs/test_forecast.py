"""The plan of the embedded recipe."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

import pipeline
from shared.config.command_line import load_config
from shared.runs import forecast as forecasting
from shared.runs.cost import Counts, network_size
from shared.runs.forecast import forecast, measure, paper_table
from shared.runtime.errors import UserError
from shared.runtime.stop import Stopped
from tests.support.stop import STOPPED, stopped_at

TINY = [
    "--pretrain.batch_size=32",
    "--distill.batch_size=32",
    "--supervised.batch_size=8",
    "--linear.batch_size=8",
    "--finetune.batch_size=8",
    "--precision=no",
]


def config_of(*flags):
    return load_config([*TINY, *flags], "test", "")[0]


def clock(monkeypatch, *times: float) -> None:
    """What the plan takes for the time when it begins, and before each stage."""
    ticks = iter(times)
    monkeypatch.setattr(
        forecasting,
        "time",
        SimpleNamespace(perf_counter=lambda: next(ticks), monotonic=time.monotonic),
    )


def test_plan_names_every_stage_and_leaves_no_artifact(tmp_path, capsys, monkeypatch):
    clock(monkeypatch, *[0] * 4)
    config = config_of(f"--output={tmp_path}", "--distill.self_first=true")
    stages = {name: pipeline.stages()[name] for name in ("pretrain", "finetune", "self-distill")}
    forecast(config, Accelerator(cpu=True), stages, seconds=0.1)
    printed = capsys.readouterr().out
    lines = json.loads((tmp_path / config.run / "plan.json").read_text())
    assert [line["stage"] for line in lines] == list(stages)
    assert all(stage in printed for stage in stages)
    assert [path.name for path in (tmp_path / config.run).iterdir()] == ["plan.json"]
    assert [line["probed_batch_size"] for line in lines] == [32, 8, 32]
    assert "were not measured" not in printed
    first, tuned, distilled = lines
    assert first["steps"] == 1437 * 140 // 32 + 1
    assert (first["images"], tuned["images"], distilled["images"]) == (1437, 14, 1437)
    assert all(line["seconds"] > 0 and line["peak_bytes"] > 2**20 for line in lines)
    # weights, checkpoint of weights and two moments of AdamW
    assert first["disk_bytes"] == 4 * 4 * first["parameters"]
    # two views forward and backward; three passes and the teacher's one
    head = network_size("pretrain", config, Counts(1437, 14, 360, 10), "no")
    assert first["flops"] == 6 * head.flops * first["steps"] * 32


def test_what_scikit_learn_fits_is_named_and_not_measured(tmp_path, capsys, monkeypatch):
    clock(monkeypatch, *[0] * 2)
    config = config_of(f"--output={tmp_path}")
    stages = {name: pipeline.stages()[name] for name in ("pixels-svm", "pretrain")}
    forecast(config, Accelerator(cpu=True), stages, seconds=0.1)
    assert (
        "Not measured, because scikit-learn takes seconds: pixels-svm.\nIn all"
        in capsys.readouterr().out
    )
    lines = json.loads((tmp_path / config.run / "plan.json").read_text())
    assert [line["stage"] for line in lines] == ["pretrain"]


def test_what_is_done_does_not_count(tmp_path, capsys, monkeypatch):
    clock(monkeypatch, *[0] * 4)
    (tmp_path / "digits/pretrain").mkdir(parents=True)
    (tmp_path / "digits/pretrain/meta.json").write_text("{}")
    for options, end in (
        ([], " without pretrain, which the run has already."),
        (["--force=all"], "."),
    ):
        config = config_of(f"--output={tmp_path}", *options)
        forecast(config, Accelerator(cpu=True), {"pretrain": pipeline.stages()["pretrain"]}, 0.1)
        assert f" of training{end}\n" in capsys.readouterr().out


def test_late_stages_are_not_measured_and_the_plan_says_so(tmp_path, capsys, monkeypatch):
    clock(monkeypatch, 0, 0, 61)
    config = config_of(f"--output={tmp_path}")
    stages = {name: pipeline.stages()[name] for name in ("pretrain", "supervised")}
    forecast(config, Accelerator(cpu=True), stages, seconds=3)
    assert "The rows without a batch were not measured" in capsys.readouterr().out
    first, second = json.loads((tmp_path / config.run / "plan.json").read_text())
    assert first["probed_batch_size"] > 0
    assert second["probed_batch_size"] == 0
    training = second["flops"] * first["seconds"] / first["flops"]
    assert training < second["seconds"] < 3 * training  # and its evaluation


def test_a_stop_while_measuring_says_that_nothing_was_trained(tmp_path):
    def stopped(config, accelerator):
        raise Stopped("the state is saved")

    with pytest.raises(Stopped, match="before any training; the same command begins again"):
        measure(
            config_of(f"--output={tmp_path}"), Accelerator(cpu=True), {"pretrain": stopped}, 0.1
        )
    assert not any(tmp_path.iterdir())


def test_plan_on_several_processes_is_refused(tmp_path):
    config = config_of(f"--output={tmp_path}")
    with pytest.raises(UserError, match="measures one process"):
        forecast(config, SimpleNamespace(num_processes=2), {})


def test_made_up_images_stand_in_for_a_hub_out_of_reach(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = config_of(f"--output={tmp_path}")
    data = replace(config.data, train="zalando-datasets/fashion_mnist")
    stages = {"pretrain": pipeline.stages()["pretrain"]}
    forecast(replace(config, data=data), Accelerator(cpu=True), stages, seconds=0.1)
    printed = capsys.readouterr().out
    assert "60,000" in printed
    assert "Measured on made-up images: no folder or file is called" in printed


def test_the_papers_networks(monkeypatch):
    assert len(set(forecasting.PAPER)) == 13
    monkeypatch.setattr(forecasting, "PAPER", ["simclr_resnet50_1x_sk0", "simclr_resnet50_1x_sk1"])
    config = config_of(
        "--pretrain.epochs=800",
        "--data.image_size=224",
        "--model.head_width=null",
        "--model.head_out=128",
    )
    text = paper_table(config, Accelerator(cpu=True), 1_281_167, 1e12)
    assert text.count("simclr_resnet") == 2
    smallest = next(line for line in text.splitlines() if "resnet50_1x_sk0" in line)
    # 4.1 GMACs (He et al. 2016 count 3.8 for a strided 1x1) and the head's 2 x 2048^2 + 2048 x 128
    gflops = float(smallest.split()[2])
    assert gflops == pytest.approx(8.2, rel=0.03)


def test_the_papers_networks_with_the_recipes_pretraining(monkeypatch):
    """A memory adds the passes of the averaged network."""
    monkeypatch.setattr(forecasting, "PAPER", ["simclr_resnet50_1x_sk0"])

    def days(*flags):
        config = config_of("--pretrain.epochs=800", *flags)
        text = paper_table(config, Accelerator(cpu=True), 1_281_167, 1e9)
        return float(text.splitlines()[-1].split()[3].replace(",", ""))

    assert days("--pretrain.memory=64") == pytest.approx(8 / 6 * days(), rel=1e-3)


@pytest.mark.parametrize("fixed", [0.0, 0.5, 3.0])
def test_what_a_step_takes_besides_its_images_is_less_in_a_full_batch(fixed):
    """Two batches of cost ``fixed + 0.01 n`` tell that of the recipe's."""

    def probe(batch: int) -> forecasting.Probe:
        return forecasting.Probe(batch, (fixed + 0.01 * batch) / batch)

    each = forecasting._in_full_batch(4096, 64, probe(64), 32, probe(32))
    slope = max(0.01, probe(64).seconds_per_image / 5)  # the clock trembles: not less than a fifth
    assert each == pytest.approx(slope + (probe(64).seconds_per_image - slope) * 64 / 4096)
    if slope == 0.01:
        assert each == pytest.approx(probe(4096).seconds_per_image)


def test_each_network_has_its_own_peak(tmp_path, capsys, monkeypatch):
    """On a GPU: the peak counter of the process would show the largest network for all."""
    clock(monkeypatch, *[0] * 3)
    peaks = {"pretrain": 900, "supervised": 50}
    counter = [0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: counter.append(0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: counter[-1])

    def run(name):
        def stage(config, accelerator):
            counter[-1] = max(counter[-1], peaks[name])
            folder = config.folder_of(name)
            folder.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"images_per_second": 1e9})
            (folder / "metrics.jsonl").write_text(f"{line}\n{line}\n")

        return stage

    accelerator = SimpleNamespace(
        num_processes=1,
        is_local_main_process=True,
        mixed_precision="no",
        device=torch.device("cpu"),
    )
    config = config_of(f"--output={tmp_path}")
    forecast(config, accelerator, {name: run(name) for name in peaks}, seconds=0.1)
    lines = json.loads((tmp_path / config.run / "plan.json").read_text())
    first, second = (line["peak_bytes"] for line in lines)
    assert second < first - 800


def test_plan_of_a_table_counts_what_is_missing_and_trains_nothing(tmp_path, capsys, monkeypatch):
    table = tmp_path / "two.yaml"
    table.write_text(
        "title: two\nseeds: 2\nrows:\n  short: {pretrain.epochs: 1, pretrain.warmup_epochs: 0}\n"
        "  long: {pretrain.epochs: 4, pretrain.warmup_epochs: 0}\n"
        "columns:\n  linear: {method: linear}\n  SVM: {method: pixels-svm}\n"
    )
    clock(monkeypatch, *[0] * 3)
    assert pipeline.main([*TINY, f"--table={table}", "--plan", f"--output={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "digits"
    assert [path.name for path in folder.iterdir()] == ["tables"]
    (plan,) = folder.rglob("*.*")
    rows = {row["stage"]: row for row in json.loads(plan.read_text())}
    # one pretraining for both seeds of a row
    assert {stage: row["number"] for stage, row in rows.items()} == {
        "pretrain": 2,
        "linear": 4,
        "pixels-svm": 2,
    }
    assert rows["pretrain"]["seconds"] > 0
    assert rows["pixels-svm"]["seconds"] is None
    assert "nothing was trained" in printed
    assert "scikit-learn takes seconds" in printed


def planned(monkeypatch, missing) -> dict[str, float]:
    """Seconds of each stage, where the recipe's has 1e11 FLOP/s and a second beside its updates."""
    stages = [
        SimpleNamespace(stage=name, flops=1e12, seconds=11.0, fixed_seconds=1.0)
        for name in ("pretrain", "finetune")
    ]
    monkeypatch.setattr(forecasting, "measure", lambda *_: (stages, None, ""))
    accelerator, config = Accelerator(cpu=True), missing[0][1]
    rows = forecasting.forecast_table(config, accelerator, pipeline.stages(), missing)
    return {row["stage"]: row["seconds"] for row in rows}


def test_plan_of_a_table_takes_each_artifact_by_its_flops(monkeypatch):
    small, long = config_of(), config_of("--pretrain.epochs=560")
    large = config_of("--model.encoder=simclr_resnet14_2x_sk0")
    networks = (
        network_size("pretrain", each, Counts(1437, 0, 0, 10), "no").flops
        for each in (small, large)
    )
    step = [6 * flops * 32 / 1e11 for flops in networks]
    steps = 1437 * 140 // 32 + 1
    missing = [("pretrain", each) for each in (small, small, long, large)]
    seconds = planned(monkeypatch, missing)["pretrain"]
    assert seconds == pytest.approx(4 + steps * (2 * step[0] + 4 * step[0] + step[1]), rel=1e-3)


def test_plan_of_a_table_asks_repetitions_of_a_cell_once(monkeypatch):
    asked = []
    monkeypatch.setattr(forecasting, "_flops_of", lambda name, *_: asked.append(name) or 1e12)
    missing = [
        (
            "finetune",
            config_of(f"--seed={seed}", f"--pretrain.seed={seed}", f"--finetune.init=r{seed}"),
        )
        for seed in range(3)
    ]
    assert planned(monkeypatch, missing) == {"finetune": pytest.approx(3 * 11)}
    assert asked == ["finetune"]


def test_plan_of_a_table_with_force_makes_again_what_is_there(tmp_path, capsys, monkeypatch):
    table = tmp_path / "one.yaml"
    table.write_text("title: one\nseeds: 1\nrows: {SVM: {method: pixels-svm}}\ncolumns: {1%: {}}\n")
    options = [*TINY, f"--table={table}", f"--output={tmp_path}"]
    assert pipeline.main(options) == 0
    assert pipeline.main([*options, "--plan"]) == 0
    assert "nothing is missing" in capsys.readouterr().out
    assert pipeline.main([*options, "--plan", "--force=all"]) == 0
    printed = capsys.readouterr().out
    assert "pixels-svm        1     -       -" in printed
    assert "In all" not in printed  # nothing was measured


def test_a_table_names_at_once_what_was_made_with_other_options(tmp_path, capfd):
    table = tmp_path / "one.yaml"
    text = "title: one\nseeds: 2\nrows: {SVM: {method: pixels-svm}}\ncolumns: {1%: {}}\n"
    table.write_text(text)
    options = [*TINY, f"--table={table}", f"--output={tmp_path}"]
    assert pipeline.main(options) == 0
    told = "pixels-svm-1pct-seed0 and 1 other artifact were made with classical.pixel_images="
    assert told not in capfd.readouterr().out
    changed = [*options, "--classical.pixel_images=300"]
    assert pipeline.main([*changed, "--plan"]) == 0
    printed = capfd.readouterr().out
    assert told in printed
    assert "As it is, these cells will fail" in printed
    assert "pixels-svm        2     -       -" in printed  # they are to be made
    files = [tmp_path / "digits/tables/one" / name for name in ("table.csv", "table.md")]
    before = [file.read_bytes() for file in files]
    assert pipeline.main(changed) == 2
    printed = capfd.readouterr().err
    assert told in printed
    assert "now it is 300; give this as it was, or another --run, or --force pixels-svm," in printed
    assert [file.read_bytes() for file in files] == before
    two = text.replace(
        "{method: pixels-svm}", "{method: pixels-svm}, tree: {method: pixels-forest}"
    )
    table.write_text(two)
    assert pipeline.main([*options, "--force=pixels-forest"]) == 0
    capfd.readouterr()
    assert pipeline.main([*changed, "--force=pixels-forest"]) == 0  # it makes the one that it names
    assert told in capfd.readouterr().out
    # what can be made is made: a table that was stopped while --force made it again goes on
    table.write_text(text.replace("seeds: 2", "seeds: 3"))
    assert pipeline.main(changed) == 0
    assert told in capfd.readouterr().out
    assert pipeline.main([*changed, "--force=pixels-svm"]) == 0
    assert pipeline.main(changed) == 0
    assert "made with classical" not in capfd.readouterr().out


def test_a_table_names_what_was_begun_with_other_options(tmp_path, capfd, monkeypatch):
    table = tmp_path / "one.yaml"
    table.write_text("title: one\nseeds: 1\nrows: {net: {method: supervised}}\ncolumns: {1%: {}}\n")
    options = [*TINY, f"--table={table}", f"--output={tmp_path}", "--supervised.steps=4"]
    with stopped_at(2, monkeypatch):
        assert pipeline.main(options) == STOPPED
    told = "supervised-1pct-seed0 was made with supervised.learning_rate="
    assert told not in capfd.readouterr().out
    assert pipeline.main([*options, "--supervised.learning_rate=0.02"]) == 2
    assert told in capfd.readouterr().err


def test_the_plan_of_a_run_says_that_it_is_refused(tmp_path, capsys, monkeypatch):
    short = ["--pretrain.epochs=1", "--pretrain.warmup_epochs=0", "--distill.epochs=1"]
    options = [*TINY, *short, f"--output={tmp_path}", "--finetune.steps=2", "--linear.steps=2"]
    options += ["--supervised.steps=2", "--distill.warmup_epochs=0"]
    assert pipeline.main(options) == 0
    monkeypatch.setattr(forecasting, "forecast", lambda *_: None)
    assert pipeline.main([*options, "--plan"]) == 0
    assert "refused" not in capsys.readouterr().out
    assert pipeline.main([*options, "--plan", "--linear.learning_rate=0.02"]) == 0
    printed = capsys.readouterr().out
    assert "as it is, the run will be refused" in printed
    assert "linear.learning_rate=0.01, now it is 0.02" in printed
    assert "--force linear" in printed


def test_plan_of_a_table_writes_through_no_link(tmp_path, capsys):
    """A link in the run's folder would let it write elsewhere, as filling the table refuses too."""
    table = tmp_path / "one.yaml"
    table.write_text("title: one\nseeds: 1\nrows: {SVM: {method: pixels-svm}}\ncolumns: {1%: {}}\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits/tables").symlink_to(elsewhere, target_is_directory=True)
    assert pipeline.main([*TINY, f"--table={table}", f"--output={tmp_path}", "--plan"]) == 2
    assert "link" in capsys.readouterr().err
    assert not list(elsewhere.rglob("plan.json"))
