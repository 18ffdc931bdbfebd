"""The convolution of the SimCLRv2 ResNets: its initialisation, and its training on CPU.

On CPU, matrix products are nearly as fast as the processor can be, and torch's convolutions often
are not. So this file trains convolutions by matrix products where that was measured to be faster
(docs/performance.md). Which way is taken depends on shapes, on the precision and on the kind of
processor alone, never on a measurement: so an interrupted run that goes on keeps its bits.

- In bfloat16 the gradient of the weights is one product over the windows of the input, where there
  are many channels on small maps: up to six times as fast. It needs k * k times the memory of the
  layer's input while it is computed. In float32 too.
- In float32, on maps of 2 x 2, a 3 x 3 convolution is a dense layer: each output sees each input.
- In float32 3 x 3 convolutions of many channels are Winograd's, with a quarter of the products.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.networks import products as matrices
from shared.networks.products import add_product, product, products

# With this many weights per position of the output map, or more, the product never was slower.
WEIGHTS_PER_POSITION = 16_000
# Winograd's way pays from so many channels on; where a map is one tile, from half as many.
LEAST_CHANNELS = 128
LEAST_CHANNELS_BY_ONEDNN = 256  # where oneDNN makes the products: its own convolutions are faster
TILE = 4  # outputs along each side of one of Winograd's tiles, made of TILE + 2 inputs
LEAST_TILES = 32  # of a batch; for fewer, to transform the weights takes too long
TILES_AT_ONCE = 128  # what is computed for so many tiles fits into the cache
TILES_AT_ONCE_BY_ONEDNN = 512  # it lays out the weights anew for each product


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
        trained = self.bias is None and self.weight.requires_grad
        if not (plain and trained and input.device.type == "cpu"):
            return super().forward(input)
        stride = self.stride[0]
        positions = math.ceil(input.shape[2] / stride) * math.ceil(input.shape[3] / stride)
        many = self.weight.numel() >= WEIGHTS_PER_POSITION * positions
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            if many:
                return _ProductForWeights.apply(input.to(dtype), self.weight.to(dtype), stride)
        elif self._trains_in_float32(input):
            if self.kernel_size[0] == 3 and stride == 1:
                if input.shape[2:] == (2, 2):
                    return _Dense.apply(input, self.weight)
                if _winograd_pays(input.shape, self.out_channels):
                    return _Winograd.apply(input, self.weight)
            if many:
                return _ProductForWeights.apply(input, self.weight, stride)
        return super().forward(input)

    def _trains_in_float32(self, input: Tensor) -> bool:
        """Whether the sums may be made in another order: not in evaluation, nor in another layout.

        With gradient or without, so that a batch that passes twice is the same both times.
        """
        return (
            self.training
            and input.dtype == self.weight.dtype == torch.float32
            and input.is_contiguous(memory_format=torch.channels_last)
        )


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
        grad_weight = product(grad.t(), windows).view(outputs, k, k, inputs).permute(0, 3, 1, 2)
        return grad_input, grad_weight, None


class _Dense(torch.autograd.Function):
    """The 3 x 3 convolution of maps (B, C, 2, 2) as one product; padding is left out."""

    @staticmethod
    def forward(ctx, input: Tensor, weight: Tensor) -> Tensor:
        outputs, inputs = weight.shape[:2]
        kernel = weight.permute(2, 3, 1, 0)  # (3, 3, C, C')
        # the taps with which the four inputs (2, 2, C) enter the output at (y, x)
        taps = [kernel[down, across] for down, across in _taps_of_outputs()]
        matrix = torch.stack(taps, dim=3).reshape(4 * inputs, 4 * outputs)
        rows = input.permute(0, 2, 3, 1).reshape(-1, 4 * inputs)
        ctx.save_for_backward(rows, matrix)
        return product(rows, matrix).view(-1, 2, 2, outputs).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, Tensor]:
        rows, matrix = ctx.saved_tensors
        inputs, outputs = (side // 4 for side in matrix.shape)
        grad = grads[0].permute(0, 2, 3, 1).reshape(-1, 4 * outputs)
        grad_input = None
        if ctx.needs_input_grad[0]:
            grad_input = product(grad, matrix.t()).view(-1, 2, 2, inputs).permute(0, 3, 1, 2)
        of_outputs = product(rows.t(), grad).view(2, 2, inputs, 4, outputs).unbind(3)
        grad_kernel = grad.new_zeros(3, 3, inputs, outputs)
        for (down, across), of_output in zip(_taps_of_outputs(), of_outputs, strict=True):
            grad_kernel[down, across] += of_output
        return grad_input, grad_kernel.permute(3, 2, 0, 1)


def _taps_of_outputs() -> list[tuple[slice, slice]]:
    """Which rows and columns of a 3 x 3 kernel each of the 2 x 2 outputs has."""
    return [(slice(1 - y, 3 - y), slice(1 - x, 3 - x)) for y in (0, 1) for x in (0, 1)]


def _winograd_pays(shape: torch.Size, outputs: int) -> bool:
    """Whether there are enough channels and tiles, and tiles hang little over the map's edge."""
    B, C, H, W = shape
    tiles = math.ceil(H / TILE) * math.ceil(W / TILE)
    least = LEAST_CHANNELS // 2 if H == W == TILE else LEAST_CHANNELS
    if matrices.BY_ONEDNN:
        least = LEAST_CHANNELS_BY_ONEDNN
    used = H * W / (tiles * TILE**2)  # share of what is computed
    return min(C, outputs) >= least and B * tiles >= LEAST_TILES and used >= 0.75


