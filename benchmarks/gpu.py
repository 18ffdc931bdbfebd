"""The figures of one GPU, in one call of at most ten minutes.

    python -m benchmarks.gpu --output FOLDER         # measures and saves FOLDER/gpu.json
    python -m benchmarks.gpu --table docs/gpu.json   # writes the table of docs/performance.md

The stages themselves run for some updates and their own logs are read: images per second, and the
share of the time spent waiting for data. Beside that stand the FLOPs of a step, so what part of the
card's peak is reached; the parts of a step, each alone, between CUDA events; lightly on the same
card, where it can be imported; NT-Xent tiled and plain; peak memory against batch size.
Each section is saved when it is done; those for which no time is left are left out, and said so.
"""

import argparse
import gc
import importlib.util
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.compare import DOCUMENT, circumstances, number_, replace_between
from benchmarks.ours import accelerator, flags, read
from benchmarks.photos import make_photos, make_small
from shared.config.schema import Config
from shared.data import augment, image_ops
from shared.networks.build import build_contrastive, network_meta
from shared.runtime.randomness import generator
from shared.training import losses
from shared.training.device import prepare_to_train
from shared.training.optim import build_optimizer, set_learning_rate
from stages import distill, finetune, pretrain

# Dense bf16 FLOP/s of NVIDIA's data sheets, by a part of the card's name; the first that fits.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "A10": 125e12,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# ---------------------------------------------------------------------------------- tools
def timed(work: Callable[[], object], repeats: int = 10) -> list[float]:
    """Milliseconds of each call but the first two; between CUDA events where there is a GPU."""
    times = []
    for _ in range(repeats + 2):
        if DEVICE == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        else:
            began = time.perf_counter()
            work()
            times.append(1000 * (time.perf_counter() - began))
    return times[2:]


def peak_gb(work: Callable[[], object]) -> float | None:
    """Most GPU memory in use during a call, in GB (10^9 bytes); None without a GPU."""
    if DEVICE != "cuda":
        work()
        return None
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() / 1e9


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def log_of(config: Config, stage: str, skip: int = 1) -> dict[str, Any]:
    """The speed that a stage logged, without its first lines, from when it warmed up."""
    folder = next(path for path in config.folder.glob(f"{stage}*") if path.is_dir())
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = lines[skip:]
    return {
        "images_per_second": spread([line["images_per_second"] for line in lines]),
        "waiting_for_data": spread([line["waiting_for_data"] for line in lines]),
    }


# ---------------------------------------------------------------------------------- sections
class Sizes:
    """How much work: what a card of 80 GB gets, or toys for the tests."""

    def __init__(self, quick: bool):
        self.images = 16 if quick else 2048
        self.every32, self.every224 = (1, 1) if quick else (50, 10)  # steps to a line of the log
        self.batch32, self.batch224 = (8, 8) if quick else (512, 256)
        self.side = 40 if quick else 224
        self.encoders = (
            ("simclr_resnet8_1x_sk0", "simclr_resnet8_1x_sk0")
            if quick
            else ("simclr_resnet18_1x_sk0", "simclr_resnet50_1x_sk0")
        )
        self.embeddings = (64, 256) if quick else (1024, 4096, 8192, 16384, 32768)
        self.batches = (2, 4) if quick else (32, 64, 128, 256, 512)
        self.repeats = 2 if quick else 10


def recipe(name: str, work: Path, sizes: Sizes, images: str) -> list[str]:
    """CIFAR-10's recipe at 32 pixels, or ImageNet's with ResNet-50 at 224, cut short."""
    small = name == "32"
    size = sizes.batch32 if small else sizes.batch224
    options = [
        "--run",
        f"{name}-{images}",
        "--labels",
        "100pct",
        "--distill.student",
        sizes.encoders[0],
        "--distill.self_first",
        "false",
        "--data.workers",
        str(os.cpu_count()),
    ]
    for section in ("pretrain", "finetune", "distill"):
        every = sizes.every32 if small else sizes.every224
        options += [
            f"--{section}.steps",
            str(4 * every),
            f"--{section}.warmup_epochs",
            "0",
            f"--{section}.log_every_steps",
            str(every),
            f"--{section}.batch_size",
            str(size),
        ]
    if not small:
        options += ["--data.image_size", str(sizes.side)]
    return flags(
        "cifar10" if small else "imagenet",
        work,
        images,
        *options,
        "--model.encoder",
        sizes.encoders[0 if small else 1],
    )


