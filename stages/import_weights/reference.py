"""The authors' published checkpoints, as artifact folders that any stage starts from.

    python -m stages.import_weights r50_1x_sk0/model.ckpt-250228 runs/published/pretrain
    accelerate launch -m stages.finetune --finetune.init runs/published/pretrain

Read are TF1 checkpoints, TF2 training checkpoints and SavedModels: pretrained, fine-tuned,
supervised or distilled. TensorFlow is not needed, not even as an extra: `tf_checkpoint` beside this
file reads the files, whose formats are small and stable; so the import runs wherever torch does,
one tensor at a time. Every tensor is accounted for: placed, dropped for a reason that is printed,
or an error that names it.

The encoder alone, in timm (``import shared.networks.resnet`` makes the family known to it; up to
32 pixels it is built with ``small_stem=True``)::

    encoder = timm.create_model(meta["encoder"])
    tensors = load_file("runs/published/pretrain/model.safetensors")
    encoder.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor
                             in tensors.items() if name.startswith("encoder.")})
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import torch
from torch import nn

from shared.config.schema import Data, Model
from shared.networks.build import build_encoder, network_meta
from shared.networks.encoders import SMALL_IMAGE
from shared.networks.heads import Classifier, ContrastiveModel, ProjectionHead
from shared.networks.resnet import BLOCKS, SMALL_DEPTHS, SimCLRResNet, reference_names
from shared.runtime.artifacts import provenance, save_tensors, sha256, write_atomically
from shared.runtime.errors import UserError, exit_code_2
from stages.import_weights.tf_checkpoint import Checkpoint, Node, open_checkpoint, read_graphs

# What the formats call the variables of the trunk, the projection head and the linear layer:
# base_model/conv2d_3/kernel, resnet/block_group1/.../sync_batch_normalization_3/gamma;
# head_contrastive/nl_1/dense/kernel, projection_head/nl_1/.../sync_batch_normalization_22/gamma;
# head_supervised/linear_layer/dense_3/bias
TRUNK = r"(?:base_model|resnet(?:_\d+)?)/(?:.*/)?(?:sync_)?(conv2d|batch_normalization)(?:_(\d+))?/"
HEAD = r"(?:head_contrastive|projection_head(?:_\d+)?)/n?l_(\d+)/(?:.*/)?"
LINEAR = r"head_supervised(?:_\d+)?/linear_layer/dense(?:_\d+)?/"
LEAF = r"(kernel|bias|gamma|beta|moving_mean|moving_variance)$"
SLOTS = ("/Momentum", "/Adam", "/Adam_1")  # what TF1's optimizers append to a variable's name
COUNTERS = ("global_step", "save_counter", "beta1_power", "beta2_power")
HEAD_LEAVES = {
    "kernel": "dense.weight",
    "gamma": "norm.weight",
    "beta": "norm.bias",
    "moving_mean": "norm.running_mean",
    "moving_variance": "norm.running_var",
}
HINTS = """\
If the accuracy is lower than published, the cause is most often one of these:
  head layer     the linear layer belongs on another layer of the projection head: --selector
  class order    ImageNet's classes are counted in the order of their synset ids, n01440764 is 0;
                 --classes gives them the names that your images have
  preprocessing  RGB in [0, 1] without mean and deviation, the central 87.5%, bicubic without
                 antialiasing, the image size of training: --image-size"""


@dataclass
class Contents:
    """The variables of a checkpoint, sorted.

    Attributes:
        network: short name (``conv2d_3/kernel``, ``nl_0/gamma``, ``linear/bias``) -> key.
        dropped: reason -> keys.
        unknown: keys that are neither.
        trained: ``trunk``, ``linear`` and the numbers of the head's layers, where an optimizer has
            left its memory of them.
    """

    network: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    trained: set[str | int] = field(default_factory=set)


class Parts(NamedTuple):
    """The network that a checkpoint holds, as modules without storage."""

    name: str
    image_size: int
    encoder: SimCLRResNet
    head: ProjectionHead | None
    linear: nn.Linear | None


class LinearInput(NamedTuple):
    """From where a linear layer gets its features: after so many layers of the head."""

    layer: int
    fine_tuned: bool  # or only trained along with the pretraining, behind a stop_gradient
    because: str


def sort_variables(
    checkpoint: Checkpoint, average: bool = False, drop: Sequence[str] = ()
) -> Contents:
    """Tell weights from the memory of optimizers, and give the weights their short names.

    Args:
        checkpoint: opened.
        average: take the moving average of the weights (``ema_model/...``), which some published
            checkpoints hold beside the weights.
        drop: patterns of further variables to leave out.

    Raises:
        UserError: where no variable is SimCLR's, two have one name, or the average is not there.
    """
    contents, weights = Contents(), {}
    names = checkpoint.names
    averaged = {key for key, name in names.items() if name.startswith("ema_model/")}
    if average and not averaged:
        raise UserError(f"{checkpoint.prefix} holds no moving average (ema_model/...); omit --ema")
    for key, name in names.items():
        reason = None
        owner = next((name.removesuffix(slot) for slot in SLOTS if name.endswith(slot)), None)
        if any(fnmatchcase(text, pattern) for pattern in drop for text in (key, name)):
            reason = "named by --drop"
        elif key.split("/")[0] in COUNTERS:
            reason = "a counter"
        elif ".OPTIMIZER_SLOT/" in key or key.startswith("optimizer/") or owner in names:
            reason = "memory of the optimizer"
            contents.trained |= _part(name)
        elif key in averaged and not average:
            reason = "the moving average, which --ema takes"
        elif average and key not in averaged and not re.search(LINEAR, name):
            reason = "not the moving average"
        if reason:
            contents.dropped.setdefault(reason, []).append(key)
        else:
            weights[key] = name

    first = {"conv2d": 0, "batch_normalization": 0}
    if checkpoint.format.startswith("TF2"):  # Keras counts on over all models of a session
        trunk = [m for name in weights.values() if (m := re.search(TRUNK + LEAF, name))]
        for layer in first:
            first[layer] = min((int(m[2] or 0) for m in trunk if m[1] == layer), default=0)
    for key, name in weights.items():
        if match := re.search(TRUNK + LEAF, name):
            number = int(match[2] or 0) - first[match[1]]
            short = f"{match[1]}{f'_{number}' if number else ''}/{match[3]}"
        elif match := re.search(HEAD + LEAF, name):
            short = f"nl_{match[1]}/{match[2]}"
        elif match := re.search(LINEAR + LEAF, name):
            short = f"linear/{match[1]}"
        else:
            contents.unknown.append(key)
            continue
        if short in contents.network:
            raise UserError(f"{contents.network[short]} and {key} are both named {short}")
        contents.network[short] = key
    if not any(short.startswith("conv2d") for short in contents.network):
        raise UserError(
            f"{checkpoint.prefix} holds no SimCLR network: of its {len(names)} variables"
            f" ({_some(names.values())}) none is a convolution of base_model (TF1) or resnet (TF2)"
        )
    return contents


def _part(name: str) -> set[str | int]:
    """The part of the network that a variable's name speaks of, if any."""
    if match := re.search(HEAD, name):
        return {int(match[1])}
    if re.search(LINEAR, name):
        return {"linear"}
    return {"trunk"} if re.search(TRUNK, name) else set()


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (", ..." if len(ordered) > 3 else "")


