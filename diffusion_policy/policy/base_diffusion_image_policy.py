"""What diffusion policies on encoded images share, whatever their network."""

import logging
from typing import Any

import torch
from torch import Tensor

from diffusion_policy.common.draws import Generators
from diffusion_policy.policy.base_diffusion_policy import BaseDiffusionPolicy
from diffusion_policy.policy.base_image_policy import BaseImagePolicy

logger = logging.getLogger(__name__)


class BaseDiffusionImagePolicy(BaseDiffusionPolicy, BaseImagePolicy):
    """Denoises actions; features of the observations condition the network, or are part of the
    trajectory.

    Attributes:
        inpainting: a trajectory is [action, features], (B, T, Da + F), in which the first To
            features are given. Otherwise it is actions, and :meth:`conditions` tells the network
            of the features.
    """

    inpainting: bool

    def conditions(self, features: Tensor) -> dict[str, Tensor]:
        """Arguments of the network: what it is told of the features (B, To, F)."""
        raise NotImplementedError

    def log_sizes(self) -> None:
        """Last act of a constructor."""
        for name, part in (("Diffusion", self.model), ("Vision", self.obs_encoder)):
            logger.info("%s params: %e", name, sum(p.numel() for p in part.parameters()))

    @torch.no_grad()
    def predict_action(
        self, obs_dict: dict[str, Tensor], generator: Generators = None
    ) -> dict[str, Tensor]:
        """Predicts ``action`` (B, Ta, Da) and ``action_pred`` (B, T or Ta, Da), in raw units.

        Raises:
            ConfigError: the observations are not what ``shape_meta`` says.
        """
        assert "past_action" not in obs_dict, "past actions as an input are not implemented"
        features = self.encoded_obs(obs_dict, self.n_obs_steps, generator)
        if self.inpainting:
            sample = self.sample(len(features), features, generator)
        else:
            sample = self.sample(len(features), generator=generator, **self.conditions(features))
        return self.actions_of(sample)

    def compute_loss(self, batch: dict[str, Any]) -> Tensor:
        """Denoising loss of a batch ``obs`` {key: (B, >= To, ...)}, ``action`` (B, T, Da), raw.

        Inpainting needs the observations of all T steps: they are part of the trajectory. The
        encoder then learns through the first To of them, which the network sees as they are.
        """
        assert "valid_mask" not in batch, "masked batches are not implemented"
        naction = self.normalizer["action"].normalize(batch["action"])
        if self.inpainting:
            return self.denoising_loss(naction, self.encoded_obs(batch["obs"], naction.shape[1]))
        features = self.encoded_obs(batch["obs"], self.n_obs_steps)
        return self.denoising_loss(naction, **self.conditions(features))
