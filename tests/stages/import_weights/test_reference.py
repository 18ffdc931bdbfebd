"""The authors' checkpoints, real ones and ones made on the spot, into artifacts."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from shared.networks.build import load_classifier, load_contrastive
from shared.networks.resnet import reference_names
from shared.runtime.tensors import sha256
from stages import distill, finetune
from stages.import_weights.recognise import HEAD_LEAVES
from stages.import_weights.tf_checkpoint import Entry, files_of, open_checkpoint
from tests.support import golden
from tests.support.imported import edited, fails, meta_of, run, tensorflow_shapes
from tests.support.tensorflow_files import (
    SAVED,
    TF1,
    TF2,
    object_graph,
    rewrite,
    write_tensors,
)

TOLERANCE = 1e-4


def as_images(array: np.ndarray) -> torch.Tensor:
    """(B, S, S, 3 or 6) -> (B or 2B, 3, S, S), all first views before all second views."""
    views = [array[..., c : c + 3] for c in range(0, array.shape[-1], 3)]
    return torch.from_numpy(np.concatenate(views)).permute(0, 3, 1, 2)


@torch.no_grad()
def assert_head(out: Path, arrays, key: str) -> None:
    """The encoder artifact gives the recorded outputs of every layer of the head."""
    model, _ = load_contrastive(out)
    outputs = model.eval().head(model.encoder(as_images(arrays["input"])))
    assert len(outputs) == 4
    for k, output in enumerate(outputs):
        expected = arrays[key.format(k)]
        np.testing.assert_allclose(output[: len(expected)], expected, atol=TOLERANCE)
    if "eval/projection" in arrays:
        np.testing.assert_allclose(outputs[-1], arrays["eval/projection"], atol=TOLERANCE)


@torch.no_grad()
def assert_logits(out: Path, arrays) -> None:
    model, meta = load_classifier(out)
    logits = model.eval()(as_images(arrays["input"]))
    assert len(meta["classes"]) == 10
    np.testing.assert_allclose(logits, arrays["eval/logits"], atol=TOLERANCE)


# The recorded checkpoints.


def test_tf1_fine_tuned(golden_checkpoints, tmp_path, capsys):
    arrays, _ = golden.load(f"checkpoints/{TF1}.npz")
    assert run(golden_checkpoints / TF1, tmp_path / "a", "--selector=1") == 0
    meta = meta_of(tmp_path / "a")
    assert (meta["kind"], meta["from_layer"]) == ("classifier", 1)
    assert meta["encoder"] == "simclr_resnet18_1x_sk0"
    assert meta["head"] == {"layers": 3, "width": 512, "out": 128}
    assert (meta["image_size"], meta["mean"], meta["std"]) == (32, [0.0] * 3, [1.0] * 3)
    account = meta["settings"]
    assert account["variables"] == len(arrays["ckpt/keys"]) == 187
    assert account["placed"] + sum(account["dropped"].values()) == 187
    assert account["dropped"]["memory of the optimizer"] == 65
    printed = capsys.readouterr().out
    assert "11,173,056 parameters" in printed
    assert "after layer 1 of the head (--selector)" in printed
    for cause in ("head layer", "class order", "preprocessing"):
        assert cause in printed
    assert_logits(tmp_path / "a", arrays)

    assert run(golden_checkpoints / TF1, tmp_path / "b", "--as=encoder") == 0
    assert_head(tmp_path / "b", arrays, "eval/hiddens_list_{}")


@pytest.mark.parametrize("tag", [TF2, SAVED])
def test_tf2_pretrained(golden_checkpoints, tmp_path, tag):
    arrays, _ = golden.load(f"checkpoints/{TF2}.npz")
    assert run(golden_checkpoints / tag, tmp_path / "a") == 0
    assert meta_of(tmp_path / "a")["kind"] == "encoder"
    assert_head(tmp_path / "a", arrays, "eval/hiddens_list_{}_view1")
    assert run(golden_checkpoints / tag, tmp_path / "b", "--as=classifier") == 0
    assert meta_of(tmp_path / "b")["from_layer"] == 0
    assert_logits(tmp_path / "b", arrays)


def test_no_head_layer_is_wrong_unnoticed(golden_checkpoints, tmp_path):
    """With the layer that another flag chose, the logits differ: the tests above can fail."""
    arrays, _ = golden.load(f"checkpoints/{TF1}.npz")
    assert run(golden_checkpoints / TF1, tmp_path / "a", "--selector=0") == 0
    with pytest.raises(AssertionError):
        assert_logits(tmp_path / "a", arrays)


# Other architectures, made on the spot.


def reference_variables(variant: str) -> tuple[list[str], list[list[int]], dict, dict]:
    arrays, meta = golden.load(f"resnet/{variant}.npz")
    shapes = [json.loads(shape) for shape in arrays["var_shapes"].tolist()]
    return arrays["var_names"].tolist(), shapes, arrays, meta


@pytest.mark.parametrize(
    ("variant", "form"),
    [
        ("r18_w1_cifar32_localbn", "TF2"),
        ("r50_w1_sk1_64", "TF2"),
        pytest.param("r50_w1_se0.25_64", "TF1", marks=pytest.mark.slow),
        pytest.param("r50_w1_sk1_cifar32", "TF1", marks=pytest.mark.slow),
        pytest.param("r50_w2_sk0_64", "TF2", marks=pytest.mark.slow),
    ],
)
def test_trunk_gives_the_recorded_features(tmp_path, variant, form):
    """The recorded trunk with a projection head of two layers; Keras began to count elsewhere."""
    names, shapes, arrays, meta = reference_variables(variant)
    width = arrays["eval/final_avg_pool"].shape[1]
    keys = {name: name for name in names}
    if form == "TF1":
        keys = {n: "base_model/" + "/".join(n.split("/")[-2:]).replace("sync_", "") for n in names}
    values = {keys[n]: golden.weight(n, s) for n, s in zip(names, shapes, strict=True)}
    head = "head_contrastive" if form == "TF1" else "projection_head"
    for j, out in enumerate((width, 8)):
        values[f"{head}/nl_{j}/dense/kernel"] = golden.weight(f"{j}/kernel", (width, out))
        for leaf in ("gamma", "beta", "moving_mean", "moving_variance"):
            if (j, leaf) != (1, "beta"):
                name = f"{head}/nl_{j}/batch_normalization/{leaf}"
                values[name] = golden.weight(f"{j}/{leaf}", (out,))
    graph = None
    if form == "TF2":

        def shift(name: str) -> str:
            count = lambda m: f"{m[1]}_{int(m[2] or 0) + 7}/"  # noqa: E731
            return re.sub(r"(conv2d|batch_normalization)(?:_(\d+))?/(?=\w+$)", count, name)

        named = {f"model/{i}/.ATTRIBUTES/VARIABLE_VALUE": n for i, n in enumerate(values)}
        graph = object_graph({key: shift(name) for key, name in named.items()})
        values = {key: values[name] for key, name in named.items()}
    prefix = write_tensors(tmp_path / "ckpt", values.items(), graph)

    size = [] if meta["cifar_stem"] else ["--image-size=64"]
    assert run(prefix, tmp_path / "out", *size) == 0
    model, described = load_contrastive(tmp_path / "out")
    expected = f"simclr_resnet{meta['depth']}_{meta['width']}x_sk{int(meta['sk'] > 0)}"
    assert described["encoder"] == expected + ("_se" if meta["se"] else "")
    assert described["head"] == {"layers": 2, "width": width, "out": 8}
    x = golden.image(f"resnet/{variant}/input", meta["batch"], meta["size"], meta["size"])
    with torch.no_grad():
        features = model.eval().encoder(as_images(x))
    recorded = arrays["eval/final_avg_pool"]
    np.testing.assert_allclose(features, recorded, atol=1e-5 * np.abs(recorded).max())


@pytest.mark.slow
def test_the_largest_published_network(tmp_path):
    """152 layers, 3x, selective kernels: every tensor in its place, in less than 16 GB."""
    with torch.device("meta"):
        encoder = timm.create_model("simclr_resnet152_3x_sk1")
    shapes = {f"base_model/{n}": s for n, s in tensorflow_shapes(encoder).items()}
    width = encoder.num_features
    for j, out in enumerate((width, width, 128)):
        scope = f"head_contrastive/nl_{j}"
        shapes[f"{scope}/dense/kernel"] = (width, out)
        for leaf in ("gamma", "beta", "moving_mean", "moving_variance"):
            if (j, leaf) != (2, "beta"):
                shapes[f"{scope}/batch_normalization/{leaf}"] = (out,)
    shapes["head_supervised/linear_layer/dense/kernel"] = (width, 1000)
    shapes["head_supervised/linear_layer/dense/bias"] = (1000,)
    weights = ((name, golden.weight_tiled(name, shape)) for name, shape in shapes.items())
    prefix = write_tensors(tmp_path / "model.ckpt-1", weights)

    program = (
        "import resource, sys, time; from stages.import_weights import command;"
        " start = time.time();"
        " assert command.main(sys.argv[1:]) == 0;"
        " print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.time() - start)"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", program, str(prefix), str(out)]
    result = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    kilobytes, seconds = map(float, result.stdout.split()[-2:])
    print(f"peak {kilobytes / 1e6:.1f} GB, {seconds:.0f} s")
    assert kilobytes < 16e6
    assert "794,704,160 parameters" in result.stdout
    assert meta_of(out)["encoder"] == "simclr_resnet152_3x_sk1"

    placed = {f"base_model/{n}": f"encoder.{o}" for n, o in reference_names(encoder).items()}
    for j in range(3):
        scope = f"head_contrastive/nl_{j}"
        placed[f"{scope}/dense/kernel"] = f"head.layers.{j}.dense.weight"
        for leaf, ours in HEAD_LEAVES.items():
            if f"{scope}/batch_normalization/{leaf}" in shapes:
                placed[f"{scope}/batch_normalization/{leaf}"] = f"head.layers.{j}.{ours}"
    with safe_open(out / "model.safetensors", "np") as file:
        stored = set(file.keys())
        counts = {name for name in stored if name.endswith("num_batches_tracked")}
        assert stored - counts == set(placed.values())
        for name, ours in placed.items():
            expected = golden.weight_tiled(name, shapes[name])
            if expected.ndim == 4:
                expected = expected.transpose(3, 2, 0, 1)
            np.testing.assert_array_equal(
                file.get_tensor(ours), expected.T if expected.ndim == 2 else expected
            )


def test_without_a_projection_head(golden_checkpoints, tmp_path, capsys):
    """As the checkpoints of SimCLR's first version."""

    def change(entries):
        for key in [key for key in entries if key.startswith("head_contrastive")]:
            del entries[key]

    source = edited(tmp_path, golden_checkpoints / TF1, change)
    assert run(source, tmp_path / "out") == 0
    model, meta = load_classifier(tmp_path / "out")
    assert meta["from_layer"] == meta["head"]["layers"] == 0
    arrays, _ = golden.load(f"checkpoints/{TF1}.npz")
    with torch.no_grad():
        features = model.eval().features(as_images(arrays["input"]))
    np.testing.assert_allclose(features, arrays["eval/final_avg_pool"], atol=TOLERANCE)
    capsys.readouterr()
    assert "no projection head" in fails(capsys, source, tmp_path / "b", "--as=encoder")