def recognise_encoder(
    shapes: Mapping[str, tuple[int, ...]], pooled_shortcuts: bool = False
) -> tuple[str, bool]:
    """Which member of the family has these tensors.

    Args:
        shapes: short name -> shape in TensorFlow's order.
        pooled_shortcuts: whether the shortcuts are known to hold a pooling. Only for 18 and 34
            layers with the small stem does it tell what the tensors do not: selective kernels.

    Returns:
        The encoder's name, and whether it has the small-image stem.

    Raises:
        UserError: where it is none of them, or a tensor that decides is missing.
    """
    numbers = [int(m[1] or 0) for m in (re.match(r"conv2d(?:_(\d+))?/", s) for s in shapes) if m]

    def kernel(number: int) -> tuple[int, ...]:
        name = f"conv2d_{number}/kernel" if number else "conv2d/kernel"
        if len(shapes.get(name, ())) != 4:
            raise UserError(f"the checkpoint lacks {name}, or it is no convolution")
        return shapes[name]

    resnet_d = kernel(1)[0] == 3  # else it is the first block's 1x1 shortcut
    stem, base = (3, 2 * kernel(0)[3]) if resnet_d else (1, kernel(0)[3])
    small = not resnet_d and kernel(0)[0] == 3
    bottleneck = kernel(stem)[3] == 4 * base
    two_streams = bottleneck and kernel(stem + 2)[3] == 2 * base
    selective = resnet_d or two_streams or pooled_shortcuts
    excite = any(re.match(r"conv2d_\d+/bias", name) for name in shapes)
    per_block = 2 + bottleneck + 2 * two_streams + 2 * excite
    blocks = (max(numbers) + 1 - stem - 4) / per_block  # 4 shortcuts
    # the nearest depth: if a tensor is missing, it will be named
    depths = [d for d in BLOCKS if d not in SMALL_DEPTHS and (d >= 50) == bottleneck]
    depth = min(depths, key=lambda d: abs(sum(BLOCKS[d]) - blocks))
    if base not in (64, 128, 192, 256):
        raise UserError(
            f"the stem has {base} filters; the family has 64, 128, 192 or 256 (1x to 4x)"
        )
    name = f"simclr_resnet{depth}_{base // 64}x_sk{int(selective)}{'_se' if excite else ''}"
    return name, small


