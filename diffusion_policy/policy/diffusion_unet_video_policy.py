"""Diffusion Policy with the U-Net on short clips: a 3-D network sees all observed frames at once.

The original names this policy in a configuration but never released the networks it is made of
(``model/obs_encoder``, ``model/ibc``), and it could not run. Those networks are of our own design.
What was plainly meant is done here: ``low_dim`` observations are used, training sees the frames
that inference sees, and the scheduler's ``prediction_type`` decides what the network predicts.
"""

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_policy.common.draws import Generators
from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.shape_meta import check_encodable
from diffusion_policy.model.diffusion.conditional_unet1d import ConditionalUnet1D
from diffusion_policy.model.obs_encoder.temporal_aggregator import TemporalAggregator
from diffusion_policy.policy.base_diffusion_policy import BaseDiffusionPolicy
from diffusion_policy.policy.base_image_policy import BaseImagePolicy, Observations

logger = logging.getLogger(__name__)


class DiffusionUnetVideoPolicy(BaseDiffusionPolicy, BaseImagePolicy):
    """Denoises a window of ``horizon`` actions, conditioned on features of clips.

    The clips of all cameras become one vector for FiLM. The low-dimensional observations join it
    as features of their sequence or, without ``lowdim_as_global_cond``, are given as they are
    inside the trajectory (inpainting).

    Args:
        shape_meta: shapes of observations and action.
        noise_scheduler: any discrete-time diffusers scheduler.
        rgb_net: maps a clip (B, To, C, H, W) to features (B, F). The first camera has this one, the
            others have copies.
        horizon: T. n_action_steps: Ta. n_obs_steps: To, the frames of a clip.
        num_inference_steps: denoising steps at inference; None is one per training step.
        lowdim_as_global_cond: see above.
        diffusion_step_embed_dim, down_dims, kernel_size, n_groups, cond_predict_scale: of the
            :class:`ConditionalUnet1D`.
        channel_mults, n_blocks_per_level, ta_kernel_size, ta_n_groups: of the
            :class:`TemporalAggregator`, which sees the low-dimensional observations.
        oa_step_convention: execute from the step of the newest observation on (index To - 1).
            False, as the original has it, skips that one.
        predict_epsilon: older name of ``noise_scheduler.prediction_type``: True is "epsilon", False
            is "sample"; where given, it decides.
        legacy_ddpm_steps: see :func:`diffusion_policy.policy.diffusion.sampling_timesteps`.
        kwargs: passed to ``noise_scheduler.step``.

    Raises:
        ConfigError: ``shape_meta`` has no image, or a network cannot be built.
    """

    def __init__(
        self,
        shape_meta: Mapping[str, Any],
        noise_scheduler: Any,
        rgb_net: nn.Module,
        horizon: int,
        n_action_steps: int,
        n_obs_steps: int,
        num_inference_steps: int | None = None,
        lowdim_as_global_cond: bool = True,
        diffusion_step_embed_dim: int = 256,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 5,
        n_groups: int = 8,
        cond_predict_scale: bool = True,
        channel_mults: Sequence[int] = (1, 1),
        n_blocks_per_level: int = 1,
        ta_kernel_size: int = 3,
        ta_n_groups: int = 8,
        oa_step_convention: bool = False,
        predict_epsilon: bool | None = None,
        legacy_ddpm_steps: bool = True,
        **kwargs: Any,
    ):
        super().__init__()
        self.set_up_shapes(shape_meta)
        if not self.shapes.rgb:
            raise ConfigError(
                "shape_meta.obs has no image (type: rgb), but a video policy needs one"
            )
        if predict_epsilon is not None:
            predicted = "epsilon" if predict_epsilon else "sample"
            noise_scheduler.register_to_config(prediction_type=predicted)
        self.rgb_nets_map = nn.ModuleDict(
            {key: copy.deepcopy(rgb_net) if i else rgb_net for i, key in enumerate(self.shapes.rgb)}
        )
        lowdim_dim = sum(math.prod(shape) for shape in self.shapes.low_dim.values())
        feature_dim = self._clip_feature_dim(n_obs_steps)
        self.lowdim_net = None
        if lowdim_dim and lowdim_as_global_cond:
            self.lowdim_net = TemporalAggregator(
                in_channels=lowdim_dim,
                n_steps=n_obs_steps,
                channel_mults=channel_mults,
                n_blocks_per_level=n_blocks_per_level,
                kernel_size=ta_kernel_size,
                n_groups=ta_n_groups,
            )
            feature_dim += self.lowdim_net.output_dim
        given_dim = 0 if lowdim_as_global_cond else lowdim_dim
        self.set_up_diffusion(
            ConditionalUnet1D(
                input_dim=self.action_dim + given_dim,
                global_cond_dim=feature_dim,
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
        self.oa_step_convention = oa_step_convention
        self.lowdim_as_global_cond = lowdim_as_global_cond
        for name, part in (("Diffusion", self.model), ("Vision", self.rgb_nets_map)):
            logger.info("%s params: %e", name, sum(p.numel() for p in part.parameters()))

    @torch.no_grad()
    def _clip_feature_dim(self, n_obs_steps: int) -> int:
        """F of all cameras together."""
        features = 0
        for key, net in self.rgb_nets_map.items():
            was_training = net.training
            clip = torch.zeros(1, n_obs_steps, *self.shapes.rgb[key])
            features += net.eval()(clip).shape[-1]
            net.train(was_training)
        return features

    def _observe(self, obs: Observations, n_given: int) -> tuple[Tensor, Tensor | None]:
        """What the network is told: features (B, F) for FiLM and, when inpainting, the
        low-dimensional observations of the first ``n_given`` steps (B, n_given, G).
        """
        images = {key: value for key, value in obs.items() if key in self.shapes.rgb}
        values = {key: value for key, value in obs.items() if key in self.shapes.low_dim}
        clips = self.normalized_obs(images, self.n_obs_steps)
        n_values = self.n_obs_steps if self.lowdim_as_global_cond else n_given
        lowdim = self.normalized_obs(values, n_values)
        check_encodable(self.shapes, {k: v[:, 0] for k, v in (clips | lowdim).items()})

        features = [net(clips[key]) for key, net in self.rgb_nets_map.items()]
        if not lowdim:
            return torch.cat(features, dim=-1), None
        sequence = torch.cat([lowdim[key].flatten(2) for key in self.shapes.low_dim], dim=-1)
        if self.lowdim_net is None:
            return torch.cat(features, dim=-1), sequence
        return torch.cat([*features, self.lowdim_net(sequence)], dim=-1), None

    @torch.no_grad()
    def predict_action(
        self, obs_dict: dict[str, Tensor], generator: Generators = None
    ) -> dict[str, Tensor]:
        """Predicts ``action`` (B, Ta, Da) and ``action_pred`` (B, T, Da), in raw units.

        Raises:
            ConfigError: the observations are not what ``shape_meta`` says.
        """
        assert "past_action" not in obs_dict, "past actions as an input are not implemented"
        global_cond, given = self._observe(obs_dict, self.n_obs_steps)
        sample = self.sample(len(global_cond), given, generator, global_cond=global_cond)
        return self.actions_of(sample)

    def compute_loss(self, batch: dict[str, Any]) -> Tensor:
        """Denoising loss of a batch ``obs`` {key: (B, >= To, ...)}, ``action`` (B, T, Da), raw.

        Inpainting needs the low-dimensional observations of all T steps.
        """
        assert "valid_mask" not in batch, "masked batches are not implemented"
        naction = self.normalizer["action"].normalize(batch["action"])
        global_cond, given = self._observe(batch["obs"], n_given=naction.shape[1])
        return self.denoising_loss(naction, given, global_cond=global_cond)
