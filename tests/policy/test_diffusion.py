"""The denoising loss and the reverse process, which all diffusion policies share."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from generators import seeded

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.policy.diffusion import (
    ForwardProcess,
    reverse_process,
    sampling_timesteps,
)

SCHEDULERS = {"DDPMScheduler": DDPMScheduler, "DDIMScheduler": DDIMScheduler}
BETAS = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}
X0 = torch.linspace(-0.9, 0.9, 2 * 8 * 3).reshape(2, 8, 3)


def oracle(scheduler, prediction_type):
    """A denoiser that knows the clean trajectory, in any parametrisation."""
    process = ForwardProcess(scheduler)

    def make(timesteps):
        def denoise(x_t, i):
            t = timesteps[i].long().expand(len(x_t))
            signal, noise_scale = process._coefficients(t, x_t)
            noise = (x_t - signal * X0) / noise_scale
            return process.target(X0, noise, t)

        return denoise

    assert process.prediction_type == prediction_type
    return make


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    "scheduler_class",
    [
        DDPMScheduler,
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
        EulerDiscreteScheduler,
    ],
)
def test_a_perfect_denoiser_recovers_the_trajectory(scheduler_class, prediction_type):
    scheduler = scheduler_class(**BETAS, prediction_type=prediction_type)
    torch.manual_seed(0)
    sample = reverse_process(
        oracle(scheduler, prediction_type), scheduler, 20, torch.zeros_like(X0)
    )
    torch.testing.assert_close(sample, X0, atol=0.05, rtol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_training_and_sampling_agree_on_what_the_network_predicts(prediction_type):
    """The loss of the perfect denoiser is zero in every parametrisation."""
    scheduler = DDPMScheduler(**BETAS, prediction_type=prediction_type)
    process = ForwardProcess(scheduler)

    def network(x_t, t):
        signal, noise_scale = process._coefficients(t, x_t)
        return process.target(X0, (x_t - signal * X0) / noise_scale, t)

    assert process.loss(network, X0).item() < 1e-6


def test_v_is_what_diffusers_calls_velocity():
    scheduler = DDPMScheduler(**BETAS, prediction_type="v_prediction")
    noise, t = torch.randn_like(X0), torch.tensor([3, 80])
    expected = scheduler.get_velocity(X0, noise, t)
    torch.testing.assert_close(ForwardProcess(scheduler).target(X0, noise, t), expected)


def test_given_values_are_kept_and_carry_no_loss():
    scheduler = DDPMScheduler(**BETAS, prediction_type="sample")
    mask = torch.zeros_like(X0, dtype=torch.bool)
    mask[:, :2] = True
    seen = []

    def network(x_t, t):
        seen.append(x_t)
        return torch.where(mask, x_t + 7, X0)  # wrong only where nothing is asked

    assert ForwardProcess(scheduler).loss(network, X0, given_mask=mask).item() == 0
    assert torch.equal(seen[0][mask], X0[mask])
    sample = reverse_process(
        lambda timesteps: lambda x, i: torch.zeros_like(x), scheduler, 10, X0, given_mask=mask
    )
    assert torch.equal(sample[mask], X0[mask])
    assert not torch.equal(sample[~mask], X0[~mask])


def test_the_masked_entries_stay_in_the_denominator_of_the_loss():
    process = ForwardProcess(DDPMScheduler(**BETAS, prediction_type="sample"))
    mask = torch.zeros_like(X0, dtype=torch.bool)
    mask[:, :4] = True
    loss = process.loss(lambda x_t, t: X0 + 1, X0, given_mask=mask)
    assert loss.item() == pytest.approx(0.5)


def test_a_row_depends_on_its_own_generator_only():
    scheduler = DDPMScheduler(**BETAS)

    def sample(seeds):
        like = torch.zeros(len(seeds), 8, 3)
        return reverse_process(
            lambda timesteps: lambda x, i: 0.1 * x, scheduler, 100, like, generator=seeded(*seeds)
        )

    both = sample([1, 2])
    torch.testing.assert_close(both[:1], sample([1]))
    torch.testing.assert_close(both[1:], sample([2]))
    assert not torch.equal(both[0], both[1])


def test_a_scheduler_without_a_discrete_noise_table_is_refused():
    class FlowMatching:
        config = {"prediction_type": "epsilon"}

    with pytest.raises(ConfigError, match="FlowMatching has no alphas_cumprod"):
        ForwardProcess(FlowMatching())


def test_an_unknown_prediction_type_is_refused():
    scheduler = DDPMScheduler(**BETAS)
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(ConfigError, match=r"prediction_type is 'flow'.*epsilon, sample"):
        ForwardProcess(scheduler)


def test_step_arguments_that_a_scheduler_does_not_know_are_dropped():
    reverse_process(
        lambda timesteps: lambda x, i: x, DDPMScheduler(**BETAS), 5, X0, predict_epsilon=True
    )


def test_ddpm_with_fewer_steps_keeps_the_published_arithmetic_unless_told_otherwise():
    scheduler = DDPMScheduler(**BETAS)
    published = sampling_timesteps(scheduler, 16).tolist()
    assert published == list(range(96, -1, -6))
    assert scheduler.previous_timestep(torch.tensor(96)) == 95
    installed = sampling_timesteps(scheduler, 16, legacy_ddpm_steps=False).tolist()
    assert installed == list(range(90, -1, -6))
    assert scheduler.previous_timestep(torch.tensor(90)) == 84


def test_reference_schedules_and_steps(golden):
    cases = torch.load(golden / "d_noise_schedulers.pt", weights_only=True)
    for case in cases:
        scheduler = SCHEDULERS[case["cls"]](**case["kw"])
        if "betas" in case:
            torch.testing.assert_close(scheduler.betas, case["betas"], rtol=1e-5, atol=1e-6)
        for n, timesteps in case["timesteps"].items():
            assert sampling_timesteps(scheduler, int(n)).tolist() == timesteps.tolist(), (
                n,
                case["kw"],
            )
        if "noisy" in case:
            noisy = ForwardProcess(scheduler).add_noise(case["x"], case["noise"], case["t"])
            torch.testing.assert_close(noisy, case["noisy"], rtol=1e-5, atol=1e-6)
        # diffusers 0.11.1 took the network's output for noise in DDIM, whatever it predicted; no
        # published configuration combines DDIM with "sample", and the installed version is right.
        wrong = case["cls"] == "DDIMScheduler" and case["kw"]["prediction_type"] == "sample"
        for step in case["steps"]:
            if wrong and step["t"] > 0:
                continue
            sampling_timesteps(scheduler, step["num_inference_steps"])
            torch.manual_seed(step["seed"])
            eta = {"eta": step["eta"]} if "eta" in step else {}
            output = case.get("model_output", case.get("noise"))
            result = scheduler.step(output, torch.tensor(step["t"]), case["x"], **eta)
            # The installed DDPM computes beta as 1 - alpha_t / alpha_(t-1): a rounding of 2e-4.
            torch.testing.assert_close(
                result.prev_sample, step["prev_sample"], rtol=2e-4, atol=1e-5
            )