def recognise_head(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int | None, int]:
    """Number of layers, width of the middle ones and of the last one of the projection head.

    Raises:
        UserError: where a dense kernel is missing.
    """
    numbers = {int(m[1]) for m in (re.match(r"nl_(\d+)/", short) for short in shapes) if m}
    layers = max(numbers, default=-1) + 1
    kernels = [shapes.get(f"nl_{j}/kernel", ()) for j in range(layers)]
    for j, kernel in enumerate(kernels):
        if len(kernel) != 2:
            raise UserError(f"the checkpoint lacks nl_{j}/kernel of the projection head")
    return layers, kernels[0][1] if layers > 1 else None, kernels[-1][1] if layers else 0


def trace_linear_input(graphs: Iterable[Mapping[str, Node]], because: str) -> LinearInput | None:
    """Follow a computation graph back from the linear layer; None where it has none."""
    for graph in graphs:
        linear = [n for n in graph if re.search(LINEAR + "MatMul$", n) and graph[n].op == "MatMul"]
        if not linear:
            continue
        start = graph[linear[0]].inputs[0]
        fine_tuned, at = True, start
        while at in graph and graph[at].op in ("Identity", "StopGradient"):
            fine_tuned &= graph[at].op != "StopGradient"
            at = graph[at].inputs[0]
        seen, ahead = {start}, [start]
        while ahead:
            new = {i for i in getattr(graph.get(ahead.pop()), "inputs", ())} - seen
            seen |= new
            ahead += new
        below = {m[1] for m in (re.search(HEAD + "MatMul$", name) for name in seen) if m}
        return LinearInput(len(below), fine_tuned, because)
    return None


def find_linear_input(
    checkpoint: Checkpoint, contents: Contents, parts: Parts, selector: int | None = None
) -> LinearInput:
    """After which layer of the head the linear layer stands; the weights alone do not say it.

    The computation graph says it, where it is there. Else the memory of the optimizer says what
    was trained: everything in pretraining; in fine-tuning with LARS under TF2 those layers of the
    head that are below the linear one; in fine-tuning under TF1 none of them. That last case is
    settled by habit: 1 as in the paper for 1% and 10% of the labels (0 for 100%), and 0 for a
    network trained from scratch, whose head has never moved.

    Args:
        checkpoint: opened.
        contents: of it.
        parts: of it, with a linear layer.
        selector: the answer, where it is known; as the reference's ``ft_proj_selector``.

    Raises:
        UserError: where no layer, or not the given one, has the width that is needed.
    """
    assert parts.linear
    needed = parts.linear.in_features
    widths = parts.head.widths if parts.head else [parts.encoder.num_features]
    layers = len(widths) - 1
    fits = [layer for layer, width in enumerate(widths) if width == needed]
    wanted = layers if selector == -1 else selector
    if not fits or (wanted is not None and wanted not in fits):
        raise UserError(
            f"the linear layer takes {needed} features; the encoder and the layers of its head give"
            f" {', '.join(map(str, widths))}, which leaves for --selector: {fits or 'nothing'}"
        )
    file = checkpoint.graph_file
    traced = trace_linear_input(read_graphs(file), f"so says {file.name}") if file else None
    trained = len([part for part in contents.trained if isinstance(part, int)])
    if wanted is not None:
        found = LinearInput(wanted, True, "--selector")
    elif traced:
        found = traced
    elif not layers:
        found = LinearInput(0, True, "there is no head")
    elif not contents.trained or ("trunk" in contents.trained and trained == layers):
        found = LinearInput(0, False, "the reference's default in pretraining")
    elif "trunk" not in contents.trained and trained in (0, layers):
        found = LinearInput(0, True, "linear evaluation: the trunk was frozen")
    elif trained or checkpoint.format.startswith("TF2"):
        found = LinearInput(trained, True, "the optimizer trained the layers below it")
    elif (checkpoint.read(contents.network["nl_0/gamma"]) == 1).all():
        found = LinearInput(0, True, "the head was never trained")
    else:
        found = LinearInput(
            1,
            True,
            "a guess: TF1 checkpoints do not say it; the paper takes 1 for"
            " 1% and 10% of the labels, 0 for 100%: --selector 0",
        )
    if len(fits) > 1 and found.layer in fits:
        return found
    return LinearInput(fits[0], found.fine_tuned, "the one that fits")


