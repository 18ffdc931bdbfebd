"""A contextualisation head: the places of the feature map are pooled by attention.

In place of the mean over places, a learned query asks all of them, and what answers is weighed by
how well it fits (pooling by multi-head attention: Set Transformer, arXiv 1810.00825; timm's
``AttentionPoolLatent``). The places have no positions here, so their order makes no difference. The
projection head follows. As both belong to each other, neither is kept: later stages take the
encoder with its own pooling.
"""

from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn

from shared.config.schema import Config
from shared.networks.heads import ContrastiveModel, ProjectionHead
from shared.pretext.network import map_size_of
from shared.runtime.errors import UserError


class AttentionHead(nn.Module):
    """Attention over the places of a feature map, and a projection head.

    Args:
        channels: C of the map.
        heads: of the attention, a divisor of C.
        projection: (B, C) -> list of its layers' outputs.
    """

    sees = "map"

    def __init__(self, channels: int, heads: int, projection: ProjectionHead) -> None:
        super().__init__()
        self.pool = AttentionPoolLatent(channels, num_heads=heads)
        self.projection = projection

    def forward(self, places: Tensor) -> Tensor:
        """(B, C, H, W) -> projections (B, D)."""
        return self.projection(self.pool(places.flatten(2).mT))[-1]


def attention_head(model: ContrastiveModel, config: Config) -> AttentionHead:
    """The head on this model's feature map.

    Raises:
        UserError: there is no such map, or its channels cannot be divided among the heads.
    """
    channels, _ = map_size_of(model, config.data.image_size)
    heads, size = config.attention.heads, config.model
    if channels % heads:
        raise UserError(
            f"attention.heads must be a divisor of the {channels} channels of {size.encoder}, got"
            f" {heads}"
        )
    projection = ProjectionHead(channels, size.head_layers, size.head_out, size.head_width)
    return AttentionHead(channels, heads, projection)
