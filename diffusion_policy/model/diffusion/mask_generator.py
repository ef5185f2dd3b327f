"""Which entries of a trajectory are given (True) and which the diffusion model makes up (False)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.common.module_attr_mixin import ModuleAttrMixin


def get_intersection_slice_mask(
    shape: tuple[int, ...], dim_slices: Sequence[slice], device: torch.device | None = None
) -> Tensor:
    """True where the index is inside the slice of *every* dimension."""
    _check_slices(shape, dim_slices)
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    mask[tuple(dim_slices)] = True
    return mask


def get_union_slice_mask(
    shape: tuple[int, ...], dim_slices: Sequence[slice], device: torch.device | None = None
) -> Tensor:
    """True where the index is inside the slice of *any* dimension."""
    _check_slices(shape, dim_slices)
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    for dim, dim_slice in enumerate(dim_slices):
        mask[(slice(None),) * dim + (dim_slice,)] = True
    return mask


def _check_slices(shape: tuple[int, ...], dim_slices: Sequence[slice]) -> None:
    if len(shape) != len(dim_slices):
        raise ValueError(f"shape {tuple(shape)} needs {len(shape)} slices, got {len(dim_slices)}")


class DummyMaskGenerator(ModuleAttrMixin):
    """Everything is given."""

    @torch.no_grad()
    def forward(self, shape: tuple[int, ...]) -> Tensor:
        return torch.ones(shape, dtype=torch.bool, device=self.device)


class _WindowMaskGenerator(ModuleAttrMixin):
    """What the two generators share: a trajectory of which the first observations are visible.

    The random numbers come from a generator of its own that starts afresh in every call, so they do
    not disturb the global one; without ``seed`` every call therefore draws the same mask.
    """

    def __init__(
        self, action_dim: int, max_n_obs_steps: int, fix_obs_steps: bool, action_visible: bool
    ):
        super().__init__()
        self.action_dim = action_dim
        self.max_n_obs_steps = max_n_obs_steps
        self.fix_obs_steps = fix_obs_steps
        self.action_visible = action_visible

    def _generator(self, seed: int | None) -> torch.Generator:
        rng = torch.Generator(device=self.device)
        return rng if seed is None else rng.manual_seed(seed)

    def _visible_steps(self, batch: int, rng: torch.Generator) -> Tensor:
        """Number of observed steps per sample, (B, 1, 1)."""
        if self.fix_obs_steps:
            steps = torch.full((batch,), self.max_n_obs_steps, device=self.device)
        else:
            steps = torch.randint(
                1, self.max_n_obs_steps + 1, (batch,), generator=rng, device=self.device
            )
        return steps[:, None, None]

    def _action_mask(self, time: Tensor, visible_steps: Tensor) -> Tensor:
        """Visible actions (B, T, 1): those that led to the visible observations, if any."""
        if not self.action_visible:
            return torch.zeros_like(time < visible_steps)
        return time < visible_steps - 1


class LowdimMaskGenerator(_WindowMaskGenerator):
    """The first observations of a trajectory [action | obs] are given.

    Args:
        action_dim: Da.
        obs_dim: Do; 0 if observations are not part of the trajectory, then nothing is given.
        max_n_obs_steps: number of visible steps.
        fix_obs_steps: False draws the number per sample, 1 to ``max_n_obs_steps``.
        action_visible: the actions before the last visible observation are given as well.
    """

    def __init__(
        self,
        action_dim: int,
        obs_dim: int,
        max_n_obs_steps: int = 2,
        fix_obs_steps: bool = True,
        action_visible: bool = False,
    ):
        super().__init__(action_dim, max_n_obs_steps, fix_obs_steps, action_visible)
        self.obs_dim = obs_dim

    @torch.no_grad()
    def forward(self, shape: tuple[int, int, int], seed: int | None = None) -> Tensor:
        """The mask, bool, of ``shape`` (B, T, Da + Do)."""
        B, T, D = shape
        if self.action_dim + self.obs_dim != D:
            raise ConfigError(
                f"A trajectory has {D} values per step, but the mask generator was built for "
                f"action_dim={self.action_dim} + obs_dim={self.obs_dim}."
            )
        time = torch.arange(T, device=self.device)[None, :, None]
        is_action = torch.arange(D, device=self.device) < self.action_dim
        visible_steps = self._visible_steps(B, self._generator(seed))
        return torch.where(is_action, self._action_mask(time, visible_steps), time < visible_steps)


class KeypointMaskGenerator(_WindowMaskGenerator):
    """As :class:`LowdimMaskGenerator` for a trajectory [action | key points | context], hiding
    random key points.

    Args:
        action_dim: Da.
        keypoint_dim: coordinates of one key point; they are hidden together.
        max_n_obs_steps: number of visible steps.
        fix_obs_steps: False draws the number per sample, 1 to ``max_n_obs_steps``.
        keypoint_visible_rate: probability that a key point is visible.
        time_independent: draw per sample *and* step, not once per sample.
        action_visible: the actions before the last visible observation are given as well.
        context_dim: trailing dimensions that are given in the first ``n_context_steps``.
        n_context_steps: see ``context_dim``.
    """

    def __init__(
        self,
        action_dim: int,
        keypoint_dim: int,
        max_n_obs_steps: int = 2,
        fix_obs_steps: bool = True,
        keypoint_visible_rate: float = 0.7,
        time_independent: bool = False,
        action_visible: bool = False,
        context_dim: int = 0,
        n_context_steps: int = 1,
    ):
        super().__init__(action_dim, max_n_obs_steps, fix_obs_steps, action_visible)
        self.keypoint_dim = keypoint_dim
        self.keypoint_visible_rate = keypoint_visible_rate
        self.time_independent = time_independent
        self.context_dim = context_dim
        self.n_context_steps = n_context_steps

    @torch.no_grad()
    def forward(self, shape: tuple[int, int, int], seed: int | None = None) -> Tensor:
        """The mask, bool, of ``shape`` (B, T, Da + key points * keypoint_dim + context_dim)."""
        B, T, D = shape
        n_keypoints, rest = divmod(D - self.action_dim - self.context_dim, self.keypoint_dim)
        if rest or n_keypoints < 0:
            raise ConfigError(
                f"A trajectory has {D} values per step, but action_dim={self.action_dim} and "
                f"context_dim={self.context_dim} leave no whole number of key points of "
                f"keypoint_dim={self.keypoint_dim}."
            )
        rng = self._generator(seed)
        time = torch.arange(T, device=self.device)[None, :, None]
        visible_steps = self._visible_steps(B, rng)

        draw = (B, T if self.time_independent else 1, n_keypoints)
        drawn = torch.rand(draw, generator=rng, device=self.device) < self.keypoint_visible_rate
        keypoints = (drawn & (time < visible_steps)).repeat_interleave(self.keypoint_dim, dim=-1)
        actions = self._action_mask(time, visible_steps).expand(B, T, self.action_dim)
        context = (time < self.n_context_steps).expand(B, T, self.context_dim)
        return torch.cat((actions, keypoints, context), dim=-1)
