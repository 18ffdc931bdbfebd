"""Several processes on CPU (gloo) train as one process with the whole batch does.

Batches have remainders: 3 processes have 10, 11 and 11 of 32 images.
"""

import json
import time
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import pipeline
from shared.config.command_line import CommandLine, load_config
from shared.config.methods import METHODS
from shared.config.schema import Config
from shared.config.sections import Data
from shared.networks.build import network_meta
from shared.runs.grid import expand, in_order
from shared.runs.table import load_table
from shared.runtime.errors import UserError
from tests.support.exported import SMALL
from tests.support.gloo import be_launched, fork, free_port, join
from tests.support.tables import write
from tests.support.toy_run import TINY

LABELED = ("finetune", "supervised", "linear")
EVERY_STEP = [f"--{s}.log_every_steps=1" for s in ("pretrain", "distill", *LABELED)]
# In this layout a convolution's sums do not depend on the number of images, so nearly all bits are
# equal. tests/shared/pretext/test_task.py compares in the default layout, with room for rounding.
LAYOUT = "--channels_last=no"
HELPED = "--supervised.auxiliary=rotation"
UNEVEN = [*EVERY_STEP, LAYOUT, HELPED, *(f"--{s}.batch_size=14" for s in LABELED)]


def run(folder: Path, rank: int = 0) -> None:
    """The pipeline; what it prints is kept."""
    with (folder / f"printed-{rank}").open("w") as file, redirect_stdout(file):
        code = pipeline.main([*TINY, *UNEVEN, f"--output={folder}"])
    assert code == 0


