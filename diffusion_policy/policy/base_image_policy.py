"""What every policy on images (and low-dimensional observations) looks like to the rest of the
house.
"""

import torch

from diffusion_policy.model.common.module_attr_mixin import ModuleAttrMixin
from diffusion_policy.model.common.normalizer import LinearNormalizer
from diffusion_policy.policy.base_lowdim_policy import Generators


class BaseImagePolicy(ModuleAttrMixin):
    """Maps a window of observations, one tensor per key, to a chunk of actions."""

    def predict_action(
        self, obs_dict: dict[str, torch.Tensor], generator: Generators = None
    ) -> dict[str, torch.Tensor]:
        """Predicts the next actions.

        Args:
            obs_dict: per key of ``shape_meta.obs``: images (B, >= n_obs_steps, C, H, W) in [0, 1],
                low-dimensional values (B, >= n_obs_steps, D) in raw units.
            generator: source of the policy's noise; None is torch's global generator.

        Returns:
            ``action`` (B, n_action_steps, Da) in raw units, to be executed; methods add more.
        """
        raise NotImplementedError

    def reset(self) -> None:
        """Forgets the past; called before each group of episodes. Stateless policies do nothing."""

    def set_normalizer(self, normalizer: LinearNormalizer) -> None:
        """Takes over (a copy of) the normalizer fitted on the training data."""
        raise NotImplementedError
