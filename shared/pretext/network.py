"""The network of tasks that do not answer by the projection head."""

from collections.abc import Sequence
from itertools import islice

from torch import Tensor, nn

from shared.networks.encoders import (
    feature_map,
    map_and_features,
    map_size,
    outside_of_map,
)
from shared.networks.heads import ContrastiveModel
from shared.runtime.errors import UserError


class PretextModel(nn.Module):
    """One encoder, and a head for each input; the heads are thrown away after pretraining.

    Args:
        model: encoder and projection head, which are kept.
        heads: for each input its own layers; None answers by the projection head. A head works on
            the encoder's features (B, F), unless its attribute ``sees`` says "map": the last
            feature map; "both": a feature map and the features; or "projection": what the
            projection head makes of the features. ``further_inputs`` of a head come after its
            images.
    """

    def __init__(self, model: ContrastiveModel, heads: Sequence[nn.Module | None]) -> None:
        super().__init__()
        self.encoder, self.head = model.encoder, model.head
        self.heads = nn.ModuleList(head if head is not None else nn.Identity() for head in heads)
        self.sees = ["projection" if h is None else getattr(h, "sees", "features") for h in heads]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Images (k B, 3, s, s) for each head, and its further inputs -> its answers (m B, ...)."""
        outputs, rest = [], iter(inputs)
        for head, sees in zip(self.heads, self.sees, strict=True):
            x, further = next(rest), islice(rest, getattr(head, "further_inputs", 0))
            if sees == "map":
                seen = (feature_map(self.encoder, x),)
            elif sees == "both":
                seen = map_and_features(self.encoder, x)
            else:
                features = self.encoder(x)
                seen = (self.head(features)[-1] if sees == "projection" else features,)
            outputs.append(head(*seen, *further))
        return tuple(outputs)


def map_size_of(model: ContrastiveModel, image_size: int) -> tuple[int, int]:
    """Channels and side of the feature map that heads which see "map" get.

    Raises:
        UserError: the encoder has none.
    """
    try:
        return map_size(model.encoder, image_size)
    except ValueError as error:
        raise UserError(str(error)) from error


def freeze_unseen(model: nn.Module, image_size: int) -> None:
    """Leave out of training what no head sees: what an encoder has above its feature map.

    Without gradients such weights would stop several processes, and a resumed run.
    """
    if isinstance(model, PretextModel) and set(model.sees) == {"map"}:
        for weight in outside_of_map(model.encoder, image_size):
            weight.requires_grad_(False)


def heads_of(network: nn.Module) -> list[nn.Module | None]:
    """For each input of a task's network its own layers; None answers by the projection head."""
    if isinstance(network, ContrastiveModel):
        return [None]
    assert isinstance(network, PretextModel)
    return [None if isinstance(head, nn.Identity) else head for head in network.heads]


def kept_part(model: nn.Module) -> nn.Module:
    """Encoder and projection head of a trained network: the artifact of stage 1."""
    return ContrastiveModel(model.encoder, model.head) if isinstance(model, PretextModel) else model


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The outputs of a network, one or several, as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)
