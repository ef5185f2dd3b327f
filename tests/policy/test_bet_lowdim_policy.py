"""The Behavior Transformer policy."""

import pytest
import torch
from generators import seeded
from reference_policies import check_actions
from reference_weights import fill, statistics, wave
from torch import nn

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.bet.action_ae.discretizers.k_means import KMeansDiscretizer
from diffusion_policy.model.bet.latent_generators.mingpt import MinGPT
from diffusion_policy.model.common.normalizer import LinearNormalizer
from diffusion_policy.policy.bet_lowdim_policy import BETLowdimPolicy

HORIZON, OBS, ACTION = 5, 4, 2


def build(num_bins, policy, **prior):
    """A policy from plain options; those of the prior that follow from others are filled in."""
    prior = {"predict_offsets": True, "focal_loss_gamma": 2.0, "offset_loss_scale": 1000.0} | prior
    return BETLowdimPolicy(
        action_ae=KMeansDiscretizer(ACTION, num_bins, predict_offsets=True),
        obs_encoding_net=nn.Identity(),
        state_prior=MinGPT(
            vocab_size=num_bins, action_dim=ACTION, block_size=policy["horizon"], **prior
        ),
        **policy,
    )


def make_policy(fit=True, **changes):
    """Observes 3 of 5 steps, executes 2."""
    torch.manual_seed(0)
    windows = {"horizon": HORIZON, "n_obs_steps": 3, "n_action_steps": 2} | changes
    policy = build(6, windows, input_dim=OBS, n_layer=1, n_head=2, n_embd=16)
    data = {"obs": 9 * torch.randn(200, OBS), "action": 50 + 30 * torch.randn(200, ACTION)}
    normalizer = LinearNormalizer()
    normalizer.fit(data)
    policy.set_normalizer(normalizer)
    if fit:
        policy.fit_action_ae(normalizer["action"].normalize(data["action"]))
    return policy.eval()


def make_batch(size=4):
    return {
        "obs": 9 * torch.randn(size, HORIZON, OBS),
        "action": 50 + 30 * torch.randn(size, HORIZON, ACTION),
    }


def test_the_executed_actions_start_at_the_newest_observation():
    result = make_policy().predict_action({"obs": torch.randn(4, 3, OBS)})
    assert result["action_pred"].shape == (4, HORIZON, ACTION)
    assert torch.equal(result["action"], result["action_pred"][:, 2:4])


def test_steps_that_are_not_observed_are_minus_two(monkeypatch):
    """In normalised units, both in training and at inference."""
    policy = make_policy()
    seen = []
    policy.obs_encoding_net.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    batch = make_batch()
    policy.predict_action({"obs": batch["obs"]})
    policy.compute_loss(batch)
    nobs = policy.normalizer["obs"].normalize(batch["obs"])
    for x in seen:
        assert x.shape == (4, HORIZON, OBS)
        assert torch.equal(x[:, :3], nobs[:, :3])
        assert (x[:, 3:] == -2).all()


def test_only_the_first_observation_steps_matter():
    policy, batch = make_policy(), make_batch()
    changed = batch | {"obs": batch["obs"].clone()}
    changed["obs"][:, 3:] = 77
    assert torch.equal(policy.compute_loss(batch)[0], policy.compute_loss(changed)[0])
    drawn = []
    for obs in (batch["obs"], changed["obs"], batch["obs"][:, :3]):
        torch.manual_seed(3)
        drawn.append(policy.predict_action({"obs": obs})["action"])
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_every_action_is_a_bin_and_the_offset_that_the_prior_gives_it():
    policy = make_policy()
    obs = {"obs": torch.randn(4, 3, OBS)}
    torch.manual_seed(3)
    actions = policy.predict_action(obs)["action_pred"]
    torch.manual_seed(3)
    encoded = policy._encoded(policy.normalizer["obs"].normalize(obs["obs"]), HORIZON)
    bins, offsets = policy.state_prior.generate_latents(encoded)
    naction = policy.action_ae.bin_centers[bins.squeeze(-1)] + offsets
    torch.testing.assert_close(policy.normalizer["action"].unnormalize(naction), actions)


