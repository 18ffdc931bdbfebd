"""The authors' published checkpoints, as artifact folders that any stage starts from.

    python -m stages.import_weights r50_1x_sk0/model.ckpt-250228 runs/published/pretrain
    accelerate launch -m stages.finetune --finetune.init runs/published/pretrain

This reads TF1 checkpoints, TF2 training checkpoints and SavedModels of networks that were
pretrained, fine-tuned, supervised or distilled. It does not need TensorFlow: `tf_checkpoint` beside
this file reads the files, whose formats are small and stable. So the import runs wherever torch
does. It holds one tensor at a time besides the network. It accounts for every tensor: it places the
tensor, or drops it for a reason that it prints, or stops with an error that names the tensor.

timm takes the encoder alone. ``import shared.networks.resnet`` registers the family with timm; an
encoder for images of at most 32 pixels needs ``small_stem=True``::

    encoder = timm.create_model(meta["encoder"])
    tensors = load_file("runs/published/pretrain/model.safetensors")
    encoder.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor
                             in tensors.items() if name.startswith("encoder.")})
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from shared.config.schema import Data, Model
from shared.networks.build import build_encoder, network_meta
from shared.networks.encoders import SMALL_IMAGE
from shared.networks.heads import Classifier, ContrastiveModel, ProjectionHead
from shared.networks.resnet import BLOCKS, SMALL_DEPTHS, SimCLRResNet, reference_names
from shared.runtime.artifacts import provenance, save_tensors, sha256, write_atomically
from shared.runtime.errors import CommandParser, UserError, exit_code_2
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
OPTIMIZER_MEMORY = "memory of the optimizer"
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
    """After how many layers of the head a linear layer stands, and why we think so."""

    layer: int
    fine_tuned: bool  # False: trained along with the pretraining, behind a stop_gradient
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
    if average and not any(_is_average(name) for name in names.values()):
        raise UserError(f"{checkpoint.prefix} holds no moving average (ema_model/...); omit --ema")
    for key, name in names.items():
        reason = _reason_to_drop(key, checkpoint, average, drop)
        if reason == OPTIMIZER_MEMORY:
            contents.trained |= _part(name)
        if reason:
            contents.dropped.setdefault(reason, []).append(key)
        else:
            weights[key] = name

    first_numbers = _first_numbers(checkpoint, weights.values())
    for key, name in weights.items():
        short = _short_name(name, first_numbers)
        if short is None:
            contents.unknown.append(key)
            continue
        if short in contents.network:
            raise UserError(f"{contents.network[short]} and {key} are both named {short}")
        contents.network[short] = key
    if not any(short.startswith("conv2d") for short in contents.network):
        raise UserError(
            f"{checkpoint.prefix} holds no SimCLR network: of its {len(names)} variables"
            f" ({_examples(names.values())}) none is a convolution of base_model (TF1) or resnet"
            " (TF2)"
        )
    return contents


def _is_average(name: str) -> bool:
    return name.startswith("ema_model/")


def _reason_to_drop(
    key: str, checkpoint: Checkpoint, average: bool, drop: Sequence[str]
) -> str | None:
    """Why a variable is no weight of the network; None where it may be one."""
    name = checkpoint.names[key]
    owner = next((name.removesuffix(slot) for slot in SLOTS if name.endswith(slot)), None)
    if any(fnmatchcase(text, pattern) for pattern in drop for text in (key, name)):
        return "named by --drop"
    if key.split("/")[0] in COUNTERS:
        return "a counter"
    if ".OPTIMIZER_SLOT/" in key or key.startswith("optimizer/") or owner in checkpoint.names:
        return OPTIMIZER_MEMORY
    if _is_average(name) and not average:
        return "the moving average, which --ema takes"
    if average and not _is_average(name) and not re.search(LINEAR, name):
        return "not the moving average"
    return None


def _first_numbers(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, int]:
    """The number of the trunk's first convolution and batch norm.

    Keras (TF2) counts on over all models of a session; TF1 begins at 0.
    """
    numbers: dict[str, list[int]] = {"conv2d": [], "batch_normalization": []}
    if checkpoint.format.startswith("TF2"):
        for name in names:
            if match := re.search(TRUNK + LEAF, name):
                numbers[match[1]].append(int(match[2] or 0))
    return {layer: min(counted, default=0) for layer, counted in numbers.items()}


def _short_name(name: str, first_numbers: Mapping[str, int]) -> str | None:
    """The short name of a weight, as `Contents` has it; None for what is no part of the network."""
    if match := re.search(TRUNK + LEAF, name):
        number = int(match[2] or 0) - first_numbers[match[1]]
        return f"{match[1]}{f'_{number}' if number else ''}/{match[3]}"
    if match := re.search(HEAD + LEAF, name):
        return f"nl_{match[1]}/{match[2]}"
    if match := re.search(LINEAR + LEAF, name):
        return f"linear/{match[1]}"
    return None


def _part(name: str) -> set[str | int]:
    """The part of the network that a variable's name speaks of, if any."""
    if match := re.search(HEAD, name):
        return {int(match[1])}
    if re.search(LINEAR, name):
        return {"linear"}
    return {"trunk"} if re.search(TRUNK, name) else set()


