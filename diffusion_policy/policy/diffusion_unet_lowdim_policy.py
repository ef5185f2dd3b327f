"""Diffusion Policy with the conditional 1-D U-Net on low-dimensional observations (Chi et al. 2023,
sec. III).
"""

from typing import Any

import torch
from torch import Tensor

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.common.normalizer import LinearNormalizer
from diffusion_policy.model.diffusion.conditional_unet1d import ConditionalUnet1D
from diffusion_policy.model.diffusion.mask_generator import LowdimMaskGenerator
from diffusion_policy.policy.base_lowdim_policy import BaseLowdimPolicy
from diffusion_policy.policy.base_policy import Generators
from diffusion_policy.policy.diffusion import Denoiser, ForwardProcess, reverse_process


class DiffusionUnetLowdimPolicy(BaseLowdimPolicy):
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

        self.model = model
        self.noise_scheduler = noise_scheduler
        inpainting = not (obs_as_local_cond or obs_as_global_cond)
        self.mask_generator = LowdimMaskGenerator(
            action_dim=action_dim,
            obs_dim=obs_dim if inpainting else 0,
            max_n_obs_steps=n_obs_steps,
            fix_obs_steps=True,
            action_visible=False,
        )
        self.normalizer = LinearNormalizer()
        self.forward_process = ForwardProcess(noise_scheduler)
        self.horizon = horizon
        self.obs_dim = obs_dim
        self.action_dim = action_dim
        self.n_action_steps = n_action_steps
        self.n_obs_steps = n_obs_steps
        self.obs_as_local_cond = obs_as_local_cond
        self.obs_as_global_cond = obs_as_global_cond
        self.pred_action_steps_only = pred_action_steps_only
        self.oa_step_convention = oa_step_convention
        self.legacy_ddpm_steps = legacy_ddpm_steps
        self.kwargs = kwargs
        n_train: int = noise_scheduler.config.num_train_timesteps
        self.num_inference_steps = n_train if num_inference_steps is None else num_inference_steps

    # ---- shared by inference and training --------------------------------------------------------

    def set_normalizer(self, normalizer: LinearNormalizer) -> None:
        self.normalizer.load_state_dict(normalizer.state_dict())

    def _executed(self) -> slice:
        """The steps of the horizon that are executed."""
        start = self.n_obs_steps - 1 if self.oa_step_convention else self.n_obs_steps
        return slice(start, start + self.n_action_steps)

    def _check_widths(self, batch: dict[str, Tensor]) -> None:
        for key, expected in (("obs", self.obs_dim), ("action", self.action_dim)):
            if key in batch and (found := batch[key].shape[-1]) != expected:
                raise ConfigError(
                    f"{key!r} has {found} values per step, the policy was built with {key}_dim="
                    f"{expected}; set task.{key}_dim to what the task delivers"
                )

    def _local_condition(self, nobs: Tensor, length: int) -> Tensor:
        """(B, length, Do): the first n_obs_steps observations, then zeros, in normalised space."""
        seen = nobs[:, : self.n_obs_steps]
        return torch.nn.functional.pad(seen, (0, 0, 0, length - seen.shape[1]))

    def _global_condition(self, nobs: Tensor) -> Tensor:
        """(B, To * Do): the first n_obs_steps observations, step by step."""
        return nobs[:, : self.n_obs_steps].flatten(1)

    # ---- inference -------------------------------------------------------------------------------

    def conditional_sample(
        self,
        condition_data: Tensor,
        condition_mask: Tensor | None,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        generator: Generators = None,
        **kwargs: Any,
    ) -> Tensor:
        """Runs the reverse process on normalised trajectories; see :func:`reverse_process`."""

        def make_denoiser(timesteps: Tensor) -> Denoiser:
            if isinstance(self.model, ConditionalUnet1D):
                return self.model.prepare_sampling(
                    timesteps, global_cond=global_cond, local_cond=local_cond
                )
            return lambda x, i: self.model(
                x, timesteps[i], local_cond=local_cond, global_cond=global_cond
            )

        return reverse_process(
            make_denoiser,
            self.noise_scheduler,
            self.num_inference_steps,
            condition_data,
            condition_mask,
            generator=generator,
            legacy_ddpm_steps=self.legacy_ddpm_steps,
            **kwargs,
        )

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
        self._check_widths(obs_dict)
        nobs = self.normalizer["obs"].normalize(obs_dict["obs"])
        given_mask = local_cond = global_cond = None
        length, width = self.horizon, self.action_dim
        if self.obs_as_local_cond:
            local_cond = self._local_condition(nobs, length)
        elif self.obs_as_global_cond:
            global_cond = self._global_condition(nobs)
            length = self.n_action_steps if self.pred_action_steps_only else length
        else:
            width += self.obs_dim
        trajectory = nobs.new_zeros((nobs.shape[0], length, width))
        if width > self.action_dim:
            given_mask = torch.zeros_like(trajectory, dtype=torch.bool)
            trajectory[:, : self.n_obs_steps, self.action_dim :] = nobs[:, : self.n_obs_steps]
            given_mask[:, : self.n_obs_steps, self.action_dim :] = True

        nsample = self.conditional_sample(
            trajectory, given_mask, local_cond, global_cond, generator, **self.kwargs
        )
        return self._unnormalized_result(nsample)

    def _unnormalized_result(self, nsample: Tensor) -> dict[str, Tensor]:
        action_pred = self.normalizer["action"].unnormalize(nsample[..., : self.action_dim])
        executed = slice(None) if self.pred_action_steps_only else self._executed()
        result = {"action": action_pred[:, executed], "action_pred": action_pred}
        if nsample.shape[-1] > self.action_dim:
            obs_pred = self.normalizer["obs"].unnormalize(nsample[..., self.action_dim :])
            result |= {"obs_pred": obs_pred, "action_obs_pred": obs_pred[:, executed]}
        return result

    # ---- training --------------------------------------------------------------------------------

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Denoising loss of a batch ``obs`` (B, T, Do), ``action`` (B, T, Da), in raw units."""
        assert "valid_mask" not in batch, "masked batches are not implemented"
        self._check_widths(batch)
        nbatch = self.normalizer.normalize(batch)
        nobs, trajectory = nbatch["obs"], nbatch["action"]
        local_cond = global_cond = given_mask = None
        if self.obs_as_local_cond:
            local_cond = self._local_condition(nobs, nobs.shape[1])
        elif self.obs_as_global_cond:
            global_cond = self._global_condition(nobs)
            if self.pred_action_steps_only:
                trajectory = trajectory[:, self._executed()]
        else:
            trajectory = torch.cat([trajectory, nobs], dim=-1)
            given_mask = self.mask_generator(trajectory.shape)
        return self.forward_process.loss(
            lambda x, t: self.model(x, t, local_cond=local_cond, global_cond=global_cond),
            trajectory,
            given_mask=given_mask,
        )
