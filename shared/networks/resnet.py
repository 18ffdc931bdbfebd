"""The SimCLRv2 ResNets, registered with timm (Chen et al. 2020, arXiv 2006.10029; tf2/resnet.py).

One rule of names: ``simclr_resnet{depth}_{width}x_sk{0|1}``, with ``_se`` appended for
squeeze-and-excitation of ratio 0.25. Depth 18 to 200 is the reference's; 8, 14 and 20 are the
CIFAR networks of He et al. 2016 (section 4.2: 6n + 2 layers) built from the same blocks.
Images are (B, C, H, W) in [0, 1], not normalised by mean and deviation.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shared.networks.batchnorm import BatchNorm, frozen_statistics
from shared.networks.cpu import Conv2d

BLOCKS = {  # depth -> residual blocks per group
    8: (1, 1, 1),
    14: (2, 2, 2),
    20: (3, 3, 3),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
SMALL_DEPTHS = (8, 14, 20)  # three groups, 16 base filters, the small-image stem only
SK_RATIO = 0.0625  # the reference's sk_ratio and se_ratio where they are on
SE_RATIO = 0.25


class MaxPool(nn.Module):
    """TensorFlow's SAME max pool, 3x3 with stride 2: an even side is padded at its end only."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H/2), ceil(W/2))."""
        # ceil_mode lets the last window of an even side hang over the edge
        return F.max_pool2d(x, 3, 2, padding=(x.shape[2] % 2, x.shape[3] % 2), ceil_mode=True)


class ShortcutPool(nn.Module):
    """The ResNet-D shortcut's 2x2 average pool; every window looks right and down."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H/stride), ceil(W/stride))."""
        if self.stride == 1:  # SAME: padding does not count, so the last row averages one row
            return F.avg_pool2d(x, 2, 1, padding=1, count_include_pad=False)[:, :, 1:, 1:]
        # zero padding of one row and column that do count; an even side never reads them
        return F.avg_pool2d(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)), 2, 2)


class SelectiveKernel(nn.Module):
    """Two 3x3 streams, mixed per channel by attention over their sum (Li et al. 2019).

    Unlike there, both streams have dilation 1 (tf2/resnet.py, SK_Conv2D).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, sk_ratio: float) -> None:
        super().__init__()
        hidden = max(int(out_channels * sk_ratio), 32)
        self.streams = conv_bn_relu(in_channels, 2 * out_channels, 3, stride)
        self.squeeze = conv_bn_relu(out_channels, hidden, 1)
        self.excite = Conv2d(hidden, 2 * out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H/stride, W/stride)."""
        first, second = self.streams(x).chunk(2, dim=1)  # (B, C, H, W) each
        pooled = (first + second).mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        logits = self.excite(self.squeeze(pooled)).unflatten(1, (2, -1))  # (B, 2, C, 1, 1)
        attention = logits.softmax(dim=1)
        return attention[:, 0] * first + attention[:, 1] * second


