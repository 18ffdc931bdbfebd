"""What a checkpoint holds: architecture, parts and what the linear layer stands on; refusals."""

import functools
import re

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from shared.networks.resnet import BLOCKS, SMALL_DEPTHS
from stages.import_weights.recognise import recognise_encoder
from stages.import_weights.tf_checkpoint import Entry, open_checkpoint
from tests.support import tensorflow_files
from tests.support.imported import edited, fails, meta_of, run, tensorflow_shapes
from tests.support.tensorflow_files import TF1, TF2, message, object_graph, rewrite, write_tensors


@pytest.mark.parametrize("depth", [depth for depth in BLOCKS if depth not in SMALL_DEPTHS])
def test_every_architecture_is_recognised(depth):
    for i, variant in enumerate(("sk0", "sk1", "sk0_se", "sk1_se")):
        for small in (False, True):
            name = f"simclr_resnet{depth}_{1 + i}x_{variant}"
            with torch.device("meta"):
                shapes = tensorflow_shapes(timm.create_model(name, small_stem=small))
            # here selective kernels are a pooling in the shortcut, which has no tensors
            hidden = small and depth < 50 and variant.startswith("sk1")
            assert recognise_encoder(shapes, pooled_shortcuts=hidden) == (name, small)
            if hidden:
                assert recognise_encoder(shapes)[0] == name.replace("sk1", "sk0")


def test_pooled_shortcuts_are_seen_in_the_object_graph(golden_checkpoints, tmp_path, monkeypatch):
    checkpoint = open_checkpoint(golden_checkpoints / TF2)
    graph = functools.partial(object_graph, shortcut_layers=4)  # pad, pool, convolution, norm
    monkeypatch.setattr(tensorflow_files, "object_graph", graph)
    source = rewrite(tmp_path, golden_checkpoints / TF2, checkpoint.entries)
    assert run(source, tmp_path / "out") == 0
    assert meta_of(tmp_path / "out")["encoder"] == "simclr_resnet18_1x_sk1"


def slots_of(entries: dict[str, Entry], *patterns: str) -> list[str]:
    return [key for key in entries if "Momentum" in key and any(p in key for p in patterns)]


@pytest.mark.parametrize(
    ("tag", "parts", "expected"),
    [  # with the memory of which parts the optimizer left, the kind and the layer
        (TF1, ("head_supervised",), ("classifier", 0)),
        (TF1, (), ("encoder", None)),
        (TF2, ("",), ("encoder", None)),
        (TF2, ("resnet_model", "supervised_head"), ("classifier", 0)),
        (TF2, ("resnet_model", "supervised_head", "linear_layers/0/"), ("classifier", 1)),
        (TF2, ("resnet_model", "supervised_head", "layers/0/", "layers/1/"), ("classifier", 2)),
        (TF2, ("_projection_head", "supervised_head"), ("classifier", 0)),
    ],
)
def test_memory_of_the_optimizer_tells(golden_checkpoints, tmp_path, tag, parts, expected):
    def change(entries):
        for key in slots_of(entries, "") if parts != ("",) else ():
            if key not in slots_of(entries, *parts):
                del entries[key]

    source = edited(tmp_path, golden_checkpoints / tag, change)
    assert run(source, tmp_path / "out") == 0
    meta = meta_of(tmp_path / "out")
    assert (meta["kind"], meta.get("from_layer")) == expected