def test_a_row_does_not_depend_on_the_rows_next_to_it():
    policy, obs = make_policy(), torch.randn(5, 3, OBS)

    def predict(rows):
        generators = seeded(*(100 + row for row in rows))
        return policy.predict_action({"obs": obs[rows]}, generators)["action_pred"]

    together = predict([0, 1, 2, 3, 4])
    torch.testing.assert_close(predict([3, 1]), together[[3, 1]])
    torch.testing.assert_close(predict([4]), together[[4]])


def test_the_components_add_up_to_the_loss():
    loss, parts = make_policy().compute_loss(make_batch())
    assert set(parts) == {"offset", "class", "total"}
    torch.testing.assert_close(parts["offset"] + parts["class"], loss)
    assert torch.equal(parts["total"], loss)


def test_gradients_reach_the_prior_and_nothing_else():
    policy = make_policy()
    policy.compute_loss(make_batch())[0].backward()
    for name, param in policy.named_parameters():
        assert (param.grad is not None) == name.startswith("state_prior."), name


def test_a_training_step_never_waits_for_the_device():
    """Tensors on the device "meta" have no values: whatever needs to see one fails."""
    policy = make_policy().train().to("meta")
    batch = {key: value.to("meta") for key, value in make_batch().items()}
    policy.compute_loss(batch)[0].backward()


def test_the_optimizer_holds_the_prior_alone():
    policy = make_policy()
    optimizer = policy.get_optimizer(weight_decay=0.1, learning_rate=1e-3, betas=(0.9, 0.95))
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in policy.state_prior.parameters()}


def test_learns_actions_of_two_modes():
    """Half of the demonstrations go left, half go right: no action in the middle."""
    policy = make_policy().train()
    side = torch.randint(0, 2, (64, 1, 1)) * 2.0 - 1
    batch = {"obs": torch.zeros(64, HORIZON, OBS), "action": 50 + 30 * side.expand(-1, HORIZON, 2)}
    policy.fit_action_ae(policy.normalizer["action"].normalize(batch["action"].flatten(0, 1)))
    optimizer = policy.get_optimizer(weight_decay=0.0, learning_rate=3e-3, betas=(0.9, 0.95))
    for _ in range(80):
        optimizer.zero_grad()
        policy.compute_loss(batch)[0].backward()
        optimizer.step()
    action = policy.eval().predict_action({"obs": batch["obs"]})["action"]
    distance = (action.unsqueeze(-1) - torch.tensor([20.0, 80.0])).abs().amin(dim=-1)
    assert distance.max() < 5
    assert 0.2 < (action > 50).float().mean() < 0.8


def test_a_loaded_policy_acts_as_the_saved_one():
    saved, loaded = make_policy(), make_policy(fit=False)
    with torch.no_grad():
        saved.state_prior.model.head.weight.mul_(3)
    loaded.load_state_dict(saved.state_dict())
    obs = {"obs": torch.randn(4, 3, OBS)}
    actions = [
        p.predict_action(obs, torch.Generator().manual_seed(0))["action"] for p in (saved, loaded)
    ]
    assert torch.equal(*actions)


def test_too_few_observations_are_refused():
    with pytest.raises(ConfigError, match=r"obs has 2 steps.*n_obs_steps=3"):
        make_policy().predict_action({"obs": torch.randn(4, 2, OBS)})


def test_a_policy_without_bins_is_refused():
    policy = make_policy(fit=False)
    with pytest.raises(ConfigError, match=r"no bins yet.*fit_action_ae"):
        policy.predict_action({"obs": torch.randn(4, 3, OBS)})
    with pytest.raises(ConfigError, match=r"no bins yet.*fit_action_ae"):
        policy.compute_loss(make_batch())


