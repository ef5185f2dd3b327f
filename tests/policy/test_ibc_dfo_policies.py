"""Implicit behaviour cloning: scores, loss, and the search for good actions."""

import json

import hydra
import pytest
import torch
from generators import seeded
from gpu import needs_gpu
from image_tasks import pusht, pusht_normalizer, pusht_observations
from omegaconf import OmegaConf
from reference_policies import (
    check_actions,
    check_features,
    check_losses,
    first_observations,
    load_weights,
)
from reference_weights import fill, layout, wave
from torch.distributions import Uniform

from diffusion_policy.common.errors import ConfigError, DiffusionPolicyError
from diffusion_policy.model.common.normalizer import (
    LinearNormalizer,
    SingleFieldLinearNormalizer,
)
from diffusion_policy.policy import base_ibc_dfo_policy
from diffusion_policy.policy.ibc_dfo_hybrid_image_policy import IbcDfoHybridImagePolicy
from diffusion_policy.policy.ibc_dfo_lowdim_policy import IbcDfoLowdimPolicy

OBS_DIM, ACTION_DIM, N_OBS, N_ACTION, HORIZON = 3, 2, 2, 2, 4


@pytest.fixture
def narrow(monkeypatch):
    """A network that computes in no time."""
    monkeypatch.setattr(base_ibc_dfo_policy, "WIDTH", 32)


def make_normalizer(action_ends=((-100.0, 50.0), (300.0, 450.0))):
    normalizer = LinearNormalizer()
    normalizer.fit({"obs": torch.tensor([[0.0] * OBS_DIM, [512.0] * OBS_DIM])})
    normalizer["action"] = SingleFieldLinearNormalizer.create_fit(torch.tensor(action_ends))
    return normalizer


@pytest.fixture
def make_policy(narrow):
    def make(normalizer=None, **kwargs):
        torch.manual_seed(0)
        kwargs = {"train_n_neg": 6, "pred_n_iter": 3, "pred_n_samples": 20, **kwargs}
        policy = IbcDfoLowdimPolicy(HORIZON, OBS_DIM, ACTION_DIM, N_ACTION, N_OBS, **kwargs)
        policy.set_normalizer(normalizer or make_normalizer())
        return policy.eval()

    return make


def observations(batch=3, steps=N_OBS):
    rng = torch.Generator().manual_seed(1)
    return {"obs": torch.rand(batch, steps, OBS_DIM, generator=rng) * 512}


def training_batch(batch=3):
    action = torch.rand(batch, HORIZON, ACTION_DIM) * 400 + torch.tensor([-100.0, 50.0])
    return observations(batch, HORIZON) | {"action": action}


def loss(policy, batch, seed=1):
    torch.manual_seed(seed)
    return policy.compute_loss(batch)


def predict(policy, obs, seed=1, generator=None):
    torch.manual_seed(seed)
    return policy.predict_action(obs, generator)["action"]


def scored_shapes(policy):
    """Shapes (B, N) of what the network computes from now on."""
    shapes = []
    policy.dense4.register_forward_hook(lambda module, args, out: shapes.append(out.shape[:2]))
    return shapes


BOTH = pytest.mark.parametrize("kevin", [False, True], ids=["default", "kevin"])


# ---- scores --------------------------------------------------------------------------------------


def test_a_score_depends_on_one_observation_and_one_action_sequence(make_policy):
    policy = make_policy()
    obs, action = torch.rand(2, N_OBS, OBS_DIM), torch.rand(2, 5, N_ACTION, ACTION_DIM)
    scores = policy(obs, action)
    assert scores.shape == (2, 5)
    x = torch.cat([obs[1].flatten(), action[1, 3].flatten()])
    for layer in (policy.dense0, policy.dense1, policy.dense2, policy.dense3):
        x = layer(x).relu()
    torch.testing.assert_close(scores[1, 3], policy.dense4(x)[0])


def test_dropout_follows_every_hidden_layer_in_training(make_policy):
    policy = make_policy(dropout=0.5)
    drops = [policy.drop0, policy.drop1, policy.drop2, policy.drop3]
    outputs = {}
    for i, drop in enumerate(drops):
        drop.register_forward_hook(lambda m, args, out, i=i: outputs.update({i: (args[0], out)}))
    obs, action = torch.rand(4, N_OBS, OBS_DIM), torch.rand(4, 50, N_ACTION, ACTION_DIM)
    evaluated = policy(obs, action)
    assert torch.equal(policy(obs, action), evaluated)
    policy.train()(obs, action)
    for relu, dropped in outputs.values():
        assert (relu >= 0).all()
        kept = dropped[relu > 0] != 0
        assert 0.4 < kept.float().mean() < 0.6
    assert len(outputs) == 4


