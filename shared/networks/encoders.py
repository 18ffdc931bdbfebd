"""Encoders: any timm model without its classifier, the SimCLRv2 family included."""

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import timm
import torch
from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import get_session
from safetensors import SafetensorError
from timm.layers.patch_embed import PatchEmbed
from timm.models import PretrainedCfg, load_state_dict
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from shared.config.sections import WEIGHT_FORMATS
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
    config = known_encoder(name)
    weights = _weights(name, pretrained) if pretrained else {}
    if name.startswith("simclr_resnet") and image_size <= SMALL_IMAGE:
        kwargs.setdefault("small_stem", True)
    if config.fixed_input_size:
        kwargs.setdefault("img_size", image_size)

    try:
        encoder = timm.create_model(name, num_classes=0, **weights, **kwargs)
        dry_run(encoder, kwargs.get("in_chans", 3), image_size)
    except (RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise ValueError(
            f"encoder {name!r} cannot take images of {image_size}x{image_size} pixels "
            f"({str(error).splitlines()[0]}): choose another image size (for a vision transformer "
            "a multiple of its patch size) or another encoder"
        ) from error
    return encoder


def known_encoder(name: str) -> PretrainedCfg:
    """What timm knows of an encoder: its architecture, and how its published weights see images.

    Raises:
        ValueError: it knows none of this name; the message has similar ones.
    """
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        names = timm.list_models(pretrained="." in name)  # with their tags, as resnet50.a1_in1k
        close = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() lists them"
        raise ValueError(f"unknown encoder {name!r}: {hint}") from error
    assert config is not None  # allow_unregistered=False
    return config


def fetch_weights(
    name: str,
    pretrained: bool | str,
    otherwise: str = "connect, give their .safetensors file in place of true, or start without:"
    " false",
) -> Path | None:
    """The file of an encoder's published weights; from the hub only what is not in its cache.

    Args:
        name: of a timm model.
        pretrained: true takes timm's own weights; or a file of them (``WEIGHT_FORMATS``).
        otherwise: what to do where they cannot be reached, for the message.

    Returns:
        The file. None for a few old weights that are not on the hub: timm has them in its own
        cache.

    Raises:
        ValueError: there are no such weights, or they cannot be reached.
    """
    config = known_encoder(name)
    if isinstance(pretrained, str):
        if not Path(pretrained).is_file() or not pretrained.endswith(WEIGHT_FORMATS):
            raise ValueError(
                f"no weights of {name!r} in {pretrained!r}: give true, false or a .safetensors file"
                " (or .bin, .pth, .pt)"
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
            f" reached ({' '.join(str(error).split())[:200]}); {otherwise}"
        ) from error


def takes_size(name: str, made_for: int, size: int) -> bool:
    """Whether weights of an encoder that were made for one image size also take another one."""
    if name.startswith("simclr_resnet"):
        return (made_for <= SMALL_IMAGE) == (size <= SMALL_IMAGE)  # else it has the other stem
    return made_for == size or not known_encoder(name).fixed_input_size


def _weights(name: str, pretrained: bool | str) -> dict[str, Any]:
    """What timm needs to start an encoder from published weights.

    Raises:
        ValueError: there are none, or they are of another network.
    """
    file = fetch_weights(name, pretrained)
    if file is None:
        return {"pretrained": True}
    tensors = _read_weights(file)
    if isinstance(pretrained, str):  # timm would leave out what does not fit, without a word
        _require_weights_of(name, tensors, file)
    # another number of classes than any encoder's, so that timm leaves a classifier out
    return {
        "pretrained": True,
        "pretrained_cfg_overlay": {"state_dict": tensors, "num_classes": -1},
    }


def _read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a file of published weights; nothing in it is executed.

    Raises:
        ValueError: it is damaged, or holds something else than tensors.
    """
    kind = "safetensors file" if file.suffix == ".safetensors" else "file of torch's tensors"
    try:
        tensors = load_state_dict(str(file), weights_only=True)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} is no {kind} ({_sentence(error)})") from error
    except Exception as error:  # torch's reader has many; it refuses what would be executed
        raise ValueError(
            f"{file} is no {kind} that can be read without executing it ({_sentence(error)});"
            " give a .safetensors file"
        ) from error
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{file} holds something else than the named tensors of one network")
    if bad := [key for key, value in tensors.items() if not value.isfinite().all()]:
        raise ValueError(f"{file} is of a run that diverged: {bad[0]} is not finite")
    return tensors


def _sentence(error: Exception) -> str:
    """The first one of a message; torch's next ones say how to execute the file all the same."""
    return (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0][:200]


def _require_weights_of(name: str, tensors: Mapping[str, Tensor], file: Path) -> None:
    """ValueError where an encoder lacks its tensors, or the file has a deeper network's."""
    with torch.device("meta"):
        expected = timm.create_model(name, num_classes=0).state_dict()
        whole = timm.create_model(name).state_dict()
    for key, tensor in expected.items():
        if key not in tensors or tensors[key].shape != tensor.shape:
            shape = "x".join(map(str, tensor.shape)) or "one number"
            raise ValueError(f"{file} holds no weights of {name!r}: no {key} of {shape}")
    parts = {key.partition(".")[0] for key in expected}
    for key in tensors.keys() - whole.keys():
        if key.partition(".")[0] in parts and key.endswith(".weight"):
            raise ValueError(f"{file} holds weights of a larger network than {name!r}: {key}")


def dry_run(encoder: nn.Module, channels: int, image_size: int) -> None:
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


def feature_map(encoder: nn.Module, images: Tensor) -> Tensor:
    """The last feature map, before it is pooled: images (B, 3, S, S) -> (B, C, H, W).

    Convolutional networks give it as it is, some of timm's with channels last. Of a transformer's
    tokens those of the square of patches are laid out, and the others, as a class token, left out.

    Raises:
        ValueError: the encoder has no such map.
    """
    output = cast(Any, encoder).forward_features(images)
    if isinstance(output, Tensor) and output.ndim == 4:
        last = getattr(encoder, "output_fmt", "NCHW") == "NHWC"
        return output.permute(0, 3, 1, 2) if last else output
    if isinstance(output, Tensor) and output.ndim == 3:
        tokens = output.shape[1]
        others = getattr(encoder, "num_prefix_tokens", tokens - math.isqrt(tokens) ** 2)
        side = math.isqrt(tokens - others)
        if side**2 == tokens - others > 0:
            return output[:, others:].mT.unflatten(2, (side, side))
    raise ValueError(
        f"{type(encoder).__name__} has no feature map, which this task needs: choose another"
        " encoder, as a ResNet, a ViT or a Swin, or another --pretrain.task"
    )


def map_and_features(encoder: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The last feature map but one, and the features: (B, 3, S, S) -> (B, C, H, W), (B, F).

    Raises:
        ValueError: the encoder does not give its inner maps.
    """
    try:
        last, (inner,) = cast(Any, encoder).forward_intermediates(images, indices=[-2])
    except (AttributeError, NotImplementedError) as error:
        raise ValueError(
            f"{type(encoder).__name__} does not give its inner feature maps, which this loss needs:"
            " choose another encoder, as a ResNet, a ViT or a Swin, or another --pretrain.loss"
        ) from error
    return inner, cast(Any, encoder).forward_head(last)


def map_size(encoder: nn.Module, image_size: int) -> tuple[int, int]:
    """Channels and side of an encoder's feature map of square images; it stays as it is.

    Raises:
        ValueError: it has none.
    """
    shape = _map_of_blank(encoder, image_size).shape
    return shape[1], shape[2]


def outside_of_map(encoder: nn.Module, image_size: int) -> list[nn.Parameter]:
    """The encoder's weights that its feature map does not depend on, as a norm after pooling."""
    weights = [weight for weight in encoder.parameters() if weight.requires_grad]
    with torch.enable_grad():
        total = _map_of_blank(encoder, image_size).sum()
    gradients = torch.autograd.grad(total, weights, allow_unused=True)
    return [w for w, gradient in zip(weights, gradients, strict=True) if gradient is None]


def _map_of_blank(encoder: nn.Module, image_size: int) -> Tensor:
    was_training = encoder.training
    encoder.eval()  # no statistics are counted, and nothing is drawn
    blank = next(encoder.parameters()).new_zeros(1, 3, image_size, image_size)
    blank_map = feature_map(encoder, blank)
    encoder.train(was_training)
    return blank_map


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