def _examples(names: Iterable[str]) -> str:
    """The first three names."""
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (", ..." if len(ordered) > 3 else "")


def recognise_encoder(
    shapes: Mapping[str, tuple[int, ...]], pooled_shortcuts: bool = False
) -> tuple[str, bool]:
    """Which member of the family has these tensors.

    Args:
        shapes: short name -> shape in TensorFlow's order.
        pooled_shortcuts: whether the shortcuts are known to hold a pooling, as those of networks
            with selective kernels do. With 18 and 34 layers and the small stem the tensors alone do
            not show selective kernels.

    Returns:
        The encoder's name, and whether it has the small-image stem.

    Raises:
        UserError: where it is none of them, or lacks a tensor that decides.
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
    # The nearest depth, so that the error message can name a missing tensor.
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
    """Follow a computation graph back from the linear layer; None where no graph has the layer."""
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

    The computation graph says it, where there is one. Otherwise the memory of the optimizer says
    what was trained. Pretraining trains everything. Fine-tuning with LARS under TF2 trains those
    layers of the head that are below the linear layer; fine-tuning under TF1 trains none of them.
    In that last case the answer is a guess: 1, as in the paper for 1% and 10% of the labels (it
    takes 0 for 100%), and 0 for a network trained from scratch, whose head has never moved.

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
    selected = layers if selector == -1 else selector
    if not fits or (selected is not None and selected not in fits):
        raise UserError(
            f"the linear layer takes {needed} features; the encoder and the layers of its head give"
            f" {', '.join(map(str, widths))}, which leaves for --selector: {fits or 'nothing'}"
        )
    if selected is not None:
        answer = LinearInput(selected, True, "--selector")
    else:
        answer = _traced(checkpoint) or _guessed_from_training(checkpoint, contents, layers)
    if len(fits) > 1 and answer.layer in fits:
        return answer
    return LinearInput(fits[0], answer.fine_tuned, "the one that fits")


def _traced(checkpoint: Checkpoint) -> LinearInput | None:
    """What the computation graph says, where there is one."""
    file = checkpoint.graph_file
    return trace_linear_input(read_graphs(file), f"so says {file.name}") if file else None


def _guessed_from_training(checkpoint: Checkpoint, contents: Contents, layers: int) -> LinearInput:
    """What follows from the parts that the optimizer has trained; ``layers`` is the head's number.

    `find_linear_input` says why.
    """
    if not layers:
        return LinearInput(0, True, "there is no head")
    trained = len([part for part in contents.trained if isinstance(part, int)])
    trunk_trained = "trunk" in contents.trained
    if not contents.trained or (trunk_trained and trained == layers):
        return LinearInput(0, False, "the reference's default in pretraining")
    if not trunk_trained and trained in (0, layers):
        return LinearInput(0, True, "linear evaluation: the trunk was frozen")
    if trained or checkpoint.format.startswith("TF2"):
        return LinearInput(trained, True, "the optimizer trained the layers below it")
    if (checkpoint.read(contents.network["nl_0/gamma"]) == 1).all():
        return LinearInput(0, True, "the head was never trained")
    because = (
        "a guess: TF1 checkpoints do not say it; the paper takes 1 for 1% and 10% of the labels,"
        " 0 for 100%: --selector 0"
    )
    return LinearInput(1, True, because)


def recognise(checkpoint: Checkpoint, contents: Contents, image_size: int | None = None) -> Parts:
    """The network that has exactly these variables.

    Args:
        checkpoint: opened.
        contents: of it.
        image_size: pixels per side; None is 224, or 32 for the small-image stem.

    Raises:
        UserError: where there is none. It names what is missing, left over or of another shape.
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
    _require_same_tensors(shapes, contents, parts)
    return parts


