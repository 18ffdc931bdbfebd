"""The projection head of SimCLRv2, and the two models that the stages train."""

from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn

from shared.networks.batchnorm import BatchNorm
from shared.networks.resnet import SimCLRResNet


class ProjectionHead(nn.Module):
    """The projection head (SimCLRv2, section 2; tf2/model.py), which returns every layer's output.

    Each layer is a dense map without bias and a batch norm. The middle layers have a ReLU; the
    last has neither ReLU nor beta. Dense kernels start as N(0, 0.01^2).

    Args:
        in_features: width of the encoder's features.
        num_layers: the paper's default is 3; with 0 the projection is the features, as of
            published encoders, which come without a head.
        out_features: width of the projection.
        hidden_features: width of the middle layers; None for ``in_features``.

    Raises:
        ValueError: ``num_layers`` < 0.
    """

    def __init__(
        self,
        in_features: int,
        num_layers: int = 3,
        out_features: int = 128,
        hidden_features: int | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 0:
            raise ValueError(f"a projection head has 0 layers or more, not {num_layers}")
        hidden = [in_features if hidden_features is None else hidden_features] * (num_layers - 1)
        # of `forward`'s list
        self.widths = [in_features, *hidden, out_features] if num_layers else [in_features]
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

    @property
    def features(self) -> int:
        """Width of the encoder's features."""
        return self.head.widths[0]

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> projections (B, D), not normalised to unit length."""
        return self.head(self.encoder(images))[-1]


class Classifier(nn.Module):
    """What fine-tuning and distillation train: encoder, first layers of the head, linear layer.

    A kept layer of the head is the dense map with its batch norm and ReLU. It counts as part of the
    encoder (SimCLRv2, section 2). The classifier shares these modules with the head and calls them
    ``layers.i.*`` as the head does. The linear layer starts at zero.

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
        """As in torch, except that frozen parts stay in eval mode."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self


def freeze(classifier: Classifier, after_block: int | None = None) -> None:
    """Freeze the encoder's beginning: no gradients, and batch norm neither uses nor counts a batch.

    This is what the reference's TF1 code does in linear evaluation. Its TF2 code goes on counting
    batches in frozen blocks, against its own comments.

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
    elif not isinstance(encoder, SimCLRResNet):
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