def test_without_a_linear_layer(golden_checkpoints, tmp_path, capsys):
    """As TF1's pretraining leaves it; its linear head mode calls the only layer l_0."""

    def change(entries):
        for key in [key for key in entries if key.startswith("head_")]:
            entry = entries.pop(key)
            if "nl_2" in key:
                entries[key.replace("nl_2", "l_0")] = entry

    source = edited(tmp_path, golden_checkpoints / TF1, change)
    assert run(source, tmp_path / "out") == 0
    meta = meta_of(tmp_path / "out")
    assert (meta["kind"], meta["head"]) == ("encoder", {"layers": 1, "width": None, "out": 128})
    load_contrastive(tmp_path / "out")
    capsys.readouterr()
    assert "no linear layer" in fails(capsys, source, tmp_path / "b", "--as=classifier")


# What is refused, in one line that names it.


def test_foreign_files(golden_checkpoints, tmp_path, capsys):
    out = tmp_path / "out"
    entries = open_checkpoint(golden_checkpoints / TF1).entries
    foreign = {f"bert/{i}/kernel": e for i, e in enumerate(entries.values()) if e.dtype == 1}
    (tmp_path / "bert").mkdir()
    source = rewrite(tmp_path / "bert", golden_checkpoints / TF1, foreign)
    assert "no SimCLR network" in fails(capsys, source, out)

    assert "no such checkpoint" in fails(capsys, tmp_path / "nothing", out)
    (tmp_path / "model.pth").write_bytes(b"PK" + bytes(100))
    assert "no TensorFlow checkpoint" in fails(capsys, tmp_path / "model.pth", out)
    (tmp_path / "empty").mkdir()
    assert "0 checkpoints" in fails(capsys, tmp_path / "empty", out)
    for step in (1, 2):
        (tmp_path / f"empty/model.ckpt-{step}.index").write_bytes(b"")
    line = fails(capsys, tmp_path / "empty", out)
    assert "model.ckpt-1, model.ckpt-2" in line
    assert "truncated" in fails(capsys, tmp_path / "empty/model.ckpt-1", out)