def flops_per_image(config: Config) -> float:
    """FLOPs of forward and backward of both views of an image, counted on a batch of two."""
    model = build_contrastive(network_meta(config.model, config.data)).to(DEVICE)
    size = config.data.image_size
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(4, 3, size, size, device=DEVICE)).sum().backward()
    return counter.get_total_flops() / 2


def stages(name: str, work: Path, sizes: Sizes) -> dict[str, Any]:
    """The three stages, on images that are in memory."""
    argv = recipe(name, work, sizes, "small" if name == "32" else "medium")
    config, logs = read(argv), {}
    for stage in (pretrain, finetune, distill):
        stage.main(argv)
        short = stage.__name__.rpartition(".")[2]
        logs[short] = log_of(config, short)
    logs["pretrain"]["flops_per_image"] = flops_per_image(config)
    return logs


def jpegs(work: Path, sizes: Sizes) -> dict[str, Any]:
    """Pretraining with ResNet-50 on JPEG files, decoded by as many workers as there are cores."""
    argv = recipe("224", work, sizes, "photos")
    pretrain.main(argv)
    return {"pretrain": log_of(read(argv), "pretrain"), "workers": os.cpu_count()}


def parts(name: str, work: Path, sizes: Sizes) -> dict[str, Any]:
    """Milliseconds of the parts of a pretraining step, each alone."""
    config, here = read(recipe(name, work, sizes, "small")), accelerator()
    cfg, options, size = config.pretrain, config.augment, config.data.image_size
    B = cfg.batch_size
    model = build_contrastive(network_meta(config.model, config.data))
    optimizer = build_optimizer(cfg.optimizer, model, cfg.weight_decay, cfg.momentum)
    prepare_to_train(model, config, here)
    net, optimizer = here.prepare(model, optimizer)
    net.train()
    side = size if name == "32" else size * 8 // 7
    pixels = torch.randint(0, 256, (B, 3, side, side), dtype=torch.uint8, device=DEVICE)
    images = torch.rand(2 * B, 3, size, size, device=DEVICE)
    z = net(images).detach()
    gradient = torch.randn_like(z)

    def augmentation() -> None:
        for view in range(2):
            rng = generator(0, "parts", view)
            boxes = augment.draw_boxes(options, rng, np.full(B, side), np.full(B, side))
            crops = image_ops.crop_resize(pixels, boxes, size, config.data.antialias)
            augment.apply(options, crops, augment.draw(options, rng, B))

    def network() -> None:
        optimizer.zero_grad()
        net(images).backward(gradient)

    def loss() -> None:
        z1, z2 = z.clone().requires_grad_().chunk(2)
        losses.nt_xent(losses.Pairs.of_views(z1, z2), cfg.temperature).backward()

    def update() -> None:
        set_learning_rate(optimizer, 0.0)
        optimizer.step()

    network()  # so that the update finds gradients
    work_of = {"augmentation": augmentation, "network": network, "loss": loss, "optimizer": update}
    return {part: spread(timed(work_of[part], sizes.repeats)) for part in work_of}


def lightly(work: Path, sizes: Sizes) -> dict[str, Any]:
    """The step of lightly in bf16 on this card: as it is, and without its loading."""
    from benchmarks import peers

    speeds = {}
    for name, net, size, batch in (
        ("32", "resnet18", 32, sizes.batch32),
        ("224", "resnet50", sizes.side, sizes.batch224),
    ):
        views = peers.transform("lightly", size)
        images = peers.small_images(work, views) if name == "32" else peers.photos(work, views)
        workers = os.cpu_count() or 1
        for kind, data in (
            ("whole step", peers.batches(images, batch, workers)),
            ("model alone", peers.fixed(batch, size)),
        ):
            steps = peers.lightly_steps(data, net, size, True, DEVICE)
            speeds[f"{name} {kind}"] = spread(rates(steps, batch, sizes.repeats))
    return speeds


def rates(steps: Iterator[torch.Tensor], batch: int, repeats: int) -> list[float]:
    """Images per second of each update; the first three do not count."""
    ends = []
    for loss in itertools.islice(steps, repeats + 3):
        loss.item()  # waits for the GPU
        ends.append(time.perf_counter())
    return [batch / (b - a) for a, b in itertools.pairwise(ends[2:])]


