"""Encoders, the projection head of SimCLRv2, and the two models that the stages train."""

import difflib
from collections import OrderedDict
from typing import cast

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from shared.networks import resnet  # registers the SimCLRv2 family with timm
from shared.networks.batchnorm import BatchNorm

SMALL_IMAGE = 32  # up to this size the reference uses the small-image stem (tf2/model.py)


def create_encoder(name: str, image_size: int, *, pretrained: bool = False, **kwargs) -> nn.Module:
    """A timm model without its classifier: images (B, 3, S, S) -> features (B, F).

    F is ``encoder.head_hidden_size``. Members of the SimCLRv2 family get the small-image stem for
    images of at most 32 pixels; models that need to know the image size are told it.

    Args:
        name: a timm model, ``simclr_resnet50_1x_sk1`` and its like included.
        image_size: side S of the square images, in pixels.
        pretrained: start from timm's own weights (a download).
        **kwargs: passed on to timm.

    Raises:
        ValueError: an unknown name, no pretrained weights, or images of a size that the encoder
            does not take.
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
    """Pass one blank image through; raises what the encoder raises, or RuntimeError."""
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
    """Keep only what enters each block for the backward pass, which computes the rest again.

    Raises:
        ValueError: the encoder cannot, or has a batch norm that would count every batch twice:
            timm's recomputation does not know it has counted it already.
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
    """Records a network as a graph of its layers, ours among them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, nn.Conv2d | nn.BatchNorm2d)
        return ours or super().is_leaf_module(m, module_qualified_name)


def fold_batch_norm(encoder: nn.Module) -> nn.Module:
    """The same function for inference, with batch norms folded into the convolutions before them.

    gamma / std * (W x - mean) + beta is a convolution by gamma / std * W with a bias: one pass over
    the feature map instead of two.

    Args:
        encoder: in eval mode; it stays as it is.

    Returns:
        A network with less layers, or ``encoder`` itself where it cannot be recorded as a graph.
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
            continue  # timm's, with an activation inside, stay
        before = node.args[0]
        conv = layers.get(str(before.target)) if before.op == "call_module" else None
        if isinstance(conv, nn.Conv2d) and len(before.users) == 1:
            folded.set_submodule(before.target, fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(before)
            graph.erase_node(node)
    folded.delete_all_unused_submodules()
    folded.recompile()
    return folded


class ProjectionHead(nn.Module):
    """The projection head, every layer in reach (SimCLRv2, section 2; tf2/model.py).

    Each layer is a dense map without bias and a batch norm. The middle layers have a ReLU; the
    last has neither ReLU nor beta. Dense kernels start as N(0, 0.01^2).

    Args:
        in_features: width of the encoder's features.
        num_layers: at least 1; the paper's default is 3.
        out_features: width of the projection.
        hidden_features: width of the middle layers; None for ``in_features``.

    Raises:
        ValueError: ``num_layers`` < 1.
    """

    def __init__(
        self,
        in_features: int,
        num_layers: int = 3,
        out_features: int = 128,
        hidden_features: int | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"the projection head needs at least 1 layer, not {num_layers}")
        hidden = [in_features if hidden_features is None else hidden_features] * (num_layers - 1)
        self.widths = [in_features, *hidden, out_features]  # of `forward`'s list
        self.layers = nn.ModuleList(
            _projection_layer(self.widths[i], self.widths[i + 1], last=i == num_layers - 1)
            for i in range(num_layers)
        )

    def forward(self, features: Tensor) -> list[Tensor]:
        """Features (B, F) -> [features, output of layer 0, ..., projection (B, D)]."""
        outputs = [features]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        return outputs


def _projection_layer(in_features: int, out_features: int, last: bool) -> nn.Sequential:
    dense = nn.Linear(in_features, out_features, bias=False)
    nn.init.normal_(dense.weight, std=0.01)
    layer = OrderedDict[str, nn.Module](dense=dense, norm=BatchNorm(out_features, center=not last))
    if not last:
        layer["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layer)


class ContrastiveModel(nn.Module):
    """What pretraining trains: images -> projections, both views in one batch (tf2/model.py)."""

    def __init__(self, encoder: nn.Module, head: ProjectionHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> projections (B, D), not normalised to unit length."""
        return self.head(self.encoder(images))[-1]


class Classifier(nn.Module):
    """What fine-tuning and distillation train: encoder, first layers of the head, linear layer.

    A kept layer is the dense map with its batch norm and ReLU, and counts as part of the encoder
    (SimCLRv2, section 2). Its parameters are called ``layers.i.*`` as in the head, whose modules
    they are. The linear layer starts at zero.

    Args:
        encoder: images -> (B, F), with ``head_hidden_size`` = F.
        num_classes: of the linear layer.
        head: the projection head; None for a classifier on the encoder's features.
        head_layers: how many of the head's layers to keep, 0 to all.

    Raises:
        ValueError: ``head_layers`` is more than the head has, or negative.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int,
        head: ProjectionHead | None = None,
        head_layers: int = 0,
    ) -> None:
        super().__init__()
        layers, widths = ([], [cast(int, encoder.head_hidden_size)])
        if head is not None:
            layers, widths = list(head.layers), head.widths
        if not 0 <= head_layers <= len(layers):
            raise ValueError(
                f"cannot keep {head_layers} layers of a projection head of {len(layers)}: "
                f"choose 0 to {len(layers)}"
            )
        self.encoder = encoder
        self.layers = nn.ModuleList(layers[:head_layers])
        self.linear = nn.Linear(widths[head_layers], num_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.frozen: tuple[nn.Module, ...] = ()

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> input of the linear layer (B, F_k)."""
        x = self.encoder(images)
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> logits (B, classes), float32 or better."""
        logits = self.linear(self.features(images))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def train(self, mode: bool = True) -> "Classifier":
        """As in torch, but frozen parts stay in eval mode."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self


def freeze(classifier: Classifier, after_block: int | None = None) -> None:
    """Freeze the encoder's beginning: no gradients, and batch norm neither uses nor counts a batch.

    The reference's TF2 code goes on counting batches in frozen blocks, against its own comments;
    this is the meaning of its TF1 code for linear evaluation.

    Args:
        classifier: changed in place.
        after_block: None for all below the linear layer (linear evaluation). For the
            SimCLRv2 family also the reference's ``fine_tune_after_block``: -1 freezes nothing,
            0 the stem, k the stem and the first k groups of blocks.

    Raises:
        ValueError: ``after_block`` out of range, or given for an encoder of another family.
    """
    encoder = classifier.encoder
    if after_block is None:
        frozen = (encoder, classifier.layers)
    elif not isinstance(encoder, resnet.SimCLRResNet):
        raise ValueError(
            f"after_block is {after_block}, but {type(encoder).__name__} has no numbered groups of "
            "blocks: freeze the whole encoder (after_block None) or use a simclr_resnet"
        )
    elif not -1 <= after_block <= len(encoder.groups):
        raise ValueError(
            f"after_block is {after_block}; this encoder has {len(encoder.groups)} groups of "
            f"blocks: choose -1 (nothing frozen) to {len(encoder.groups)}"
        )
    else:
        frozen = (encoder.stem, *encoder.groups)[: after_block + 1]
    for part in frozen:
        part.requires_grad_(False)
    classifier.frozen = frozen
    classifier.train(classifier.training)
