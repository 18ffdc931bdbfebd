"""Every reader of every format, each called with hostile input.

A reader gets a seeded ``random.Random`` and an empty folder, which is the current one. It makes a
file there, reads it as the commands do, and checks what it got. It may raise UserError, or leave
with exit code 2. `READERS` has them all, with their weights.
"""

import io
import json
import math
import os
import struct
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, features
from pyarrow import parquet
from safetensors.torch import save as safetensors_bytes

from shared.config.command_line import load_config, read_config
from shared.config.imported import imported
from shared.config.labelset import LabelSet
from shared.config.schema import RECIPES, Config, dump
from shared.config.sections import Data
from shared.config.yaml_files import read_yaml
from shared.data.images import Splits
from shared.data.label_files import read_csv, read_text
from shared.data.labels import read_names, write_names
from shared.data.sources import OPENED, open_data, open_images
from shared.networks.build import build_encoder
from shared.runs.assessment import read_arrays, read_assessment
from shared.runs.grid import read_cells, report
from shared.runs.results import advice_text, collect, results_text
from shared.runs.statistics import summarize
from shared.runs.table import load_table
from shared.runs.text import render
from shared.runtime.artifacts import read_meta, read_predictions
from shared.runtime.errors import UserError
from shared.runtime.lock import release_all
from shared.runtime.media import printable_lines
from shared.runtime.stage_folder import StageFolder
from shared.training.predictor import Predictor
from shared.training.runlog import read_log
from stages.import_weights.recognise import sort_variables, trace_linear_input
from stages.import_weights.tf_checkpoint import open_checkpoint, read_graphs
from stages.import_weights.timm_weights import find
from stages.page.read import read_run
from stages.predict.rows import FORMS, RowFile
from tests.fuzz import hostile
from tests.support.photos import process
from tests.support.run_folder import assess, fill_table, make_run
from tests.support.tables import TOY, toy_lines
from tests.support.tensorflow_files import message, object_graph, write_tensors

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
TINY = "simclr_resnet8_1x_sk0"
KINDS = ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA", "ICO", "JPEG2000", "AVIF"]
ON_ERROR = ("stop", "skip")
KINDS = [kind for kind in KINDS if kind != "AVIF" or features.check("avif")]


@cache
def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).resize((16, 16)).save(file, kind)
    return file.getvalue()


def a_picture(rng: Random) -> bytes:
    plain = encoded(rng.choice(KINDS))
    return hostile.damaged(rng, plain) if rng.random() < 0.3 else plain


def photos(folder: Path, names=("a/0.png", "a/1.png", "b/0.png", "b/1.png")) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded("PNG"))
    return [*names]


# ---------------------------------------------------------------------------- recipes and flags
@cache
def recipes() -> list[dict[str, Any]]:
    return [read_yaml(file) for file in sorted(RECIPES.glob("*.yaml"))]


@cache
def tables() -> list[dict[str, Any]]:
    return [read_yaml(file) for file in sorted((RECIPES / "tables").glob("*.yaml"))]


def check_config(config: Config) -> None:
    dump(config).encode()
    for number in (config.pretrain.epochs, config.finetune.learning_rate, *config.data.std):
        assert math.isfinite(number)


def recipe(rng: Random, folder: Path) -> None:
    (folder / "r.yaml").write_bytes(hostile.yaml_text(rng, rng.choice(recipes())))
    check_config(read_config(folder / "r.yaml"))


def own_recipe(rng: Random, folder: Path) -> None:
    """What a run keeps of its choice; without labels it is for stage 1 alone."""
    kept = {**rng.choice(recipes())}
    if rng.random() < 0.7:
        kept.pop("labels", None)
    file = folder / "runs/own/recipe.yaml"
    file.parent.mkdir(parents=True)
    file.write_bytes(hostile.yaml_text(rng, kept))
    check_config(load_config(["--data.train=own"], "p", "d")[0])


def flags(rng: Random, folder: Path) -> None:
    options = ["seed", "labels", "run", "output", "threads", "force", "method", "budget", "table"]
    options += ["data.train", "data.test", "data.mean", "data.image_size", "data.workers", "config"]
    options += ["pretrain.epochs", "pretrain.batch_size", "pretrain.memory", "model.head_width"]
    options += ["finetune.init", "distill.temperature", "augment.crop_area", "nonsense", "data"]
    arguments = []
    for _ in range(rng.randrange(1, 4)):
        value = rng.choice([hostile.text(rng), str(rng.choice(hostile.NUMBERS))])
        arguments.append(f"--{rng.choice(options)}={value}")
    check_config(load_config(arguments, "p", "d")[0])


