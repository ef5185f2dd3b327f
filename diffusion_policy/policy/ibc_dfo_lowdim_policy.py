"""Implicit behaviour cloning on low-dimensional observations."""

from typing import Any

import torch
from torch import Tensor

from diffusion_policy.common.draws import Generators
from diffusion_policy.policy.base_ibc_dfo_policy import BaseIbcDfoPolicy
from diffusion_policy.policy.base_lowdim_policy import BaseLowdimPolicy


class IbcDfoLowdimPolicy(BaseIbcDfoPolicy, BaseLowdimPolicy):
    """A :class:`BaseIbcDfoPolicy` that scores actions given the last n_obs_steps observations.

    Args:
        horizon: T. obs_dim: Do. action_dim: Da.
        n_action_steps: Ta, actions predicted together. n_obs_steps: To.
        options: of :meth:`BaseIbcDfoPolicy.set_up_energy`.
    """

    def __init__(
        self,
        horizon: int,
        obs_dim: int,
        action_dim: int,
        n_action_steps: int,
        n_obs_steps: int,
        **options: Any,
    ):
        super().__init__()
        self.obs_dim = obs_dim
        self.action_dim = action_dim
        self.set_up_energy(
            obs_feature_dim=obs_dim,
            horizon=horizon,
            n_action_steps=n_action_steps,
            n_obs_steps=n_obs_steps,
            **options,
        )

    @torch.no_grad()
    def predict_action(
        self, obs_dict: dict[str, Tensor], generator: Generators = None
    ) -> dict[str, Tensor]:
        """Predicts ``action`` (B, Ta, Da) for ``obs`` (B, >= To, Do), in raw units.

        Raises:
            ConfigError: the observations are not ``obs_dim`` wide, or too few.
        """
        assert "past_action" not in obs_dict, "past actions as an input are not implemented"
        self.check_widths(obs_dict)
        nobs = self.normalizer["obs"].normalize(obs_dict["obs"])
        return self.search(nobs[:, : self.n_obs_steps], generator)

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Loss of a batch ``obs`` (B, >= To, Do), ``action`` (B, T, Da), in raw units.

        Raises:
            ConfigError: observations or actions have another width than the policy.
        """
        assert "valid_mask" not in batch, "masked batches are not implemented"
        self.check_widths(batch)
        nbatch = self.normalizer.normalize(batch)
        return self.info_nce_loss(nbatch["obs"][:, : self.n_obs_steps], nbatch["action"])
