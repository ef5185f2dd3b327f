"""What diffusion policies on low-dimensional observations share, whatever their network."""

import torch
from torch import Tensor

from diffusion_policy.common.draws import Generators
from diffusion_policy.policy.base_diffusion_policy import BaseDiffusionPolicy
from diffusion_policy.policy.base_lowdim_policy import BaseLowdimPolicy


class BaseDiffusionLowdimPolicy(BaseDiffusionPolicy, BaseLowdimPolicy):
    """Denoises actions; observations condition the network, or are part of the trajectory.

    Attributes:
        inpainting: a trajectory is [action, observation], (B, T, Da + Do), in which the first To
            observations are given. Otherwise it is actions, and :meth:`conditions` tells the
            network of the observations.
    """

    inpainting: bool

    def conditions(self, nobs: Tensor) -> dict[str, Tensor]:
        """Arguments of the network: what it is told of normalised observations (B, >= To, Do)."""
        raise NotImplementedError

    @torch.no_grad()
    def predict_action(
        self, obs_dict: dict[str, Tensor], generator: Generators = None
    ) -> dict[str, Tensor]:
        """Predicts actions for ``obs`` (B, >= To, Do).

        Returns:
            ``action`` (B, Ta, Da), ``action_pred`` (B, T or Ta, Da); when inpainting also
            ``obs_pred`` (B, T, Do) and ``action_obs_pred`` (B, Ta, Do). All in raw units.

        Raises:
            ConfigError: the observations are not ``obs_dim`` wide.
        """
        assert "past_action" not in obs_dict, "past actions as an input are not implemented"
        self.check_widths(obs_dict)
        nobs = self.normalizer["obs"].normalize(obs_dict["obs"])
        if not self.inpainting:
            sample = self.sample(len(nobs), generator=generator, **self.conditions(nobs))
            return self.actions_of(sample)
        sample = self.sample(len(nobs), nobs[:, : self.n_obs_steps], generator)
        obs_pred = self.normalizer["obs"].unnormalize(sample[..., self.action_dim :])
        action_obs_pred = obs_pred[:, self.executed_steps()]
        return self.actions_of(sample) | {"obs_pred": obs_pred, "action_obs_pred": action_obs_pred}

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Denoising loss of a batch ``obs`` (B, T, Do), ``action`` (B, T, Da), in raw units.

        Raises:
            ConfigError: observations or actions have another width than the policy.
        """
        assert "valid_mask" not in batch, "masked batches are not implemented"
        self.check_widths(batch)
        nbatch = self.normalizer.normalize(batch)
        if self.inpainting:
            return self.denoising_loss(nbatch["action"], nbatch["obs"])
        return self.denoising_loss(nbatch["action"], **self.conditions(nbatch["obs"]))