def table(rng: Random, folder: Path) -> None:
    (folder / "t.yaml").write_bytes(hostile.yaml_text(rng, rng.choice(tables())))
    read = load_table(str(folder / "t.yaml"))
    assert 0 < len(read.rows) * len(read.columns) <= 1000
    assert all(isinstance(seed, int) for seed in read.seeds)


# --------------------------------------------------------------------------------------- labels
def labels_csv(rng: Random, folder: Path) -> None:
    file = folder / rng.choice(["l.csv", "l.tsv"])
    file.write_bytes(hostile.csv_bytes(rng, ["a.png", "b/c.png"]))
    for name, label in read_csv(file).rows:
        assert name
        assert "\0" not in name + label


def labels_of_photos(rng: Random, folder: Path) -> None:
    names = photos(folder / "p")
    suffix = rng.choice(["csv", "txt", "tsv"])
    file = folder / f"l.{suffix}"
    file.write_bytes(
        hostile.damaged(rng, "\n".join(names).encode())
        if suffix == "txt"
        else hostile.csv_bytes(rng, names)
    )
    if suffix == "txt":
        read_text(file)
    else:
        check_splits(opened(rng.choice(ON_ERROR), folder / "p", str(file)))


def image_names(rng: Random, folder: Path) -> None:
    """The file of a run that names its images."""
    photos(folder / "p")
    images = opened(rng.choice(ON_ERROR), folder / "p").train
    write_names(folder / "images.csv", images)
    content = (folder / "images.csv").read_bytes()
    kind = rng.randrange(8)
    if kind == 0:
        (folder / "images.csv").unlink()
        os.mkfifo(folder / "images.csv")
    elif kind == 1:
        (folder / "images.csv").write_bytes(hostile.csv_bytes(rng, [*images.names]))
    elif kind < 7:
        (folder / "images.csv").write_bytes(hostile.damaged(rng, content))
    assert all(isinstance(name, str) for name in read_names(folder / "images.csv"))


def metadata(rng: Random, folder: Path) -> None:
    names = begin_metadata(folder)
    kind = rng.choice(["csv", "jsonl", "parquet"])
    file = folder / f"p/metadata.{kind}"
    if kind == "csv":
        content = hostile.csv_bytes(rng, names).replace(b"file", b"file_name", 1)
    elif kind == "jsonl":
        rows = [{"file_name": name, "label": hostile.value(rng, 2)} for name in names]
        lines = (json.dumps(row).encode() for row in rows)
        content = b"\n".join(hostile.damaged(rng, x) if rng.random() < 0.2 else x for x in lines)
        if rng.random() < 0.1:
            content = b'{"file_name": "0.png", "x": ' + b"[" * 100_000
    else:
        content = parquet_bytes(rng, {"file_name": names, "label": column(rng, len(names))})
    file.write_bytes(content)
    read_photos(folder, rng.choice(ON_ERROR))


def begin_metadata(folder: Path) -> list[str]:
    return photos(folder / "p", ("0.png", "1.png", "sub/2.png"))


def read_photos(folder: Path, on_error: str) -> None:
    check_splits(opened(on_error, folder / "p"))


# --------------------------------------------------------------------------------------- images
def check_splits(splits: Splits) -> None:
    for images in splits:
        if images is not None:
            n = len(images)
            assert len(images.labels) == len(images.names) == len(images.files) == n
            assert images.labels.min(initial=-1) >= -1
            assert images.labels.max(initial=-1) < max(len(images.classes), 1)
            assert all(isinstance(name, str) for name in images.classes)
            for i in range(min(n, 3)):
                assert images.decode(i).shape[0] == 3


def opened(on_error: str, train: Path, labels: str = "1pct") -> Splits:
    OPENED.clear()
    data = Data(train=str(train), on_error=on_error, workers=0, image_size=8)
    return open_data(data, LabelSet.parse(labels))


def damaged_image(rng: Random, folder: Path) -> None:
    photos(folder / "p")
    kind = rng.choice(KINDS)
    (folder / f"p/a/x.{kind.lower()}").write_bytes(hostile.damaged(rng, encoded(kind)))
    check_splits(opened(rng.choice(ON_ERROR), folder / "p"))


