"""What a checkpoint of the authors' code holds, known from the names and shapes of its variables.

`sort_variables` gives the weights short names and sorts out everything else. `recognise` builds the
network that has exactly these weights. `find_linear_input` answers what weights cannot show: which
layer of the projection head the linear layer stands on.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple, cast

import torch
from torch import nn

from shared.networks.build import build_encoder
from shared.networks.encoders import SMALL_IMAGE
from shared.networks.heads import ProjectionHead
from shared.networks.resnet import BLOCKS, SMALL_DEPTHS, SimCLRResNet, reference_names
from shared.runtime.bounds import SIDE
from shared.runtime.errors import UserError
from stages.import_weights.tf_checkpoint import Checkpoint, Node, read_graphs

# What the formats call the variables of the trunk, the projection head and the linear layer:
# base_model/conv2d_3/kernel, resnet/block_group1/.../sync_batch_normalization_3/gamma;
# head_contrastive/nl_1/dense/kernel, projection_head/nl_1/.../sync_batch_normalization_22/gamma;
# head_supervised/linear_layer/dense_3/bias
TRUNK = (
    r"(?:base_model|resnet(?:_[0-9]{1,6})?)/(?:.*/)?"
    r"(?:sync_)?(conv2d|batch_normalization)(?:_([0-9]{1,6}))?/"
)
HEAD = r"(?:head_contrastive|projection_head(?:_[0-9]{1,6})?)/n?l_([0-9]{1,6})/(?:.*/)?"
LINEAR = r"head_supervised(?:_[0-9]{1,6})?/linear_layer/dense(?:_[0-9]{1,6})?/"
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
    unsure: tuple[int, ...] = ()  # the layers that fit, where nothing tells which it is


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
    numbers = [
        int(m[1] or 0) for m in (re.match(r"conv2d(?:_([0-9]{1,6}))?/", s) for s in shapes) if m
    ]

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
    excite = any(re.match(r"conv2d_[0-9]{1,6}/bias", name) for name in shapes)
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
    numbers = {int(m[1]) for m in (re.match(r"nl_([0-9]{1,6})/", short) for short in shapes) if m}
    layers = max(numbers, default=-1) + 1
    if layers > len(numbers):  # it may be a large number
        missing = next(j for j in range(layers) if j not in numbers)
        raise UserError(f"the checkpoint lacks nl_{missing}/kernel of the projection head")
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
        start = next(iter(graph[linear[0]].inputs), "")
        fine_tuned, at, passed = True, start, set[str]()
        while at in graph and graph[at].op in ("Identity", "StopGradient") and at not in passed:
            passed.add(at)  # a damaged graph may go round in a circle, or end here
            fine_tuned &= graph[at].op != "StopGradient"
            at = next(iter(graph[at].inputs), "")
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
    In that last case, and where there is no memory of an optimizer, nothing tells, unless one layer
    alone fits; but a network trained from scratch, whose head has never moved, stands on 0.

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
    if len(fits) == 1:
        return LinearInput(fits[0], answer.fine_tuned, "the one that fits")
    if answer.layer not in fits or answer.unsure:
        return answer._replace(unsure=tuple(fits))
    return answer


def _traced(checkpoint: Checkpoint) -> LinearInput | None:
    """What the computation graph says, where there is one."""
    file = checkpoint.graph_file
    return trace_linear_input(read_graphs(file), f"so says {file.name}") if file else None


def _guessed_from_training(checkpoint: Checkpoint, contents: Contents, layers: int) -> LinearInput:
    """What follows from the parts that the optimizer has trained; ``layers`` is the head's number.

    `find_linear_input` says why. ``unsure`` has all layers where nothing follows.
    """
    if not layers:
        return LinearInput(0, True, "there is no head")
    trained = len([part for part in contents.trained if isinstance(part, int)])
    trunk_trained = "trunk" in contents.trained
    every = tuple(range(layers + 1))
    if not contents.trained:
        return LinearInput(0, False, "the reference's default in pretraining", every)
    if trunk_trained and trained == layers:
        return LinearInput(0, False, "the reference's default in pretraining")
    if not trunk_trained and trained in (0, layers):
        return LinearInput(0, True, "linear evaluation: the trunk was frozen")
    if trained or checkpoint.format.startswith("TF2"):
        return LinearInput(trained, True, "the optimizer trained the layers below it")
    if (checkpoint.read(contents.network["nl_0/gamma"]) == 1).all():
        return LinearInput(0, True, "the head was never trained")
    return LinearInput(0, True, "TF1 checkpoints do not say it", every)


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
    if not 4 <= image_size <= SIDE or small != (image_size <= SMALL_IMAGE):
        allowed = f"4 to {SMALL_IMAGE}" if small else f"{SMALL_IMAGE + 1} to {SIDE:,}"
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
