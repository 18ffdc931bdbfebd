"""A second network that a task trains against the first one, with an optimizer of its own.

Both are one module whose state dict holds the weights and the optimizer's moments. So a checkpoint
that holds it goes on to the same bits, and the stage's own optimizer knows nothing of it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.adam import adam

from shared.runtime.distributed import mean_over_processes

BETAS = (0.5, 0.999)  # of Adam (Radford et al. 2016, arXiv 1511.06434)
NEGATIVE_SLOPE = 0.2  # of the leaky ReLU, likewise


class Adversary(nn.Module):
    """Tells true images from made ones, and learns by Adam.

    The network is that of DCGAN: convolutions of 4 x 4 with stride 2 until 4 pixels or less are
    left. Its norms are over the channels of one image, not over the batch, so that an image's
    answer depends on no other image, in parts and on several processes too.

    Args:
        image_size: S.
        width: channels of the first convolution; each further one has twice as many, at most 8
            times.
        learning_rate: of Adam.

    Attributes:
        network: images (B, 3, S, S) -> (B, 1) logits, positive where they seem true. Its weights
            have no gradients but in `learn`.
    """

    updates: Tensor

    def __init__(self, image_size: int, width: int, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        layers: list[nn.Module] = []
        side, channels, wider = image_size, 3, width
        while side > 4:
            layers.append(nn.Conv2d(channels, wider, 4, 2, 1))
            if channels > 3:
                layers.append(nn.GroupNorm(1, wider))
            layers.append(nn.LeakyReLU(NEGATIVE_SLOPE))
            side, channels, wider = side // 2, wider, min(2 * wider, 8 * width)
        layers.append(nn.Conv2d(channels, 1, side))
        self.network = nn.Sequential(*layers, nn.Flatten()).requires_grad_(False)
        for layer in self.network:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        self.register_buffer("updates", torch.zeros(()))
        for number, weight in enumerate(self.network.parameters()):
            for moment in ("mean", "square"):
                self.register_buffer(f"{moment}{number}", torch.zeros_like(weight))

    def believes(self, images: Tensor) -> Tensor:
        """Logits (B,) of being true, float32."""
        return self.network(images).flatten().float()

    def loss(self, made: Tensor, true: Tensor) -> Tensor:
        """What it loses where it takes made images for true ones or true ones for made: (2b,)."""
        logits = self.believes(torch.cat([made, true]))
        labels = torch.cat([logits.new_zeros(len(made)), logits.new_ones(len(true))])
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")

    def learn(self, made: Tensor, true: Tensor, weight: float) -> None:
        """One update, the same on all processes.

        Args:
            made: (b, 3, S, S) images of the other network, without gradient.
            true: (b, 3, S, S) images.
            weight: of this process's rows.
        """
        weights: list[Tensor] = list(self.network.parameters())
        self.network.requires_grad_(True)
        gradients = torch.autograd.grad(weight * self.loss(made, true).mean(), weights)
        self.network.requires_grad_(False)
        whole = mean_over_processes(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = whole.split([one.numel() for one in weights])
        moments = [
            [self.get_buffer(f"{moment}{number}") for number in range(len(weights))]
            for moment in ("mean", "square")
        ]
        with torch.no_grad():
            adam(
                weights,
                [part.view_as(one) for part, one in zip(parts, weights, strict=True)],
                *moments,
                max_exp_avg_sqs=[],
                state_steps=[self.updates.clone() for _ in weights],  # each is counted up
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=self.learning_rate,
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
                foreach=True,
                capturable=whole.device.type == "cuda",
            )
        self.updates.add_(1)
