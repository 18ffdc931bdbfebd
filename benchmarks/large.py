"""Peak memory and speed of what does not fit: batches in parts, activations checkpointed.

    python -m benchmarks.large                     # measures, about 8 CPU minutes on a CPU
    python -m benchmarks.large --only networks     # one table; the others stay as they are
    python -m benchmarks.large --only folders --files 100000 --files-in FOLDER
    python -m benchmarks.large --table             # the tables of docs/large.md again

Folders hold names of empty files, 1,000 in each class; FOLDER keeps them, else they go at the end.
Of 10^7 there are only the folders and a listing, unless FOLDER/10000000 has the files: to make them
takes 20 minutes.

Every row is a process of its own, whose peak counts from the end of the imports: resident memory
on a CPU, what torch allocated on a GPU. Speed is images per CPU second there (the cores may be
shared), per second on a GPU.
"""

import argparse
import ctypes
import gc
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from PIL import Image
from pyarrow import parquet
from tqdm import tqdm

from benchmarks.compare import ROOT, circumstances, replace_between
from benchmarks.ours import accelerator, read
from shared.config.labelset import LabelSet
from shared.config.sections import Data
from shared.data import listings
from shared.data.folders import Listed, walk
from shared.data.labels import draw_labels
from shared.data.listings import listing
from shared.data.sources import look_at, open_data
from shared.networks.build import build_contrastive, network_meta
from shared.runtime.distributed import gather_all, world_size
from shared.runtime.launcher import launcher_number
from shared.training import stage
from shared.training.device import prepare_to_train
from shared.training.losses import Pairs, nt_xent
from stages import pretrain

RESULTS = ROOT / "benchmarks" / "results" / "large.json"
DOCUMENT = ROOT / "docs" / "large.md"
CUDA = torch.cuda.is_available()
BUDGET = 12  # GiB, for the batch that fits

# The stage itself on the digits, enlarged to 16 pixels: batch size, micro-batch.
BATCHES = [
    (256, None),
    (1024, None),
    (4096, None),
    (256, 128),
    (1024, 128),
    (4096, 128),
    (1024, 32),
    (1024, 64),
    (1024, 256),
    (1024, 512),
]
# Forward and backward pass at 224 pixels: encoder, images of the two batches that are measured.
NETWORKS = [
    ("simclr_resnet50_1x_sk0", (4, 12)),
    ("simclr_resnet101_2x_sk1", (4, 8)),
    ("simclr_resnet152_3x_sk1", (2, 4)),
]
FILES = [10**5, 10**6, 10**7]
PRETENDED = 10**6  # of more there are only the folders and the listing
IMAGES, SIDE = 60_000, 32  # of noise, for the processes that hold them together
PROCESSES = [1, 2]


def resident() -> float:
    """Highest resident memory of this process so far, bytes; `resource` counts its parent's too."""
    text = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s*([0-9]+) kB", text)[0]) * 1024.0


def now() -> float:
    """Seconds: of the CPU without a GPU."""
    if not CUDA:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measured(imported: float, images: int, seconds: float) -> dict[str, float]:
    """A row's numbers: GiB and images per second."""
    peak = torch.cuda.max_memory_allocated() if CUDA else resident() - imported
    return {"gib": peak / 2**30, "images_per_second": images / seconds}


