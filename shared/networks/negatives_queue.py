"""The memory of SimCLRv2 (section 2, third improvement), which is MoCo's (arXiv 1911.05722, 3.2).

A second network embeds the images too. Its weights are a moving average of the trained network's.
A queue keeps its outputs, the *keys*, for some steps, and they serve as further negatives. As the
average moves slowly, keys of different age still fit together.
"""

import torch
from torch import Tensor, nn

from shared.networks.moving_average import averaged, move_average


class Memory(nn.Module):
    """The averaged network and the queue of its keys; the state dict holds both and resumes them.

    The network stays in train mode, as in MoCo: its batch norm takes the batch's statistics. The
    statistics of queries and keys come from the same images, and those of the keys in the queue
    from others, so the statistics can give the positive away. MoCo therefore shuffles the keys'
    images among the processes, each of which has statistics of its own ("shuffling BN"). Here both
    networks take their statistics over the images of all processes (`batchnorm.synchronize`), which
    is SimCLR's remedy for the same leak (arXiv 2002.05709, section 2.2). So there is nothing to
    shuffle. What remains of the leak shrinks as the global batch grows; we have not measured it.

    Args:
        model: the network to be trained; copied, so call this before anything wraps its forward.
        size: K, how many keys are kept; a multiple of the number of keys of a step.
        width: D, width of a key.
        momentum: m, the share of the old average in the new one.

    Attributes:
        network: the averaged network, at first a copy of the model; without gradients.
        queue: (K, D) float32, the keys of the last steps; at first random directions, as in MoCo,
            from torch's generator of the CPU, so that all processes begin with the same.
        position: () int64, the row of the oldest key, which is the next to be replaced.
    """

    queue: Tensor
    position: Tensor

    def __init__(self, model: nn.Module, size: int, width: int, momentum: float = 0.999) -> None:
        super().__init__()
        self.network = averaged(model).train()
        self.momentum = momentum
        device = next(model.parameters()).device
        self.register_buffer("queue", torch.randn(size, width).to(device))
        # On the CPU, wherever the queue is, so that reading it never waits for a GPU.
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, model: nn.Module, keys: Tensor) -> None:
        """After an update of ``model``: move the average, and replace the oldest keys.

        Every parameter becomes m * itself + (1 - m) * the model's. The statistics of batch norm,
        which are copied, are not used in train mode.

        Args:
            model: the trained network, without wrapper.
            keys: (B, D), the step's keys of *all* processes in the order of their ranks, so that
                the queue is the same everywhere.

        Raises:
            ValueError: K is not a multiple of B.
        """
        move_average(self.network, model, self.momentum)
        if len(self.queue) % len(keys):
            raise ValueError(
                f"a memory of {len(self.queue)} keys must be a multiple of the {len(keys)} keys of"
                " a step"
            )
        start = int(self.position)
        self.queue[start : start + len(keys)] = keys
        self.position.fill_((start + len(keys)) % len(self.queue))
