"""Networks from a configuration, and back from an artifact folder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

from torch import nn

from shared.config.methods import METHODS
from shared.config.schema import Config
from shared.config.sections import Data, Finetune, Model
from shared.networks.encoders import create_encoder, fetch_weights, known_encoder, takes_size
from shared.networks.heads import Classifier, ContrastiveModel, ProjectionHead, freeze
from shared.runtime.artifacts import (
    ClassifierMeta,
    ClassifierNetwork,
    HeadMeta,
    Meta,
    NetworkMeta,
    read_meta,
)
from shared.runtime.errors import UserError
from shared.runtime.tensors import (
    MisfitError,
    UnreadableError,
    load_tensors,
    require_finite,
    require_fitting,
    require_size,
    sha256,
)

M = TypeVar("M", bound=nn.Module)


def network_meta(model: Model, data: Data, head_layers: int | None = None) -> NetworkMeta:
    """What ``meta.json`` says of a network, enough to build it again and to feed it.

    Args:
        model: names the encoder and the sizes of the projection head.
        data: the images that it sees.
        head_layers: in place of the model's, where a task of stage 1 leaves no projection head.
    """
    layers = model.head_layers if head_layers is None else head_layers
    head: HeadMeta = {"layers": layers, "width": model.head_width, "out": model.head_out}
    return _described(model.encoder, head, data)


def network_of(meta: NetworkMeta, data: Data) -> NetworkMeta:
    """The part of a ``meta.json`` that describes the network, and how ``data`` feeds it now."""
    return _described(meta["encoder"], meta["head"], data)


def _described(encoder: str, head: HeadMeta, data: Data) -> NetworkMeta:
    return {
        "encoder": encoder,
        "head": head,
        "image_size": data.image_size,
        "mean": list(data.mean),
        "std": list(data.std),
        "antialias": data.antialias,
    }


def require_weights(config: Config, method: str) -> None:
    """Fetch the published weights that a method starts from, unless its artifact is there.

    Raises:
        UserError: there are none, or they cannot be reached, or there is no such encoder; the
            message names the option.
    """
    if (config.folder_of(method) / "meta.json").exists() and not config.forces(method):
        return
    option = METHODS[method].network
    from_others = METHODS[method].own_input or "pretrain" in METHODS[method].made_from
    try:
        if option and not from_others and (name := config.option(option)):
            known_encoder(name)
        option = METHODS[method].weights
        if option and (pretrained := config.option(option)):
            fetch_weights(config.encoder_of(method), pretrained)
    except ValueError as error:
        raise UserError(f"--{option}: {error}") from error


def weights_setting(pretrained: bool | str) -> dict[str, str]:
    """What settings say of a file of published weights: its hash."""
    return {"weights": sha256(Path(pretrained))} if isinstance(pretrained, str) else {}


def build_encoder(name: str, image_size: int, pretrained: bool | str = False) -> nn.Module:
    """`create_encoder`, with its errors as a UserError."""
    try:
        return create_encoder(name, image_size, pretrained=pretrained)
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:2000]  # it may name a file, and then say what to do
        raise UserError(f"encoder {name} at {image_size} pixels: {reason}") from error


def build_contrastive(meta: NetworkMeta, pretrained: bool | str = False) -> ContrastiveModel:
    """Encoder and whole projection head, as `network_meta` describes them."""
    encoder = build_encoder(meta["encoder"], meta["image_size"], pretrained)
    features, size = cast(int, encoder.head_hidden_size), meta["head"]
    head = ProjectionHead(features, size["layers"], size["out"] or features, size["width"])
    return ContrastiveModel(encoder, head)


def build_classifier(meta: ClassifierNetwork, pretrained: bool | str = False) -> Classifier:
    """Encoder, the first ``from_layer`` layers of the head, linear layer."""
    classes = len(meta["classes"])
    if not meta["from_layer"]:
        encoder = build_encoder(meta["encoder"], meta["image_size"], pretrained)
        return Classifier(encoder, classes)
    whole = build_contrastive(meta, pretrained)
    return Classifier(whole.encoder, classes, whole.head, meta["from_layer"])


def load_contrastive(path: Path) -> tuple[ContrastiveModel, Meta]:
    """The pretrained network of an artifact folder and its ``meta.json``."""
    meta = read_meta(path, "encoder")
    return fill(build_contrastive(meta), path), meta


def load_classifier(path: Path) -> tuple[Classifier, ClassifierMeta]:
    """The classifier of an artifact folder and its ``meta.json``."""
    meta = read_meta(path, "classifier")
    return fill(build_classifier(meta), path), meta


def keep_layers(model: ContrastiveModel, from_layer: int, classes: int) -> Classifier:
    """The classifier that fine-tuning starts with, on the first ``from_layer`` layers of the head.

    Raises:
        UserError: the head has fewer layers.
    """
    try:
        return Classifier(model.encoder, classes, model.head, from_layer)
    except ValueError as error:
        raise UserError(f"from_layer={from_layer}: {error}") from error


def start_head_at_random(model: ContrastiveModel, network: NetworkMeta, from_layer: int) -> None:
    """Replace the projection head by a new one of the same size (``finetune.fresh_head``).

    Raises:
        UserError: none of its layers is kept, so nothing would start at random.
    """
    if not from_layer:
        raise UserError(
            "finetune.fresh_head must be false where no layer of the projection head is kept; give"
            " --finetune.from_layer 1, or a pretrained network that has a head"
        )
    model.head = build_contrastive(network).head


def freeze_beginning(model: Classifier, cfg: Finetune, whole: bool) -> None:
    """Freeze everything below the linear layer, or what ``freeze_after_block`` asks for."""
    if whole:
        freeze(model)
    elif cfg.freeze_after_block is not None:
        try:
            freeze(model, cfg.freeze_after_block)
        except ValueError as error:
            raise UserError(f"{cfg.section}.freeze_after_block: {error}") from error


def require_same_input(meta: Meta, data: Data, path: Path) -> None:
    """UserError where an artifact expects other images than the configuration gives.

    An imported network brings these settings along (``shared.config.imported``); what differs from
    them was asked for, and stands as long as its weights take the size.
    """
    if meta.get("stage") == "import":
        size, encoder = meta["image_size"], meta["encoder"]
        if not takes_size(encoder, size, data.image_size):
            raise UserError(
                f"{path} holds weights of {encoder} for images of {size} pixels, now it is"
                f" {data.image_size}; give --data.image_size {size}, or import them again with"
                f" --image-size {data.image_size}"
            )
        return
    for key in ("image_size", "mean", "std", "antialias"):
        configured = json.loads(json.dumps(getattr(data, key)))
        trained = meta.get(key, configured)
        if trained != configured:
            raise UserError(
                f"{path} was trained with data.{key}={trained}, now it is {configured};"
                f" give --data.{key} {trained}"
            )


def input_of(meta: NetworkMeta, data: Data) -> Data:
    """The run's images as a network of another run sees them."""
    mean, std = (cast(tuple[float, float, float], tuple(meta[key])) for key in ("mean", "std"))
    antialias = meta.get("antialias", data.antialias)
    size = meta["image_size"]
    return replace(data, image_size=size, mean=mean, std=std, antialias=antialias, cache=None)


def fill(model: M, path: Path, described: str = "meta.json describes") -> M:
    """The same model with the weights of an artifact folder.

    Args:
        model: is changed.
        path: the folder.
        described: what the model is, for messages.

    Raises:
        UserError: the weights are missing, damaged, of another network, not finite, or others than
            their ``meta.json`` was written for.
    """
    file, expected = path / "model.safetensors", model.state_dict()
    try:
        require_size(file, expected)
        tensors, _ = load_tensors(file)
        require_fitting(tensors, expected)
    except MisfitError as error:
        raise UserError(f"{file} does not fit the network that {described}: {error}") from error
    except UnreadableError as error:
        raise UserError(f"{file} {error}; delete its folder and run the stage again") from error
    if sha256(file) != read_meta(path)["weights_sha256"]:
        raise UserError(
            f"{file} is damaged, or another than {path / 'meta.json'} was written for: its hash"
            " differs; make it again with --force, or copy the whole folder again"
        )
    try:
        require_finite(tensors)
    except MisfitError as error:
        raise UserError(f"{file}: {error}; make it again") from error
    model.load_state_dict(tensors)
    return model