class SqueezeExcite(nn.Module):
    """Channel gates from the pooled map (Hu et al. 2018), with biases (tf2/resnet.py, SE_Layer)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = Conv2d(channels, hidden, 1, bias=True)
        self.expand = Conv2d(hidden, channels, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, every channel scaled by a gate in (0, 1)."""
        hidden = F.relu(self.reduce(x.mean((2, 3), keepdim=True)))  # (B, hidden, 1, 1)
        return self.expand(hidden).sigmoid() * x


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1
) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU."""
    return nn.Sequential(
        Conv2d(in_channels, out_channels, kernel, stride),
        BatchNorm(out_channels),
        nn.ReLU(inplace=True),
    )


class ResidualBlock(nn.Module):
    """A basic block (two 3x3) or a bottleneck (1x1, 3x3 or selective kernel, 1x1).

    The stride is in the 3x3. The last batch norm starts with gamma 0, so a new block is its
    shortcut. Modules are created in the order of the reference, on which `reference_names` relies.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        bottleneck: bool,
        project: bool,
        sk_ratio: float,
        se_ratio: float,
    ) -> None:
        super().__init__()
        out_channels = 4 * width if bottleneck else width
        if not project:
            self.shortcut = nn.Identity()
        elif sk_ratio > 0:  # ResNet-D (He et al. 2019): pool, then project
            self.shortcut = nn.Sequential(
                ShortcutPool(stride), Conv2d(in_channels, out_channels, 1), BatchNorm(out_channels)
            )
        else:
            self.shortcut = nn.Sequential(
                Conv2d(in_channels, out_channels, 1, stride), BatchNorm(out_channels)
            )
        if bottleneck:
            self.branch = nn.Sequential(
                conv_bn_relu(in_channels, width, 1),
                SelectiveKernel(width, width, stride, sk_ratio)
                if sk_ratio > 0
                else conv_bn_relu(width, width, 3, stride),
                Conv2d(width, out_channels, 1),
            )
        else:
            self.branch = nn.Sequential(
                conv_bn_relu(in_channels, width, 3, stride), Conv2d(width, out_channels, 3)
            )
        self.norm = BatchNorm(out_channels)
        nn.init.zeros_(self.norm.weight)
        self.gate = (
            SqueezeExcite(out_channels, max(1, int(width * se_ratio)))
            if se_ratio > 0
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, ceil(H/stride), ceil(W/stride))."""
        # in place: no gradient needs the branch's output, and new memory costs more than the sum
        return self.gate(self.norm(self.branch(x))).add_(self.shortcut(x)).relu_()


class SimCLRResNet(nn.Module):
    """One member of the family, with the methods that timm asks of a model.

    Args:
        depth: a key of `BLOCKS`.
        width: multiplier of all widths.
        sk_ratio: > 0 turns on selective kernels (bottlenecks) and the ResNet-D stem and shortcuts.
        se_ratio: > 0 turns on squeeze-and-excitation.
        small_stem: one 3x3 convolution, no pooling: the reference's choice for images <= 32 pixels.
        in_chans: channels of the images.
        num_classes: 0 for features, else a linear classifier on top.
        global_pool: timm's name of the pooling; ``""`` for none.

    Raises:
        ValueError: unknown depth, or a small depth (`SMALL_DEPTHS`) without the small stem.
    """

    def __init__(
        self,
        depth: int,
        width: int = 1,
        sk_ratio: float = 0.0,
        se_ratio: float = 0.0,
        small_stem: bool = False,
        in_chans: int = 3,
        num_classes: int = 0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"depth is {depth}; choose one of {', '.join(map(str, BLOCKS))}")
        if depth in SMALL_DEPTHS and not small_stem:
            raise ValueError(
                f"depth {depth} has the small-image stem only: leave small_stem out or choose "
                "depth 18 or more"
            )
        base = (16 if depth in SMALL_DEPTHS else 64) * width
        self.in_chans = in_chans
        self.grad_checkpointing = False
        self.stem = nn.Sequential()
        if small_stem:
            self.stem.extend(conv_bn_relu(in_chans, base, 3))
        elif sk_ratio > 0:  # ResNet-D
            self.stem.extend(conv_bn_relu(in_chans, base // 2, 3, stride=2))
            self.stem.extend(conv_bn_relu(base // 2, base // 2, 3))
            self.stem.extend(conv_bn_relu(base // 2, base, 3))
        else:
            self.stem.extend(conv_bn_relu(in_chans, base, 7, stride=2))
        last = f"stem.{len(self.stem) - 1}"
        self.feature_info = [_feature_info(base, 1 if small_stem else 2, last)]
        if not small_stem:
            self.stem.append(MaxPool())

        self.groups = nn.Sequential()
        bottleneck = depth >= 50
        channels = base
        for g, blocks in enumerate(BLOCKS[depth]):
            group = nn.Sequential()
            filters = base << g
            for b in range(blocks):
                first = b == 0
                stride = 2 if g > 0 and first else 1
                block = ResidualBlock(
                    channels, filters, stride, bottleneck, first, sk_ratio, se_ratio
                )
                group.append(block)
                channels = filters * (4 if bottleneck else 1)
            self.groups.append(group)
            reduction = (1 if small_stem else 4) << g
            self.feature_info.append(_feature_info(channels, reduction, f"groups.{g}"))
        self.num_features = channels
        self.reset_classifier(num_classes, global_pool)

    def get_classifier(self) -> nn.Module:
        """The linear classifier, or Identity without one."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier on top (none for 0); ``global_pool`` None keeps the pooling."""
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(
                pool_type=global_pool, flatten=global_pool != ""
            )
        self.num_classes = num_classes
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.fc = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        trunk = next(self.parameters())
        self.fc.to(trunk.device, trunk.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the blocks' inputs for the backward pass, which computes the rest again.

        Gradients are the same, and batch norm counts the batch once.
        """
        self.grad_checkpointing = enable

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> last feature map (B, num_features, H', W')."""
        x = self.stem(x)
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return self.groups(x)
        for group in self.groups:
            for block in group.children():
                x = _recomputed(block, x)
        return x

    def forward_intermediates(self, x: Tensor, indices: list[int]) -> tuple[Tensor, list[Tensor]]:
        """Images (B, in_chans, H, W) -> last feature map, and those of some groups.

        Args:
            x: the images.
            indices: of the groups, from the first, or negative from the last. In timm the maps
                begin with the stem's.
        """
        x, maps = self.stem(x), []
        for group in self.groups:
            for block in cast(nn.Sequential, group).children():
                recomputes = self.grad_checkpointing and torch.is_grad_enabled()
                x = _recomputed(block, x) if recomputes else block(x)
            maps.append(x)
        return x, [maps[index] for index in indices]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map -> pooled features (B, F), or logits (B, num_classes) with a classifier."""
        x = self.global_pool(x)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> features (B, F), or logits with a classifier."""
        return self.forward_head(self.forward_features(x))


def _feature_info(channels: int, reduction: int, module: str) -> dict[str, int | str]:
    """One feature map in timm's terms; ``reduction`` is image side / map side."""
    return {"num_chs": channels, "reduction": reduction, "module": module}


def _recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """``block(x)``, computed again in the backward pass, which must not count the batch again."""
    if torch.compiler.is_compiling():  # a compiled graph updates the running statistics once
        return checkpoint(block, x, use_reentrant=False)  # pyright: ignore[reportReturnType]
    contexts = lambda: (nullcontext(), frozen_statistics())  # noqa: E731
    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)  # pyright: ignore[reportReturnType]