def test_modules_are_registered_in_the_order_of_published_optimizer_states(make_policy):
    names = [name for name, _ in make_policy().named_parameters()]
    dense = [f"dense{i}.{kind}" for i in range(5) for kind in ("weight", "bias")]
    assert names[:11] == ["_dummy_variable", *dense]
    assert all(name.startswith("normalizer.") for name in names[11:])


# ---- loss ----------------------------------------------------------------------------------------


def test_the_loss_is_the_cross_entropy_of_finding_the_demonstrated_actions(make_policy):
    policy, batch = make_policy(), training_batch()
    seen = []
    policy.dense0.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    actual = loss(policy, batch, seed=3)
    nbatch = policy.normalizer.normalize(batch)
    torch.manual_seed(3)
    positive = nbatch["action"][:, 1:3]
    positive = positive + torch.normal(0, 1e-4, size=positive.shape)
    low, high = -torch.ones(2), torch.ones(2)
    negatives = Uniform(low, high).sample((3, 6, N_ACTION))
    log_prob = policy(
        nbatch["obs"][:, :N_OBS], torch.cat([positive[:, None], negatives], dim=1)
    ).log_softmax(dim=-1)
    torch.testing.assert_close(actual, -log_prob[:, 0].mean())
    torch.testing.assert_close(seen[0][:, 0, -4:], positive.flatten(1), rtol=0, atol=1e-6)
    after_loss = torch.rand(1)
    loss(policy, batch, seed=3)
    assert torch.equal(torch.rand(1), after_loss)  # nothing else was drawn


def test_only_the_first_observations_and_the_executed_actions_are_trained_on(make_policy):
    policy, batch = make_policy(), training_batch()
    expected = loss(policy, batch)
    batch["obs"][:, N_OBS:] = 0
    batch["action"][:, 0] = batch["action"][:, 3] = 0
    assert torch.equal(loss(policy, batch), expected)
    batch["action"][:, 2] = 0
    assert not torch.equal(loss(policy, batch), expected)


def test_andy_train_is_the_same_loss(make_policy):
    batch = training_batch()
    assert torch.equal(loss(make_policy(andy_train=True), batch), loss(make_policy(), batch))


def test_random_actions_lie_within_the_demonstrated_ones(make_policy):
    normalizer = make_normalizer()
    normalizer["action"] = SingleFieldLinearNormalizer.create_fit(
        torch.tensor([[-1.0, 50.0], [3.0, 450.0]]), mode="gaussian"
    )
    policy = make_policy(normalizer, train_n_neg=2000)
    seen = []
    policy.dense0.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    policy.compute_loss(training_batch())
    negatives = seen[0][:, 1:, -N_ACTION * ACTION_DIM :].unflatten(-1, (N_ACTION, ACTION_DIM))
    raw = policy.normalizer["action"].unnormalize(negatives).flatten(0, 2)
    torch.testing.assert_close(raw.amin(0), torch.tensor([-1.0, 50.0]), rtol=0.02, atol=0.01)
    torch.testing.assert_close(raw.amax(0), torch.tensor([3.0, 450.0]), rtol=0.02, atol=0.01)


def test_gradients_reach_every_layer(make_policy):
    policy = make_policy().train()
    policy.compute_loss(training_batch()).backward()
    for i in range(5):
        assert policy.get_parameter(f"dense{i}.weight").grad.abs().sum() > 0


# ---- search --------------------------------------------------------------------------------------


