"""Encoders: any timm model without its classifier, the SimCLRv2 family included."""

import difflib
from pathlib import Path
from typing import Any, cast

import timm
import torch
from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import get_session
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.patch_embed import PatchEmbed
from timm.models import PretrainedCfg
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from shared.networks import resnet  # registers the SimCLRv2 family with timm
from shared.networks.batchnorm import BatchNorm

SMALL_IMAGE = 32  # up to this size the reference uses the small-image stem (tf2/model.py)


def create_encoder(
    name: str, image_size: int, *, pretrained: bool | str = False, **kwargs
) -> nn.Module:
    """A timm model without its classifier: images (B, 3, S, S) -> features (B, F).

    F is ``encoder.head_hidden_size``. Members of the SimCLRv2 family get the small-image stem for
    images of at most 32 pixels. Models of a fixed image size are built for this one.

    Args:
        name: of a timm model; ``simclr_resnet50_1x_sk1`` and the rest of the family are among them.
        image_size: side S of the square images, in pixels.
        pretrained: start from published weights: true takes timm's own, a file is read in their
            place (``fetch_weights``).
        **kwargs: passed on to timm.

    Raises:
        ValueError: the name is unknown, there are no such weights, or the encoder does not take
            images of this size.
    """
    config = _known(name)
    weights = _weights(name, pretrained) if pretrained else {}
    if name.startswith("simclr_resnet") and image_size <= SMALL_IMAGE:
        kwargs.setdefault("small_stem", True)
    if config.fixed_input_size:
        kwargs.setdefault("img_size", image_size)

    try:
        encoder = timm.create_model(name, num_classes=0, **weights, **kwargs)
        _dry_run(encoder, kwargs.get("in_chans", 3), image_size)
    except (RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise ValueError(
            f"encoder {name!r} cannot take images of {image_size}x{image_size} pixels "
            f"({str(error).splitlines()[0]}): choose another image size (for a vision transformer "
            "a multiple of its patch size) or another encoder"
        ) from error
    return encoder


def _known(name: str) -> PretrainedCfg:
    """What timm knows of an encoder; ValueError with similar names where it knows none."""
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() lists them"
        raise ValueError(f"unknown encoder {name!r}: {hint}") from error
    assert config is not None  # allow_unregistered=False
    return config


def fetch_weights(name: str, pretrained: bool | str) -> Path | None:
    """The file of an encoder's published weights; from the hub only what is not in its cache.

    Args:
        name: of a timm model.
        pretrained: true takes timm's own weights; or a .safetensors file of them.

    Returns:
        The file. None for a few old weights that are not on the hub: timm has them in its own
        cache.

    Raises:
        ValueError: there are no such weights, or they cannot be reached.
    """
    config = _known(name)
    if isinstance(pretrained, str):
        if not Path(pretrained).is_file() or not pretrained.endswith(".safetensors"):
            raise ValueError(
                f"no weights of {name!r} in {pretrained!r}: give true, false or a .safetensors file"
            )
        return Path(pretrained)
    if not config.has_weights:
        raise ValueError(f"timm has no pretrained weights of {name!r}: set pretrained to false")
    repository, file = config.hf_hub_id, config.hf_hub_filename or "model.safetensors"
    if repository and isinstance(cached := try_to_load_from_cache(repository, file), str):
        return Path(cached)
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        if not repository:
            timm.create_model(name, pretrained=True)
            return None
        get_session().head(hf_hub_url(repository, file), timeout=5)  # once; a download tries again
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # each of the libraries in between has its own
        source = f"{repository}/{file}" if repository else config.url
        raise ValueError(
            f"the published weights of {name!r} are not in the cache, and {source} cannot be"
            f" reached ({' '.join(str(error).split())[:200]}); connect, give their .safetensors"
            " file in place of true, or start without: false"
        ) from error


def _weights(name: str, pretrained: bool | str) -> dict[str, Any]:
    """What timm needs to start an encoder from published weights.

    Raises:
        ValueError: there are none, or they are of another network.
    """
    file = fetch_weights(name, pretrained)
    if file is None:
        return {"pretrained": True}
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} is no safetensors file ({error})") from error
    if isinstance(pretrained, str):  # timm would leave out what does not fit, without a word
        with torch.device("meta"):
            expected = timm.create_model(name, num_classes=0).state_dict()
        for key, tensor in expected.items():
            if key not in tensors or tensors[key].shape != tensor.shape:
                shape = "x".join(map(str, tensor.shape)) or "one number"
                raise ValueError(f"{file} holds no weights of {name!r}: no {key} of {shape}")
    return {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": tensors}}


def _dry_run(encoder: nn.Module, channels: int, image_size: int) -> None:
    """Pass one blank image through the encoder, and leave it as it was.

    Raises:
        RuntimeError: the features are not finite, or a part of the image would be ignored.
        Exception: whatever the encoder raises.
    """
    blank = next(encoder.parameters()).new_zeros(1, channels, image_size, image_size)
    encoder.eval()  # one image is no batch to normalise
    with torch.no_grad():
        features = encoder(blank)
    encoder.train()
    if not features.is_meta and not features.isfinite().all():
        raise RuntimeError("nothing is left of the image in the last feature map")
    patches = getattr(encoder, "patch_embed", None)
    if isinstance(patches, PatchEmbed) and not patches.dynamic_img_pad:
        side = cast(int, patches.patch_size[0])
        if image_size % side:  # timm cuts the rest off without a word
            raise RuntimeError(f"not a multiple of its patches of {side} pixels")


def checkpoint_activations(encoder: nn.Module) -> None:
    """Keep only the blocks' inputs for the backward pass, which computes the rest again.

    Raises:
        ValueError: the encoder does not support it, or has a batch norm that would count every
            batch twice, because timm's recomputation does not prevent that.
    """
    name = type(encoder).__name__
    if not isinstance(encoder, resnet.SimCLRResNet):
        for module in encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise ValueError(
                    f"{name} has batch norm, which checkpoint_activations would make count each"
                    " batch twice: leave it out, or choose a simclr_resnet or an encoder without"
                    " batch norm"
                )
    try:
        cast(resnet.SimCLRResNet, encoder).set_grad_checkpointing(True)
    except (AttributeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"{name} knows no checkpoint_activations: leave it out") from error


class _Layers(fx.Tracer):
    """Records a network as a graph of its layers; our subclasses of torch's layers are layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_layer = isinstance(m, nn.Conv2d | nn.BatchNorm2d)
        return is_layer or super().is_leaf_module(m, module_qualified_name)


def fold_batch_norm(encoder: nn.Module) -> nn.Module:
    """The same function for inference, with batch norms folded into the convolutions before them.

    gamma / std * (W x - mean) + beta is a convolution by gamma / std * W with a bias: one pass over
    the feature map instead of two.

    Args:
        encoder: in eval mode; it stays as it is.

    Returns:
        A network with fewer layers, or ``encoder`` itself where it cannot be recorded as a graph.
    """
    try:
        graph = _Layers().trace(encoder)
    except Exception:  # each network that branches on values fails in its own way
        return encoder
    folded = fx.GraphModule(encoder, graph)
    layers = dict(folded.named_modules())
    for node in graph.nodes:
        norm = layers.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or type(norm) not in (nn.BatchNorm2d, BatchNorm):
            continue  # timm's batch norms hold an activation and stay
        before = node.args[0]
        conv = layers.get(str(before.target)) if before.op == "call_module" else None
        if isinstance(conv, nn.Conv2d) and len(before.users) == 1:
            folded.set_submodule(before.target, fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(before)
            graph.erase_node(node)
    folded.delete_all_unused_submodules()
    folded.recompile()
    return folded
