"""What all diffusion policies share: a network, its noise scheduler, and the trajectories."""

from typing import Any

import torch
from torch import Tensor, nn

from diffusion_policy.common.draws import Generators
from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.common.normalizer import LinearNormalizer
from diffusion_policy.model.diffusion.mask_generator import LowdimMaskGenerator
from diffusion_policy.policy.base_policy import BasePolicy
from diffusion_policy.policy.diffusion import Denoiser, ForwardProcess, reverse_process


class BaseDiffusionPolicy(BasePolicy):
    """Denoises trajectories of actions (Chi et al. 2023, section II).

    A policy states how observations enter, all in normalised units: as ``conditions``, keyword
    arguments of its network, or as values that are *given* (inpainted) in the first steps of the
    trajectory, next to the actions. A trajectory is then (B, T, Da + G), otherwise (B, T, Da).

    ``horizon``, ``n_obs_steps``, ``n_action_steps`` and ``num_inference_steps`` are read when they
    are used: robot scripts change them on a loaded policy.
    """

    #: Da; set before :meth:`set_up_diffusion`.
    action_dim: int
    #: The first executed action belongs to the newest observation; False: it is the next one.
    oa_step_convention: bool = True
    #: Trajectories hold the executed actions only, not the whole horizon.
    pred_action_steps_only: bool = False

    def set_up_diffusion(
        self,
        model: nn.Module,
        noise_scheduler: Any,
        *,
        horizon: int,
        given_dim: int,
        n_action_steps: int,
        n_obs_steps: int,
        num_inference_steps: int | None,
        legacy_ddpm_steps: bool,
        step_kwargs: dict[str, Any],
    ) -> None:
        """Second half of a constructor.

        Not ``__init__``: published optimizer states count parameters in the order of registration,
        and an observation encoder comes before what is registered here.

        Args:
            model: called as ``model(x (B, T, D), t (B,) or scalar, **conditions)``; sampling uses
                its ``prepare_sampling(timesteps, **conditions)``, if it has one.
            noise_scheduler: any discrete-time scheduler of diffusers.
            horizon: T. given_dim: G, 0 without inpainting.
            n_action_steps: Ta, actions executed per prediction. n_obs_steps: To.
            num_inference_steps: denoising steps at inference; None is one per training step.
            legacy_ddpm_steps: see :func:`diffusion_policy.policy.diffusion.sampling_timesteps`.
            step_kwargs: passed to ``noise_scheduler.step`` (for example ``eta`` of DDIM).
        """
        self.model = model
        self.mask_generator = LowdimMaskGenerator(
            action_dim=self.action_dim,
            obs_dim=given_dim,
            max_n_obs_steps=n_obs_steps,
            fix_obs_steps=True,
            action_visible=False,
        )
        self.normalizer = LinearNormalizer()
        self.noise_scheduler = noise_scheduler
        self.forward_process = ForwardProcess(noise_scheduler)
        self.horizon = horizon
        self.n_action_steps = n_action_steps
        self.n_obs_steps = n_obs_steps
        n_train: int = noise_scheduler.config.num_train_timesteps
        self.num_inference_steps = n_train if num_inference_steps is None else num_inference_steps
        self.legacy_ddpm_steps = legacy_ddpm_steps
        self.kwargs = step_kwargs

    def executed_steps(self) -> slice:
        """The steps of the horizon that are executed."""
        start = self.n_obs_steps - 1 if self.oa_step_convention else self.n_obs_steps
        return slice(start, start + self.n_action_steps)

    # ---- inference -------------------------------------------------------------------------------

    def sample(
        self,
        batch_size: int,
        given: Tensor | None = None,
        generator: Generators = None,
        **conditions: Any,
    ) -> Tensor:
        """Draws normalised trajectories, (B, T, Da) or (B, T, Da + G); T is Ta with
        ``pred_action_steps_only``.

        Args:
            batch_size: B.
            given: (B, n, G), the known values of the first n steps.
            generator: see :meth:`predict_action`.
            conditions: of the network.
        """
        length = self.n_action_steps if self.pred_action_steps_only else self.horizon
        width = self.action_dim + (0 if given is None else given.shape[-1])
        known = torch.zeros(batch_size, length, width, dtype=self.dtype, device=self.device)
        mask = None
        if given is not None:
            known[:, : given.shape[1], self.action_dim :] = given
            mask = torch.zeros_like(known, dtype=torch.bool)
            mask[:, : given.shape[1], self.action_dim :] = True
        return self.conditional_sample(known, mask, generator, **conditions)

    def conditional_sample(
        self,
        condition_data: Tensor,
        condition_mask: Tensor | None,
        generator: Generators = None,
        **conditions: Any,
    ) -> Tensor:
        """Runs the reverse process; see :func:`reverse_process`."""

        def make_denoiser(timesteps: Tensor) -> Denoiser:
            prepare = getattr(self.model, "prepare_sampling", None)
            if prepare is not None:
                return prepare(timesteps, **conditions)
            return lambda x, i: self.model(x, timesteps[i], **conditions)

        return reverse_process(
            make_denoiser,
            self.noise_scheduler,
            self.num_inference_steps,
            condition_data,
            condition_mask,
            generator=generator,
            legacy_ddpm_steps=self.legacy_ddpm_steps,
            **self.kwargs,
        )

    def actions_of(self, trajectory: Tensor) -> dict[str, Tensor]:
        """``action`` (B, Ta, Da) and ``action_pred`` (B, T, Da) in raw units, of a sample."""
        actions = self.normalizer["action"].unnormalize(trajectory[..., : self.action_dim])
        executed = slice(None) if self.pred_action_steps_only else self.executed_steps()
        return {"action": actions[:, executed], "action_pred": actions}

    # ---- training --------------------------------------------------------------------------------

    def denoising_loss(
        self, naction: Tensor, given: Tensor | None = None, **conditions: Any
    ) -> Tensor:
        """The loss of normalised actions (B, T, Da).

        Args:
            naction: whole horizon, also with ``pred_action_steps_only``.
            given: (B, T, G). What the network sees of it, the first To steps, carries gradient.
            conditions: of the network.

        Raises:
            ConfigError: ``given`` does not span the horizon.
        """

        def network(x_t: Tensor, t: Tensor) -> Tensor:
            return self.model(x_t, t, **conditions)

        if self.pred_action_steps_only:
            naction = naction[:, self.executed_steps()]
        if given is None:
            return self.forward_process.loss(network, naction)
        if given.shape[1] != naction.shape[1]:
            raise ConfigError(
                f"there are observations of {given.shape[1]} steps but actions of "
                f"{naction.shape[1]}; inpainting needs both of all steps: set dataset_obs_steps to "
                "the horizon"
            )
        trajectory = torch.cat([naction, given], dim=-1)
        mask = self.mask_generator(trajectory.shape)
        return self.forward_process.loss(network, trajectory.detach(), trajectory, mask)