def straightforward_search(policy, nobs):
    """Algorithm 1 of the paper as the original has it, all rows at once."""
    n, batch = policy.pred_n_samples, len(nobs)
    rows = torch.arange(batch)[:, None]
    low, high = -torch.ones(ACTION_DIM), torch.ones(ACTION_DIM)
    samples = Uniform(low, high).sample((batch, n, N_ACTION))
    for i in range(policy.pred_n_iter):
        prob = policy(nobs, samples).softmax(dim=-1)
        if policy.kevin_inference:
            samples = samples[rows, torch.multinomial(prob, n, replacement=True)]
            samples = (samples + torch.randn_like(samples) * 0.03).clamp(low, high)
        elif i < policy.pred_n_iter - 1:
            samples = samples[rows, torch.multinomial(prob, n, replacement=True)]
            samples = samples + torch.normal(0, 0.03, size=samples.shape)
    if policy.kevin_inference:
        chosen = policy(nobs, samples).argmax(dim=-1, keepdim=True)
    else:
        chosen = torch.multinomial(prob, 1, replacement=True)
    return samples[rows, chosen][:, 0]


@BOTH
def test_the_search_is_that_of_the_paper(make_policy, kevin):
    policy, obs = make_policy(kevin_inference=kevin), observations()
    for layer in (policy.dense0, policy.dense1, policy.dense2, policy.dense3, policy.dense4):
        layer.weight.data.mul_(3)  # scores that differ much: draws that matter
    action = predict(policy, obs, seed=7)
    assert action.shape == (3, N_ACTION, ACTION_DIM)
    after_search = torch.rand(1)
    torch.manual_seed(7)
    with torch.no_grad():
        expected = straightforward_search(policy, policy.normalizer["obs"].normalize(obs["obs"]))
    torch.testing.assert_close(action, policy.normalizer["action"].unnormalize(expected))
    assert torch.equal(torch.rand(1), after_search)


@BOTH
def test_only_executed_actions_are_predicted_and_without_gradient(make_policy, kevin):
    result = make_policy(kevin_inference=kevin).predict_action(observations(steps=5))
    assert set(result) == {"action"}
    assert not result["action"].requires_grad


def test_only_the_first_observation_steps_matter(make_policy):
    policy, obs = make_policy(), observations(steps=5)
    first = {"obs": obs["obs"][:, :N_OBS]}
    assert torch.equal(predict(policy, obs), predict(policy, first))


@BOTH
def test_it_finds_the_actions_of_the_highest_score(make_policy, kevin, monkeypatch):
    """A sharp peak: each action of the sequence as the first observed value says."""
    policy = make_policy(kevin_inference=kevin, pred_n_iter=8, pred_n_samples=500)
    goal = torch.tensor([-0.7, 0.1, 0.8])
    nobs = goal.view(3, 1, 1).expand(3, N_OBS, OBS_DIM)
    monkeypatch.setattr(
        policy,
        "forward",
        lambda o, a: -300 * (a - o[:, 0, 0].view(-1, 1, 1, 1)).square().sum((-2, -1)),
    )
    action = policy.predict_action({"obs": policy.normalizer["obs"].unnormalize(nobs)})["action"]
    naction = policy.normalizer["action"].normalize(action)
    assert (naction - goal.view(3, 1, 1)).abs().max() < (0.05 if kevin else 0.25)


def test_kevins_search_stays_within_the_demonstrated_actions(make_policy, monkeypatch):
    """The other one does not: its noise is not cut off."""
    obs = observations(batch=8)
    found = {}
    for kevin in (False, True):
        policy = make_policy(kevin_inference=kevin, pred_n_iter=10, pred_n_samples=200)
        monkeypatch.setattr(policy, "forward", lambda o, a: 50 * a.sum((-2, -1)))
        found[kevin] = policy.normalizer["action"].normalize(policy.predict_action(obs)["action"])
    assert found[True].max() == 1
    assert found[False].max() > 1.02


def test_attributes_that_robot_scripts_overwrite_are_read_at_call_time(make_policy):
    policy, obs = make_policy(), observations(batch=1)
    shapes = scored_shapes(policy)
    policy.pred_n_iter, policy.pred_n_samples = 2, 11
    policy.predict_action(obs)
    assert shapes == [(1, 11)] * 2
    shapes.clear()
    policy.kevin_inference = True
    policy.predict_action(obs)
    assert shapes == [(1, 11)] * 3  # the last round is scored as well


def test_the_samples_of_one_row_at_a_time_are_scored(make_policy):
    """Of all rows at once, the hidden layers of the published settings would take gigabytes."""
    policy = make_policy()
    shapes = scored_shapes(policy)
    policy.predict_action(observations(batch=4))
    assert set(shapes) == {(1, 20)}


