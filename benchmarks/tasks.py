"""What the step of each pretext task costs beside its bare network: images per CPU second.

    python -m benchmarks.tasks                     # all, some CPU minutes
    python -m benchmarks.tasks --only rotation jigsaw --turns 9
    python -m benchmarks.tasks --table             # only write the document again

A step is all that the task does with a batch: inputs, targets, network, loss, backward, optimizer,
and what it remembers. The bare network sees the same inputs, and its loss is the mean of its
outputs' squares. An adversary is a second network, whose passes are the method's: the bare networks
are both, with the same passes and updates. One row leaves the adversary out of them. Views and
draws are made before, as for every stage (``benchmarks.compare``). Both take turns, and the ratio
is taken within each turn. 90% is wanted.

Images are made on the spot, of 32 pixels; the network is ResNet-18 with the small-image stem. The
tasks' options are their defaults, but where ROWS says otherwise. Each result is saved at once in
benchmarks/results, in a file for each kind of processor, and stands in docs/performance.md.
"""

import argparse
import datetime
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks.compare import (
    DOCUMENT,
    KINDS,
    RESULTS,
    commit,
    hardware,
    kind,
    replace_between,
)
from benchmarks.photos import make_small
from shared.config.command import hardware_precision
from shared.config.command_line import load_config
from shared.config.pretext import TASKS
from shared.config.schema import Config
from shared.data.batches import Batches
from shared.data.sources import open_data
from shared.networks.build import build_contrastive, network_meta
from shared.pretext.adversary import Adversary
from shared.pretext.build import make_task
from shared.pretext.network import as_tuple, freeze_unseen
from shared.runtime.distributed import own_rows
from shared.training.device import to_device
from shared.training.optim import build_optimizer, set_learning_rate

WANTED = 0.9
LOSSES = "--pretrain.loss"
FIRST_ALONE = "inpainting, adversary (bare: without)"
ROWS: dict[str, list[str]] = {
    **{name: [f"--pretrain.task={name}"] for name in TASKS if name != "transitive"},
    "contrastive, pair": [f"{LOSSES}=pair"],
    "contrastive, prototypes": [f"{LOSSES}=prototypes"],
    "contrastive, infomax": [f"{LOSSES}=infomax"],
    "contrastive, attention": ["--pretrain.contextualisation=attention"],
    "contrastive, code book": ["--pretrain.quantisation=gumbel"],
    "inpainting, adversary": ["--pretrain.task=inpainting", "--inpainting.adversarial=0.001"],
    FIRST_ALONE: ["--pretrain.task=inpainting", "--inpainting.adversarial=0.001"],
    "instances, NCE": ["--pretrain.task=instances", "--instances.negatives=4096"],
}


def read(options: Sequence[str], folder: Path, batch: int) -> Config:
    """CIFAR-10's recipe with a task's options."""
    usual = [
        "--config=configs/cifar10.yaml",
        f"--data.train={folder}",
        "--data.test=null",
        "--threads=1",
        "--model.encoder=simclr_resnet18_1x_sk0",
        f"--pretrain.batch_size={batch}",
        "--run=tasks",
    ]
    return load_config([*usual, *options], "", "")[0]


def contenders(
    config: Config, accelerator: Accelerator, first_alone: bool = False
) -> tuple[Callable[[], None], ...]:
    """The whole step on one batch, and that of the bare network on the same inputs.

    Args:
        config: of the task.
        accelerator: of this process.
        first_alone: the bare network is without an adversary, where the task has one.
    """
    cfg = config.pretrain
    images = open_data(config.data, config.label_set, False).train
    torch.manual_seed(0)
    task = make_task(config, accelerator)
    task.require(images)
    model = task.network(
        build_contrastive(network_meta(config.model, config.data, config.head_layers))
    )
    freeze_unseen(model, config.data.image_size)
    to_device(model, config, accelerator)
    task.start(model, images)
    task.begin(images)
    made = build_optimizer(cfg.optimizer, model, cfg.weight_decay, cfg.momentum)
    net, optimizer = accelerator.prepare(model, made)
    set_learning_rate(optimizer, 1e-4)
    net.train()
    batches = Batches(
        images,
        np.arange(len(images)),
        config.data,
        task.augmentation,
        accelerator,
        seed=0,
        stage="pretrain",
        batch_size=cfg.batch_size,
        views=task.views,
        draw=task.draw,
        companions=task.companions,
    )
    (batch,) = batches.steps(0, 1)
    assert len(batch.ids) == own_rows(cfg.batch_size).stop
    inputs = task.inputs(batch)

    against = task.memory if isinstance(task.memory, Adversary) and not first_alone else None

    def update(loss: Tensor) -> None:
        loss.item()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

    def whole() -> None:
        outputs = as_tuple(net(*task.inputs(batch)))
        answer = task.loss(outputs, task.targets(batch))
        update(answer.loss)
        task.update(model, answer)

    def bare() -> None:
        outputs = [output.float() for output in as_tuple(net(*inputs))]
        judged = [] if against is None else [against.believes(outputs[0])]
        update(torch.stack([each.square().mean() for each in (*outputs, *judged)]).sum())
        if against is not None:
            against.learn(outputs[0].detach(), inputs[0], 1.0)

    task.at(0)
    return whole, bare