def _require_same_tensors(
    shapes: Mapping[str, tuple[int, ...]], contents: Contents, parts: Parts
) -> None:
    """UserError where the checkpoint's tensors (short name -> shape) are not those of the parts."""
    expected = expected_tensors(parts)
    missing = expected.keys() - shapes.keys()
    left_over = [contents.network[short] for short in shapes.keys() - expected.keys()]
    left_over += contents.unknown
    if missing or left_over:
        faults = [f"{len(missing)} missing ({_examples(missing)})"] if missing else []
        faults += [f"{len(left_over)} left over ({_examples(left_over)})"] if left_over else []
        advice = "; give --drop PATTERN for what is no part of the network" if left_over else ""
        raise UserError(f"the variables are not those of {parts.name}: {', '.join(faults)}{advice}")
    for short, (_, shape) in expected.items():
        if shapes[short] != _tensorflow_order(shape):
            raise UserError(
                f"{contents.network[short]} has shape {shapes[short]}; in {parts.name} it is"
                f" {_tensorflow_order(shape)}"
            )


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
    """Read the model's tensors, one after another.

    Returns:
        The keys that the model does not use.
    """
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
        kind: ``encoder`` (with its projection head) or ``classifier``; None takes what the
            checkpoint was trained for.
        selector: after how many layers of the head the linear layer stands; None lets
            `find_linear_input` answer.
        image_size: pixels per side; None is 224, or 32 for the small-image stem.
        classes: their names; None counts them.
        average: take the moving average of the weights.
        drop: patterns of variables to leave out.

    Returns:
        A report for the user, line by line.

    Raises:
        UserError: where the checkpoint is unreadable or not wholly understood, its network yields
            no numbers, or ``out`` holds an artifact.
    """
    if (out / "meta.json").exists() or (out / "settings.json").exists():
        raise UserError(f"{out} holds an artifact; delete it or choose another folder")
    checkpoint = open_checkpoint(source)
    contents = sort_variables(checkpoint, average, drop)
    parts = recognise(checkpoint, contents, image_size)
    linear_input = None
    if parts.linear:
        linear_input = find_linear_input(checkpoint, contents, parts, selector)
    kind = kind or ("classifier" if linear_input and linear_input.fine_tuned else "encoder")
    model: nn.Module
    if kind == "encoder" and parts.head:
        model = ContrastiveModel(parts.encoder, parts.head)
        kind_meta: dict[str, Any] = {"images": None}
        not_taken = "linear layer; --as classifier takes it"
    elif kind == "classifier" and parts.linear and linear_input:
        number, layer = parts.linear.out_features, linear_input.layer
        with torch.device("meta"):
            model = Classifier(parts.encoder, number, parts.head, layer)
        labels = {"given": "unknown", "hash": None, "number": 0}
        kind_meta = {"classes": _names(number, classes), "from_layer": layer, "labels": labels}
        not_taken = "head above the linear layer; --as encoder takes it"
    else:
        part = "projection head" if kind == "encoder" else "linear layer"
        raise UserError(f"{source} holds no {part}, so it makes no {kind}: see --as")
    if keys := fill(model, checkpoint, contents.network, parts):
        contents.dropped[not_taken] = keys
    check_output(model, parts.image_size)

    account = _account(checkpoint, contents)
    meta = {
        "kind": kind,
        "stage": "import",
        **network_meta(Model(encoder=parts.name), Data(image_size=parts.image_size)),
        "head": head_meta(parts.head),
        **kind_meta,
        "seed": None,
        "seconds": 0.0,
        "settings": account,
    }
    write_artifact(out, model, meta)
    variables, placed = account["variables"], account["placed"]
    lines = [
        f"{checkpoint.prefix}: {checkpoint.format}, {variables} variables: {placed} placed",
        *(f"  {number} dropped: {reason}" for reason, number in account["dropped"].items()),
        f"{out}: {kind}, images of {parts.image_size} pixels",
        *_lines_on_parts(parts, linear_input),
    ]
    return [*lines, "  self-check: the output for a random image is finite", HINTS]


def _names(number: int, classes: Sequence[str] | None) -> list[str]:
    """The classes' names; counted from 0 where none are given."""
    names = [str(i) for i in range(number)] if classes is None else list(classes)
    if len(names) != number:
        raise UserError(f"--classes names {len(names)} classes, the linear layer has {number}")
    return names