# ---- noise ---------------------------------------------------------------------------------------


@BOTH
def test_one_generator_per_row_makes_rows_independent(make_policy, kevin):
    policy, obs = make_policy(kevin_inference=kevin), observations()

    def run(rows):
        before = torch.get_rng_state()
        own = seeded(*(10 + row for row in rows))
        action = policy.predict_action({"obs": obs["obs"][rows]}, own)["action"]
        assert torch.equal(torch.get_rng_state(), before)
        return action

    together = run([0, 1, 2])
    assert torch.equal(run([1]), together[[1]])
    assert torch.equal(run([2, 0]), together[[2, 0]])
    same = {"obs": obs["obs"][[0, 0]]}
    action = policy.predict_action(same, seeded(10, 10))["action"]
    assert torch.equal(action[0], action[1])


@BOTH
def test_one_generator_replaces_the_global_one(make_policy, kevin):
    policy, obs = make_policy(kevin_inference=kevin), observations()
    expected = predict(policy, obs, seed=5)
    assert torch.equal(predict(policy, obs, 0, *seeded(5)), expected)


def test_a_row_with_its_own_generator_is_a_batch_of_one(make_policy):
    policy, obs = make_policy(), observations(batch=1)
    alone = predict(policy, obs, 0, seeded(5))
    assert torch.equal(alone, predict(policy, obs, seed=5))


@needs_gpu
@BOTH
def test_generators_of_the_cpu_serve_a_policy_on_a_gpu(make_policy, kevin):
    policy, obs = make_policy(kevin_inference=kevin), observations()
    expected = policy.predict_action(obs, seeded(0, 1, 2))["action"]
    on_gpu = {"obs": obs["obs"].cuda()}
    actual = policy.cuda().predict_action(on_gpu, seeded(0, 1, 2))["action"]
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-3, atol=1e-2)


# ---- input that does not fit ---------------------------------------------------------------------


@BOTH
def test_an_action_dimension_that_never_moves_is_fine(make_policy, kevin):
    """torch.distributions.Uniform would refuse it."""
    policy = make_policy(make_normalizer([[-100.0, 7.0], [300.0, 7.0]]), kevin_inference=kevin)
    batch = training_batch()
    batch["action"][..., 1] = 7
    assert torch.isfinite(policy.compute_loss(batch))
    action = policy.predict_action(observations())["action"]
    expected = torch.full((3, N_ACTION), 7.0)
    torch.testing.assert_close(action[..., 1], expected, rtol=0, atol=1e-4 if kevin else 0.3)


def test_one_number_normalizes_all_action_dimensions(make_policy):
    normalizer = make_normalizer()
    normalizer["action"] = SingleFieldLinearNormalizer.create_identity()
    stats = make_policy(normalizer).get_naction_stats()
    assert torch.equal(stats["min"], -torch.ones(ACTION_DIM))
    assert torch.equal(stats["max"], torch.ones(ACTION_DIM))


