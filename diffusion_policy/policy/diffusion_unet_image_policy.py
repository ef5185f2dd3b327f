"""Diffusion Policy with the conditional 1-D U-Net on images (Chi et al. 2023, sec. III-A, B)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.diffusion.conditional_unet1d import ConditionalUnet1D
from diffusion_policy.policy.base_diffusion_image_policy import BaseDiffusionImagePolicy


class DiffusionUnetImagePolicy(BaseDiffusionImagePolicy):
    """Denoises a window of ``horizon`` actions, conditioned on features of the observations.

    ===================  ==================================  ================================
    mode                 trajectory that is denoised         features of the observations
    ===================  ==================================  ================================
    global (default)     actions (B, T, Da)                  one vector (B, To * F) for FiLM
    inpainting           actions and features (B, T, Da+F)   given in the first To steps
    ===================  ==================================  ================================

    Args:
        shape_meta: shapes of observations and action, see
            :mod:`diffusion_policy.common.shape_meta`.
        noise_scheduler: any discrete-time diffusers scheduler.
        obs_encoder: maps ``{key: (N, ...)}`` to features (N, F); ``output_shape()`` is [F].
        horizon: T, length of the denoised window.
        n_action_steps: Ta, actions executed per prediction, from the newest observation on.
        n_obs_steps: To, observations that the policy looks at.
        num_inference_steps: denoising steps at inference; None is one per training step.
        obs_as_global_cond: the mode.
        pred_action_steps_only: denoise only the executed actions (needs global conditioning).
        diffusion_step_embed_dim, down_dims, kernel_size, n_groups, cond_predict_scale: of the
            :class:`ConditionalUnet1D`.
        legacy_ddpm_steps: see :func:`diffusion_policy.policy.diffusion.sampling_timesteps`.
        kwargs: passed to ``noise_scheduler.step`` (for example ``eta`` of DDIM).

    Raises:
        ConfigError: ``shape_meta`` is malformed, options that exclude each other, or the U-Net
            cannot be built.
    """

    def __init__(
        self,
        shape_meta: Mapping[str, Any],
        noise_scheduler: Any,
        obs_encoder: Any,
        horizon: int,
        n_action_steps: int,
        n_obs_steps: int,
        num_inference_steps: int | None = None,
        obs_as_global_cond: bool = True,
        diffusion_step_embed_dim: int = 256,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 5,
        n_groups: int = 8,
        cond_predict_scale: bool = True,
        pred_action_steps_only: bool = False,
        legacy_ddpm_steps: bool = True,
        **kwargs: Any,
    ):
        super().__init__()
        if pred_action_steps_only and not obs_as_global_cond:
            raise ConfigError("pred_action_steps_only=True needs obs_as_global_cond=True")
        self.set_up_shapes(shape_meta)
        [feature_dim] = obs_encoder.output_shape()
        given_dim = 0 if obs_as_global_cond else feature_dim
        self.obs_encoder = obs_encoder
        self.set_up_diffusion(
            ConditionalUnet1D(
                input_dim=self.action_dim + given_dim,
                global_cond_dim=feature_dim * n_obs_steps if obs_as_global_cond else None,
                diffusion_step_embed_dim=diffusion_step_embed_dim,
                down_dims=down_dims,
                kernel_size=kernel_size,
                n_groups=n_groups,
                cond_predict_scale=cond_predict_scale,
            ),
            noise_scheduler,
            horizon=horizon,
            given_dim=given_dim,
            n_action_steps=n_action_steps,
            n_obs_steps=n_obs_steps,
            num_inference_steps=num_inference_steps,
            legacy_ddpm_steps=legacy_ddpm_steps,
            step_kwargs=kwargs,
        )
        self.obs_feature_dim = feature_dim
        self.obs_as_global_cond = obs_as_global_cond
        self.inpainting = not obs_as_global_cond
        self.pred_action_steps_only = pred_action_steps_only
        self.log_sizes()

    def conditions(self, features: Tensor) -> dict[str, Tensor]:
        return {"global_cond": features.flatten(1)}
