"""The two halves of denoising diffusion that all diffusion policies share.

Training draws a noise level and asks the network to undo it (Ho et al. 2020, eq. 14; Chi et al.
2023, eq. 5); sampling starts from pure noise and walks the noise levels down (Ho et al. 2020,
algorithm 2; Chi et al. 2023, eq. 4). A policy only states how observations enter its network: this
module never sees an observation, only the values that are *given* (inpainted) inside a trajectory.

Any discrete-time scheduler of diffusers works: its step makes the reverse process, its
``alphas_cumprod`` the training noise, its ``prediction_type`` the regression target.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_policy.common.draws import Generators, draw_rows
from diffusion_policy.common.errors import ConfigError

# (noisy sample (B, T, D), position i in the list of timesteps) -> model output (B, T, D)
Denoiser = Callable[[Tensor, int], Tensor]

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


class ForwardProcess(nn.Module):
    """q(x_t | x_0) of a noise scheduler, as tables on the policy's device.

    The scheduler's own ``add_noise`` is not used: some schedulers look timesteps up one by one (a
    device synchronisation per sample), and some only know the timesteps of the last
    ``set_timesteps``. The buffers are not persistent: checkpoints hold the same keys with and
    without them.
    """

    sqrt_alpha_bar: Tensor
    sqrt_one_minus_alpha_bar: Tensor

    def __init__(self, scheduler: Any):
        super().__init__()
        alpha_bar = getattr(scheduler, "alphas_cumprod", None)
        self.prediction_type: str = scheduler.config.get("prediction_type", "epsilon")
        if alpha_bar is None:
            raise ConfigError(
                f"noise_scheduler {type(scheduler).__name__} has no alphas_cumprod: training "
                "needs a "
                "discrete-time scheduler of diffusers such as DDPMScheduler, DDIMScheduler or "
                "DPMSolverMultistepScheduler"
            )
        if self.prediction_type not in PREDICTION_TYPES:
            raise ConfigError(
                f"noise_scheduler.prediction_type is {self.prediction_type!r}; "
                f"expected one of {', '.join(PREDICTION_TYPES)}"
            )
        self.num_train_timesteps = len(alpha_bar)
        alpha_bar = alpha_bar.detach().to(torch.float32)
        self.register_buffer("sqrt_alpha_bar", alpha_bar**0.5, persistent=False)
        self.register_buffer("sqrt_one_minus_alpha_bar", (1 - alpha_bar) ** 0.5, persistent=False)

    def _coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1,) + (1,) * (like.ndim - 1)
        signal, noise = self.sqrt_alpha_bar[t], self.sqrt_one_minus_alpha_bar[t]
        return signal.view(shape).to(like.dtype), noise.view(shape).to(like.dtype)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise, for x0 (B, ...) and t (B,)."""
        signal_scale, noise_scale = self._coefficients(t, x0)
        return signal_scale * x0 + noise_scale * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is trained to output; v is Salimans & Ho 2022, appendix D."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x0
        signal_scale, noise_scale = self._coefficients(t, x0)
        return signal_scale * noise - noise_scale * x0

    def loss(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        x0: Tensor,
        given: Tensor | None = None,
        given_mask: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error of the network's prediction at random noise levels.

        Args:
            network: (x_t (B, T, D), t (B,)) -> prediction (B, T, D).
            x0: (B, T, D) normalised trajectories.
            given: (B, T, D) values that are not noised where ``given_mask`` is True (inpainting).
            given_mask: (B, T, D) bool. These entries carry no loss, yet stay in the denominator of
                the mean, as in the published implementation.

        Returns:
            Scalar loss. Random draws: noise, then timesteps, both on the device of ``x0``.
        """
        rows, steps, device = x0.shape[0], self.num_train_timesteps, x0.device
        noise = draw_rows(lambda n: torch.randn(n, *x0.shape[1:], device=device), rows)
        t = draw_rows(lambda n: torch.randint(0, steps, (n,), device=device), rows)
        x_t = self.add_noise(x0, noise, t)
        if given_mask is not None:
            x_t = torch.where(given_mask, x0 if given is None else given, x_t)
        error = F.mse_loss(network(x_t, t), self.target(x0, noise, t), reduction="none")
        if given_mask is not None:
            error = error * ~given_mask
        return error.flatten(1).mean(dim=1).mean()


def sampling_timesteps(
    scheduler: Any, num_inference_steps: int, legacy_ddpm_steps: bool = True
) -> Tensor:
    """Prepares the scheduler for a sampling run and returns its timesteps, noisiest first, on the
    CPU.

    Args:
        legacy_ddpm_steps: a DDPM scheduler with fewer inference than training steps visits every
            (N // n)-th timestep but steps each time to t - 1, as diffusers 0.11.1 did, the version
            of the published results. False uses the spacing and arithmetic of the installed
            diffusers.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    n_train = scheduler.config.num_train_timesteps
    spacing = scheduler.config.get("timestep_spacing", "leading")
    is_legacy = legacy_ddpm_steps and isinstance(scheduler, DDPMScheduler) and spacing == "leading"
    if is_legacy and num_inference_steps < n_train:
        scheduler.set_timesteps(n_train)  # the full list makes step(t) go to t - 1
        return torch.arange(0, n_train, n_train // num_inference_steps).flip(0)
    scheduler.set_timesteps(num_inference_steps)
    return scheduler.timesteps


def reverse_process(
    make_denoiser: Callable[[Tensor], Denoiser],
    scheduler: Any,
    num_inference_steps: int,
    like: Tensor,
    given_mask: Tensor | None = None,
    generator: Generators = None,
    legacy_ddpm_steps: bool = True,
    **step_kwargs: Any,
) -> Tensor:
    """Samples trajectories.

    Args:
        make_denoiser: called once with the timesteps (n,) on the sampling device; what depends on
            the observation or the timestep alone is computed there, once, not at each step.
        like: (B, T, D) gives shape, dtype and device and, where ``given_mask`` is True, the known
            values.
        given_mask: (B, T, D) bool, or None when nothing is given.
        generator: one torch.Generator, or one per batch row, or None for the global one.
        step_kwargs: passed to ``scheduler.step`` as far as it knows them.

    Returns:
        (B, T, D) samples. Random draws: the initial noise, then whatever the scheduler's steps
        draw.
    """
    from diffusers.utils.torch_utils import randn_tensor

    timesteps = sampling_timesteps(scheduler, num_inference_steps, legacy_ddpm_steps)
    denoise = make_denoiser(timesteps.to(like.device))
    known = inspect.signature(scheduler.step).parameters
    step_kwargs = {k: v for k, v in (step_kwargs | {"generator": generator}).items() if k in known}

    def fill_in(x: Tensor) -> Tensor:
        return x if given_mask is None else torch.where(given_mask, like, x)

    x = randn_tensor(tuple(like.shape), generator=generator, device=like.device, dtype=like.dtype)
    x = x * scheduler.init_noise_sigma
    # t stays on the CPU: the scheduler reads its tables without a device synchronisation.
    for i, t in enumerate(timesteps):
        x = fill_in(x)
        model_output = denoise(fill_in(scheduler.scale_model_input(x, t)), i)
        x = scheduler.step(model_output, t, x, **step_kwargs).prev_sample
    return fill_in(x)