def test_memory_of_newer_keras_optimizers_is_dropped(golden_checkpoints, tmp_path):
    """They keep it apart from the variables; linear evaluation leaves none of the trunk."""
    checkpoint = open_checkpoint(golden_checkpoints / TF2)
    entries = {k: e for k, e in checkpoint.entries.items() if "Momentum" not in k}
    names = {key: checkpoint.names[key] for key in entries}
    heads = [key for key in entries if "head" in key and "moving" not in key]
    for i, key in enumerate(heads, 1):
        slot = f"optimizer/_variables/{i}/.ATTRIBUTES/VARIABLE_VALUE"
        entries[slot], names[slot] = entries[key], f"SGD/m/{names[key]}"
    assert len(heads) == 10
    source = rewrite(tmp_path, golden_checkpoints / TF2, entries, names)
    assert run(source, tmp_path / "out") == 0
    meta = meta_of(tmp_path / "out")
    assert (meta["kind"], meta["from_layer"]) == ("classifier", 0)
    assert meta["settings"]["dropped"]["memory of the optimizer"] == 10


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("stopped", [False, True])
def test_computation_graph_tells(golden_checkpoints, tmp_path, layer, stopped):
    """A .meta file beside a TF1 checkpoint, as the published ones have it."""
    nodes = [("base_model/final_avg_pool", "Mean", [])]
    for j in range(3):
        scope, before = f"head_contrastive/nl_{j}/dense", nodes[-1][0]
        nodes += [
            (f"{scope}/MatMul", "MatMul", [f"{before}:0", f"{scope}/kernel/read"]),
            (f"{scope}/Relu", "Relu", [f"{scope}/MatMul", "^base_model/init"]),
        ]
    top = nodes[2 * layer][0]
    if stopped:
        nodes.append(("StopGradient", "StopGradient", [top]))
        top = "StopGradient"
    linear = "head_supervised/linear_layer/dense/MatMul"
    nodes.append((linear, "MatMul", [top, "head_supervised/linear_layer/dense/kernel/read"]))
    nodes.append((f"gradients/{linear}_grad/MatMul", "MatMul", [nodes[-3][0]]))
    definitions = [message((1, n), (2, op), *((3, i) for i in inputs)) for n, op, inputs in nodes]
    graph = message(*((1, node) for node in definitions))
    entries = open_checkpoint(golden_checkpoints / TF1).entries
    source = rewrite(tmp_path, golden_checkpoints / TF1, entries)
    (tmp_path / "ckpt.meta").write_bytes(message((1, message((1, "other"))), (2, graph)))
    assert run(source, tmp_path / "out") == 0
    meta = meta_of(tmp_path / "out")
    assert meta["kind"] == ("encoder" if stopped else "classifier")
    assert stopped or meta["from_layer"] == layer


def test_a_head_that_never_moved_is_not_taken(golden_checkpoints, tmp_path):
    """Supervised from scratch: the head is there, but as it was initialised."""
    names = ["head_contrastive/nl_0/batch_normalization/gamma"]
    source = open_checkpoint(golden_checkpoints / TF1)
    ones = np.ones(512, np.float32)
    tensors = [
        (k, ones if k in names else source.read(k))
        for k, e in source.entries.items()
        if e.dtype == 1
    ]
    assert run(write_tensors(tmp_path / "ckpt", tensors), tmp_path / "out") == 0
    assert meta_of(tmp_path / "out")["from_layer"] == 0


def test_selector_and_its_refusals(golden_checkpoints, tmp_path, capsys):
    source = golden_checkpoints / TF2
    assert run(source, tmp_path / "a", "--selector=2") == 0
    meta = meta_of(tmp_path / "a")
    assert (meta["kind"], meta["from_layer"]) == ("classifier", 2)
    capsys.readouterr()
    for wrong in ("3", "-1", "4", "-2"):
        line = fails(capsys, source, tmp_path / "b", f"--selector={wrong}")
        assert "512, 512, 512, 128" in line
        assert "[0, 1, 2]" in line


@pytest.mark.parametrize("memory", [True, False])
def test_the_layer_is_asked_for_where_nothing_tells_it(
    golden_checkpoints, tmp_path, capsys, memory
):
    """Fine-tuned under TF1, or without the optimizer's memory: 512 features fit thrice."""

    def change(entries):
        for key in [] if memory else slots_of(entries, ""):
            del entries[key]

    source = edited(tmp_path, golden_checkpoints / TF1, change)
    flags = [] if memory else ["--as=classifier"]
    line = fails(capsys, source, tmp_path / "a", *flags)
    assert "0, 1, 2 fit: give one as --selector" in line
    assert "--as encoder" in line
    for layer in (0, 2):
        out = tmp_path / f"layer{layer}"
        assert run(source, out, f"--selector={layer}") == 0
        assert (meta_of(out)["kind"], meta_of(out)["from_layer"]) == ("classifier", layer)
    assert run(source, tmp_path / "b", "--as=encoder") == 0
    assert "after layer 0 or 1 or 2 of the head" in capsys.readouterr().out


def test_only_one_layer_fits_the_linear_one(golden_checkpoints, tmp_path):
    """A head of one layer, 512 -> 128: what takes 512 features stands before it."""

    def change(entries):
        for key in [key for key in entries if key.startswith("head_contrastive")]:
            entry = entries.pop(key)
            if "nl_2" in key:
                entries[key.replace("nl_2", "nl_0")] = entry

    source = edited(tmp_path, golden_checkpoints / TF1, change)
    assert run(source, tmp_path / "out") == 0
    meta = meta_of(tmp_path / "out")
    assert (meta["kind"], meta["from_layer"]) == ("classifier", 0)


