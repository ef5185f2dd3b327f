"""Base class of policies on images and low-dimensional observations."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_policy.common.draws import Generators
from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.shape_meta import ShapeMeta, parse_shape_meta
from diffusion_policy.model.vision.crop_randomizer import crops_drawn_by
from diffusion_policy.policy.base_policy import BasePolicy

Observations = Mapping[str, Tensor]


class BaseImagePolicy(BasePolicy):
    """Observations are one tensor per key of ``shape_meta.obs``.

    Images are (B, >= n_obs_steps, C, H, W), ``uint8`` or floats in [0, 1]; low-dimensional values
    are (B, >= n_obs_steps, D).

    Attributes:
        shape_meta: as given; runners compare it with what their environments observe.
        shapes: what it says.
        action_dim: Da.
        obs_encoder: maps one step of all observations, ``{key: (N, ...)}``, to features (N, F).
            Policies that look at whole clips have none.
    """

    obs_encoder: nn.Module

    def set_up_shapes(self, shape_meta: Mapping[str, Any]) -> None:
        """First part of a constructor.

        Raises:
            ConfigError: ``shape_meta`` is malformed, or its action not one vector.
        """
        self.shape_meta = shape_meta
        self.shapes: ShapeMeta = parse_shape_meta(shape_meta)
        if len(self.shapes.action) != 1:
            raise ConfigError(
                f"shape_meta.action.shape is {list(self.shapes.action)}; a policy needs one vector "
                "per step, [Da]"
            )
        self.action_dim = self.shapes.action[0]

    def normalized_obs(self, obs: Observations, n_steps: int) -> dict[str, Tensor]:
        """The first ``n_steps`` steps, (B, n_steps, ...), as the network wants them.

        Images arrive as bytes and become floats here and nowhere else: on the policy's device, and
        only those steps that are looked at. Keys that ``shape_meta`` does not name are left out.
        """
        seen = {key: obs[key][:, :n_steps].to(self.device) for key in self.shapes.obs if key in obs}
        images = {key: _as_float(seen[key]) for key in self.shapes.rgb if key in seen}
        return self.normalizer.normalize(seen | images)

    def encoded_obs(self, obs: Observations, n_steps: int, generator: Generators = None) -> Tensor:
        """Features (B, n_steps, F) of the first ``n_steps`` steps, from raw observations.

        Args:
            generator: of what is random in evaluation; see :meth:`predict_action`.

        Raises:
            ConfigError: the observations are not what ``shape_meta`` says.
        """
        nobs = self.normalized_obs(obs, n_steps)
        with crops_drawn_by(self.obs_encoder, generator, images_per_row=n_steps):
            features = self.obs_encoder({key: value.flatten(0, 1) for key, value in nobs.items()})
        batch_size = len(next(iter(nobs.values())))
        return features.unflatten(0, (batch_size, -1))


def _as_float(value: Tensor) -> Tensor:
    """Bytes 0..255 as floats in [0, 1], rounded as a data set on the CPU would do it."""
    if value.dtype != torch.uint8:
        return value
    # On a GPU, dividing by a Python number multiplies by its rounded reciprocal.
    return value.float() / torch.full((), 255.0, device=value.device)
