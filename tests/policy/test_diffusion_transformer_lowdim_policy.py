"""The transformer policy on state observations, in its modes."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from generators import seeded
from omegaconf import OmegaConf
from reference_policies import check_actions, check_losses, make_scheduler
from reference_weights import fill, statistics, wave

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.config.instantiate import instantiate
from diffusion_policy.model.common.normalizer import LinearNormalizer
from diffusion_policy.model.diffusion.transformer_for_diffusion import TransformerForDiffusion
from diffusion_policy.policy.diffusion_transformer_lowdim_policy import (
    DiffusionTransformerLowdimPolicy,
)

# mode: (options of the network, options of the policy)
COND = {"obs_as_cond": True}
MODES = {
    "tokens": ({"cond_dim": 5, "causal_attn": True}, COND),
    "encoded tokens": ({"cond_dim": 5, "n_cond_layers": 1}, COND),
    "action only": ({"cond_dim": 5, "causal_attn": True}, COND | {"pred_action_steps_only": True}),
    "inpaint": ({}, {}),
    "inpaint, encoder only": ({"time_as_cond": False}, {}),
}
all_modes = pytest.mark.parametrize("mode", MODES)


def make_policy(mode="tokens", scheduler=None, **kwargs):
    network, flags = MODES[mode]
    torch.manual_seed(0)
    width = 2 if flags.get("obs_as_cond") else 2 + 5
    options = {"n_layer": 1, "n_head": 2, "n_emb": 16, "p_drop_attn": 0.0, "p_drop_emb": 0.0}
    policy = DiffusionTransformerLowdimPolicy(
        model=TransformerForDiffusion(width, width, 8, 2, **options | network),
        noise_scheduler=scheduler or DDPMScheduler(num_train_timesteps=10),
        horizon=8,
        obs_dim=5,
        action_dim=2,
        n_action_steps=4,
        n_obs_steps=2,
        **flags | kwargs,
    )
    with torch.no_grad():  # at their initial size, observations hardly matter
        for parameter in policy.parameters():
            parameter.mul_(4)
    normalizer = LinearNormalizer()
    normalizer.fit({"obs": torch.randn(50, 5) * 3, "action": torch.randn(50, 2) * 9})
    policy.set_normalizer(normalizer)
    return policy.eval()


def predict(policy, obs, seed=1):
    torch.manual_seed(seed)
    return policy.predict_action({"obs": obs})["action_pred"]


def training_batch(batch=3):
    return {"obs": torch.randn(batch, 8, 5), "action": torch.randn(batch, 8, 2)}


@all_modes
def test_the_executed_actions_start_at_the_newest_observation(mode):
    result = make_policy(mode).predict_action({"obs": torch.randn(3, 2, 5)})
    assert result["action"].shape == (3, 4, 2)
    assert not result["action"].requires_grad
    if mode == "action only":
        assert torch.equal(result["action"], result["action_pred"])
    else:
        assert result["action_pred"].shape == (3, 8, 2)
        assert torch.equal(result["action"], result["action_pred"][:, 1:5])
    if mode.startswith("inpaint"):
        assert result["obs_pred"].shape == (3, 8, 5)
        assert torch.equal(result["action_obs_pred"], result["obs_pred"][:, 1:5])
    else:
        assert set(result) == {"action", "action_pred"}


@pytest.mark.parametrize("mode", ["inpaint", "inpaint, encoder only"])
def test_inpainting_returns_the_observations_it_was_given(mode):
    obs = torch.randn(3, 2, 5)
    result = make_policy(mode).predict_action({"obs": obs})
    torch.testing.assert_close(result["obs_pred"][:, :2], obs, rtol=1e-4, atol=1e-4)


@all_modes
def test_only_the_first_observation_steps_matter(mode):
    policy, obs = make_policy(mode), torch.randn(3, 6, 5)
    torch.testing.assert_close(predict(policy, obs), predict(policy, obs[:, :2]))
    assert not torch.allclose(predict(policy, obs), predict(policy, obs.roll(1, dims=1)))


@all_modes
def test_prepared_sampling_gives_the_actions_of_the_plain_network(mode, monkeypatch):
    policy, obs = make_policy(mode), torch.randn(3, 2, 5)
    fast = predict(policy, obs)

    def plain(timesteps, cond=None):
        return lambda x, i: policy.model(x, timesteps[i], cond)

    monkeypatch.setattr(policy.model, "prepare_sampling", plain)
    torch.testing.assert_close(fast, predict(policy, obs), rtol=1e-4, atol=1e-4)


@all_modes
def test_one_generator_per_row_makes_rows_independent(mode):
    policy, obs = make_policy(mode), torch.randn(3, 2, 5)

    def run(rows):
        generators = seeded(*(10 + row for row in rows))
        return policy.predict_action({"obs": obs[rows]}, generator=generators)["action"]

    together = run([0, 1, 2])
    torch.testing.assert_close(run([1]), together[[1]], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(run([2, 0]), together[[2, 0]], rtol=1e-4, atol=1e-3)


def test_in_training_the_network_sees_the_first_observations_as_conditions():
    policy, batch = make_policy(), training_batch()
    torch.manual_seed(1)
    expected = policy.compute_loss(batch)
    batch["obs"][:, 2:] = 0
    torch.manual_seed(1)
    assert torch.equal(policy.compute_loss(batch), expected)
    batch["obs"][:, 1] = 0
    torch.manual_seed(1)
    assert not torch.equal(policy.compute_loss(batch), expected)


def test_with_action_only_the_other_actions_do_not_matter():
    policy, batch = make_policy("action only"), training_batch()
    torch.manual_seed(1)
    expected = policy.compute_loss(batch)
    batch["action"][:, 0] = batch["action"][:, 5:] = 0
    torch.manual_seed(1)
    assert torch.equal(policy.compute_loss(batch), expected)


@all_modes
def test_learns_a_constant_action(mode):
    scheduler = DDIMScheduler(10, beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    policy = make_policy(mode, scheduler=scheduler).train()
    batch = {"obs": torch.randn(32, 8, 5), "action": torch.full((32, 8, 2), 5.0)}
    optimizer = policy.get_optimizer(weight_decay=1e-3, learning_rate=1e-2, betas=[0.9, 0.95])
    for _ in range(60):
        optimizer.zero_grad()
        policy.compute_loss(batch).backward()
        optimizer.step()
    action = policy.eval().predict_action({"obs": batch["obs"][:4, :2]})["action"]
    torch.testing.assert_close(action, torch.full((4, 4, 2), 5.0), rtol=0, atol=2.5)


def test_the_optimizer_counts_the_transformer_only_and_takes_lists_of_a_config():
    policy = make_policy()
    options = OmegaConf.create({"learning_rate": 3e-4, "weight_decay": 0.1, "betas": [0.8, 0.9]})
    optimizer = policy.get_optimizer(**options)
    decay, no_decay = optimizer.param_groups
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.1, 0.0)
    assert decay["betas"] == (0.8, 0.9)
    assert decay["lr"] == 3e-4
    counted = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert counted == {id(p) for p in policy.model.parameters()}


def test_attributes_that_robot_scripts_overwrite_are_read_at_call_time():
    policy = make_policy(legacy_ddpm_steps=False)
    policy.num_inference_steps, policy.n_action_steps = 3, 5
    calls = []
    step = policy.noise_scheduler.step
    policy.noise_scheduler.step = lambda *a, **k: calls.append(1) or step(*a, **k)
    assert policy.predict_action({"obs": torch.randn(1, 2, 5)})["action"].shape == (1, 5, 2)
    assert len(calls) == 3


def test_wrong_widths_and_contradicting_modes_are_one_clear_sentence():
    policy = make_policy()
    with pytest.raises(ConfigError, match=r"obs.*7 values per step.*obs_dim=5"):
        policy.predict_action({"obs": torch.randn(1, 2, 7)})
    with pytest.raises(ConfigError, match=r"action.*3 values per step.*action_dim=2"):
        policy.compute_loss({"obs": torch.randn(1, 8, 5), "action": torch.randn(1, 8, 3)})
    with pytest.raises(ConfigError, match="needs obs_as_cond=True"):
        make_policy("inpaint", pred_action_steps_only=True)


def test_a_network_built_for_another_mode_or_horizon_is_one_clear_sentence():
    policy = make_policy()
    policy.horizon = 16
    with pytest.raises(ConfigError, match=r"T = 16 steps .* horizon=8"):
        policy.predict_action({"obs": torch.randn(1, 2, 5)})
    mixed_up = make_policy("inpaint")
    mixed_up.inpainting = False
    with pytest.raises(ConfigError, match=r"observations of 5 values .* cond_dim=0"):
        mixed_up.predict_action({"obs": torch.randn(1, 2, 5)})


# ---- the original's numbers ----------------------------------------------------------------------


def test_reference_policies(golden):
    """Losses, gradients, random draws, actions and optimizer groups of the original."""
    cases = torch.load(golden / "e_policy_transformer_lowdim.pt", weights_only=True)
    assert len(cases) == 6
    for case in cases:
        policy = build_reference_policy(case)
        check_losses(policy, case, rel=1e-3)
        check_actions(policy, case, case["obs"])
        options = {"learning_rate": 1e-4, "betas": (0.9, 0.95)}
        groups = policy.get_optimizer(weight_decay=1e-3, **options).param_groups
        names = {parameter: name for name, parameter in policy.named_parameters()}
        ours = [
            {"weight_decay": group["weight_decay"], "names": [names[p] for p in group["params"]]}
            for group in groups
        ]
        assert ours == [{k: g[k] for k in ("weight_decay", "names")} for g in case["optim_groups"]]


def build_reference_policy(case):
    policy = DiffusionTransformerLowdimPolicy(
        model=TransformerForDiffusion(**case["model_ctor"]),
        noise_scheduler=make_scheduler(case),
        **case["policy_kw"],
    )
    policy.load_state_dict(case["state_dict"])
    assert list(policy.state_dict()) == case["state_dict_keys"], case["variant"]
    return policy


def test_a_shorter_model_and_a_sliced_one_give_the_same_actions(golden):
    """pred_action_steps_only with a model of the whole horizon: the original failed."""
    cases = torch.load(golden / "e_policy_transformer_lowdim.pt", weights_only=True)
    [case] = [case for case in cases if case["variant"] == "cond_predactiononly"]
    assert case["model_ctor"]["horizon"] < case["policy_kw"]["horizon"]
    short = build_reference_policy(case)
    horizon = case["policy_kw"]["horizon"]
    long = DiffusionTransformerLowdimPolicy(
        model=TransformerForDiffusion(**case["model_ctor"] | {"horizon": horizon}),
        noise_scheduler=DDPMScheduler(**case["scheduler_kw"]),
        **case["policy_kw"],
    )
    state = dict(case["state_dict"])
    padding = horizon - short.model.horizon
    state["model.pos_emb"] = torch.nn.functional.pad(state["model.pos_emb"], (0, 0, 0, padding))
    for name in ("mask", "memory_mask"):
        state[f"model.{name}"] = getattr(long.model, name)
    long.load_state_dict(state)
    actions = [predict(policy.eval(), case["obs"]["obs"]) for policy in (short, long)]
    torch.testing.assert_close(*actions)


def test_a_published_configuration_gives_the_published_numbers(compose_config):
    """Case 13 of the specification: the configuration itself, with weights made of sines."""
    cfg = compose_config(
        "train_diffusion_transformer_lowdim_pusht_workspace",
        "policy.model.n_emb=32",
        "policy.model.n_layer=2",
    )
    policy = fill(instantiate(cfg.policy))
    normalizer = LinearNormalizer()
    ends = {
        "obs": torch.tensor([[-2.0] * 20, [3.0] * 20]),
        "action": torch.tensor([[-1.0, -2.0], [1.0, 4.0]]),
    }
    normalizer.fit(ends)
    policy.set_normalizer(normalizer)
    batch = {"obs": wave(4, 16, 20, phase=0.2), "action": wave(4, 16, 2, phase=0.9)}

    policy.eval()
    torch.manual_seed(0)
    assert policy.compute_loss(batch).item() == pytest.approx(1.0990256, rel=1e-5)
    assert torch.rand(1).item() == pytest.approx(0.174267, abs=1e-6)
    torch.manual_seed(0)
    action = policy.predict_action({"obs": batch["obs"][:, :2]})["action"]
    assert torch.rand(1).item() == pytest.approx(0.4502146, abs=1e-6)
    expected = [0.53836008, 1.82225966, 0.2597128, -0.4500386, 0.6968984, -1.0225222]
    assert statistics(action) == pytest.approx(expected, abs=1e-3)