def batch_row(batch_size: int, micro_batch: int | None) -> dict[str, float]:
    """Two steps of the stage; the time is that of the first one, from its rate to the second's."""
    imported, began, real = resident(), [], stage.set_learning_rate

    def begin_step(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
        began.append(now())
        real(optimizer, learning_rate)

    stage.set_learning_rate = begin_step
    with tempfile.TemporaryDirectory() as folder:
        code = pretrain.main(
            [
                f"--output={folder}",
                "--data.image_size=16",
                "--model.encoder=simclr_resnet8_1x_sk0",
                "--pretrain.steps=2",
                f"--pretrain.batch_size={batch_size}",
                f"--pretrain.micro_batch={micro_batch or 'null'}",
                "--pretrain.warmup_epochs=0",
            ]
        )
    if code:
        raise SystemExit(code)
    return measured(imported, batch_size, began[1] - began[0])


def network_row(encoder: str, images: int, checkpointed: bool) -> dict[str, float]:
    """Forward pass, loss and backward pass of both views, after those of a small image."""
    imported = resident()
    config = read(
        [
            "--config",
            str(ROOT / "configs" / "imagenet.yaml"),
            "--threads=1",
            f"--checkpoint_activations={str(checkpointed).lower()}",
        ]
    )
    here = accelerator()
    meta = network_meta(config.model, config.data)
    meta["encoder"] = encoder
    net = here.prepare(prepare_to_train(build_contrastive(meta), config, here))
    seconds = 0.0
    for size in (32, config.data.image_size):
        x = torch.rand(2 * images, 3, size, size).to(here.device)
        began = now()
        net.zero_grad()
        z1, z2 = net(x).chunk(2)
        here.backward(nt_xent(Pairs.of_views(z1, z2), 0.1))
        seconds = now() - began
    parameters = sum(p.numel() for p in net.parameters())
    return measured(imported, images, seconds) | {"parameters": parameters}


def in_use(*kinds: str) -> float:
    """Memory of this process, bytes: of these kinds of Linux's ``smaps_rollup``."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free and kept for the next use
    pa.default_memory_pool().release_unused()
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(re.findall(rf"^{k}: *([0-9]+) kB", text, re.M)[0]) * 1024.0 for k in kinds)


def anonymous() -> float:
    """Memory in use of this process alone, bytes: what is mapped from files is not in it."""
    return in_use("Anonymous")


def process_row(file: str) -> dict[str, float]:
    """Images opened by this process and those launched with it: of each the mean.

    Memory that several share counts in each by its part; what is mapped from files is not in it.
    """
    if launcher_number("WORLD_SIZE", 1) > 1:
        dist.init_process_group("gloo")
    labels = LabelSet.parse("1pct")
    open_data(Data(), labels)  # first uses of libraries
    look_at(Data(train=file), labels)
    gather_all([0])
    kinds = ("Pss_Anon", "Pss_Shmem")
    held = in_use(*kinds)
    began, wall = time.process_time(), time.perf_counter()
    splits = open_data(Data(train=file), labels)
    row = {"cpu": time.process_time() - began, "wall": time.perf_counter() - wall}
    assert splits.test is not None
    assert splits.train.fingerprint != splits.test.fingerprint  # all is looked at
    gather_all([0])
    row["held"] = in_use(*kinds) - held
    rows = gather_all([row])
    return {key: sum(row[key] for row in rows) / world_size() for key in row}


def folder_row(root: str, cache_folder: str) -> dict[str, float]:
    """A folder listed, then opened, split and one percent of its labels drawn: CPU seconds."""
    labels = LabelSet.parse("1pct")
    look_at(Data(), labels)  # first uses of libraries
    held, began = anonymous(), time.process_time()
    images = len(listing(Path(root), cache_folder))
    listed = time.process_time()
    splits = look_at(Data(train=root, cache_folder=cache_folder), labels)
    opened = time.process_time()
    draw_labels(splits, labels, 0)
    drawn = time.process_time()
    row = {"images": images, "listed": listed - began, "opened": opened - listed}
    row |= {"drawn": drawn - opened, "held": anonymous() - held, "peak": resident()}
    began = time.process_time()
    assert splits.train.fingerprint
    return row | {"fingerprint": time.process_time() - began}


def child(kind: str, *arguments: object, processes: int = 1) -> dict[str, Any] | str:
    """A row, measured in processes of its own; the last line of its error where it fails."""
    launcher = [f"--nproc-per-node={processes}", "--standalone", "-m"]
    command = [
        *(sys.executable, "-m"),
        *(["torch.distributed.run", *launcher] if processes > 1 else []),
        *("benchmarks.large", "--row", json.dumps([kind, *arguments])),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure_batches() -> list[dict[str, Any]]:
    """Rows of the table of batches."""
    rows = []
    for batch_size, micro_batch in tqdm(BATCHES, desc="batches", disable=None):
        row = child("batch", batch_size, micro_batch)
        rows.append({"batch_size": batch_size, "micro_batch": micro_batch, "row": row})
    return rows


def measure_networks() -> list[dict[str, Any]]:
    """Rows of the table of networks: two batch sizes each, whose difference is an image's share."""
    rows = []
    work = [(e, s, c) for e, sizes in NETWORKS for c in (False, True) for s in [sizes]]
    for encoder, sizes, checkpointed in tqdm(work, desc="networks", disable=None):
        small, large = (child("network", encoder, images, checkpointed) for images in sizes)
        rows.append(
            {
                "encoder": encoder,
                "checkpointed": checkpointed,
                "sizes": sizes,
                "few": small,
                "more": large,
            }
        )
    return rows


def pretend_files(root: Path, number: int, cache_folder: Path) -> None:
    """Class folders without files, and the listing that they would have with 1,000 in each."""
    for label in range(number // 1000):
        (root / f"class{label:05}").mkdir(parents=True, exist_ok=True)
    walked = walk(root)
    names = sorted(folder.name for folder in root.iterdir())
    paths = (
        [f"{root}/{name}/image{1000 * label + index:08}.jpg" for index in range(1000)]
        for label, name in enumerate(names)
    )
    kind = datasets.Image().pa_type
    chunks = [
        pa.StructArray.from_arrays([pa.nulls(1000, pa.binary()), pa.array(part)], fields=list(kind))
        for part in paths
    ]
    whole = [pa.concat_arrays(chunks[k : k + 1000]) for k in range(0, len(chunks), 1000)]
    listed = [Listed(f"{name}/", 1000) for name in names]
    walked = replace(walked, files=pa.chunked_array(whole, kind), listed=listed)
    folder = cache_folder / "listings"
    folder.mkdir(0o700, parents=True)
    listings.keep(folder, root, walked)


def make_files(root: Path, number: int) -> None:
    """Names of empty files, 1,000 in each class share a file; classes that are there stay."""
    for label in tqdm(range(number // 1000), desc=f"{number:,} files", disable=None):
        folder = root / f"class{label:05}"
        if not folder.exists():
            folder.mkdir(parents=True)
            first, *others = (
                folder / f"image{label * 1000 + index:08}.jpg" for index in range(1000)
            )
            first.touch()
            for other in others:
                os.link(first, other)  # takes no inode


def measure_folders(files: Sequence[int], files_in: Path | None) -> list[dict[str, Any]]:
    """Rows of the table of folders: nothing kept, kept by this process, kept by an earlier one."""
    rows = []
    for number in files:
        with tempfile.TemporaryDirectory() as scratch:
            root = (files_in or Path(scratch)) / str(number)
            cache = str(Path(scratch) / "cache")
            kinds = [("no", ""), ("first time", cache), ("later", cache)]
            if number > PRETENDED and not root.exists():
                pretend_files(root, number, Path(cache))
                kinds = kinds[-1:]
            else:
                make_files(root, number)
                time.sleep(2 * listings.SETTLED / 1e9)
            for kept, folder in kinds:
                row = child("folder", str(root), folder)
                rows.append({"files": number, "kept": kept, "row": row})
            kept = sum(file.stat().st_size for file in Path(cache).rglob("*.listing"))
            rows[-1]["file"] = kept
    return rows


def measure_processes() -> list[dict[str, Any]]:
    """Rows of the table of processes, which open a parquet file of noise."""
    rng, column = np.random.default_rng(0), []
    for _ in range(IMAGES):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(file, "PNG")
        column.append(file.getvalue())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = folder  # the copy goes too
        path = Path(folder) / "noise.parquet"
        labels = [i % 10 for i in range(IMAGES)]
        parquet.write_table(pa.table({"image": column, "label": labels}), path)
        for processes in PROCESSES:
            row = child("process", str(path), processes=processes)
            rows.append({"processes": processes, "row": row})
    return rows


def processes_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown; all is of each process."""
    lines = [
        "| processes | held by each, MiB | CPU s of each | seconds |",
        "|--:|--:|--:|--:|",
    ]
    for row in rows:
        numbers, name = row["row"], f"| {row['processes']} |"
        if isinstance(numbers, str):
            lines.append(f"{name} {numbers} | | |")
            continue
        seconds = (f"{numbers[key]:.1f}" for key in ("cpu", "wall"))
        lines.append(f"{name} {numbers['held'] / 2**20:,.0f} | {' | '.join(seconds)} |")
    return "\n".join(lines)


def folders_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown; what is held is what the images add to this process's own memory."""
    lines = [
        "| files | listing kept | CPU s: list | open, split | draw labels | fingerprint |"
        " held, MiB | bytes an image | peak, MiB | file, MiB |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        numbers, name = row["row"], f"| {row['files']:,} | {row['kept']} |"
        if isinstance(numbers, str):
            lines.append(f"{name} {numbers} | | | | | | | |")
            continue
        seconds = (f"{numbers[k]:.2f}" for k in ("listed", "opened", "drawn", "fingerprint"))
        file = f"{row['file'] / 2**20:,.0f}" if "file" in row else ""
        lines.append(
            f"{name} {' | '.join(seconds)} | {numbers['held'] / 2**20:,.0f} |"
            f" {numbers['held'] / numbers['images']:.0f} | {numbers['peak'] / 2**20:,.0f} |"
            f" {file} |"
        )
    return "\n".join(lines)


def batches_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| batch | micro-batch | peak memory, MiB | images per second |", "|--:|--:|--:|--:|"]
    for row in rows:
        numbers, micro = row["row"], row["micro_batch"] or "all"
        cells = (
            f"{numbers} |"
            if isinstance(numbers, str)
            else (f"{1024 * numbers['gib']:,.0f} | {numbers['images_per_second']:.0f}")
        )
        lines.append(f"| {row['batch_size']:,} | {micro} | {cells} |")
    return "\n".join(lines)


def networks_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown; what fits is extrapolated from the two batches."""
    lines = [
        f"| encoder | parameters | checkpointed | images | peak memory, GiB | GiB per image |"
        f" images that fit {BUDGET} GiB | images per second |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        small, large, sizes = row["few"], row["more"], row["sizes"]
        name = f"| {row['encoder']} |"
        if isinstance(small, str) or isinstance(large, str):
            lines.append(f"{name} | {row['checkpointed']} | {sizes} | {small}; {large} | | | |")
            continue
        per_image = (large["gib"] - small["gib"]) / (sizes[1] - sizes[0])
        fits = max(0, int((BUDGET - small["gib"]) / per_image + sizes[0]))
        lines.append(
            f"{name} {large['parameters'] / 1e6:.0f} M | {'yes' if row['checkpointed'] else 'no'} |"
            f" {sizes[0]}; {sizes[1]} | {small['gib']:.2f}; {large['gib']:.2f} | {per_image:.3f} |"
            f" {fits} | {large['images_per_second']:.2f} |"
        )
    return "\n".join(lines)


ROWS = {
    "batch": batch_row,
    "network": network_row,
    "folder": folder_row,
    "process": process_row,
}
TABLES = {
    "batches": (measure_batches, batches_table),
    "networks": (measure_networks, networks_table),
    "folders": (measure_folders, folders_table),
    "processes": (measure_processes, processes_table),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks.large", description=__doc__, formatter_class=raw)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--table", action="store_true", help="only write the tables again")
    parser.add_argument("--files", nargs="+", type=int, default=FILES, help="in a folder")
    parser.add_argument("--files-in", type=Path, help="where they are or are made, and stay")
    parser.add_argument("--row", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.row:
        kind, *arguments = options.row
        torch.set_num_threads(1)
        row = ROWS[kind](*arguments)
        if launcher_number("RANK", 0) == 0:
            print(json.dumps(row))
        return 0

    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in () if options.table else options.only:
        device = torch.cuda.get_device_name() if CUDA else "CPU, one thread"
        sizes = (options.files, options.files_in) if name == "folders" else ()
        results[name] = circumstances(False) | {"device": device, "rows": TABLES[name][0](*sizes)}
        RESULTS.write_text(json.dumps(results, indent=1))
    text = DOCUMENT.read_text()
    for name, saved in results.items():
        versions = ", ".join(f"{k} {v}" for k, v in saved["versions"].items() if k == "torch")
        about = f"{saved['device']}; {saved['hardware']}; {versions}; commit {saved['commit']}"
        table = TABLES[name][1](saved["rows"])
        text = replace_between(text, name, f"{table}\n\n{about}; {saved['date']}.\n")
        print(f"\n{name}: {about}\n{table}")
    DOCUMENT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