def run_launched(rank: int, processes: int, port: int, folder: Path) -> None:
    """It, as a launcher starts it."""
    be_launched(rank, processes, port)
    run(folder, rank)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One process is this one, so that the three forks have its imports and images."""
    outputs = {name: tmp_path_factory.mktemp(name) for name in ("one", "three")}
    run(outputs["one"])
    fork(run_launched, (3, free_port(), outputs["three"]), 3)
    return outputs


def same(one: Path, several: Path, loss: float = 1e-4, metric: float = 0.02, weight: float = 2e-3):
    """All that is trained in steps: what was logged of each, and weights and statistics."""
    folders = sorted(log.parent.name for log in one.glob("*/metrics.jsonl"))
    assert len(folders) >= 6
    for name in folders:
        logs = [
            [json.loads(x) for x in (f / name / "metrics.jsonl").open()] for f in (one, several)
        ]
        assert len(logs[0]) == len(logs[1]) > 0
        for a, b in zip(*logs, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=loss), (name, a, b)
            for key in a.keys() & {"contrastive_top1", "top1", "agreement"}:
                assert b[key] == pytest.approx(a[key], abs=metric), (name, a, b)
        a, b = (load_file(f / name / "model.safetensors") for f in (one, several))
        for key, tensor in a.items():
            assert b[key].sub(tensor).abs().max() < weight, (name, key)


def test_same_losses_and_weights(runs):
    """Global batch, gathered negatives, global batch norm, averaged gradient: float32 rounding."""
    same(runs["one"] / "digits", runs["three"] / "digits")


def test_every_line_is_printed_once(runs):
    printed = "".join(file.read_text() for file in runs["three"].glob("printed-*"))
    assert printed.count("fine-tuned teacher") == 1
    assert printed.count("pretrain: 1,437 images") == 1


def test_same_table(runs):
    """Three processes divide the 360 test images and count each once."""
    tables = [
        [json.loads(x) for x in (runs[name] / "digits/results.jsonl").open()]
        for name in ("one", "three")
    ]
    for one, three in zip(*tables, strict=True):
        assert abs(one["top1"] - three["top1"]) <= 2 / 360 + 1e-9
        if "nll" in one:  # a support vector machine gives no probabilities
            assert three["nll"] == pytest.approx(one["nll"], rel=1e-2)


# ---- fewer images than processes ----
THREE_PROCESSES = SimpleNamespace(
    num_processes=3,
    is_main_process=False,
    is_local_main_process=False,
    print=print,
    free_memory=lambda: None,
    device=torch.device("cpu"),
    mixed_precision="no",
)
TOO_FEW = {
    "finetune.batch_size": ["--finetune.batch_size=2"],
    "supervised.batch_size": ["--supervised.batch_size=1"],
    "pretrain.micro_batch": ["--pretrain.micro_batch=2"],
    "distill.labeled_batch_size": [
        "--distill.labeled_weight=1e-3",
        "--distill.labeled_batch_size=2",
    ],
}


def stages_that_tell(monkeypatch) -> list[str]:
    """Which methods the pipeline would train."""
    trained: list[str] = []
    made = {name: lambda *_, name=name: trained.append(name) for name in METHODS}
    monkeypatch.setattr(pipeline, "stages", lambda: made)
    return trained


def config_of(output: Path, *options: str) -> Config:
    return load_config([*TINY, f"--output={output}", *options], "", "")[0]


def run_on_three(config: Config) -> None:
    line = CommandLine(config, frozenset(), (), "recipe")
    pipeline.run(config, THREE_PROCESSES, line, time.time())


def finish(folder: Path) -> None:
    folder.mkdir(parents=True)
    network = network_meta(SMALL, Data(image_size=8))
    meta = {**network, "kind": "encoder", "weights_sha256": "0"}
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("option", TOO_FEW)
def test_too_few_images_are_refused_before_anything_trains(option, tmp_path, monkeypatch):
    trained = stages_that_tell(monkeypatch)
    config = config_of(tmp_path, *TOO_FEW[option])
    with pytest.raises(UserError, match=f"^{option}=. leaves some of the 3 processes") as error:
        run_on_three(config)
    assert "\n" not in str(error.value)
    assert not trained
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", TOO_FEW)
def test_what_is_done_is_not_refused(option, tmp_path, monkeypatch):
    trained = stages_that_tell(monkeypatch)
    config = config_of(tmp_path, *TOO_FEW[option])
    section = option.partition(".")[0]
    of_section = [m.name for m in METHODS.values() if m.section == section]
    for method in filter(config.asks_for, of_section):
        finish(config.folder_of(method))
    run_on_three(config)
    assert trained == [name for name in METHODS if config.asks_for(name)]
    forced = config_of(tmp_path, *TOO_FEW[option], f"--force={of_section[-1]}")
    with pytest.raises(UserError, match=f"^{option}=. leaves some"):
        run_on_three(forced)


def test_tables_are_checked_before_anything_trains(tmp_path, monkeypatch):
    """A cell of the last row is enough; what is done is not refused."""
    trained = stages_that_tell(monkeypatch)
    rows = {
        "usual": {"method": "finetune"},
        "small": {"method": "finetune", "finetune.batch_size": 2},
    }
    table = write(tmp_path, rows=rows, seeds=2)
    output = tmp_path / "out"
    config = config_of(output, f"--table={table}")
    says = r"^row small, column 1%: finetune.batch_size=2 leaves some of the 3 processes"
    with pytest.raises(UserError, match=says):
        run_on_three(config)
    assert not trained
    assert not output.exists()
    jobs = in_order(expand(load_table(table), config))
    for job in jobs:
        if job.config.finetune.batch_size == 2:
            finish(job.path)
    run_on_three(config)
    assert len(trained) == len(jobs) == 5


# ---- all kinds of runs ----
# In bf16 a step's rounding depends on the rows of a product, whatever the number of processes; at
# high rates, or divided by a small variance, it soon shows.
GENTLE = [
    "--precision=bf16",
    "--finetune.linear_init=zero",
    *(f"--{s}.optimizer=sgd" for s in ("pretrain", "finetune", "distill")),
    *(f"--{s}.learning_rate=0.01" for s in ("pretrain", "finetune", "distill", "supervised")),
]
VARIANTS = {
    "sgd": [f"--{s}.optimizer=sgd" for s in ("pretrain", "finetune", "distill")],
    "parts": ["--pretrain.micro_batch=8", "--checkpoint_activations=true"],
    "memory": ["--pretrain.memory=64", "--pretrain.micro_batch=16", "--finetune.optimizer=adamw"],
    "moco": ["--pretrain.memory=64", "--pretrain.negatives=memory", "--linear.batch_size=7"],
    "logistic": ["--pretrain.loss=nt_logistic", "--finetune.batch_norm=frozen"],
    "triplet": ["--pretrain.loss=margin_triplet", "--pretrain.semi_hard=true"],
    "labeled": [
        "--distill.labeled_weight=0.3",
        "--distill.labeled_batch_size=5",
        "--distill.teacher_view=clean",
    ],
    "again": ["--distill.self_first=true", "--distill.images=labeled"],
    "adamw": [f"--{s}.optimizer=adamw" for s in ("pretrain", "finetune", "distill")],
    "few": [*(f"--{s}.batch_size=5" for s in LABELED), "--pretrain.batch_size=64"],
    "bf16": [*GENTLE, "--pretrain.batch_size=64", "--distill.batch_size=63"],
    "bf16 parts": [*GENTLE, "--pretrain.memory=32", "--pretrain.micro_batch=8"],
}


def train(output: str, name: str) -> None:
    where = [f"--output={output}", f"--run={name.replace(' ', '-')}"]
    arguments = [*TINY, *UNEVEN, *where, "--classical.enabled=false"]
    config, _ = load_config([*arguments, *VARIANTS[name]], "", "")
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision=config.precision)
    line = CommandLine(config, frozenset(), (), "recipe")
    pipeline.run(config, accelerator, line, time.time())


def work(rank: int, processes: int, folder: str) -> None:
    join(rank, processes, folder)
    for name in VARIANTS:
        train(folder, name)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("of_one")
    for name in VARIANTS:
        train(str(folder), name)
    AcceleratorState._reset_state()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_all_kinds_of_runs(processes, of_one, tmp_path):
    fork(work, (processes, str(tmp_path)), processes)
    for name in VARIANTS:
        rounding = {"loss": 1e-2, "metric": 0.2, "weight": 0.1} if "bf16" in name else {}
        same(of_one / name.replace(" ", "-"), tmp_path / name.replace(" ", "-"), **rounding)
