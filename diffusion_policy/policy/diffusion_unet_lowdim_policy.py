"""Diffusion Policy with the conditional 1-D U-Net on low-dimensional observations (Chi et al. 2023,
sec. III).
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.diffusion.conditional_unet1d import ConditionalUnet1D
from diffusion_policy.policy.base_diffusion_lowdim_policy import BaseDiffusionLowdimPolicy


class DiffusionUnetLowdimPolicy(BaseDiffusionLowdimPolicy):
    """Denoises a window of ``horizon`` actions, conditioned on the first ``n_obs_steps``
    observations.

    Observations enter in one of four ways:

    ===================  ==============================  ====================================
    mode                 trajectory that is denoised     observations
    ===================  ==============================  ====================================
    global               actions (B, T, Da)              one vector (B, To * Do) for FiLM
    global, action only  actions (B, Ta, Da)             the same
    local                actions (B, T, Da)              (B, T, Do), zero after To steps
    inpainting           actions and obs (B, T, Da+Do)   given inside the trajectory
    ===================  ==============================  ====================================

    Args:
        model: the denoiser; its input width must fit the mode (spec of the shipped configs).
        noise_scheduler: any discrete-time diffusers scheduler.
        horizon: T, length of the denoised window.
        obs_dim: Do. action_dim: Da.
        n_action_steps: Ta, actions executed per prediction. n_obs_steps: To.
        num_inference_steps: denoising steps at inference; None is one per training step.
        obs_as_local_cond, obs_as_global_cond: the mode; neither is inpainting.
        pred_action_steps_only: denoise only the executed actions (needs global conditioning).
        oa_step_convention: the first executed action belongs to the last observation (index To -
            1); False starts one later. Every published config says True.
        legacy_ddpm_steps: see :func:`diffusion_policy.policy.diffusion.sampling_timesteps`.
        kwargs: passed to ``noise_scheduler.step`` (for example ``eta`` of DDIM).
    """

    def __init__(
        self,
        model: ConditionalUnet1D,
        noise_scheduler: Any,
        horizon: int,
        obs_dim: int,
        action_dim: int,
        n_action_steps: int,
        n_obs_steps: int,
        num_inference_steps: int | None = None,
        obs_as_local_cond: bool = False,
        obs_as_global_cond: bool = False,
        pred_action_steps_only: bool = False,
        oa_step_convention: bool = False,
        legacy_ddpm_steps: bool = True,
        **kwargs: Any,
    ):
        super().__init__()
        if obs_as_local_cond and obs_as_global_cond:
            raise ConfigError(
                "obs_as_local_cond and obs_as_global_cond are both True; choose one (or neither: "
                "inpainting)"
            )
        if pred_action_steps_only and not obs_as_global_cond:
            raise ConfigError("pred_action_steps_only=True needs obs_as_global_cond=True")
        self.inpainting = not (obs_as_local_cond or obs_as_global_cond)
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
        self.obs_as_local_cond = obs_as_local_cond
        self.obs_as_global_cond = obs_as_global_cond
        self.pred_action_steps_only = pred_action_steps_only
        self.oa_step_convention = oa_step_convention

    def conditions(self, nobs: Tensor) -> dict[str, Tensor]:
        """global: the first n_obs_steps, step by step, (B, To * Do); local: the same steps, then
        zeros, (B, T, Do).
        """
        seen = nobs[:, : self.n_obs_steps]
        if self.obs_as_global_cond:
            return {"global_cond": seen.flatten(1)}
        return {"local_cond": F.pad(seen, (0, 0, 0, self.horizon - seen.shape[1]))}
