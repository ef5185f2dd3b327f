"""Diffusion Policy with the transformer on images, encoded as robomimic does (Chi et al. 2023, sec.
III-A, B).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.diffusion.transformer_for_diffusion import (
    TransformerForDiffusion,
    make_adamw,
)
from diffusion_policy.model.vision.robomimic_obs_encoder import RobomimicObsEncoder
from diffusion_policy.policy.base_diffusion_image_policy import BaseDiffusionImagePolicy


class DiffusionTransformerHybridImagePolicy(BaseDiffusionImagePolicy):
    """Denoises a window of ``horizon`` actions, conditioned on features of the observations.

    ===================  ==================================  ================================
    mode                 trajectory that is denoised         features of the observations
    ===================  ==================================  ================================
    ``obs_as_cond``      actions (B, T, Da)                  tokens (B, To, F) to attend to
    same, action only    actions (B, Ta, Da)                 the same
    inpainting           actions and features (B, T, Da+F)   given in the first To steps
    ===================  ==================================  ================================

    Args:
        shape_meta: shapes of observations and action, see
            :mod:`diffusion_policy.common.shape_meta`.
        noise_scheduler: any discrete-time diffusers scheduler.
        horizon: T, length of the denoised window.
        n_action_steps: Ta, actions executed per prediction, from the newest observation on.
        n_obs_steps: To, observations that the policy looks at.
        num_inference_steps: denoising steps at inference; None is one per training step.
        crop_shape, obs_encoder_group_norm, eval_fixed_crop: of the
            :class:`RobomimicObsEncoder` (``crop_shape``, ``group_norm``, ``fixed_crop_in_eval``).
        n_layer, n_cond_layers, n_head, n_emb, p_drop_emb, p_drop_attn, causal_attn, time_as_cond:
            of the :class:`TransformerForDiffusion`.
        obs_as_cond: the mode.
        pred_action_steps_only: denoise only the executed actions (needs ``obs_as_cond``).
        legacy_ddpm_steps: see :func:`diffusion_policy.policy.diffusion.sampling_timesteps`.
        kwargs: passed to ``noise_scheduler.step`` (for example ``eta`` of DDIM).

    Raises:
        ConfigError: ``shape_meta`` is malformed, options that exclude each other, or a network
            cannot be built.
    """

    model: TransformerForDiffusion

    def __init__(
        self,
        shape_meta: Mapping[str, Any],
        noise_scheduler: Any,
        horizon: int,
        n_action_steps: int,
        n_obs_steps: int,
        num_inference_steps: int | None = None,
        crop_shape: Sequence[int] | None = (76, 76),
        obs_encoder_group_norm: bool = False,
        eval_fixed_crop: bool = False,
        n_layer: int = 8,
        n_cond_layers: int = 0,
        n_head: int = 4,
        n_emb: int = 256,
        p_drop_emb: float = 0.0,
        p_drop_attn: float = 0.3,
        causal_attn: bool = True,
        time_as_cond: bool = True,
        obs_as_cond: bool = True,
        pred_action_steps_only: bool = False,
        legacy_ddpm_steps: bool = True,
        **kwargs: Any,
    ):
        super().__init__()
        if pred_action_steps_only and not obs_as_cond:
            raise ConfigError("pred_action_steps_only=True needs obs_as_cond=True")
        self.inpainting = not obs_as_cond
        self.set_up_shapes(shape_meta)
        self.obs_encoder = RobomimicObsEncoder(
            shape_meta,
            crop_shape=crop_shape,
            group_norm=obs_encoder_group_norm,
            fixed_crop_in_eval=eval_fixed_crop,
        )
        [feature_dim] = self.obs_encoder.output_shape()
        given_dim = feature_dim if self.inpainting else 0
        self.set_up_diffusion(
            TransformerForDiffusion(
                input_dim=self.action_dim + given_dim,
                output_dim=self.action_dim + given_dim,
                horizon=horizon,
                n_obs_steps=n_obs_steps,
                cond_dim=0 if self.inpainting else feature_dim,
                n_layer=n_layer,
                n_head=n_head,
                n_emb=n_emb,
                p_drop_emb=p_drop_emb,
                p_drop_attn=p_drop_attn,
                causal_attn=causal_attn,
                time_as_cond=time_as_cond,
                n_cond_layers=n_cond_layers,
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
        self.obs_as_cond = obs_as_cond
        self.pred_action_steps_only = pred_action_steps_only
        self.log_sizes()

    def conditions(self, features: Tensor) -> dict[str, Tensor]:
        return {"cond": features}

    def get_optimizer(
        self,
        transformer_weight_decay: float,
        obs_encoder_weight_decay: float,
        learning_rate: float,
        betas: Sequence[float],
    ) -> torch.optim.Optimizer:
        """AdamW over the transformer, whose biases, norms and embeddings do not decay, and the
        encoder.
        """
        encoder = {
            "params": self.obs_encoder.parameters(),
            "weight_decay": obs_encoder_weight_decay,
        }
        groups = [*self.model.get_optim_groups(transformer_weight_decay), encoder]
        return make_adamw(groups, learning_rate, betas)
