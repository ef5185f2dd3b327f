"""Diffusion Policy with the U-Net on images, encoded as robomimic does: the paper's image results.

"Hybrid" is the name of Mandlekar et al. 2021 for images together with low-dimensional values.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_policy.model.vision.robomimic_obs_encoder import RobomimicObsEncoder
from diffusion_policy.policy.diffusion_unet_image_policy import DiffusionUnetImagePolicy


class DiffusionUnetHybridImagePolicy(DiffusionUnetImagePolicy):
    """A :class:`DiffusionUnetImagePolicy` whose encoder is a ResNet-18 with a spatial softmax.

    Args:
        crop_shape: (height, width) of the crops that every image is cut to; None is the whole
            image.
        obs_encoder_group_norm: GroupNorm instead of BatchNorm, as the moving average of the weights
            needs it (Chi et al. 2023, sec. III-B).
        eval_fixed_crop: crop the centre in evaluation; False crops at random there, too.

    All other arguments are those of :class:`DiffusionUnetImagePolicy`.
    """

    def __init__(
        self,
        shape_meta: Mapping[str, Any],
        noise_scheduler: Any,
        horizon: int,
        n_action_steps: int,
        n_obs_steps: int,
        num_inference_steps: int | None = None,
        obs_as_global_cond: bool = True,
        crop_shape: Sequence[int] | None = (76, 76),
        diffusion_step_embed_dim: int = 256,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 5,
        n_groups: int = 8,
        cond_predict_scale: bool = True,
        obs_encoder_group_norm: bool = False,
        eval_fixed_crop: bool = False,
        **kwargs: Any,
    ):
        obs_encoder = RobomimicObsEncoder(
            shape_meta,
            crop_shape=crop_shape,
            group_norm=obs_encoder_group_norm,
            fixed_crop_in_eval=eval_fixed_crop,
        )
        super().__init__(
            shape_meta=shape_meta,
            noise_scheduler=noise_scheduler,
            obs_encoder=obs_encoder,
            horizon=horizon,
            n_action_steps=n_action_steps,
            n_obs_steps=n_obs_steps,
            num_inference_steps=num_inference_steps,
            obs_as_global_cond=obs_as_global_cond,
            diffusion_step_embed_dim=diffusion_step_embed_dim,
            down_dims=down_dims,
            kernel_size=kernel_size,
            n_groups=n_groups,
            cond_predict_scale=cond_predict_scale,
            **kwargs,
        )