def test_truncated_and_damaged_files(golden_checkpoints, tmp_path, capsys):
    out = tmp_path / "out"
    original = golden_checkpoints / TF1 / "model.ckpt-1000"
    index = original.with_name("model.ckpt-1000.index").read_bytes()
    file = original.with_name("model.ckpt-1000.data-00000-of-00001")
    prefix, data = tmp_path / "ckpt", tmp_path / "ckpt.data-00000-of-00001"

    (tmp_path / "ckpt.index").write_bytes(index)
    assert "ckpt.data-00000-of-00001 is missing" in fails(capsys, prefix, out)
    content = bytearray(file.read_bytes())
    data.write_bytes(content[:-1])
    line = fails(capsys, prefix, out, "--selector=1")
    assert "truncated: 91,841,623 of 91,841,624 bytes" in line
    entry = open_checkpoint(original).entries["base_model/conv2d_12/kernel"]
    content[entry.offset + 1000] ^= 1
    data.write_bytes(content)
    assert "base_model/conv2d_12/kernel in" in fails(capsys, prefix, out, "--selector=1")
    content[entry.offset + 1000] ^= 1
    data.write_bytes(content)
    for damaged in (index[:-1], index[:1000], index[:100] + b"x" + index[101:]):
        (tmp_path / "ckpt.index").write_bytes(damaged)
        assert "ckpt.index is truncated" in fails(capsys, prefix, out)
    (tmp_path / "ckpt.index").write_bytes(index)
    assert run(prefix, out, "--selector=1") == 0


