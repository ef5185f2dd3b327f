"""The transformer policy on images, with robomimic's encoder."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from image_tasks import pusht, pusht_normalizer, pusht_observations
from omegaconf import OmegaConf
from reference_policies import (
    check_actions,
    check_features,
    check_losses,
    first_observations,
    load_weights,
)

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.policy.diffusion_transformer_hybrid_image_policy import (
    DiffusionTransformerHybridImagePolicy,
)

MODES = {"tokens": {}, "action only": {"pred_action_steps_only": True}}
INPAINTING = {
    "inpaint": {"obs_as_cond": False},
    "inpaint, encoder only": {"obs_as_cond": False, "time_as_cond": False},
}
MODES |= INPAINTING


def make_policy(mode="tokens", **kwargs):
    torch.manual_seed(0)
    options = {"crop_shape": OmegaConf.create([36, 36]), "obs_encoder_group_norm": True}
    options |= {"eval_fixed_crop": True, "n_layer": 1, "n_head": 2, "n_emb": 16}
    policy = DiffusionTransformerHybridImagePolicy(
        shape_meta=OmegaConf.create(pusht(40)),
        noise_scheduler=DDPMScheduler(num_train_timesteps=4),
        horizon=8,
        n_action_steps=4,
        n_obs_steps=2,
        **options | MODES[mode] | kwargs,
    )
    policy.set_normalizer(pusht_normalizer())
    return policy.eval()


def observations(steps, batch=2):
    return pusht_observations(40, batch, steps)


@pytest.mark.parametrize("mode", MODES)
def test_it_predicts_and_every_part_learns(mode):
    """The original's encoder learnt nothing when inpainting."""
    policy = make_policy(mode)
    result = policy.predict_action(observations(steps=2))
    assert set(result) == {"action", "action_pred"}
    assert result["action"].shape == (2, 4, 2)
    if mode == "action only":
        assert torch.equal(result["action"], result["action_pred"])
    else:
        assert torch.equal(result["action"], result["action_pred"][:, 1:5])

    batch = {"obs": observations(steps=8), "action": torch.rand(2, 8, 2) * 500}
    policy.train().compute_loss(batch).backward()
    parts = {
        **dict(policy.obs_encoder.named_parameters(prefix="obs_encoder")),
        **dict(policy.model.named_parameters(prefix="model")),
    }
    assert [n for n, p in parts.items() if p.grad is None and p.numel()] == []
    first = parts["obs_encoder.obs_nets.image.backbone.nets.0.weight"]
    assert first.grad.abs().sum() > 0


def test_conditions_are_the_features_of_the_first_observations():
    policy, seen = make_policy(), []
    forward = policy.model.forward
    policy.model.forward = lambda *args, **kw: seen.append(kw["cond"]) or forward(*args, **kw)
    obs = observations(steps=8)
    policy.compute_loss({"obs": obs, "action": torch.rand(2, 8, 2)})
    assert policy.obs_feature_dim == 66
    torch.testing.assert_close(seen[0], policy.encoded_obs(obs, 2))


def test_prepared_sampling_gives_the_actions_of_the_plain_network(monkeypatch):
    policy, obs = make_policy(), observations(steps=2)
    torch.manual_seed(1)
    fast = policy.predict_action(obs)["action"]
    monkeypatch.setattr(
        policy.model,
        "prepare_sampling",
        lambda timesteps, cond: lambda x, i: policy.model(x, timesteps[i], cond),
    )
    torch.manual_seed(1)
    torch.testing.assert_close(fast, policy.predict_action(obs)["action"], rtol=1e-4, atol=1e-2)


def test_the_optimizer_has_a_third_group_for_the_encoder():
    policy = make_policy()
    options = {"learning_rate": 1e-4, "betas": [0.9, 0.95]}
    optimizer = policy.get_optimizer(
        transformer_weight_decay=1e-3, obs_encoder_weight_decay=1e-6, **options
    )
    assert [g["weight_decay"] for g in optimizer.param_groups] == [1e-3, 0.0, 1e-6]
    encoder = optimizer.param_groups[2]["params"]
    assert list(map(id, encoder)) == list(map(id, policy.obs_encoder.parameters()))
    assert all(group["betas"] == (0.9, 0.95) for group in optimizer.param_groups)


def test_inpainting_needs_the_observations_of_all_steps():
    batch = {"obs": observations(steps=2), "action": torch.rand(2, 8, 2)}
    with pytest.raises(ConfigError, match=r"2 steps but actions of 8.*dataset_obs_steps"):
        make_policy("inpaint").compute_loss(batch)


def test_contradicting_options_are_refused():
    with pytest.raises(ConfigError, match="needs obs_as_cond=True"):
        make_policy("inpaint", pred_action_steps_only=True)
    with pytest.raises(ConfigError, match=r"cond_dim is 66 but time_as_cond is False"):
        make_policy("tokens", time_as_cond=False)
    with pytest.raises(ConfigError, match="n_emb is 16 and n_head 3"):
        make_policy(n_head=3)


# ---- the original's numbers ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference_cases(golden):
    return {c["variant"]: c for c in torch.load(golden / "e_policy_image.pt", weights_only=True)}


@pytest.mark.parametrize("variant", ["tf_hybrid", "tf_hybrid_inpaint"])
def test_reference_policies(reference_cases, variant):
    """Features, losses, gradients, random draws, actions and optimizer groups of the original."""
    case = reference_cases[variant]
    policy = DiffusionTransformerHybridImagePolicy(
        shape_meta=case["shape_meta"],
        noise_scheduler=DDPMScheduler(**case["scheduler_kw"]),
        **case["policy_kw"],
    )
    load_weights(policy, case)
    check_optimizer_groups(policy, case["optim_groups"])
    check_features(policy, case)
    check_losses(policy, case, rel=2e-3)
    check_actions(policy, case, first_observations(case))


def check_optimizer_groups(policy, expected):
    optimizer = policy.get_optimizer(
        transformer_weight_decay=expected[0]["weight_decay"],
        obs_encoder_weight_decay=expected[2]["weight_decay"],
        learning_rate=1e-4,
        betas=(0.9, 0.95),
    )
    names = {parameter: name for name, parameter in policy.named_parameters()}
    for group, reference in zip(optimizer.param_groups, expected, strict=True):
        assert [names[p] for p in group["params"]] == reference["names"]
        assert group["weight_decay"] == reference["weight_decay"]