def predicted_image(rng: Random, folder: Path) -> None:
    names = [hostile.name(rng) for _ in range(3)]
    for name in names:
        hostile.odd_entry(rng, folder, name, a_picture(rng))
    data = Data(on_error=rng.choice(ON_ERROR))
    images = open_images([os.fsdecode(name) for name in names], data)
    for i in range(len(images)):
        images.decode(i)


def tree(rng: Random, folder: Path) -> None:
    (folder / "p").mkdir()
    if rng.random() < 0.7:
        photos(folder / "p")
    for _ in range(rng.randrange(1, 6)):
        content = rng.choice([a_picture(rng), hostile.text(rng).encode(), b""])
        hostile.odd_entry(rng, folder / "p", hostile.name(rng), content)
    check_splits(
        opened(rng.choice(ON_ERROR), folder / rng.choice(["p", "p", "p", "p/train", "p/x.parquet"]))
    )


# -------------------------------------------------------------------------------------- parquet
def column(rng: Random, n: int) -> pa.Array:
    """Values of one type, some of them null."""
    texts = ["0", "1", "a", "b", hostile.text(rng).encode("utf-8", "replace").decode()]
    made: list[Any] = [
        pa.array([rng.choice([*texts, None]) for _ in range(n)], pa.string()),
        pa.array([rng.choice([0, 1, -1, 7, None]) for _ in range(n)], pa.int64()),
        pa.array([rng.choice([0, 1, 2**63]) for _ in range(n)], pa.uint64()),
        pa.array([rng.choice([0.0, 1.5, math.nan, math.inf, None]) for _ in range(n)]),
        pa.array([rng.choice([True, False, None]) for _ in range(n)]),
        pa.array([[0, 1]] * n),
        pa.array([{"x": 1}] * n),
        pa.array([rng.choice([0, 2**40]) for _ in range(n)], pa.timestamp("s")),
        pa.array([rng.choice([0, 1]) for _ in range(n)], pa.decimal128(38, 3)),
        pa.array([rng.choice([b"a", b"\xff", None]) for _ in range(n)], pa.binary()),
        pa.nulls(n),
        pa.array([rng.choice(["a", "b"]) for _ in range(n)]).dictionary_encode(),
    ]
    return rng.choice(made)