def test_a_counter_of_a_sparse_terabyte_is_not_hashed(golden_checkpoints, tmp_path, capsys):
    """It is dropped, but all that a checkpoint holds is hashed."""
    checkpoint = open_checkpoint(golden_checkpoints / TF1)
    end = max(entry.offset + entry.size for entry in checkpoint.entries.values())
    entries = dict(checkpoint.entries)
    entries["global_step"] = Entry(9, (2**30, 2**7), 0, end, 2**40, 0)
    prefix = rewrite(tmp_path, golden_checkpoints / TF1, entries)
    data = tmp_path / "ckpt.data-00000-of-00001"
    shutil.copy(data.readlink(), tmp_path / "copy")
    (tmp_path / "copy").replace(data)
    os.truncate(data, end + 2**40)
    line = fails(capsys, prefix, tmp_path / "out", "--selector=1")
    assert "more than 8 times as many as those of simclr_resnet18_1x_sk0" in line


def test_damaged_object_graph(golden_checkpoints, tmp_path, capsys):
    checkpoint = open_checkpoint(golden_checkpoints / TF2)
    source = rewrite(tmp_path, golden_checkpoints / TF2, checkpoint.entries)
    shard = tmp_path / "ckpt.data-00001-of-00002"
    content = bytearray(shard.read_bytes())
    content[500] ^= 4
    shard.write_bytes(content)
    assert "ckpt.data-00001-of-00002 is truncated, damaged" in fails(capsys, source, tmp_path / "o")


