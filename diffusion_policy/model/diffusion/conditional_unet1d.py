"""The noise-prediction network of the paper: a 1-D U-Net over time, conditioned by FiLM.

Chi et al. 2023, section III-A ("CNN-based Diffusion Policy"); FiLM: Perez et al. 2018. The
observation and the diffusion step enter every residual block as a channel-wise scale and shift
(global conditioning); observations of each step can also be added to the features of the first
level (local conditioning).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.diffusion.conv1d_components import (
    Conv1dBlock,
    Downsample1d,
    ShortConv1d,
    Upsample1d,
)
from diffusion_policy.model.diffusion.positional_embedding import SinusoidalPosEmb

logger = logging.getLogger(__name__)

FINAL_GROUPS = 8  # the last block's GroupNorm does not follow n_groups


class ConditionalResidualBlock1D(nn.Module):
    """Two convolutions with a residual connection; FiLM after the first.

    Args:
        in_channels: of the input (B, in_channels, T).
        out_channels: of the output (B, out_channels, T).
        cond_dim: of the condition (B, cond_dim).
        kernel_size: odd.
        n_groups: of the GroupNorms.
        cond_predict_scale: FiLM with scale and shift; otherwise shift only.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        cond_dim: int,
        kernel_size: int = 3,
        n_groups: int = 8,
        cond_predict_scale: bool = False,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                Conv1dBlock(in_channels, out_channels, kernel_size, n_groups),
                Conv1dBlock(out_channels, out_channels, kernel_size, n_groups),
            ]
        )
        self.cond_predict_scale = cond_predict_scale
        self.out_channels = out_channels
        film_channels = 2 * out_channels if cond_predict_scale else out_channels
        self.cond_encoder = nn.Sequential(
            nn.Mish(), nn.Linear(cond_dim, film_channels), nn.Unflatten(-1, (film_channels, 1))
        )
        self.residual_conv = (
            ShortConv1d(in_channels, out_channels, 1)
            if in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return self.modulate(*self.features(x), self.cond_encoder(cond))

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What depends on ``x`` alone: (features to modulate, residual)."""
        return self.blocks[0](x), self.residual_conv(x)

    def modulate(self, features: Tensor, residual: Tensor, film: Tensor) -> Tensor:
        """The rest of the block, given ``film`` = ``cond_encoder(cond)``, (B, out or 2 out, 1)."""
        if self.cond_predict_scale:
            scale, shift = film.chunk(2, dim=1)
            features = scale * features + shift
        else:
            features = features + film
        return self.blocks[1](features) + residual

    def split_condition(
        self, step_embedding: Tensor, global_cond: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``cond_encoder([step, global])`` as the sum of two halves, one per argument.

        Mish works element by element, so the Linear after it splits into a product with the first
        columns and one with the last: n steps and B conditions cost n + B rows, not n * B.

        Args:
            step_embedding: (n, E).
            global_cond: (B, C - E), or None if C = E.

        Returns:
            (n, film) and (B or 1, film); their sum over rows i and b is the FiLM of step i for
            condition b.
        """
        linear = cast(nn.Linear, self.cond_encoder[1])
        step_weight, global_weight = linear.weight.tensor_split((step_embedding.shape[1],), dim=1)
        step_half = F.linear(F.mish(step_embedding), step_weight)
        if global_cond is None:
            return step_half, linear.bias[None]
        return step_half, F.linear(F.mish(global_cond), global_weight, linear.bias)


class ConditionalUnet1D(nn.Module):
    """Predicts the noise of a sequence from the sequence, the diffusion step and the observation.

    Args:
        input_dim: D, values per step of the sequence.
        local_cond_dim: values per step of ``local_cond``, or None.
        global_cond_dim: values of ``global_cond``, or None.
        diffusion_step_embed_dim: E, size of the embedding of the diffusion step (even).
        down_dims: channels per level. Each level but the first halves the sequence, so its length T
            must be a multiple of ``length_multiple`` = 2^(levels - 1).
        kernel_size: of the convolutions over time; odd.
        n_groups: of the GroupNorms; divides every entry of ``down_dims``.
        cond_predict_scale: FiLM with scale and shift; otherwise shift only.
    """

    def __init__(
        self,
        input_dim: int,
        local_cond_dim: int | None = None,
        global_cond_dim: int | None = None,
        diffusion_step_embed_dim: int = 256,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 3,
        n_groups: int = 8,
        cond_predict_scale: bool = False,
    ):
        super().__init__()
        down_dims = list(down_dims)
        _check_architecture(down_dims, kernel_size, n_groups)
        self.input_dim = input_dim
        self.local_cond_dim = local_cond_dim
        self.global_cond_dim = global_cond_dim
        self.down_dims = down_dims
        self.length_multiple = 2 ** (len(down_dims) - 1)
        embed_dim = diffusion_step_embed_dim
        cond_dim = embed_dim + (global_cond_dim or 0)

        def block(in_channels: int, out_channels: int) -> ConditionalResidualBlock1D:
            return ConditionalResidualBlock1D(
                in_channels, out_channels, cond_dim, kernel_size, n_groups, cond_predict_scale
            )

        def level(dim_in: int, dim_out: int, resample: Callable[[int], nn.Module]) -> nn.ModuleList:
            return nn.ModuleList(
                [block(dim_in, dim_out), block(dim_out, dim_out), resample(dim_out)]
            )

        # Two orders matter, and differ. Modules are *built* here in the order in which initial
        # weights are drawn from the random generator ...
        start_dim, mid_dim = down_dims[0], down_dims[-1]
        *upper, deepest = pairwise([input_dim, *down_dims])
        step_encoder = nn.Sequential(
            SinusoidalPosEmb(embed_dim),
            nn.Linear(embed_dim, 4 * embed_dim),
            nn.Mish(),
            nn.Linear(4 * embed_dim, embed_dim),
        )
        local_encoder = None
        if local_cond_dim is not None:
            # The second one was meant for the way up. It never had an effect, but published
            # checkpoints hold its weights.
            local_encoder = nn.ModuleList([block(local_cond_dim, start_dim) for _ in range(2)])
        mid = nn.ModuleList([block(mid_dim, mid_dim) for _ in range(2)])
        down = [level(a, b, Downsample1d) for a, b in upper] + [level(*deepest, nn.Identity)]
        up = [level(2 * b, a, Upsample1d) for a, b in reversed([*upper, deepest][1:])]
        final = nn.Sequential(
            Conv1dBlock(start_dim, start_dim, kernel_size, FINAL_GROUPS),
            ShortConv1d(start_dim, input_dim, 1),
        )
        # ... and *registered* in the order of published state dicts and optimizer states.
        self.mid_modules = mid
        self.diffusion_step_encoder = step_encoder
        self.local_cond_encoder = local_encoder
        self.up_modules = nn.ModuleList(up)
        self.down_modules = nn.ModuleList(down)
        self.final_conv = final
        logger.info("number of parameters: %e", sum(p.numel() for p in self.parameters()))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """One evaluation.

        Args:
            sample: (B, T, input_dim), the noisy sequence.
            timestep: the diffusion step, (B,) or a scalar for all.
            local_cond: (B, T, local_cond_dim).
            global_cond: (B, global_cond_dim).
            **kwargs: ignored.

        Returns:
            (B, T, input_dim).

        Raises:
            ConfigError: shapes that do not fit the architecture.
        """
        self._check_length(sample)
        self._check_conditions(local_cond, global_cond)
        if not isinstance(timestep, Tensor):
            timestep = torch.full((), int(timestep), device=sample.device)
        cond = self.diffusion_step_encoder(timestep.to(sample.device).expand(len(sample)))
        if global_cond is not None:
            cond = torch.cat((cond, global_cond), dim=-1)
        local = self._local_features(local_cond)
        films = (block.cond_encoder(cond) for block in self._blocks(local is not None))
        return self._denoise(sample, films, local)

    def prepare_sampling(
        self,
        timesteps: Tensor,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
    ) -> "PreparedDenoiser":
        """Does, once, all that stays the same in a reverse process.

        Args:
            timesteps: (n,), the diffusion steps that the reverse process will visit.
            local_cond: (B, T, local_cond_dim).
            global_cond: (B, global_cond_dim).

        Returns:
            A function of (sample, i) that equals ``forward(sample, timesteps[i], local_cond,
            global_cond)`` up to rounding. After a change of the weights, prepare again.
        """
        return PreparedDenoiser(self, timesteps, local_cond, global_cond)

    @property
    def _local_block(self) -> ConditionalResidualBlock1D:
        return cast(Any, self.local_cond_encoder)[0]

    def _blocks(self, with_local: bool) -> list[ConditionalResidualBlock1D]:
        """The residual blocks in the order in which :meth:`_denoise` asks for their FiLM."""
        return [
            *([self._local_block] if with_local else []),
            *(block for *pair, _ in _levels(self.down_modules) for block in pair),
            *cast(Any, self.mid_modules),
            *(block for *pair, _ in _levels(self.up_modules) for block in pair),
        ]

    def _local_features(self, local_cond: Tensor | None) -> tuple[Tensor, Tensor] | None:
        if local_cond is None:
            return None
        return self._local_block.features(local_cond.transpose(1, 2))

    def _denoise(
        self, sample: Tensor, films: Iterator[Tensor], local: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """The U-Net itself, with one FiLM per residual block in the order of :meth:`_blocks`."""

        def run(block: ConditionalResidualBlock1D, x: Tensor) -> Tensor:
            return block.modulate(*block.features(x), next(films))

        local_bias = 0 if local is None else self._local_block.modulate(*local, next(films))
        x = sample.transpose(1, 2)
        skips = []
        for depth, (block1, block2, downsample) in enumerate(_levels(self.down_modules)):
            x = run(block1, x)
            if depth == 0 and local is not None:
                x = x + local_bias
            x = run(block2, x)
            skips.append(x)
            x = downsample(x)
        for block in cast(Any, self.mid_modules):
            x = run(block, x)
        for block1, block2, upsample in _levels(self.up_modules):
            x = torch.cat((x, skips.pop()), dim=1)
            x = run(block2, run(block1, x))
            x = upsample(x)
        return self.final_conv(x).transpose(1, 2)

    def _check_length(self, sample: Tensor) -> None:
        length, multiple = sample.shape[1], self.length_multiple
        if length % multiple or length == 0:
            smaller = length // multiple * multiple
            fitting = f"{smaller} or {smaller + multiple}" if smaller else f"{multiple}"
            raise ConfigError(
                f"The U-Net was given a sequence of T = {length} steps (horizon, or n_action_steps "
                f"with pred_action_steps_only), but the {len(self.down_dims)} levels of "
                f"down_dims={self.down_dims} halve it {len(self.down_dims) - 1} times, so T must "
                f"be a multiple of {multiple}: use {fitting}."
            )

    def _check_conditions(self, local_cond: Tensor | None, global_cond: Tensor | None) -> None:
        found = 0 if global_cond is None else global_cond.shape[-1]
        if found != (self.global_cond_dim or 0):
            raise ConfigError(
                f"global_cond has {found} values, but the U-Net was built with global_cond_dim="
                f"{self.global_cond_dim}; make it n_obs_steps times the values of one observation."
            )
        if local_cond is not None and local_cond.shape[-1] != self.local_cond_dim:
            raise ConfigError(
                f"local_cond has {local_cond.shape[-1]} values per step, but the U-Net was built "
                f"with local_cond_dim={self.local_cond_dim}; make it the values of one observation."
            )


class PreparedDenoiser:
    """What :meth:`ConditionalUnet1D.prepare_sampling` returns.

    Holds the FiLM of all blocks as the sum of a table over the timesteps, (n, F), and a table over
    the conditions, (B, F), and the step-independent part of the local condition's encoder.
    """

    def __init__(
        self,
        unet: ConditionalUnet1D,
        timesteps: Tensor,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
    ):
        unet._check_conditions(local_cond, global_cond)
        self._unet = unet
        self._local = unet._local_features(local_cond)
        step_embedding = unet.diffusion_step_encoder(timesteps)
        halves = [
            block.split_condition(step_embedding, global_cond)
            for block in unet._blocks(self._local is not None)
        ]
        self._step_film = torch.cat([step for step, _ in halves], dim=1)
        self._cond_film = torch.cat([cond for _, cond in halves], dim=1)
        self._sizes = [step.shape[1] for step, _ in halves]

    def __call__(self, sample: Tensor, i: int) -> Tensor:
        """The network's output (B, T, D) for ``sample`` (B, T, D) at ``timesteps[i]``."""
        self._unet._check_length(sample)
        film = self._step_film[i] + self._cond_film
        return self._unet._denoise(
            sample, iter(film[..., None].split(self._sizes, dim=1)), self._local
        )


def _levels(
    modules: nn.ModuleList,
) -> list[tuple[ConditionalResidualBlock1D, ConditionalResidualBlock1D, nn.Module]]:
    return cast(Any, list(modules))


def _check_architecture(down_dims: list[int], kernel_size: int, n_groups: int) -> None:
    if not down_dims:
        raise ConfigError(
            "down_dims is empty; the U-Net needs at least one level, for example [256, 512, 1024]."
        )
    if kernel_size % 2 == 0:
        raise ConfigError(
            f"kernel_size is {kernel_size}; the U-Net needs an odd one to keep the sequence's "
            "length."
        )
    uneven = [dim for dim in down_dims if dim % n_groups]
    if uneven or down_dims[0] % FINAL_GROUPS:
        raise ConfigError(
            f"down_dims={down_dims} does not divide into groups of channels: every entry must be a "
            f"multiple of n_groups={n_groups}, and the first also of {FINAL_GROUPS}."
        )