def _account(checkpoint: Checkpoint, contents: Contents) -> dict[str, Any]:
    """What became of every variable, for ``settings`` in ``meta.json``."""
    dropped = {reason: len(keys) for reason, keys in contents.dropped.items()}
    return {
        "stage": "import",
        "source": checkpoint.prefix.name,
        "format": checkpoint.format,
        "variables": len(checkpoint.entries),
        "placed": len(checkpoint.entries) - sum(dropped.values()),
        "dropped": dropped,
    }


def _lines_on_parts(parts: Parts, linear_input: LinearInput | None) -> Iterator[str]:
    """The network's parts and their sizes, for the user."""
    yield f"  encoder {parts.name}: {_size(parts.encoder)} parameters"
    if parts.head:
        widths = " -> ".join(map(str, parts.head.widths))
        yield f"  projection head {widths}: {_size(parts.head)} parameters"
    if parts.linear and linear_input:
        yield (
            f"  linear layer {parts.linear.in_features} -> {parts.linear.out_features}:"
            f" {_size(parts.linear)} parameters, after layer {linear_input.layer} of the head"
            f" ({linear_input.because})"
        )
        if parts.linear.out_features == 1001:
            yield "  1001 classes: ImageNet's, with class 0 for the background"


def _size(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()):,}"


def head_meta(head: ProjectionHead | None) -> dict[str, int | None]:
    """What ``meta.json`` says of a projection head; 0 layers where there is none."""
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
    """UserError where the network's output for a random image is not finite."""
    image = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    if not model.eval()(image).isfinite().all():
        raise UserError(
            "self-check failed: the network's output is not finite; are these weights"
            " of a run that diverged?"
        )


def write_artifact(out: Path, model: nn.Module, meta: Mapping[str, Any]) -> None:
    """Write the weights, then ``meta.json``, which finishes it (as ``StageFolder.finish`` does)."""
    weights = out / "model.safetensors"
    save_tensors(weights, model.state_dict(), {})
    complete = {**meta, "weights_sha256": sha256(weights), **provenance()}
    write_atomically(out / "meta.json", json.dumps(complete, indent=1))


def _parser() -> CommandParser:
    parser = CommandParser(
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
    arguments = _parser().parse_args(argv)
    lines = import_checkpoint(
        arguments.checkpoint,
        arguments.out,
        arguments.kind,
        arguments.selector,
        arguments.image_size,
        _read_classes(arguments.classes) if arguments.classes else None,
        arguments.ema,
        arguments.drop,
    )
    print("\n".join(lines))
    return 0


def _read_classes(file: Path) -> list[str]:
    """One name a line; empty lines do not count."""
    try:
        lines = file.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read --classes {file}: {error}") from error
    return [line.strip() for line in lines if line.strip()]


if __name__ == "__main__":
    sys.exit(main())
