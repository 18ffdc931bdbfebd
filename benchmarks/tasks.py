"""What the step of each pretext task costs beside its bare network: images per CPU second.

    python -m benchmarks.tasks                     # all, some CPU minutes; saved and printed
    python -m benchmarks.tasks --only rotation jigsaw --batch 32

A step is all that the task does with a batch: inputs, targets, network, loss, backward, optimizer,
and what it remembers. The bare network sees the same inputs, and its loss is the mean of its
outputs' squares. Views and draws are made before, as for every stage (``benchmarks.compare``).
Both take turns, and the ratio is taken within each turn. 90% is wanted.

Images are made on the spot, of 32 pixels; the network is ResNet-18 with the small-image stem. The
tasks' options are their defaults, but where NEEDS says otherwise.
"""

import argparse
import datetime
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from accelerate import Accelerator

from benchmarks.photos import make_small
from shared.config.command_line import load_config
from shared.config.pretext import TASKS
from shared.config.schema import Config
from shared.data.batches import Batches
from shared.data.sources import open_data
from shared.networks.build import build_contrastive, network_meta
from shared.pretext.build import make_task
from shared.pretext.network import as_tuple, freeze_unseen
from shared.runtime.distributed import own_rows
from shared.training.device import to_device
from shared.training.optim import build_optimizer, set_learning_rate

RESULTS = Path(__file__).parent / "results" / "tasks.json"
WANTED = 0.9
LOSSES = "--pretrain.loss"
ROWS: dict[str, list[str]] = {
    **{name: [f"--pretrain.task={name}"] for name in TASKS if name != "transitive"},
    "contrastive, pair": [f"{LOSSES}=pair"],
    "contrastive, prototypes": [f"{LOSSES}=prototypes"],
    "contrastive, infomax": [f"{LOSSES}=infomax"],
    "contrastive, attention": ["--pretrain.contextualisation=attention"],
    "contrastive, code book": ["--pretrain.quantisation=gumbel"],
    "inpainting, adversary": ["--pretrain.task=inpainting", "--inpainting.adversarial=0.001"],
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


def contenders(config: Config, accelerator: Accelerator) -> tuple[Callable[[], None], ...]:
    """The whole step on one batch, and that of the bare network on the same inputs."""
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

    def update(loss: torch.Tensor) -> None:
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
        outputs = as_tuple(net(*inputs))
        update(sum(output.float().square().mean() for output in outputs))  # pyright: ignore[reportArgumentType]

    task.at(0)
    return whole, bare


def measure(options: Sequence[str], folder: Path, batch: int, turns: int) -> dict[str, float]:
    """Images per CPU second of both, and how they compare."""
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    both = contenders(read(options, folder, batch), accelerator)
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


def table(results: dict) -> str:
    """As Markdown."""
    lines = ["| task | step, images / CPU s | bare network | ratio |", "|---|---|---|---|"]
    for name, row in results["rows"].items():
        short = "" if row["ratio"] >= WANTED else " (below 90%)"
        rates = f"{row['whole']:.0f} | {row['bare']:.0f}"
        lines.append(f"| {name} | {rates} | {100 * row['ratio']:.0f}%{short} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, save and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=ROWS, default=[*ROWS], metavar="TASK")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "images"
        make_small(folder, 512)
        for name in arguments.only:
            results["rows"][name] = measure(ROWS[name], folder, arguments.batch, arguments.turns)
            print(name, results["rows"][name], flush=True)
    results |= {
        "machine": f"{platform.machine()}, {psutil.cpu_count(False)} cores",
        "torch": torch.__version__,
        "date": str(datetime.date.today()),
        "batch": arguments.batch,
        "turns": arguments.turns,
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
