"""Encoders: any timm model without its classifier, the SimCLRv2 family included."""

import difflib
from typing import cast

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from shared.networks import resnet  # registers the SimCLRv2 family with timm
from shared.networks.batchnorm import BatchNorm

SMALL_IMAGE = 32  # up to this size the reference uses the small-image stem (tf2/model.py)


def create_encoder(name: str, image_size: int, *, pretrained: bool = False, **kwargs) -> nn.Module:
    """A timm model without its classifier: images (B, 3, S, S) -> features (B, F).

    F is ``encoder.head_hidden_size``. Members of the SimCLRv2 family get the small-image stem for
    images of at most 32 pixels. Models of a fixed image size are built for this one.

    Args:
        name: of a timm model; ``simclr_resnet50_1x_sk1`` and the rest of the family are among them.
        image_size: side S of the square images, in pixels.
        pretrained: start from timm's own weights (a download).
        **kwargs: passed on to timm.

    Raises:
        ValueError: the name is unknown, there are no pretrained weights, or the encoder does not
            take images of this size.
    """
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() lists them"
        raise ValueError(f"unknown encoder {name!r}: {hint}") from error
    assert config is not None  # allow_unregistered=False
    if pretrained and not config.has_weights:
        raise ValueError(f"timm has no pretrained weights of {name!r}: set pretrained to false")
    if name.startswith("simclr_resnet") and image_size <= SMALL_IMAGE:
        kwargs.setdefault("small_stem", True)
    if config.fixed_input_size:
        kwargs.setdefault("img_size", image_size)

    try:
        encoder = timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs)
        _dry_run(encoder, kwargs.get("in_chans", 3), image_size)
    except (RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise ValueError(
            f"encoder {name!r} cannot take images of {image_size}x{image_size} pixels "
            f"({str(error).splitlines()[0]}): choose another image size (for a vision transformer "
            "a multiple of its patch size) or another encoder"
        ) from error
    return encoder


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