def image_column(rng: Random, n: int) -> pa.Array:
    paths = ["beside.png", "../outside/secret.png", "/etc/passwd", "no.png", "pipe", ".", "", None]
    content = [
        rng.choice([encoded("PNG"), encoded("PNG"), a_picture(rng), b"", None]) for _ in range(n)
    ]
    kind = rng.randrange(6)
    if kind < 3:
        structs = [{"bytes": x, "path": rng.choice(paths)} for x in content]
        if rng.random() < 0.3:
            structs[rng.randrange(n)] = None
        return pa.array(structs, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    if kind == 3:
        return pa.array(content, rng.choice([pa.binary(), pa.large_binary()]))
    if kind == 4:
        return pa.array([rng.choice(paths) for _ in range(n)], pa.string())
    return column(rng, n)


def parquet_bytes(rng: Random, columns: dict[str, Any]) -> bytes:
    made = pa.table(columns)
    if rng.random() < 0.5:  # what Hugging Face notes of the columns
        names = rng.choice(
            [["a", "b"], ["a", "a"], [0, 1], [], [hostile.text(rng)], None, ["a", None]]
        )
        label = {"names": names, "_type": rng.choice(["ClassLabel", "ClassLabel", "Value", "Nope"])}
        notes = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
        made = made.replace_schema_metadata({"huggingface": hostile.json_text(rng, notes)})
    file = io.BytesIO()
    parquet.write_table(made, file)
    return hostile.damaged(rng, file.getvalue()) if rng.random() < 0.2 else file.getvalue()


def begin_parquet(folder: Path) -> None:
    photos(folder, ["beside.png"])
    os.mkfifo(folder / "pipe")


def read_parquet(folder: Path, on_error: str) -> None:
    check_splits(opened(on_error, folder / "t.parquet"))


def parquet_file(rng: Random, folder: Path) -> None:
    begin_parquet(folder)
    n = rng.choice([1, 4, 9])
    names = rng.choice([("image", "label"), ("img", "class"), ("image", "image2"), ("x", "y")])
    columns = dict(zip(names, [image_column(rng, n), column(rng, n)], strict=True))
    (folder / "t.parquet").write_bytes(parquet_bytes(rng, columns))
    if rng.random() < 0.3:
        images = open_images([str(folder / "t.parquet")], Data(on_error="skip"))
        assert len(images) == n
    else:
        read_parquet(folder, rng.choice(ON_ERROR))


# ---------------------------------------------------------------------------- artifacts and runs
@cache
def artifact_files() -> dict[str, bytes]:
    """A small classifier as the stages leave it: name -> content."""
    from tempfile import TemporaryDirectory

    from tests.support.exported import artifact

    with TemporaryDirectory() as place:
        path = artifact(Path(place) / "c", ["a", "b", "c"], from_layer=1)
        return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def begin_artifact(folder: Path) -> None:
    write_files(folder / "c", artifact_files())


def read_artifact(folder: Path) -> None:
    imported(folder / "c")
    read_meta(folder / "c", "classifier")
    probabilities, classes = Predictor(folder / "c", workers=0, device="cpu")([PIXELS])
    assert probabilities.shape == (1, len(classes))
    assert np.isfinite(probabilities).all()


def meta(rng: Random, folder: Path) -> None:
    begin_artifact(folder)
    file = folder / "c/meta.json"
    file.write_bytes(hostile.json_text(rng, json.loads(file.read_text())))
    read_artifact(folder)


def weights(rng: Random, folder: Path) -> None:
    begin_artifact(folder)
    file = folder / "c/model.safetensors"
    file.write_bytes(damaged_tensors(rng, file.read_bytes()))
    read_artifact(folder)


def damaged_tensors(rng: Random, whole: bytes) -> bytes:
    """A safetensors file with a changed header, or changed bytes."""
    size = struct.unpack("<Q", whole[:8])[0]
    kind = rng.randrange(4)
    if kind == 0:
        head = hostile.json_text(rng, json.loads(whole[8 : 8 + size]))
        return struct.pack("<Q", len(head)) + head + whole[8 + size :]
    if kind == 1:
        return struct.pack("<Q", rng.choice([0, 1, 2**63, 2**32, size - 1])) + whole[8:]
    if kind == 2:  # within the header
        return hostile.damaged(rng, whole[: 8 + size]) + whole[8 + size :]
    return hostile.damaged(rng, whole)


def stopped_stage(folder: Path) -> tuple[StageFolder, torch.nn.Linear, torch.optim.AdamW]:
    model = torch.nn.Linear(3, 2)
    settings = {"stage": "finetune", "x": 1}
    stage = StageFolder(folder / "r/s", settings, force=False, accelerator=process())
    return stage, model, torch.optim.AdamW(model.parameters())


def begin_state(folder: Path) -> None:
    release_all()  # of the case before, whose folder is gone
    stage, model, optimizer = stopped_stage(folder)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    stage.start("seed: 0\n")
    stage.save_state(5, 1.0, model, optimizer)


def read_state(folder: Path) -> None:
    stage, model, optimizer = stopped_stage(folder)
    step, seconds = stage.load_state(model, optimizer)
    assert step in (0, 5)
    assert math.isfinite(seconds)


def state(rng: Random, folder: Path) -> None:
    begin_state(folder)
    (file,) = (folder / "r/s/state").iterdir()
    if rng.random() < 0.3:
        settings_file = folder / "r/s/settings.json"
        settings_file.write_bytes(hostile.json_text(rng, json.loads(settings_file.read_text())))
    elif rng.random() < 0.3:
        tensors = {rng.choice(["model.weight", "optimizer.x.y", "optimizer.9.z"]): torch.ones(2)}
        notes = {
            "step": rng.choice(["5", "-1", "x", "9" * 400]),
            "seconds": rng.choice(["1", "nan"]),
        }
        file.write_bytes(safetensors_bytes(tensors, notes))
    else:
        file.write_bytes(damaged_tensors(rng, file.read_bytes()))
    read_state(folder)


@cache
def run_files() -> dict[str, bytes]:
    """A run with its table and its assessment: path -> content."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as place:
        run = make_run(Path(place) / "r", Config(run="r"), draws=1, labels=("1pct",))
        assess(run)
        fill_table(run)
        files = [file for file in run.rglob("*") if file.is_file()]
        return {str(file.relative_to(run)): file.read_bytes() for file in files}


def begin_run(folder: Path) -> None:
    write_files(folder / "r", run_files())


def a_run(rng: Random, folder: Path, ending: str) -> Path:
    """The run with one of its files changed."""
    begin_run(folder)
    file = folder / "r" / rng.choice([name for name in run_files() if name.endswith(ending)])
    kind = rng.randrange(8)
    if kind == 0:
        file.unlink()
        rng.choice([os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)])(file)
    elif ending == ".json":
        file.write_bytes(hostile.json_text(rng, json.loads(file.read_text())))
    else:
        file.write_bytes(hostile.damaged(rng, file.read_bytes()))
    return folder / "r"


def read_results(folder: Path) -> None:
    rows = collect(folder / "r")
    assert results_text(rows).count("\n") < 100
    advice_text(folder / "r", rows)


def results(rng: Random, folder: Path) -> None:
    a_run(rng, folder, "meta.json")
    read_results(folder)


def read_metrics(folder: Path) -> None:
    for stage in ("pretrain", "finetune-1pct-seed0", "distill-1pct-seed0"):
        for line in read_log(folder / "r" / stage)[0]:
            assert "step" in line


def metrics(rng: Random, folder: Path) -> None:
    a_run(rng, folder, "metrics.jsonl")
    read_metrics(folder)


def read_assessed(folder: Path) -> None:
    stage = folder / "r/assess-1pct-seed0"
    read_assessment(stage)
    read_arrays(stage)
    read_predictions(stage)


def assessment(rng: Random, folder: Path) -> None:
    a_run(rng, folder, rng.choice(["assess.json", "assess.npz"]))
    read_assessed(folder)


def page(rng: Random, folder: Path) -> None:
    run = read_run(a_run(rng, folder, rng.choice(["meta.json", ".yaml", "metrics.jsonl"])))
    assert run.folder == folder / "r"


def cells(rng: Random, folder: Path) -> None:
    lines = [json.dumps(line).encode() for line in toy_lines()]
    at = rng.randrange(len(lines))
    lines[at] = hostile.json_text(rng, json.loads(lines[at]))
    (folder / "cells.jsonl").write_bytes(b"\n".join(lines))
    read_lines_of_cells(folder)


def read_lines_of_cells(folder: Path) -> None:
    read_cells(folder / "cells.jsonl")


def table_text(rng: Random, folder: Path) -> None:
    """A table whose names are hostile, in all its forms."""
    write_table(folder, hostile.text(rng) or "a", hostile.text(rng))


def write_table(folder: Path, row: str, message: str) -> None:
    lines = [{**x, "row": row if x["row"] == "a" else x["row"]} for x in toy_lines()]
    lines[-1] |= {"status": "failed", "message": message, "result": {}}
    own = {row if key == "a" else key: options for key, options in TOY.rows.items()}
    texts = render(summarize(replace(TOY, rows=own, against=row, worth=row), lines), lines)
    for kind in ("txt", "md", "tex"):
        assert printable_lines(texts[kind]) == texts[kind]
    assert "<img" not in texts["md"]
    assert "\\input{" not in texts["tex"]


def table_report(rng: Random, folder: Path) -> None:
    run = a_run(rng, folder, rng.choice([".yaml", "meta.json"]))
    report(run, rng.choice(["small", "pretrainings", "../x"]))


# --------------------------------------------------------------------------- weights of others
def tensorflow(rng: Random, folder: Path) -> None:
    names = ["base_model/conv2d/kernel", "head_contrastive/nl_0/dense/kernel", hostile.text(rng)]
    tensors = [(n.replace("\0", "") or "x", np.ones((1, 2), np.float32)) for n in names]
    tensors = [(n.encode("utf-8", "replace").decode(), array) for n, array in tensors]
    graph = object_graph({n: n for n, _ in tensors}) if rng.random() < 0.5 else None
    prefix = write_tensors(folder / "ckpt", dict(tensors).items(), graph)
    if rng.random() < 0.2:
        latest = rng.choice(["ckpt", ".", "..", "/etc", "x" * 300, "a/../ckpt"])
        (folder / "checkpoint").write_text(f'model_checkpoint_path: "{latest}"\n')
        prefix = folder
    else:
        file = rng.choice([file for file in folder.iterdir() if file.name.startswith("ckpt")])
        file.write_bytes(hostile.damaged(rng, file.read_bytes()))
    checkpoint = open_checkpoint(prefix)
    for key in checkpoint.entries:
        assert checkpoint.read(key).dtype == np.float32
    sort_variables(checkpoint)


def graph(rng: Random, folder: Path) -> None:
    """A computation graph of few names, so that it goes round in circles."""
    linear = "head_supervised/linear_layer/dense/MatMul"
    names = [linear, "a", "b", "head_contrastive/nl_0/dense/MatMul"]
    nodes = []
    for name in names:
        inputs = [(3, rng.choice([*names, "gone", "^a", ""])) for _ in range(rng.randrange(3))]
        op = rng.choice(["MatMul", "Identity", "StopGradient", "Add"])
        nodes.append(message((1, name), (2, "MatMul" if name == linear else op), *inputs))
    content = message((2, message(*((1, node) for node in nodes))))
    if rng.random() < 0.4:
        content = hostile.damaged(rng, content)
    (folder / "x.meta").write_bytes(content)
    answer = trace_linear_input(read_graphs(folder / "x.meta"), "x")
    assert answer is None or answer.layer in (0, 1)


@cache
def tiny_weights() -> bytes:
    torch.manual_seed(0)
    return safetensors_bytes(build_encoder(TINY, 8).state_dict())


def timm(rng: Random, folder: Path) -> None:
    notes = {"architecture": TINY, "pretrained_cfg": {"mean": [0.5] * 3, "input_size": [3, 8, 8]}}
    (folder / "config.json").write_bytes(hostile.json_text(rng, notes))
    (folder / "model.safetensors").write_bytes(damaged_tensors(rng, tiny_weights()))
    find_weights(
        folder, rng.choice([str(folder), str(folder / "model.safetensors"), hostile.text(rng)])
    )


def find_weights(folder: Path, source: str) -> None:
    assert find(source).config is not None


def published(rng: Random, folder: Path) -> None:
    suffix = rng.choice(["safetensors", "safetensors", "bin", "pth"])
    file = folder / f"w.{suffix}"
    if suffix == "safetensors":
        file.write_bytes(damaged_tensors(rng, tiny_weights()))
    else:
        content: Any = rng.choice([{"a": torch.ones(1)}, [1], 5, {"a": Evil()}, {1: torch.ones(1)}])
        torch.save(content, file)
        if rng.random() < 0.5:
            file.write_bytes(hostile.damaged(rng, file.read_bytes()))
    try:
        encoder = build_encoder(TINY, 8, str(file))
    except ValueError as error:  # as the caller does, who names the option
        raise UserError(f"{error}") from error
    else:
        assert all(x.isfinite().all() for x in encoder.state_dict().values())


class Evil:
    """Unpickled, it would write a file outside."""

    def __reduce__(self):
        return os.system, ("touch ../outside/executed",)


# ---------------------------------------------------------------------------------- predictions
ROWS = pa.schema([("file", pa.string()), ("label", pa.string())])


def predictions(rng: Random, folder: Path) -> None:
    suffix = rng.choice(list(FORMS))
    names = [hostile.text(rng).encode("utf-8", "replace").decode() for _ in range(3)]
    batch = pa.record_batch([names, names], schema=ROWS)
    rows = RowFile(folder / f"p{suffix}", ROWS, {"x": 1})
    rows.append(batch)
    if rng.random() < 0.5:
        rows.finish()
    del rows
    file = rng.choice([file for file in folder.iterdir() if file.name.startswith("p.")])
    content = file.read_bytes()
    is_json = file.name.endswith(".json")
    file.write_bytes(
        hostile.json_text(rng, json.loads(content)) if is_json else hostile.damaged(rng, content)
    )
    go_on_predicting(folder, suffix, *names)


def go_on_predicting(folder: Path, suffix: str, *names: str) -> None:
    rows = RowFile(folder / f"p{suffix}", ROWS, {"x": 1})
    assert set(rows.missing(["new.png", *names])) >= {0}


READERS = {
    reader.__name__: reader
    for reader in (
        *(recipe, own_recipe, flags, table, labels_csv, labels_of_photos, image_names, metadata),
        *(damaged_image, tree, predicted_image, parquet_file, meta, weights, state, results),
        *(metrics, assessment, page),
        *(cells, table_text, table_report, tensorflow, graph, timm, published, predictions),
    )
}