def reference_names(model: SimCLRResNet) -> dict[str, str]:
    """The reference's variable names of the trunk -> names in ``model``'s state dict.

    For example ``conv2d_3/kernel`` -> ``groups.0.0.branch.1.weight`` and
    ``batch_normalization_3/moving_variance`` -> ``groups.0.0.norm.running_var``. The reference
    counts convolutions and batch norms in the order in which they are created, shortcut before
    main branch: the order of our modules. Leave out the scopes before it and a ``sync_``.
    """
    names, convolutions, norms = {}, 0, 0
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            scope = "conv2d" + (f"_{convolutions}" if convolutions else "")
            leaves = {"kernel": "weight", "bias": "bias"}
            convolutions += 1
        elif isinstance(module, BatchNorm):
            scope = "batch_normalization" + (f"_{norms}" if norms else "")
            leaves = {
                "gamma": "weight",
                "beta": "bias",
                "moving_mean": "running_mean",
                "moving_variance": "running_var",
            }
            norms += 1
        else:
            continue
        for leaf, ours in leaves.items():
            if getattr(module, ours) is not None:
                names[f"{scope}/{leaf}"] = f"{path}.{ours}"
    return names


def _architectures() -> dict[str, dict[str, Any]]:
    """Name -> arguments of `SimCLRResNet`, for every member of the family."""
    return {
        f"simclr_resnet{depth}_{width}x_sk{sk}{'_se' if se else ''}": {
            "depth": depth,
            "width": width,
            "sk_ratio": SK_RATIO * sk,
            "se_ratio": SE_RATIO * se,
            "small_stem": depth in SMALL_DEPTHS,
        }
        for depth in BLOCKS
        for width in (1, 2, 3, 4)
        for sk in (0, 1)
        for se in (0, 1)
    }


def _entry_point(name: str, architecture: dict[str, Any]) -> Callable[..., SimCLRResNet]:
    """The function that ``timm.create_model(name)`` calls."""
    depth: int = architecture["depth"]
    outputs = tuple(range(len(BLOCKS[depth]) + 1))  # of the stem and of each group

    def create(pretrained: bool = False, **kwargs) -> SimCLRResNet:
        return build_model_with_cfg(
            SimCLRResNet,
            name,
            pretrained,
            feature_cfg={"flatten_sequential": True, "out_indices": outputs},
            **{**architecture, **kwargs},
        )

    create.__name__ = name  # timm registers a function under its name
    return create


# timm looks for this name in the module of a function that it registers.
default_cfgs = generate_default_cfgs(
    {
        name: {
            "url": "",
            "num_classes": 0,
            "input_size": (3, 32, 32) if architecture["small_stem"] else (3, 224, 224),
            "pool_size": None,
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "first_conv": "stem.0",
            "classifier": "fc",
        }
        for name, architecture in _architectures().items()
    }
)
for _name, _architecture in _architectures().items():
    register_model(_entry_point(_name, _architecture))

# timm has added the names of all members to __all__. They are no names of this module.
__all__ = ["BLOCKS", "SMALL_DEPTHS", "SimCLRResNet", "reference_names"]