def test_a_normalizer_of_other_actions_is_one_sentence(make_policy):
    policy = make_policy(make_normalizer([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    with pytest.raises(ConfigError, match=r"actions of 3 values.*built for 2"):
        policy.predict_action(observations())


def test_other_widths_are_one_sentence(make_policy):
    policy = make_policy()
    with pytest.raises(ConfigError, match=r"'obs' has 4.*obs_dim=3"):
        policy.predict_action({"obs": torch.zeros(1, N_OBS, 4)})
    with pytest.raises(ConfigError, match=r"'action' has 3.*action_dim=2"):
        policy.compute_loss(training_batch() | {"action": torch.zeros(3, HORIZON, 3)})


def test_too_short_windows_are_one_sentence(make_policy):
    policy, batch = make_policy(), training_batch()
    with pytest.raises(ConfigError, match=r"n_obs_steps=2.*given observations \[1, 3\]"):
        policy.predict_action(observations(steps=1))
    batch["action"] = batch["action"][:, :2]
    with pytest.raises(ConfigError, match=r"n_action_steps=2.*actions \[1, 2\]"):
        policy.compute_loss(batch)


@pytest.mark.parametrize("broken", ["weights", "observations"])
def test_scores_that_are_not_numbers_are_one_sentence(make_policy, broken):
    policy, obs = make_policy(), observations()
    if broken == "weights":
        policy.dense2.weight.data[0, 0] = float("nan")
    else:
        obs["obs"][1, 0, 0] = float("nan")
    with pytest.raises(DiffusionPolicyError, match=r"scores.*NaN.*earlier checkpoint"):
        policy.predict_action(obs)


def test_past_actions_and_masks_are_refused(make_policy):
    policy = make_policy()
    with pytest.raises(AssertionError):
        policy.predict_action(observations() | {"past_action": torch.zeros(1)})
    with pytest.raises(AssertionError):
        policy.compute_loss(training_batch() | {"valid_mask": torch.ones(1)})


def test_an_option_that_does_not_exist_is_refused(make_policy):
    with pytest.raises(TypeError, match="pred_n_iters"):
        make_policy(pred_n_iters=3)


# ---- learning ------------------------------------------------------------------------------------


def test_it_learns_two_answers_where_there_are_two(make_policy):
    """The same observation asks for 0.6 or -0.6; their mean is never right."""
    policy = make_policy(train_n_neg=32, dropout=0.0, pred_n_iter=4, pred_n_samples=100)
    obs = torch.full((64, N_OBS, OBS_DIM), 250.0)
    naction = 0.6 * (torch.arange(64) % 2 * 2 - 1.0).view(64, 1, 1).expand(64, HORIZON, 2)
    batch = {"obs": obs, "action": policy.normalizer["action"].unnormalize(naction)}
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        policy.compute_loss(batch).backward()
        optimizer.step()
    found = policy.normalizer["action"].normalize(policy.predict_action({"obs": obs})["action"])
    mean = found.mean((1, 2))
    assert (mean.abs() > 0.3).float().mean() > 0.9
    assert 0.2 < (mean > 0).float().mean() < 0.8


# ---- images --------------------------------------------------------------------------------------


def make_hybrid(**kwargs):
    torch.manual_seed(0)
    policy = IbcDfoHybridImagePolicy(
        OmegaConf.create(pusht(40)),
        horizon=4,
        n_action_steps=2,
        n_obs_steps=2,
        **{"crop_shape": [36, 36], "train_n_neg": 6, "pred_n_samples": 20, **kwargs},
    )
    policy.set_normalizer(pusht_normalizer())
    return policy.eval()


def image_observations(batch=2, steps=2):
    return pusht_observations(40, batch, steps)


def test_the_hybrid_policy_scores_actions_given_features_of_images(narrow):
    policy = make_hybrid()
    assert policy.obs_feature_dim == 66
    assert policy.dense0.in_features == 2 * 66 + 2 * 2
    children = [name for name, _ in policy.named_children()]
    assert children[:2] == ["obs_encoder", "dense0"]
    obs = image_observations(steps=4)
    first = {key: value[:, :2] for key, value in obs.items()}
    as_floats = first | {"image": first["image"].float() / 255}
    assert predict(policy, obs).shape == (2, 2, 2)
    assert torch.equal(predict(policy, first), predict(policy, obs))
    assert torch.equal(predict(policy, as_floats), predict(policy, obs))
    batch = {"obs": obs, "action": torch.rand(2, 4, 2) * 500}
    black = obs | {"image": torch.zeros_like(obs["image"])}
    assert not torch.equal(loss(policy, batch | {"obs": black}), loss(policy, batch))
    policy.train().compute_loss(batch).backward()
    backbone = policy.get_parameter("obs_encoder.obs_nets.image.backbone.nets.0.weight")
    assert backbone.grad is not None
    assert backbone.grad.abs().sum() > 0


def test_the_hybrid_policy_crops_the_centre_and_normalizes_by_groups_by_default(narrow):
    policy, obs = make_hybrid(), image_observations(batch=1)
    assert not any("running_mean" in key for key in policy.state_dict())
    features = [policy.encoded_obs(obs, 2) for _ in range(3)]
    assert all(torch.equal(features[0], f) for f in features)
    policy = make_hybrid(eval_fixed_crop=False, obs_encoder_group_norm=False)
    assert any("running_mean" in key for key in policy.state_dict())
    features = [policy.encoded_obs(obs, 2) for _ in range(4)]
    assert not all(torch.equal(features[0], f) for f in features)


# ---- the original's numbers ----------------------------------------------------------------------


@pytest.mark.parametrize("i", range(3), ids=["default", "kevin", "andy"])
def test_reference_lowdim_policies(golden, i):
    """Scores, bounds, losses, gradients, random draws and actions of the original."""
    case = torch.load(golden / "i_ibc_lowdim.pt", weights_only=True)[i]
    policy = IbcDfoLowdimPolicy(**case["policy_kw"]).eval()
    load_weights(policy, case)
    scores = policy(case["fwd_obs"], case["fwd_action"])
    torch.testing.assert_close(scores, case["fwd_out"], rtol=1e-4, atol=1e-5)
    for name, value in policy.get_naction_stats().items():
        torch.testing.assert_close(value, case["naction_stats"][name], rtol=1e-5, atol=1e-6)
    check_losses(policy, case, rel=2e-3)
    check_actions(policy, case, case["obs"])


def test_reference_hybrid_policy(golden):
    cases = torch.load(golden / "e_policy_image.pt", weights_only=True)
    [case] = [case for case in cases if case["variant"] == "ibc_hybrid"]
    policy = IbcDfoHybridImagePolicy(case["shape_meta"], **case["policy_kw"])
    load_weights(policy, case)
    check_features(policy, case)
    check_losses(policy, case, rel=2e-3)
    check_actions(policy, case, first_observations(case))


@pytest.mark.parametrize(
    ("overrides", "after_loss", "mean_std", "first", "after_action"),
    [
        (
            [],
            0.034023,
            (0.08112309, 1.43372502),
            [0.0129523, 1.7078369, 0.1048304, -1.6935623],
            0.1264982,
        ),
        (
            ["policy.kevin_inference=True", "policy.andy_train=True"],
            0.034023,
            (1.74101080, 1.66601879),
            [-0.0234675, 2.7387176, 0.7216891, 3.6603785],
            0.6774904,
        ),
    ],
    ids=["default", "kevin and andy"],
)
def test_the_shipped_configuration_gives_the_published_numbers(
    compose_config, overrides, after_loss, mean_std, first, after_action
):
    """Cases 14 and 15 of the specification: the configuration, with weights made of sines."""
    cfg = compose_config(
        "train_ibc_dfo_lowdim_workspace",
        "policy.train_n_neg=8",
        "policy.pred_n_samples=16",
        *overrides,
    )
    policy = fill(hydra.utils.instantiate(cfg.policy)).eval()
    normalizer = LinearNormalizer()
    normalizer.fit({"obs": torch.tensor([[-2.0] * 20, [3.0] * 20])})
    normalizer["action"] = SingleFieldLinearNormalizer.create_fit(
        torch.tensor([[-1.0, -2.0], [1.0, 4.0]])
    )
    policy.set_normalizer(normalizer)
    batch = {"obs": wave(4, 16, 20, phase=0.2)[:, :2], "action": wave(4, 16, 2, phase=0.9)[:, :2]}
    assert loss(policy, batch, seed=0).item() == pytest.approx(2.1972101, rel=1e-6)
    assert torch.rand(1).item() == pytest.approx(after_loss, abs=1e-6)
    action = predict(policy, {"obs": batch["obs"]}, seed=0)
    assert torch.rand(1).item() == pytest.approx(after_action, abs=1e-6)
    assert (action.mean().item(), action.std().item()) == pytest.approx(mean_std, rel=1e-5)
    torch.testing.assert_close(action.flatten()[:4], torch.tensor(first), rtol=1e-5, atol=1e-5)


def test_the_robot_policy_has_the_published_size(golden):
    """Two cameras; its configuration's other tests are those of the robot."""
    stock = json.loads((golden / "e_stock_state_dicts.json").read_text())
    expected = stock["train_ibc_dfo_real_hybrid_workspace"]
    camera = {"shape": [3, 240, 320], "type": "rgb"}
    obs = {"camera_1": camera, "camera_3": camera, "robot_eef_pose": {"shape": [2]}}
    with torch.device("meta"):
        policy = IbcDfoHybridImagePolicy(
            {"obs": obs, "action": {"shape": [2]}},
            horizon=2,
            n_action_steps=1,
            n_obs_steps=2,
            crop_shape=[216, 288],
        )
    found = layout(policy)
    assert list(found) == list(expected["state_dict"])
    assert found == expected["state_dict"]
    assert sum(p.numel() for p in policy.parameters()) == expected["n_params"]
