"""Diffusion Policy with the transformer on low-dimensional observations (Chi et al. 2023, sec.
III-A).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.diffusion.transformer_for_diffusion import TransformerForDiffusion
from diffusion_policy.policy.base_diffusion_lowdim_policy import BaseDiffusionLowdimPolicy


class DiffusionTransformerLowdimPolicy(BaseDiffusionLowdimPolicy):
    """Denoises a window of ``horizon`` actions, conditioned on the first ``n_obs_steps``
    observations.

    ===================  ==============================  ====================================
    mode                 trajectory that is denoised     observations
    ===================  ==============================  ====================================
    ``obs_as_cond``      actions (B, T, Da)              tokens (B, To, Do) to attend to
    same, action only    actions (B, Ta, Da)             the same
    inpainting           actions and obs (B, T, Da+Do)   given inside the trajectory
    ===================  ==============================  ====================================

    Args:
        model: the denoiser; its ``cond_dim`` is Do with ``obs_as_cond``, else 0.
        noise_scheduler: any discrete-time diffusers scheduler.
        horizon: T, length of the denoised window.
        obs_dim: Do. action_dim: Da.
        n_action_steps: Ta, actions executed per prediction, from the newest observation on.
        n_obs_steps: To.
        num_inference_steps: denoising steps at inference; None is one per training step.
        obs_as_cond: the mode.
        pred_action_steps_only: denoise only the executed actions (needs ``obs_as_cond``).
        legacy_ddpm_steps: see :func:`diffusion_policy.policy.diffusion.sampling_timesteps`.
        kwargs: passed to ``noise_scheduler.step`` (for example ``eta`` of DDIM).
    """

    model: TransformerForDiffusion

    def __init__(
        self,
        model: TransformerForDiffusion,
        noise_scheduler: Any,
        horizon: int,
        obs_dim: int,
        action_dim: int,
        n_action_steps: int,
        n_obs_steps: int,
        num_inference_steps: int | None = None,
        obs_as_cond: bool = False,
        pred_action_steps_only: bool = False,
        legacy_ddpm_steps: bool = True,
        **kwargs: Any,
    ):
        super().__init__()
        if pred_action_steps_only and not obs_as_cond:
            raise ConfigError("pred_action_steps_only=True needs obs_as_cond=True")
        self.inpainting = not obs_as_cond
        self.action_dim = action_dim
        self.set_up_diffusion(
            model,
            noise_scheduler,
            horizon=horizon,
            given_dim=obs_dim if self.inpainting else 0,
            n_action_steps=n_action_steps,
            n_obs_steps=n_obs_steps,
            num_inference_steps=num_inference_steps,
            legacy_ddpm_steps=legacy_ddpm_steps,
            step_kwargs=kwargs,
        )
        self.obs_dim = obs_dim
        self.obs_as_cond = obs_as_cond
        self.pred_action_steps_only = pred_action_steps_only

    def conditions(self, nobs: Tensor) -> dict[str, Tensor]:
        return {"cond": nobs[:, : self.n_obs_steps]}

    def get_optimizer(
        self, weight_decay: float, learning_rate: float, betas: Sequence[float]
    ) -> torch.optim.Optimizer:
        """AdamW over the transformer; its biases, norms and embeddings do not decay."""
        return self.model.configure_optimizers(learning_rate, weight_decay, betas)