def recognise(checkpoint: Checkpoint, contents: Contents, image_size: int | None = None) -> Parts:
    """The network that has these variables, all of them and no other.

    Args:
        checkpoint: opened.
        contents: of it.
        image_size: pixels per side; None is 224, or 32 for the small-image stem.

    Raises:
        UserError: where there is none, naming what is missing, left over or of another shape.
    """
    shapes = {short: checkpoint.entries[key].shape for short, key in contents.network.items()}
    lists = [children.get("shortcut_layers") for children in checkpoint.objects]
    pooled = any(len(checkpoint.objects[n]) > 2 for n in lists if n is not None)  # not conv, norm
    name, small = recognise_encoder(shapes, pooled)
    layers, width, out = recognise_head(shapes)
    image_size = image_size or (SMALL_IMAGE if small else 224)
    if image_size < 4 or small != (image_size <= SMALL_IMAGE):
        allowed = f"4 to {SMALL_IMAGE}" if small else f"more than {SMALL_IMAGE}"
        raise UserError(f"--image-size {image_size}: the stem is that for {allowed} pixels")
    with torch.device("meta"):  # no storage: the network takes the tensors as they are read
        encoder = cast(SimCLRResNet, build_encoder(name, image_size))
        head = ProjectionHead(encoder.num_features, layers, out, width) if layers else None
        linear = None
        if any(short.startswith("linear/") for short in shapes):
            kernel = shapes.get("linear/kernel", ())
            linear = nn.Linear(*kernel) if len(kernel) == 2 else nn.Linear(1, 1)
    parts = Parts(name, image_size, encoder, head, linear)

    expected = expected_tensors(parts)
    missing = expected.keys() - shapes.keys()
    left = [contents.network[short] for short in shapes.keys() - expected.keys()] + contents.unknown
    if missing or left:
        faults = [f"{len(missing)} missing ({_some(missing)})"] if missing else []
        faults += [f"{len(left)} left over ({_some(left)})"] if left else []
        advice = "; give --drop PATTERN for what is no part of the network" if left else ""
        raise UserError(f"the variables are not those of {name}: {', '.join(faults)}{advice}")
    for short, (_, shape) in expected.items():
        if shapes[short] != _tensorflow_order(shape):
            raise UserError(
                f"{contents.network[short]} has shape {shapes[short]}; in {name} it is"
                f" {_tensorflow_order(shape)}"
            )
    return parts