def test_inputs_that_are_not_implemented_are_refused():
    with pytest.raises(AssertionError, match="past actions"):
        make_policy().predict_action({"obs": torch.randn(1, 3, OBS), "past_action": torch.ones(1)})
    with pytest.raises(AssertionError, match="masked"):
        make_policy().compute_loss(make_batch() | {"valid_mask": torch.ones(1)})


# ---- the reference -------------------------------------------------------------------------------

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def reference(golden):
    case = torch.load(golden / "i_bet.pt", weights_only=True)["policy"][0]
    prior = {k: v for k, v in case["mingpt_kw"].items() if k not in ("vocab_size", "action_dim")}
    del prior["block_size"]
    policy = build(case["ae_kw"]["num_bins"], case["policy_kw"], **prior)
    policy.load_state_dict(case["state_dict"])
    return policy.eval(), case


def test_the_state_dict_has_the_reference_keys_in_their_order(reference):
    policy, case = reference
    assert list(policy.state_dict()) == case["state_dict_keys"]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_losses_are_those_of_the_reference(reference, mode):
    """Also in training: dropout draws as it did."""
    policy, case = reference
    policy.train(mode == "train")
    torch.manual_seed(case["seed"])
    loss, parts = policy.compute_loss(case["batch"])
    expected, expected_parts = case[f"loss_{mode}"]
    torch.testing.assert_close(loss, expected, **CLOSE)
    assert parts.keys() == expected_parts.keys()
    for key, value in expected_parts.items():
        torch.testing.assert_close(parts[key], value, **CLOSE)


def test_gradients_are_those_of_the_reference(reference):
    policy, case = reference
    policy.compute_loss(case["batch"])[0].backward()
    # The reference let gradients accumulate in the centers, to no effect.
    del case["grad_norms"]["action_ae.params_dict.bin_centers"]
    norms = {n: p.grad.norm().item() for n, p in policy.named_parameters() if p.grad is not None}
    assert norms.keys() == case["grad_norms"].keys()
    for name, norm in norms.items():
        assert norm == pytest.approx(case["grad_norms"][name], rel=1e-3, abs=1e-5), name


def test_actions_are_those_of_the_reference(reference):
    policy, case = reference
    check_actions(policy, case, case["obs"])


def test_the_numbers_of_the_specification():
    """Row 16 of its table: numbers that need no file."""
    windows = {"horizon": 3, "n_obs_steps": 3, "n_action_steps": 1}
    policy = fill(build(6, windows, input_dim=16, n_layer=2, n_head=4, n_embd=16))
    normalizer = LinearNormalizer()
    limits = {"obs": ([-2.0] * 16, [3.0] * 16), "action": ([-1.0, -2.0], [1.0, 4.0])}
    normalizer.fit({key: torch.tensor(value) for key, value in limits.items()})
    policy.set_normalizer(normalizer)
    torch.manual_seed(0)
    policy.fit_action_ae(normalizer["action"].normalize(wave(200, 2, phase=0.3)))
    policy.eval()
    bins = [-0.10362243, 0.53068348, 0.9347574, -0.0343334, -0.4578767, -0.4804441]
    assert statistics(policy.action_ae.bin_centers) == pytest.approx(bins, abs=1e-5)

    batch = {"obs": wave(4, 3, 16, phase=0.2), "action": wave(4, 3, 2, phase=0.9)}
    loss, parts = policy.compute_loss(batch)
    for value, expected in ((loss, 11.8412075), (parts["offset"], 10.6117268)):
        assert value.item() == pytest.approx(expected, abs=1e-4)
    assert parts["class"].item() == pytest.approx(1.2294807, abs=1e-5)

    torch.manual_seed(0)
    action = policy.predict_action({"obs": batch["obs"]})["action"]
    expected = [0.01890770, 0.74382617, 0.3447385, 0.5764631, 0.7391483, 0.8394861]
    assert statistics(action) == pytest.approx(expected, abs=1e-5)