def loss(sizes: Sizes) -> list[dict[str, Any]]:
    """NT-Xent of several sizes, plain and tiled: milliseconds and peak memory."""
    rows = []
    for embeddings in sizes.embeddings:
        z1, z2 = (torch.randn(embeddings // 2, 128, device=DEVICE) for _ in range(2))

        def plain(z1: torch.Tensor = z1, z2: torch.Tensor = z2) -> None:
            limit, losses.PLAIN_ELEMENTS = losses.PLAIN_ELEMENTS, 2**62
            try:
                pairs = losses.Pairs.of_views(z1.requires_grad_(), z2.requires_grad_())
                losses.nt_xent(pairs, 0.1).backward()
            finally:
                losses.PLAIN_ELEMENTS = limit

        def tiled(z1: torch.Tensor = z1, z2: torch.Tensor = z2) -> None:
            pairs = losses.Pairs.of_views(z1.requires_grad_(), z2.requires_grad_())
            losses.nt_xent_tiled(pairs, 0.1).backward()

        row: dict[str, Any] = {"embeddings": embeddings}
        for work in (plain, tiled):
            row[work.__name__] = {"ms": spread(timed(work, sizes.repeats)), "gb": peak_gb(work)}
        rows.append(row)
    return rows


def memory(work: Path, sizes: Sizes) -> list[dict[str, Any]]:
    """Peak memory and speed of ResNet-50's update, loading left out, until it does not fit."""
    config, here = read(recipe("224", work, sizes, "small")), accelerator()
    cfg, size, rows = config.pretrain, config.data.image_size, []
    model = build_contrastive(network_meta(config.model, config.data))
    optimizer = build_optimizer(cfg.optimizer, model, cfg.weight_decay, cfg.momentum)
    prepare_to_train(model, config, here)
    net, optimizer = here.prepare(model, optimizer)
    for batch in sizes.batches:
        images = torch.rand(2 * batch, 3, size, size, device=DEVICE)

        def update(images: torch.Tensor = images) -> None:
            z1, z2 = net(images).chunk(2)
            here.backward(losses.nt_xent(losses.Pairs.of_views(z1, z2), cfg.temperature))
            optimizer.step()
            optimizer.zero_grad()

        try:
            gb = peak_gb(update)
            ms = statistics.median(timed(update, 3))
        except torch.OutOfMemoryError:
            optimizer.zero_grad()
            rows.append({"batch": batch, "gb": None, "images_per_second": None})
            break
        rows.append({"batch": batch, "gb": gb, "images_per_second": 1000 * batch / ms})
    return rows


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All sections, saved one by one."""
    began, sizes = time.perf_counter(), Sizes(options.quick)
    card = torch.cuda.get_device_name() if DEVICE == "cuda" else "none: toy run on the CPU"
    peak = next((flops for part, flops in PEAKS.items() if part in card), None)
    if options.peak_tflops:
        peak = 1e12 * options.peak_tflops
    results: dict[str, Any] = {
        **circumstances(peers=False),
        "card": card,
        "peak_flops": peak,
        "batch": {"32": sizes.batch32, "224": sizes.batch224},
    }
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="few-labels-gpu-") as folder:
        work = Path(folder)
        make_small(work / "small", sizes.images)
        make_small(work / "medium", sizes.images, sizes.side * 8 // 7)
        make_photos(work / "photos", sizes.images // 4)
        sections: dict[str, Callable[[], Any]] = {
            "stages 32": lambda: stages("32", work, sizes),
            "parts 32": lambda: parts("32", work, sizes),
            "stages 224": lambda: stages("224", work, sizes),
            "parts 224": lambda: parts("224", work, sizes),
            "jpegs 224": lambda: jpegs(work, sizes),
            "loss": lambda: loss(sizes),
            "lightly": lambda: lightly(work, sizes),
            "memory": lambda: memory(work, sizes),
        }
        if importlib.util.find_spec("lightly") is None:
            results["lightly"] = "cannot be imported here"
            del sections["lightly"]
        for name, section in sections.items():
            if time.perf_counter() - began > options.seconds:
                results[name] = "no time was left"
            else:
                try:
                    results[name] = section()
                except Exception as error:  # the other sections are worth having
                    results[name] = f"failed: {type(error).__name__}: {error}"
            print(f"{time.perf_counter() - began:5.0f} s  {name}: {results[name]}", flush=True)
            (options.output / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    return results


# ---------------------------------------------------------------------------------- tables
def table(results: dict[str, Any]) -> str:
    """Markdown of what was measured."""
    rows = [
        f"Card: {results['card']}; {results['hardware']}; torch {results['versions']['torch']},"
        f" commit {results['commit']}, {results['date'].split()[0]}. Median (min to max).",
        "",
        "| work | images/s | waiting for data | FLOP utilisation | ours is faster by |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, title in (
        ("32", "ResNet-18, 32 px, in memory"),
        ("224", "ResNet-50, 224 px, in memory"),
    ):
        for stage, log in entries(results, f"stages {name}"):
            rows.append(f"| {title}: {stage} | {speed(log)} | {used(results, log)} | |")
    for stage, log in entries(results, "jpegs 224"):
        if stage == "pretrain":
            title = f"ResNet-50, 224 px, JPEGs, {results['jpegs 224']['workers']} workers"
            rows.append(f"| {title}: pretrain | {speed(log)} | | |")
    for name, rate in entries(results, "lightly"):
        ours = counterpart(results, name)
        faster = f"{ours / rate['median']:.2f} ×" if ours else ""
        rows.append(f"| lightly, {name} | {middle(rate)} | | | {faster} |")
    rows += [
        "",
        "| part of a pretraining step alone, ms | augmentation | network | loss | optimizer |",
        "|---|--:|--:|--:|--:|",
    ]
    for name in ("32", "224"):
        times = dict(entries(results, f"parts {name}"))
        total = sum(part["median"] for part in times.values())
        cells = [f"{number_(p['median'])} ({p['median'] / total:.0%})" for p in times.values()]
        if cells:
            rows.append(f"| {name} px | " + " | ".join(cells) + " |")
    rows += [
        "",
        "| NT-Xent, embeddings | plain, ms | GB | tiled, ms | GB |",
        "|--:|--:|--:|--:|--:|",
    ]
    for row in results["loss"] if isinstance(results.get("loss"), list) else ():
        cells = [
            f"{middle(row[kind]['ms'])} | {gigabytes(row[kind]['gb'])}"
            for kind in ("plain", "tiled")
        ]
        rows.append(f"| {row['embeddings']:,} | " + " | ".join(cells) + " |")
    rows += ["", "| ResNet-50, 224 px, images per batch | peak GB | images/s |", "|--:|--:|--:|"]
    for row in results["memory"] if isinstance(results.get("memory"), list) else ():
        rate = row["images_per_second"]
        rows.append(
            f"| {row['batch']} | {gigabytes(row['gb'])} |"
            f" {'does not fit' if rate is None else number_(rate)} |"
        )
    rows.append("")
    for name, text in results.items():
        if isinstance(text, str) and text.startswith(("failed", "no time", "cannot")):
            rows.append(f"{name}: {text}.")
    return "\n".join(rows)


def counterpart(results: dict[str, Any], name: str) -> float | None:
    """Our images per second on the work of one of lightly's lines."""
    size, _, kind = name.partition(" ")
    if kind == "whole step":
        section = "stages 32" if size == "32" else "jpegs 224"
        log = dict(entries(results, section)).get("pretrain")
        return log and log["images_per_second"]["median"]
    times = dict(entries(results, f"parts {size}"))
    alone = sum(times[part]["median"] for part in ("network", "loss", "optimizer") if times)
    return 1000 * results["batch"][size] / alone if alone else None


def entries(results: dict[str, Any], section: str) -> list[tuple[str, Any]]:
    """The results of a section; none where it was left out."""
    measured = results.get(section)
    return list(measured.items()) if isinstance(measured, dict) else []


def middle(values: dict[str, float]) -> str:
    """Median and range."""
    return f"{number_(values['median'])} ({number_(values['min'])} to {number_(values['max'])})"


def speed(log: dict[str, Any]) -> str:
    """Images per second and waiting."""
    return f"{middle(log['images_per_second'])} | {log['waiting_for_data']['median']:.1%}"


def used(results: dict[str, Any], log: dict[str, Any]) -> str:
    """Share of the card's peak that forward and backward of the network make up."""
    if "flops_per_image" not in log or not results["peak_flops"]:
        return ""
    flops = log["flops_per_image"] * log["images_per_second"]["median"]
    return f"{flops / results['peak_flops']:.1%}"


def gigabytes(value: float | None) -> str:
    """Two digits, or nothing where it was not measured."""
    return "" if value is None else f"{value:.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print, or write the table."""
    parser = argparse.ArgumentParser(
        "benchmarks.gpu", None, __doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder of gpu.json")
    parser.add_argument("--seconds", type=float, default=480, help="no section starts after them")
    parser.add_argument("--peak_tflops", type=float, help="of the card in bf16, where unknown")
    parser.add_argument("--quick", action="store_true", help="toy sizes, also without a GPU")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write its table; no measuring")
    options = parser.parse_args(argv)
    if options.table:
        content = table(json.loads(options.table.read_text()))
        DOCUMENT.write_text(replace_between(DOCUMENT.read_text(), "gpu", content))
        return 0
    if DEVICE == "cpu" and not options.quick:
        print("error: no GPU is visible; --quick runs toy sizes on the CPU", file=sys.stderr)
        return 2
    print(f"\n{table(measure(options))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