def expected_tensors(parts: Parts) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Short name -> name and shape in a classifier that keeps the whole head."""
    whole = nn.ModuleDict({"encoder": parts.encoder})
    names = {short: f"encoder.{name}" for short, name in reference_names(parts.encoder).items()}
    if parts.head:
        whole["layers"] = parts.head.layers
        names |= {
            f"nl_{j}/{leaf}": f"layers.{j}.{name}"
            for j in range(len(parts.head.layers))
            for leaf, name in HEAD_LEAVES.items()
        }
    if parts.linear:
        whole["linear"] = parts.linear
        names |= {"linear/kernel": "linear.weight", "linear/bias": "linear.bias"}
    state = whole.state_dict()  # the head's last layer has no beta
    return {short: (n, tuple(state[n].shape)) for short, n in names.items() if n in state}


def _tensorflow_order(shape: tuple[int, ...]) -> tuple[int, ...]:
    """OIHW -> HWIO, (out, in) -> (in, out)."""
    return tuple(shape[i] for i in (2, 3, 1, 0)) if len(shape) == 4 else shape[::-1]


def fill(
    model: nn.Module, checkpoint: Checkpoint, network: Mapping[str, str], parts: Parts
) -> list[str]:
    """Read the model's tensors, one after another; returns the keys that it has no use for."""
    state, unused = model.state_dict(), []
    for short, (name, _) in expected_tensors(parts).items():
        name = name if name in state else f"head.{name}"  # as a ContrastiveModel calls it
        if name not in state:
            unused.append(network[short])
            continue
        tensor = torch.from_numpy(checkpoint.read(network[short]))
        if tensor.ndim == 4:
            tensor = tensor.permute(3, 2, 0, 1)  # HWIO -> OIHW
        elif tensor.ndim == 2:
            tensor = tensor.T  # (in, out) -> (out, in)
        state[name] = tensor.contiguous()
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):  # torch's own, without effect
            state[name] = torch.zeros_like(tensor, device="cpu")
    model.load_state_dict(state, assign=True)
    return unused


def import_checkpoint(
    source: Path,
    out: Path,
    kind: str | None = None,
    selector: int | None = None,
    image_size: int | None = None,
    classes: Sequence[str] | None = None,
    average: bool = False,
    drop: Sequence[str] = (),
) -> list[str]:
    """Make an artifact folder of a checkpoint.

    Args:
        source: the folder of a checkpoint, its prefix, one of its files, or a SavedModel's folder.
        out: folder of the artifact.
        kind: ``encoder`` (with its projection head) or ``classifier``; None: what it was trained
            for.
        selector: after how many layers of the head the linear layer stands; None finds out.
        image_size: pixels per side; None is 224, or 32 for the small-image stem.
        classes: their names; None counts them.
        average: take the moving average of the weights.
        drop: patterns of variables to leave out.

    Returns:
        What was done, line by line.

    Raises:
        UserError: where the checkpoint is unreadable or not wholly understood, its network yields
            no numbers, or ``out`` holds an artifact.
    """
    if (out / "meta.json").exists() or (out / "settings.json").exists():
        raise UserError(f"{out} holds an artifact; delete it or choose another folder")
    checkpoint = open_checkpoint(source)
    contents = sort_variables(checkpoint, average, drop)
    parts = recognise(checkpoint, contents, image_size)
    found = find_linear_input(checkpoint, contents, parts, selector) if parts.linear else None
    kind = kind or ("classifier" if found and found.fine_tuned else "encoder")
    if kind == "encoder" and parts.head:
        model = ContrastiveModel(parts.encoder, parts.head)
        more: dict[str, Any] = {"images": None}
        unused = "linear layer; --as classifier takes it"
    elif kind == "classifier" and parts.linear and found:
        count = parts.linear.out_features
        names = [str(number) for number in range(count)] if classes is None else list(classes)
        if len(names) != count:
            raise UserError(f"--classes names {len(names)} classes, the linear layer has {count}")
        with torch.device("meta"):
            model = Classifier(parts.encoder, count, parts.head, found.layer)
        labels = {"given": "unknown", "hash": None, "number": 0}
        more = {"classes": names, "from_layer": found.layer, "labels": labels}
        unused = "head above the linear layer; --as encoder takes it"
    else:
        part = "projection head" if kind == "encoder" else "linear layer"
        raise UserError(f"{source} holds no {part}, so it makes no {kind}: see --as")
    if keys := fill(model, checkpoint, contents.network, parts):
        contents.dropped[unused] = keys
    check_output(model, parts.image_size)

    total = len(checkpoint.entries)
    dropped = {reason: len(keys) for reason, keys in contents.dropped.items()}
    placed = total - sum(dropped.values())
    meta = {
        "kind": kind,
        "stage": "import",
        **network_meta(Model(encoder=parts.name), Data(image_size=parts.image_size)),
        "head": describe_head(parts.head),
        **more,
        "seed": None,
        "seconds": 0.0,
        "settings": {
            "stage": "import",
            "source": checkpoint.prefix.name,
            "format": checkpoint.format,
            "variables": total,
            "placed": placed,
            "dropped": dropped,
        },
    }
    write_artifact(out, model, meta)

    lines = [
        f"{checkpoint.prefix}: {checkpoint.format}, {total} variables: {placed} placed",
        *(f"  {number} dropped: {reason}" for reason, number in dropped.items()),
        f"{out}: {kind}, images of {parts.image_size} pixels",
        f"  encoder {parts.name}: {_size(parts.encoder)} parameters",
    ]
    if parts.head:
        lines.append(
            f"  projection head {' -> '.join(map(str, parts.head.widths))}:"
            f" {_size(parts.head)} parameters"
        )
    if parts.linear and found:
        lines.append(
            f"  linear layer {parts.linear.in_features} -> {parts.linear.out_features}:"
            f" {_size(parts.linear)} parameters, after layer {found.layer} of the head"
            f" ({found.because})"
        )
    if parts.linear and parts.linear.out_features == 1001:
        lines.append("  1001 classes: ImageNet's, with class 0 for the background")
    return [*lines, "  self-check: the output for a random image is finite", HINTS]