def measure(name: str, folder: Path, batch: int, turns: int) -> dict[str, float]:
    """Images per CPU second of both, and how they compare."""
    precision = hardware_precision("cpu")
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    config = read(ROWS[name], folder, batch)
    both = contenders(config, accelerator, first_alone=name == FIRST_ALONE)
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns + 1):
        for number, work in enumerate(both):
            began = time.process_time()
            work()
            if turn:  # the first one does not count
                seconds[number].append(time.process_time() - began)
    ratios = [bare / whole for whole, bare in zip(*seconds, strict=True)]
    whole, bare = (batch / statistics.median(each) for each in seconds)
    return {"whole": whole, "bare": bare, "ratio": statistics.median(ratios)}


def table(results: Mapping[str, Mapping[str, Mapping]]) -> str:
    """As Markdown, with three columns for each kind of processor; below it how each was measured.

    Args:
        results: by the kind of processor, then by the task.
    """
    each = [f"{KINDS[on]}; whole step | bare network | ratio" for on in results]
    lines = [f"| task | {' | '.join(each)} |", "|---|" + "--:|--:|--:|" * len(results)]
    for name in ROWS:
        rows = [tasks.get(name) for tasks in results.values()]
        if any(rows):
            cells = sum((numbers(row) if row else ["", "", ""] for row in rows), [name])
            lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for on, tasks in results.items():
        ways: dict[str, list[str]] = {}
        for name in filter(tasks.get, ROWS):
            ways.setdefault(tasks[name]["measured"], []).append(name)
        for way, names in ways.items():
            lines.append(f"- {KINDS[on]}, {'; '.join(names) if len(ways) > 1 else 'all'}: {way}")
    return "\n".join(lines)


def numbers(row: Mapping) -> list[str]:
    """The cells of one task on one kind of processor."""
    short = "" if row["ratio"] >= WANTED else ", below 90%"
    return [f"{row['whole']:.0f}", f"{row['bare']:.0f}", f"{100 * row['ratio']:.0f}%{short}"]


def saved() -> dict[str, dict]:
    """The results of each kind of processor that has some."""
    files = {on: of_kind(on) for on in KINDS}
    return {on: json.loads(file.read_text()) for on, file in files.items() if file.exists()}


def of_kind(on: str) -> Path:
    """The file of results of a kind of processor."""
    return RESULTS / f"tasks-{on}.json"


def main() -> None:
    """Measure, save and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=ROWS, default=[*ROWS], metavar="TASK")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3, help="that count")
    parser.add_argument("--table", action="store_true", help="only write the document again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    on = kind()
    way = (
        f"{hardware()}; batch {options.batch}, {options.turns} turns; torch {torch.__version__},"
        f" commit {commit()}, {datetime.date.today()}"
    )
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "images"
        make_small(folder, 512)
        for name in [] if options.table else options.only:
            row = measure(name, folder, options.batch, options.turns)
            print(name, row, flush=True)
            rows = saved().get(on, {}) | {name: {**row, "measured": way}}
            of_kind(on).write_text(json.dumps(rows, indent=1) + "\n")
    results = table(saved())
    print(results)
    DOCUMENT.write_text(replace_between(DOCUMENT.read_text(), "tasks", results))


if __name__ == "__main__":
    main()
