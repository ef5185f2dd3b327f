"""Features of a short clip: a 3-D ResNet (Hara et al. 2018) with GroupNorm."""

from collections.abc import Callable

from torch import Tensor, nn

from diffusion_policy.common.errors import ConfigError

WIDTHS = (64, 128, 256, 512)


class VideoCore(nn.Module):
    """A backbone on whole clips, then pooling: frames (B, T, C, H, W) to features (B, F).

    Args:
        backbone: (B, C, T, H, W) to feature maps (B, F, T', H', W').
        pool: feature maps to features (B, F).
    """

    def __init__(self, backbone: nn.Module, pool: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.pool = pool

    def forward(self, frames: Tensor) -> Tensor:
        return self.pool(self.backbone(frames.transpose(1, 2)))


class VideoResNet(nn.Module):
    """A ResNet whose convolutions also run over time: (B, C, T, H, W) to (B, F, T', H/32, W/32).

    A policy sees few frames, so the first layers keep all of them; the last three stages halve T.
    GroupNorm, over (channels of the group, T, H, W), instead of BatchNorm: the moving average of
    the weights needs it (Chi et al. 2023, sec. III-B).

    Args:
        norm_groups: groups of the GroupNorms; divides 64.
        input_channel: C.
        model_depth: 18 or 34 (basic blocks, F = 512), or 50 (bottlenecks, F = 2048).

    Raises:
        ConfigError: there is no such depth, or the groups do not divide the channels.
    """

    def __init__(self, norm_groups: int = 8, input_channel: int = 3, model_depth: int = 50):
        super().__init__()
        if model_depth not in _DEPTHS:
            raise ConfigError(f"model_depth is {model_depth}; choose one of {sorted(_DEPTHS)}")
        if WIDTHS[0] % norm_groups:
            raise ConfigError(f"norm_groups is {norm_groups}; set it to a divisor of {WIDTHS[0]}")

        def norm(channels: int) -> nn.Module:
            return nn.GroupNorm(norm_groups, channels)

        block, blocks_per_stage = _DEPTHS[model_depth]
        self.stem = nn.Sequential(
            nn.Conv3d(input_channel, WIDTHS[0], (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False),
            norm(WIDTHS[0]),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )
        stages: list[nn.Module] = []
        channels = WIDTHS[0]
        for width, n_blocks in zip(WIDTHS, blocks_per_stage, strict=True):
            for i in range(n_blocks):
                stride = 2 if i == 0 and stages else 1
                stages.append(block(channels, width, stride, norm))
                channels = width * block.expansion
        self.stages = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x))


Norm = Callable[[int], nn.Module]


class _Residual(nn.Module):
    """ReLU of the sum of ``branch(x)`` and ``x``, brought to the same shape where it must be."""

    expansion = 1

    def __init__(
        self, branch: nn.Module, in_channels: int, out_channels: int, stride: int, norm: Norm
    ):
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, stride, bias=False), norm(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.branch(x) + self.shortcut(x))


class _BasicBlock(_Residual):
    """Two 3x3x3 convolutions."""

    def __init__(self, in_channels: int, width: int, stride: int, norm: Norm):
        branch = nn.Sequential(
            nn.Conv3d(in_channels, width, 3, stride, 1, bias=False),
            norm(width),
            nn.ReLU(inplace=True),
            nn.Conv3d(width, width, 3, 1, 1, bias=False),
            norm(width),
        )
        super().__init__(branch, in_channels, width, stride, norm)


class _Bottleneck(_Residual):
    """A 3x3x3 convolution between two of 1x1x1, which narrow and widen by ``expansion``."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, norm: Norm):
        branch = nn.Sequential(
            nn.Conv3d(in_channels, width, 1, bias=False),
            norm(width),
            nn.ReLU(inplace=True),
            nn.Conv3d(width, width, 3, stride, 1, bias=False),
            norm(width),
            nn.ReLU(inplace=True),
            nn.Conv3d(width, width * self.expansion, 1, bias=False),
            norm(width * self.expansion),
        )
        super().__init__(branch, in_channels, width * self.expansion, stride, norm)


# depth: (block, number of blocks in each of the four stages)
_DEPTHS: dict[int, tuple[type[_BasicBlock] | type[_Bottleneck], tuple[int, ...]]] = {
    18: (_BasicBlock, (2, 2, 2, 2)),
    34: (_BasicBlock, (3, 4, 6, 3)),
    50: (_Bottleneck, (3, 4, 6, 3)),
}
