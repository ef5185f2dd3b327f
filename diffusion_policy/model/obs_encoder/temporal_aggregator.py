"""One feature vector from a short sequence of low-dimensional observations."""

from collections.abc import Sequence

from torch import Tensor, nn

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.diffusion.conv1d_components import (
    Conv1dBlock,
    Downsample1d,
    ShortConv1d,
)


class ResidualConv1dBlock(nn.Module):
    """Two convolutions over time with a residual connection: (B, in, T) to (B, out, T).

    The residual connection also carries what the GroupNorms take away: where the robot *is*, not
    only how it moves.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, n_groups: int):
        super().__init__()
        self.blocks = nn.Sequential(
            Conv1dBlock(in_channels, out_channels, kernel_size, n_groups),
            Conv1dBlock(out_channels, out_channels, kernel_size, n_groups),
        )
        self.residual_conv = (
            ShortConv1d(in_channels, out_channels, 1)
            if in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x) + self.residual_conv(x)


class TemporalAggregator(nn.Module):
    """Convolutions over time in levels, each but the last halving the sequence.

    The steps that are left are laid out next to each other, not averaged: the newest observation
    matters most and must stay distinguishable.

    Args:
        in_channels: D, values per step.
        n_steps: To, length of the sequence.
        channel_mults: per level, its channels as a multiple of D.
        n_blocks_per_level: residual blocks of each level.
        kernel_size: of the convolutions; odd.
        n_groups: of the GroupNorms; divides the channels of every level.

    Raises:
        ConfigError: the groups do not divide the channels, or the kernel is even.
    """

    def __init__(
        self,
        in_channels: int,
        n_steps: int,
        channel_mults: Sequence[int] = (1, 1),
        n_blocks_per_level: int = 1,
        kernel_size: int = 3,
        n_groups: int = 8,
    ):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ConfigError(f"ta_kernel_size is {kernel_size}; set it to an odd number")
        widths = [in_channels * mult for mult in channel_mults]
        if not widths or any(width % n_groups for width in widths):
            raise ConfigError(
                f"ta_n_groups is {n_groups}, but the levels of the low-dimensional observations "
                f"have {widths} channels ({in_channels} values times channel_mults="
                f"{list(channel_mults)}); set it to a divisor of them, 1 always works"
            )
        levels: list[nn.Module] = []
        channels = in_channels
        for i, width in enumerate(widths):
            if i > 0:
                levels.append(Downsample1d(channels))
                n_steps = (n_steps + 1) // 2
            for _ in range(n_blocks_per_level):
                levels.append(ResidualConv1dBlock(channels, width, kernel_size, n_groups))
                channels = width
        self.levels = nn.Sequential(*levels)
        self.output_dim = channels * n_steps

    def forward(self, x: Tensor) -> Tensor:
        """(B, To, D) to (B, output_dim)."""
        return self.levels(x.transpose(1, 2)).flatten(1)
