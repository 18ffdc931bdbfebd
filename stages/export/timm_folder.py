"""timm: a folder for ``timm.create_model("local-dir:...", pretrained=True)``, or for the hub."""

import json
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from timm.data.config import resolve_data_config
from timm.models import save_for_hf
from torch import Tensor, nn

from shared.networks.encoders import SMALL_IMAGE
from shared.networks.heads import Classifier
from shared.runtime.errors import UserError
from shared.runtime.records import read_json
from stages.export.images import Function
from stages.export.network import Source

OURS = "simclr_resnet"  # timm knows these names once shared.networks.encoders is imported

OWN = {"config.json", "model.safetensors"}
MARK = "few_labels_weights_sha256"  # in config.json, which timm leaves alone: the source's weights


def write(source: Source, path: Path) -> None:
    """Write ``config.json`` and ``model.safetensors``.

    Raises:
        UserError: timm's network of this name has no place for a layer of ours.
        OSError: the disk is full or not writable.
    """
    name, size = source.meta["encoder"], source.meta["image_size"]
    head = len(source.model.layers) if isinstance(source.model, Classifier) else 0
    layer = source.layer if source.layer is not None else head
    if layer:
        raise UserError(
            f"{source.path}: its output comes after layer {layer} of the projection head, for"
            f" which timm's {name} has no place; choose --to onnx, or export the distilled student"
        )
    options: dict[str, Any] = {}
    if name.startswith(OURS) and size <= SMALL_IMAGE:
        options["small_stem"] = True
    if cast(Any, timm.get_pretrained_cfg(name)).fixed_input_size:
        options["img_size"] = size
    model = cast(Any, timm.create_model(name, num_classes=len(source.classes), **options))
    model.load_state_dict(_with_classifier(source, model))
    model.pretrained_cfg = _configuration(source, model)
    about: dict[str, Any] = {MARK: source.meta["weights_sha256"]}
    if source.classes:
        about["label_names"] = source.classes
    try:
        save_for_hf(model, str(path), about, options, safe_serialization=True)
    except SafetensorError as error:  # so it says that the disk is full, too
        raise OSError(str(error)) from error


def _with_classifier(source: Source, model: nn.Module) -> dict[str, Tensor]:
    """The encoder's state, with the linear layer under the name that timm gives it."""
    state = dict(source.model.encoder.state_dict())
    if not source.classes or not isinstance(source.model, Classifier):
        return state
    linear = source.model.linear
    classifier = cast(Any, model).get_classifier()
    names = [name for name, module in model.named_modules() if module is classifier]
    shape = getattr(getattr(classifier, "weight", None), "shape", None)
    if not names or not isinstance(classifier, nn.Linear) or shape != linear.weight.shape:
        raise UserError(
            f"timm's {source.meta['encoder']} does not end in one linear layer; choose --to onnx"
        )
    bias = {} if classifier.bias is None else {f"{names[0]}.bias": linear.bias}
    return {**state, f"{names[0]}.weight": linear.weight, **bias}


def _configuration(source: Source, model: nn.Module) -> dict[str, Any]:
    """What timm says of pretrained weights, for these: the others' origin and licence go."""
    of_family = cast(dict[str, Any], model.pretrained_cfg)
    kept = ("architecture", "fixed_input_size", "pool_size", "first_conv", "classifier")
    size = source.meta["image_size"]
    return {
        **{key: of_family.get(key) for key in kept},
        "num_classes": len(source.classes),
        "input_size": (3, size, size),
        "mean": tuple(source.meta["mean"]),
        "std": tuple(source.meta["std"]),
        "interpolation": "bicubic",
        "crop_pct": source.preprocessing()["crop_share"],
        "crop_mode": "center",
        "custom_load": False,
    }


def load(path: Path) -> Function:
    """The folder as a function, normalised as its ``config.json`` says.

    Raises:
        UserError: timm cannot load it.
    """
    try:
        model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    except Exception as error:  # timm's loaders raise all kinds of errors
        raise UserError(
            f"timm {timm.__version__} cannot load the folder that was written:"
            f" {' '.join(str(error).split())[:200]}; choose --to onnx"
        ) from error
    config = resolve_data_config({}, model=model)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))

    def run(images: Tensor) -> Tensor:
        outputs = model((images - mean) / std)
        return outputs.softmax(1) if cast(int, model.num_classes) else outputs

    return run


def notes(path: Path) -> dict[str, str] | None:
    """What a folder says of its source; None where it is no export, or holds other files too."""
    if not path.is_dir() or not {file.name for file in path.iterdir()} <= OWN:
        return None
    if not any(path.iterdir()):
        return {}
    try:
        mark = read_json(path / "config.json", "").get(MARK)
    except (UserError, AttributeError):
        return None
    return {MARK: mark} if isinstance(mark, str) else None


def how_to_load(path: Path) -> list[str]:
    """What a user of the folder writes."""
    lines = [f'timm.create_model("local-dir:{path}", pretrained=True)']
    if json.loads((path / "config.json").read_text())["architecture"].startswith(OURS):
        lines.append(
            "timm alone does not know this network: import shared.networks.encoders first, which"
            " registers it; where that package is not, take --to onnx"
        )
    return lines


def push(path: Path, name: str) -> str:
    """Upload the folder to the Hugging Face hub, as a new repository or a new commit.

    Args:
        path: the folder.
        name: of the repository, ``owner/name`` or ``name``.

    Returns:
        Where it is.

    Raises:
        UserError: the hub does not take it; the folder stays.
    """
    import huggingface_hub

    try:
        api = huggingface_hub.HfApi()
        repository = api.create_repo(name, exist_ok=True).repo_id
        api.upload_folder(repo_id=repository, folder_path=path, commit_message="Add model")
    except Exception as error:  # of the network, of the hub, of the login
        raise UserError(
            f"{path} is written, but the hub did not take it as {name}:"
            f" {' '.join(str(error).split())[:200]}; hf auth login, or upload the folder yourself"
        ) from error
    return f"https://huggingface.co/{repository}"
