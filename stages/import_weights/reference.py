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

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared.config.sections import Data, Model
from shared.networks.build import network_meta
from shared.networks.heads import Classifier, ContrastiveModel, ProjectionHead
from shared.runtime.artifacts import HeadMeta, LabelsMeta
from shared.runtime.errors import UserError
from stages.import_weights.artifact import (
    check_output,
    require_empty,
    require_expected,
    write_artifact,
)
from stages.import_weights.recognise import (
    Contents,
    LinearInput,
    Parts,
    expected_tensors,
    find_linear_input,
    recognise,
    sort_variables,
)
from stages.import_weights.tf_checkpoint import UNUSED, Checkpoint, files_of, open_checkpoint

MOST_COPIES = 8  # of each weight: itself, averages, and the memory of an optimizer

HINTS = """\
If the accuracy is lower than published, the cause is most often one of these:
  head layer     the linear layer belongs on another layer of the projection head: --selector
  class order    ImageNet's classes are counted in the order of their synset ids, n01440764 is 0;
                 --classes gives them the names that your images have
  preprocessing  RGB in [0, 1] without mean and deviation, the central 87.5%, bicubic without
                 antialiasing, the image size of training: --image-size"""


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
    expect: Collection[str] = (),
) -> list[str]:
    """Make an artifact folder of a checkpoint.

    Args:
        source: the folder of a checkpoint, its prefix, one of its files, or a SavedModel's folder.
        out: folder of the artifact.
        kind: ``encoder`` (with its projection head) or ``classifier``; None takes what the
            checkpoint was trained for.
        selector: after how many layers of the head the linear layer stands; None lets
            `find_linear_input` answer, and refuses where it cannot.
        image_size: pixels per side; None is 224, or 32 for the small-image stem.
        classes: their names; None counts them.
        average: take the moving average of the weights.
        drop: patterns of variables to leave out.
        expect: the sha256 that each of its files must have; empty where any will do.

    Returns:
        A report for the user, line by line.

    Raises:
        UserError: where the checkpoint is unreadable or not wholly understood, its network yields
            no numbers, or ``out`` holds an artifact.
    """
    require_empty(out)
    # what is no checkpoint may be a terabyte, so it is hashed last, unless its hash is asked for
    digests = require_expected(files_of(source), expect) if expect else {}
    checkpoint = open_checkpoint(source)
    contents = sort_variables(checkpoint, average, drop)
    parts = recognise(checkpoint, contents, image_size)
    _require_size(checkpoint, parts)
    linear_input = None
    if parts.linear:
        linear_input = find_linear_input(checkpoint, contents, parts, selector)
    kind = kind or ("classifier" if linear_input and linear_input.fine_tuned else "encoder")
    model: nn.Module
    if kind == "encoder" and parts.head:
        model = ContrastiveModel(parts.encoder, parts.head)
        kind_meta: dict[str, object] = {"images": None}
        not_taken = "linear layer; --as classifier takes it"
    elif kind == "classifier" and parts.linear and linear_input:
        _require_sure(linear_input, source)
        number, layer = parts.linear.out_features, linear_input.layer
        with torch.device("meta"):
            model = Classifier(parts.encoder, number, parts.head, layer)
        labels: LabelsMeta = {"given": "unknown", "hash": None, "number": 0}
        kind_meta = {"classes": _names(number, classes), "from_layer": layer, "labels": labels}
        not_taken = "head above the linear layer; --as encoder takes it"
    else:
        part = "projection head" if kind == "encoder" else "linear layer"
        raise UserError(f"{source} holds no {part}, so it makes no {kind}: see --as")
    if keys := fill(model, checkpoint, contents.network, parts):
        contents.dropped[not_taken] = keys
    check_output(model, parts.image_size)

    digests = digests or require_expected(files_of(source), expect)
    account = _account(checkpoint, contents)
    network = network_meta(Model(encoder=parts.name), Data(image_size=parts.image_size))
    network.pop("antialias", None)  # whoever trains it further decides
    meta = {
        "kind": kind,
        "stage": "import",
        **network,
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
        *(f"  sha256 of {name}: {digest}" for name, digest in digests.items()),
    ]
    return [*lines, "  self-check: the output for a random image is finite", HINTS]


def _require_size(checkpoint: Checkpoint, parts: Parts) -> None:
    """UserError where all tensors take far more bytes than copies of the network's would."""
    modules = [part for part in (parts.encoder, parts.head, parts.linear) if part]
    network = sum(value.nbytes for part in modules for value in part.state_dict().values())
    size = sum(entry.size for entry in checkpoint.entries.values())
    if size > MOST_COPIES * network + UNUSED:  # all of them are hashed
        raise UserError(
            f"{checkpoint.prefix}: its tensors take {size:,} bytes, more than {MOST_COPIES} times"
            f" as many as those of {parts.name}; copy it again, without what is no part of it"
        )


def _require_sure(linear_input: LinearInput, source: Path) -> None:
    """UserError where several layers of the head fit below a classifier's linear layer."""
    if linear_input.unsure:
        raise UserError(
            f"{source} does not say after which layer of the projection head its linear layer"
            f" stands; {', '.join(map(str, linear_input.unsure))} fit: give one as --selector (the"
            " paper takes 1 for 1% and 10% of the labels, 0 for 100%), or --as encoder, which"
            " leaves the linear layer out"
        )


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
        layers = " or ".join(map(str, linear_input.unsure or [linear_input.layer]))
        yield (
            f"  linear layer {parts.linear.in_features} -> {parts.linear.out_features}:"
            f" {_size(parts.linear)} parameters, after layer {layers} of the head"
            f" ({linear_input.because})"
        )
        if parts.linear.out_features == 1001:
            yield "  1001 classes: ImageNet's, with class 0 for the background"


def _size(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()):,}"


def head_meta(head: ProjectionHead | None) -> HeadMeta:
    """What ``meta.json`` says of a projection head; 0 layers where there is none."""
    if head is None:
        return {"layers": 0, "width": None, "out": None}
    layers = len(head.layers)
    return {
        "layers": layers,
        "width": head.widths[1] if layers > 1 else None,
        "out": head.widths[-1],
    }