# Where it goes on from here.


@pytest.fixture(scope="module")
def imported(golden_checkpoints, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    assert run(golden_checkpoints / TF2, folder / "encoder") == 0
    assert run(golden_checkpoints / TF1, folder / "classifier", "--selector=1") == 0
    yield folder
    shutil.rmtree(folder)


def test_stages_start_from_it(imported, tmp_path):
    few = [
        f"--output={tmp_path}",
        "--data.image_size=32",
        "--data.test_fraction=0.01",
        "--labels=1perclass",
        "--precision=no",
        "--threads=1",
    ]
    tune = [
        f"--finetune.init={imported / 'encoder'}",
        "--finetune.steps=2",
        "--finetune.batch_size=2",
        "--finetune.from_layer=1",
        "--finetune.linear_init=zero",
    ]
    assert finetune.main([*few, *tune]) == 0
    tuned = meta_of(tmp_path / "digits/finetune-1perclass-seed0")
    assert tuned["settings"]["parent"] == meta_of(imported / "encoder")["weights_sha256"]
    teach = [
        f"--distill.teacher={imported / 'classifier'}",
        "--distill.steps=2",
        "--distill.batch_size=4",
        "--distill.warmup_epochs=0",
    ]
    assert distill.main([*few, *teach]) == 0
    taught = meta_of(tmp_path / "digits/distill-1perclass-seed0")
    assert taught["settings"]["parent"] == meta_of(imported / "classifier")["weights_sha256"]


def test_timm_starts_from_it(imported):
    """The lines of the module's description."""
    meta, path = meta_of(imported / "encoder"), imported / "encoder/model.safetensors"
    encoder = timm.create_model(meta["encoder"], small_stem=True)
    tensors = load_file(path)
    encoder.load_state_dict(
        {
            name.removeprefix("encoder."): tensor
            for name, tensor in tensors.items()
            if name.startswith("encoder.")
        }
    )
    arrays, _ = golden.load(f"checkpoints/{TF2}.npz")
    with torch.no_grad():
        features = encoder.eval()(as_images(arrays["input"]))[:2]
    np.testing.assert_allclose(features, arrays["eval/final_avg_pool_view1"], atol=TOLERANCE)


def test_every_file_of_a_checkpoint_has_an_expected_hash(tmp_path, capsys, golden_checkpoints):
    prefix = golden_checkpoints / TF2
    digests = [sha256(file) for file in files_of(prefix)]
    error = fails(capsys, prefix, tmp_path / "a", "--expect", digests[0])
    assert digests[1] in error
    flags = [flag for digest in digests for flag in ("--expect", digest)]
    assert run(prefix, tmp_path / "b", *flags) == 0
    out = capsys.readouterr().out
    assert all(digest in out for digest in digests)