def _size(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()):,}"


def describe_head(head: ProjectionHead | None) -> dict[str, int | None]:
    """What ``meta.json`` says of it; 0 layers for none."""
    if head is None:
        return {"layers": 0, "width": None, "out": None}
    layers = len(head.layers)
    return {
        "layers": layers,
        "width": head.widths[1] if layers > 1 else None,
        "out": head.widths[-1],
    }


@torch.inference_mode()
def check_output(model: nn.Module, image_size: int) -> None:
    """UserError where the network makes something else than numbers of a random image."""
    image = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    if not model.eval()(image).isfinite().all():
        raise UserError(
            "self-check failed: the network's output is not finite; are these weights"
            " of a run that diverged?"
        )


def write_artifact(out: Path, model: nn.Module, meta: Mapping[str, Any]) -> None:
    """Weights, then ``meta.json``: the artifact is finished (as ``StageFolder.finish`` does)."""
    weights = out / "model.safetensors"
    save_tensors(weights, model.state_dict(), {})
    complete = {**meta, "weights_sha256": sha256(weights), **provenance()}
    write_atomically(out / "meta.json", json.dumps(complete, indent=1))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m stages.import_weights",
        description="Turn a published SimCLR checkpoint of TensorFlow into an artifact folder that"
        " the stages and timm start from. TensorFlow is not needed.",
        epilog="With 18 and 34 layers, selective kernels for images of at most 32 pixels leave no"
        " trace in the variables: a TF1 checkpoint is taken to have none.",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="folder or prefix of a checkpoint, or folder of a SavedModel")
    add("out", type=Path, help="folder to make")
    add(
        "--as",
        dest="kind",
        choices=("encoder", "classifier"),
        help="encoder: with the whole projection head, for stages.finetune; classifier: with the"
        " linear layer and the head's layers below it, for stages.distill. Default: classifier for"
        " what was fine-tuned, distilled or trained with labels; encoder for what was pretrained,"
        " which often holds a linear layer too, and where nothing tells",
    )
    add(
        "--selector",
        type=int,
        metavar="LAYER",
        help="after how many layers of the head the linear layer stands (the reference's"
        " ft_proj_selector; -1: all). No checkpoint stores it. Default: what the computation graph"
        " beside the weights says (saved_model.pb, .meta); else what the optimizer has trained;"
        " else 1 for fine-tuned networks, 0 for others",
    )
    add(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="of training; not stored. Default: 224, or 32 for the small-image stem",
    )
    add(
        "--classes",
        type=Path,
        metavar="FILE",
        help="names of the classes, one a line, as your data set has them; default: 0, 1, ..."
        " ImageNet's 1000 are in the order of their synset ids; of 1001 the first is the"
        " background",
    )
    add(
        "--ema",
        action="store_true",
        help="take the moving average (ema_model/...) where there are both",
    )
    add(
        "--drop",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out the variables of this name, such as 'queue/*'",
    )
    return parser


@exit_code_2
def main(argv: Sequence[str] | None = None) -> int:
    """Import one checkpoint: 0, or 2 after one line that says what is wrong."""
    given = _parser().parse_args(argv)
    classes = None
    if given.classes:
        try:
            classes = given.classes.read_text().split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read --classes {given.classes}: {error}") from error
        classes = [name.strip() for name in classes if name.strip()]
    lines = import_checkpoint(
        given.checkpoint,
        given.out,
        given.kind,
        given.selector,
        given.image_size,
        classes,
        given.ema,
        given.drop,
    )
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