def _both_sides(matrix: list[list[int]], divisor: int = 1) -> Tensor:
    """What transforms tiles, made of what transforms one of their sides."""
    return torch.from_numpy(np.kron(matrix, matrix) / divisor**2).float()


# F(4 x 4, 3 x 3) of Lavin and Gray 2015, arXiv 1509.09308, section 4.3
OF_INPUTS = _both_sides(  # (36, 36)
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
OF_SMALL_INPUTS = OF_INPUTS.view(36, 6, 6)[:, 1:5, 1:5].reshape(36, 16)  # without the padding
OF_WEIGHTS = _both_sides(  # (36, 9)
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], 24
)
OF_OUTPUTS = _both_sides(  # (16, 36)
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)


class _Winograd(torch.autograd.Function):
    """The 3 x 3 convolution with stride 1 and padding 1, and its gradients, in float32.

    The products of a tile are made for some images at a time, to stay in the cache. Of numbers of
    deviation 1 it is off by at most 1e-4; torch's convolution by 2e-5, and one in bfloat16 by 1e-2.
    """

    @staticmethod
    def forward(ctx, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _convolve(input, weight)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, Tensor]:
        input, weight = ctx.saved_tensors
        grad_input = None
        if ctx.needs_input_grad[0]:
            grad_input = _convolve(grads[0], weight.flip(2, 3).transpose(0, 1))
        return grad_input, _grad_of_weight(input, grads[0])


def _convolve(input: Tensor, weight: Tensor) -> Tensor:
    """Winograd's convolution of (B, C, H, W) by (C', C, 3, 3): (B, C', H, W), channels last."""
    (_, C, H, W), outputs = input.shape, len(weight)
    down, across = math.ceil(H / TILE), math.ceil(W / TILE)
    kernels = (OF_WEIGHTS @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(-1, C, outputs)
    output = input.new_empty(len(input), H, W, outputs)
    at_once = _images_at_once(H, W)
    for part, rows in zip(input.split(at_once), output.split(at_once), strict=True):
        transformed = products(_transformed_tiles(part).transpose(0, 1), kernels)
        transformed = transformed.transpose(0, 1)  # (T, 36, C')
        if H == W == TILE:
            torch.matmul(OF_OUTPUTS, transformed, out=rows.view(-1, TILE**2, outputs))
            continue
        tiles = (OF_OUTPUTS @ transformed).view(-1, down, across, TILE, TILE, outputs)
        tiles = tiles.transpose(2, 3).reshape(-1, down * TILE, across * TILE, outputs)
        rows.copy_(tiles[:, :H, :W])
    return output.permute(0, 3, 1, 2)


def _grad_of_weight(input: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the weights of `_convolve`: (C', C, 3, 3)."""
    (_, C, H, W), outputs = input.shape, grad.shape[1]
    down, across = math.ceil(H / TILE), math.ceil(W / TILE)
    kernels = input.new_zeros(len(OF_WEIGHTS), C, outputs)
    at_once = _images_at_once(H, W)
    for part, grad_part in zip(input.split(at_once), grad.split(at_once), strict=True):
        rows = F.pad(grad_part.permute(0, 2, 3, 1), (0, 0, 0, -W % TILE, 0, -H % TILE))
        tiles = rows.reshape(-1, down, TILE, across, TILE, outputs).transpose(2, 3)
        grads = OF_OUTPUTS.t() @ tiles.reshape(-1, TILE**2, outputs)  # (T, 36, C')
        inputs = _transformed_tiles(part).permute(1, 2, 0)  # (36, C, T)
        add_product(kernels, inputs, grads.transpose(0, 1))
    taps = (OF_WEIGHTS.t() @ kernels.view(len(kernels), -1)).view(3, 3, C, outputs)
    return taps.permute(3, 2, 0, 1)


def _transformed_tiles(input: Tensor) -> Tensor:
    """Overlapping tiles of (b, C, H, W), transformed: (T, 36, C), T = b * tiles of a map."""
    _, C, H, W = input.shape
    rows, side = input.permute(0, 2, 3, 1), TILE + 2
    if H == W == TILE:  # nothing overlaps
        return OF_SMALL_INPUTS @ rows.reshape(-1, TILE**2, C)
    padded = F.pad(rows, (0, 0, 1, 1 + -W % TILE, 1, 1 + -H % TILE))
    tiles = padded.unfold(1, side, TILE).unfold(2, side, TILE)  # (b, h, w, C, 6, 6)
    return OF_INPUTS @ tiles.permute(0, 1, 2, 4, 5, 3).reshape(-1, side**2, C)


def _images_at_once(H: int, W: int) -> int:
    """How many images with maps of this size are computed together."""
    tiles = TILES_AT_ONCE_BY_ONEDNN if matrices.BY_ONEDNN else TILES_AT_ONCE
    return max(1, tiles // (math.ceil(H / TILE) * math.ceil(W / TILE)))