def test_moving_average_is_a_choice(golden_checkpoints, tmp_path, capsys):
    """Published pretrained checkpoints hold ema_model/... besides (google-research/simclr#88)."""

    def change(entries):
        for key in [k for k in entries if "Momentum" not in k and not k.startswith("head_s")]:
            if key != "global_step":
                entries[f"ema_model/{key}"] = entries[key]
        # to tell them apart: the average's first kernel is another one's data
        first, other = "base_model/conv2d_2/kernel", "base_model/conv2d_3/kernel"
        entries[f"ema_model/{first}"] = entries[other]

    source = edited(tmp_path, golden_checkpoints / TF1, change)
    assert run(source, tmp_path / "a", "--as=encoder") == 0
    assert run(source, tmp_path / "b", "--as=encoder", "--ema") == 0
    plain, average = (load_file(tmp_path / x / "model.safetensors") for x in "ab")
    first, other = "encoder.groups.0.0.branch.0.0.weight", "encoder.groups.0.0.branch.1.weight"
    assert torch.equal(plain[other], average[first])
    assert not torch.equal(plain[first], average[first])
    assert torch.equal(plain[other], average[other])
    placed = [meta_of(tmp_path / x)["settings"]["placed"] for x in "ab"]
    assert placed[0] == placed[1] == 119
    assert (
        run(source, tmp_path / "c", "--ema", "--selector=1") == 0
    )  # the linear layer has no average
    assert meta_of(tmp_path / "c")["kind"] == "classifier"
    capsys.readouterr()
    line = fails(capsys, golden_checkpoints / TF1, tmp_path / "d", "--ema")
    assert "no moving average" in line


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("base_model/conv2d_17/kernel", "conv2d_17/kernel"),
        ("base_model/conv2d_20/kernel", "conv2d_20/kernel"),
        ("base_model/conv2d/kernel", "conv2d/kernel"),
        ("base_model/conv2d_1/kernel", "conv2d_1/kernel"),
        ("base_model/batch_normalization_9/moving_mean", "batch_normalization_9/moving_mean"),
        ("head_contrastive/nl_1/dense/kernel", "nl_1/kernel"),
        ("head_contrastive/nl_0/batch_normalization/beta", "nl_0/beta"),
        ("head_supervised/linear_layer/dense/bias", "linear/bias"),
        ("head_supervised/linear_layer/dense/kernel", "linear/kernel"),
    ],
)
def test_missing_variable_is_named(golden_checkpoints, tmp_path, capsys, key, named):
    def change(entries):
        for name in (key, f"{key}/Momentum"):
            entries.pop(name, None)

    source = edited(tmp_path, golden_checkpoints / TF1, change)
    assert re.search(rf"(missing|lacks).*\b{named}\b", fails(capsys, source, tmp_path / "out"))


@pytest.mark.parametrize(
    "key",
    [
        "queue/buffer",
        "base_model/conv2d_21/kernel",
        "head_contrastive/nl_2/batch_normalization/beta",
        "head_supervised/other/dense/kernel",
        "elsewhere/kernel/Momentum",
    ],
)
def test_left_over_variable_is_named(golden_checkpoints, tmp_path, capsys, key):
    def change(entries):
        entries[key] = entries["head_contrastive/nl_2/batch_normalization/gamma"]

    source = edited(tmp_path, golden_checkpoints / TF1, change)
    line = fails(capsys, source, tmp_path / "out")
    assert f"1 left over ({key})" in line
    assert "--drop" in line
    pattern = key.replace(key.split("/")[0], "*", 1)
    assert run(source, tmp_path / "out", "--drop", pattern, "--selector=1") == 0
    assert meta_of(tmp_path / "out")["settings"]["dropped"]["named by --drop"] >= 1


def test_other_shape_is_named(golden_checkpoints, tmp_path, capsys):
    key = "base_model/batch_normalization_4/beta"

    def change(entries):
        entries[key] = entries[key]._replace(shape=(8, 8))

    source = edited(tmp_path, golden_checkpoints / TF1, change)
    line = fails(capsys, source, tmp_path / "out")
    assert key in line
    assert "(8, 8)" in line
    assert "(64,)" in line
