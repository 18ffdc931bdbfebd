"""The convolution of the SimCLRv2 ResNets: its initialisation, and its training on CPU.

On CPU, in bfloat16, torch's weight gradient of a convolution on small maps with many channels takes
up to six times as long as the same sum written as one matrix product (docs/performance.md). That
is a sixth of the step of ResNet-18 on images of 32 pixels. So this file writes it as one product,
which needs k * k times the memory of the layer's input while it is computed.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# With this many weights per position of the output map, or more, the product never was slower.
WEIGHTS_PER_POSITION = 16_000


class Conv2d(nn.Conv2d):
    """A convolution padded by k // 2, with the reference's initialisation.

    The initialisation is Keras' VarianceScaling: a normal distribution that is cut at two standard
    deviations and has variance 1 / fan_in after the cut. Biases are 0.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, kernel // 2, bias=bias)

    def reset_parameters(self) -> None:
        """Draw new weights."""
        fan_in = self.weight[0].numel()
        sigma = math.sqrt(1 / fan_in) / 0.87962566103423978  # the deviation that the cut leaves
        # by the inverse distribution function: 40 times as fast as nn.init.trunc_normal_
        inside = math.erf(math.sqrt(2))  # share of a normal distribution within two deviations
        with torch.no_grad():
            self.weight.uniform_(-inside, inside).erfinv_().mul_(math.sqrt(2) * sigma)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        plain = input.dim() == 4 and input.dtype in (torch.float32, torch.bfloat16)
        if plain and input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            stride = self.stride[0]
            positions = math.ceil(input.shape[2] / stride) * math.ceil(input.shape[3] / stride)
            many = self.weight.numel() >= WEIGHTS_PER_POSITION * positions
            if many and self.bias is None and self.weight.requires_grad:
                dtype = torch.get_autocast_dtype("cpu")
                return _ProductForWeights.apply(input.to(dtype), self.weight.to(dtype), stride)
        return super().forward(input)


class _ProductForWeights(torch.autograd.Function):
    """The convolution padded by k // 2; the gradient of its weights as one matrix product."""

    @staticmethod
    def forward(ctx, input: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride = stride
        return F.conv2d(input, weight, stride=stride, padding=weight.shape[-1] // 2)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        input, weight = ctx.saved_tensors
        (grad,), stride = grads, ctx.stride
        outputs, inputs, k, _ = weight.shape
        grad_input = None
        if ctx.needs_input_grad[0]:
            grad_input = torch.ops.aten.convolution_backward(
                grad,
                input,
                weight,
                None,
                [stride] * 2,
                [k // 2] * 2,
                [1, 1],
                False,
                [0, 0],
                1,
                [True, False, False],
            )[0]
        channels_last = input.permute(0, 2, 3, 1)  # (B, H, W, C)
        padded = F.pad(channels_last, (0, 0, k // 2, k // 2, k // 2, k // 2))
        windows = padded.unfold(1, k, stride).unfold(2, k, stride)  # (B, H', W', C, k, k)
        windows = windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, k * k * inputs)
        grad = grad.permute(0, 2, 3, 1).reshape(-1, outputs)  # (B * H' * W', C')
        grad_weight = (grad.t() @ windows).view(outputs, k, k, inputs).permute(0, 3, 1, 2)
        return grad_input, grad_weight, None
