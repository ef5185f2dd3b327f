"""Implicit behaviour cloning on images, encoded as robomimic does."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_policy.common.draws import Generators
from diffusion_policy.model.vision.robomimic_obs_encoder import RobomimicObsEncoder
from diffusion_policy.policy.base_ibc_dfo_policy import BaseIbcDfoPolicy
from diffusion_policy.policy.base_image_policy import BaseImagePolicy


class IbcDfoHybridImagePolicy(BaseIbcDfoPolicy, BaseImagePolicy):
    """A :class:`BaseIbcDfoPolicy` that scores actions given features of n_obs_steps observations.

    Args:
        shape_meta: shapes of observations and action.
        horizon: T. n_action_steps: Ta, actions predicted together. n_obs_steps: To.
        obs_encoder_group_norm: GroupNorm instead of BatchNorm.
        eval_fixed_crop: crop the centre in evaluation; False crops at random there, too.
        crop_shape: (height, width) of the crops that every image is cut to; None is the whole
            image.
        options: of :meth:`BaseIbcDfoPolicy.set_up_energy`.
    """

    def __init__(
        self,
        shape_meta: Mapping[str, Any],
        horizon: int,
        n_action_steps: int,
        n_obs_steps: int,
        obs_encoder_group_norm: bool = True,
        eval_fixed_crop: bool = True,
        crop_shape: Sequence[int] | None = (76, 76),
        **options: Any,
    ):
        super().__init__()
        self.set_up_shapes(shape_meta)
        self.obs_encoder = RobomimicObsEncoder(
            shape_meta,
            crop_shape=crop_shape,
            group_norm=obs_encoder_group_norm,
            fixed_crop_in_eval=eval_fixed_crop,
        )
        self.obs_feature_dim = self.obs_encoder.output_shape()[0]
        self.set_up_energy(
            obs_feature_dim=self.obs_feature_dim,
            horizon=horizon,
            n_action_steps=n_action_steps,
            n_obs_steps=n_obs_steps,
            **options,
        )

    @torch.no_grad()
    def predict_action(
        self, obs_dict: dict[str, Tensor], generator: Generators = None
    ) -> dict[str, Tensor]:
        """Predicts ``action`` (B, Ta, Da), in raw units.

        Raises:
            ConfigError: the observations are not what ``shape_meta`` says, or too few.
        """
        assert "past_action" not in obs_dict, "past actions as an input are not implemented"
        return self.search(self.encoded_obs(obs_dict, self.n_obs_steps, generator), generator)

    def compute_loss(self, batch: dict[str, Any]) -> Tensor:
        """Loss of a batch ``obs`` {key: (B, >= To, ...)}, ``action`` (B, T, Da), in raw units."""
        assert "valid_mask" not in batch, "masked batches are not implemented"
        naction = self.normalizer["action"].normalize(batch["action"])
        features = self.encoded_obs(batch["obs"], self.n_obs_steps)
        return self.info_nce_loss(features, naction)
