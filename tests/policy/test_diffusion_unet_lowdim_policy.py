"""The U-Net policy in its four conditioning modes."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from reference_policies import check_actions, check_losses, make_scheduler

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.common.normalizer import LinearNormalizer
from diffusion_policy.model.diffusion.conditional_unet1d import ConditionalUnet1D
from diffusion_policy.policy.diffusion_unet_lowdim_policy import DiffusionUnetLowdimPolicy

MODES = {
    "inpaint": {},
    "local": {"obs_as_local_cond": True},
    "global": {"obs_as_global_cond": True},
    "action only": {"obs_as_global_cond": True, "pred_action_steps_only": True},
}


def make_policy(mode="global", obs_dim=5, action_dim=2, scheduler=None, **kwargs):
    flags = MODES[mode] | {"oa_step_convention": True} | kwargs
    torch.manual_seed(0)
    model = ConditionalUnet1D(
        input_dim=action_dim + (obs_dim if mode == "inpaint" else 0),
        local_cond_dim=obs_dim if mode == "local" else None,
        global_cond_dim=2 * obs_dim if mode in ("global", "action only") else None,
        diffusion_step_embed_dim=16,
        down_dims=[16, 24],
        kernel_size=3,
        cond_predict_scale=True,
    )
    policy = DiffusionUnetLowdimPolicy(
        model=model,
        noise_scheduler=scheduler or DDPMScheduler(num_train_timesteps=10),
        horizon=16,
        obs_dim=obs_dim,
        action_dim=action_dim,
        n_action_steps=8,
        n_obs_steps=2,
        **flags,
    )
    normalizer = LinearNormalizer()
    normalizer.fit({"obs": torch.randn(50, obs_dim) * 3, "action": torch.randn(50, action_dim) * 9})
    policy.set_normalizer(normalizer)
    return policy.eval()


@pytest.mark.parametrize("mode", MODES)
def test_shapes_and_the_executed_window(mode):
    result = make_policy(mode).predict_action({"obs": torch.randn(3, 2, 5)})
    assert result["action"].shape == (3, 8, 2)
    if mode == "action only":
        assert torch.equal(result["action"], result["action_pred"])
    else:
        assert result["action_pred"].shape == (3, 16, 2)
        assert torch.equal(result["action"], result["action_pred"][:, 1:9])
    assert ("obs_pred" in result) == (mode == "inpaint")


def test_without_the_oa_convention_execution_starts_one_step_later():
    result = make_policy(oa_step_convention=False).predict_action({"obs": torch.randn(3, 2, 5)})
    assert torch.equal(result["action"], result["action_pred"][:, 2:10])


def test_inpainting_returns_the_observations_it_was_given():
    obs = torch.randn(3, 2, 5)
    result = make_policy("inpaint").predict_action({"obs": obs})
    torch.testing.assert_close(result["obs_pred"][:, :2], obs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_only_the_first_observation_steps_matter(mode):
    policy = make_policy(mode)
    obs = torch.randn(3, 6, 5)

    def predict(obs):
        torch.manual_seed(1)
        return policy.predict_action({"obs": obs})["action"]

    torch.testing.assert_close(predict(obs), predict(obs[:, :2]))
    assert not torch.allclose(predict(obs), predict(obs.roll(1, dims=1)))


@pytest.mark.parametrize("mode", MODES)
def test_prepared_sampling_gives_the_actions_of_the_plain_network(mode, monkeypatch):
    policy = make_policy(mode)
    obs = {"obs": torch.randn(3, 2, 5)}
    torch.manual_seed(1)
    fast = policy.predict_action(obs)["action"]

    def plain(timesteps, global_cond=None, local_cond=None):
        return lambda x, i: policy.model(
            x, timesteps[i], local_cond=local_cond, global_cond=global_cond
        )

    monkeypatch.setattr(policy.model, "prepare_sampling", plain)
    torch.manual_seed(1)
    torch.testing.assert_close(fast, policy.predict_action(obs)["action"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_learns_a_constant_action(mode):
    scheduler = DDIMScheduler(10, beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    policy = make_policy(mode, scheduler=scheduler).train()
    batch = {"obs": torch.randn(32, 16, 5), "action": torch.full((32, 16, 2), 5.0)}
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        policy.compute_loss(batch).backward()
        optimizer.step()
    action = policy.eval().predict_action({"obs": batch["obs"][:4, :2]})["action"]
    torch.testing.assert_close(action, torch.full((4, 8, 2), 5.0), rtol=0, atol=2.5)


def test_attributes_that_robot_scripts_overwrite_are_read_at_call_time():
    policy = make_policy()
    policy.num_inference_steps = 3
    policy.n_action_steps = 5
    calls = []
    step = policy.noise_scheduler.step
    policy.noise_scheduler.step = lambda *a, **k: calls.append(1) or step(*a, **k)
    policy.legacy_ddpm_steps = False
    assert policy.predict_action({"obs": torch.randn(1, 2, 5)})["action"].shape == (1, 5, 2)
    assert len(calls) == 3


def test_observations_of_another_width_are_one_clear_sentence():
    policy = make_policy()
    with pytest.raises(ConfigError, match=r"obs.*7 values per step.*obs_dim=5.*task\.obs_dim"):
        policy.predict_action({"obs": torch.randn(1, 2, 7)})
    with pytest.raises(ConfigError, match=r"action.*3 values per step.*action_dim=2"):
        policy.compute_loss({"obs": torch.randn(1, 16, 5), "action": torch.randn(1, 16, 3)})


def test_contradicting_modes_are_refused():
    with pytest.raises(ConfigError, match="choose one"):
        make_policy(obs_as_local_cond=True, obs_as_global_cond=True)
    with pytest.raises(ConfigError, match="needs obs_as_global_cond"):
        make_policy("local", pred_action_steps_only=True)


def test_prediction_does_not_record_gradients():
    assert not make_policy().predict_action({"obs": torch.randn(1, 2, 5)})["action"].requires_grad


def test_reference_policies(golden):
    """Losses, gradients, random draws and actions of the original, in all modes."""
    cases = torch.load(golden / "e_policy_unet_lowdim.pt", weights_only=True)
    assert len(cases) == 13
    for case in cases:
        policy = DiffusionUnetLowdimPolicy(
            model=ConditionalUnet1D(**case["model_ctor"]),
            noise_scheduler=make_scheduler(case),
            **case["policy_kw"],
        )
        policy.load_state_dict(case["state_dict"])
        assert list(policy.state_dict()) == case["state_dict_keys"], case["variant"]
        check_losses(policy, case, rel=1e-3)
        check_actions(policy, case, case["obs"])
