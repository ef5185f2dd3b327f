"""LSTM-GMM: each row of a batch is an episode with a memory, robomimic trains."""

import copy
import json
import logging
import sys

import pytest
import torch
from generators import seeded
from gpu import needs_gpu
from image_tasks import make_shape_meta
from reference_weights import fill_by_recipe, layout
from robomimic_stand_in import (
    backend,  # noqa: F401  a fixture
    needs_robomimic,
)

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.pytorch_util import dict_apply
from diffusion_policy.model.common.normalizer import (
    LinearNormalizer,
    SingleFieldLinearNormalizer,
)
from diffusion_policy.policy.robomimic_image_policy import RobomimicImagePolicy
from diffusion_policy.policy.robomimic_lowdim_policy import RobomimicLowdimPolicy

SMALL = make_shape_meta(pos=(2,), cam=(3, 40, 36))


def with_normalizer(policy, *keys):
    normalizer = LinearNormalizer()
    for key in (*keys, "action"):
        normalizer[key] = SingleFieldLinearNormalizer.create_identity()
    normalizer["action"] = SingleFieldLinearNormalizer.create_manual(
        scale=torch.full((2,), 0.5),
        offset=torch.full((2,), -0.25),
        input_stats_dict={s: torch.zeros(2) for s in ("min", "max", "mean", "std")},
    )
    policy.set_normalizer(normalizer)
    return policy.eval()


def lowdim_policy(**options):
    policy = RobomimicLowdimPolicy(action_dim=2, obs_dim=3, task_name="lift", **options)
    return with_normalizer(policy, "obs")


def image_policy(crop_shape=(32, 32)):
    return with_normalizer(RobomimicImagePolicy(SMALL, crop_shape=crop_shape), "pos", "cam")


@pytest.fixture
def policy(backend):  # noqa: F811
    return lowdim_policy()


def observation(batch=3, steps=1):
    return {"obs": torch.randn(batch, steps, 3)}


def images(batch=3, steps=1):
    cam = torch.randint(0, 256, (batch, steps, 3, 40, 36), dtype=torch.uint8)
    return {"pos": torch.randn(batch, steps, 2), "cam": cam}


def act(policy, obs, generator=None):
    return policy.predict_action(obs, generator=generator)["action"]


# ---- episodes ------------------------------------------------------------------------------------


def test_one_observation_gives_one_action_in_raw_units(policy):
    result = policy.predict_action(observation(), generator=seeded(0, 1, 2))
    assert set(result) == {"action"}
    assert result["action"].shape == (3, 1, 2)
    assert not result["action"].requires_grad
    # normalised actions are within [-1, 1], which is [-1.5, 2.5] here
    many = act(policy, observation(200), torch.Generator())
    assert many.min() >= -1.51
    assert many.max() <= 2.51
    assert abs(many.mean() - 0.5) < 0.5


def test_an_episode_does_not_depend_on_its_companions(policy):
    """Rows leave, change places and are taken by new episodes, as in our evaluations."""
    seen = torch.randn(4, 14, 1, 3)  # by episode and call
    companions = [[0, 1, 2]] * 3 + [[2, 0]] * 2 + [[3, 0, 2]] * 7 + [[3]] * 4 + [[3, 1]] * 3
    together = {episode: [] for episode in range(4)}
    generators = seeded(*range(4))
    for rows in companions:
        obs = torch.stack([seen[e, min(len(together[e]), 13)] for e in rows])
        action = act(policy, {"obs": obs}, [generators[e] for e in rows])
        for row, episode in enumerate(rows):
            together[episode].append(action[row, 0])

    for episode, actions in together.items():
        (generator,) = seeded(episode)
        policy.reset()
        for call, expected in enumerate(actions):
            obs = seen[episode, min(call, 13)][None]
            assert torch.allclose(act(policy, {"obs": obs}, [generator])[0, 0], expected, atol=1e-4)


@pytest.mark.parametrize("how", ["rows", "one generator", "global"])
def test_earlier_observations_are_remembered_for_ten_calls_or_until_a_reset(policy, how):
    obs, (generator,), rows = observation(), seeded(0), seeded(1, 2, 3)
    source = {"rows": rows, "one generator": generator, "global": None}[how]

    def call():
        for g in (*rows, generator, torch.default_generator):
            g.manual_seed(7)  # the memory alone makes a difference
        return act(policy, obs, source)

    first, *later = [call() for _ in range(12)]
    different = [not torch.equal(first, action) for action in later]
    assert different == [True] * 9 + [False, True]
    policy.reset()
    assert torch.equal(call(), first)


def test_without_generators_actions_come_from_the_global_one(policy):
    obs, results = observation(50), []
    for seed in (0, 0, 1):
        policy.reset()
        torch.manual_seed(seed)
        results.append(act(policy, obs))
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2], atol=1e-3)  # other components


def test_the_global_generator_is_left_alone_where_others_are_given(policy):
    obs, state = observation(), torch.get_rng_state()
    act(policy, obs, seeded(0, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_another_group_of_episodes_needs_a_reset(policy):
    act(policy, observation(3))
    with pytest.raises(
        ConfigError, match=r"batch of 3 episodes is followed by one of 2; call reset"
    ):
        act(policy, observation(2))
    policy.reset()
    act(policy, observation(2))


def test_actions_are_asked_for_in_evaluation_mode(policy):
    with pytest.raises(ConfigError, match=r"training mode; call eval\(\)"):
        act(policy.train(), observation())


def test_several_observations_at_once_are_refused(policy):
    with pytest.raises(ConfigError, match=r"'obs' has 2 steps.*set n_obs_steps=1"):
        act(policy, observation(steps=2))


def test_observations_of_another_width_are_refused(policy):
    with pytest.raises(ConfigError, match=r"'obs' has 4 values per step.*obs_dim=3"):
        act(policy, {"obs": torch.randn(3, 1, 4)})
    with pytest.raises(ConfigError, match=r"'obs' has 4 values per step.*obs_dim=3"):
        policy.train().train_on_batch(batch() | {"obs": torch.randn(4, 10, 4)}, 0)


# ---- training ------------------------------------------------------------------------------------


def batch(steps=10):
    return {"obs": torch.randn(4, steps, 3), "action": torch.rand(4, steps, 2) * 4 - 1.5}


def weights(policy):
    return {key: value.clone() for key, value in policy.state_dict().items()}


def changed(policy, before):
    return {
        key for key, value in policy.state_dict().items() if not torch.equal(value, before[key])
    }


def test_a_training_batch_is_one_step_of_the_optimizer(policy):
    policy.train()
    before, data = weights(policy), batch()
    losses = [policy.train_on_batch(data, epoch)["losses"]["action_loss"] for epoch in range(8)]
    assert losses[-1] < losses[0]
    assert not losses[0].requires_grad
    assert {key for key in before if key.startswith("nets.")} == changed(policy, before)
    assert {int(s["step"]) for s in policy.get_optimizer().state.values()} == {8}


def test_the_optimizer_is_adam_over_all_networks(policy):
    optimizer = policy.get_optimizer()
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in policy.nets.parameters()]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (1e-4, 0, (0.9, 0.999))


def test_the_loss_is_that_of_normalised_actions(policy):
    data = batch()
    loss = policy.train().train_on_batch(data, 0, validate=True)["losses"]["action_loss"]
    policy.normalizer["action"].params_dict["offset"].data += 0.1
    shifted = data | {"action": data["action"] - 0.2}
    again = policy.train_on_batch(shifted, 0, validate=True)["losses"]["action_loss"]
    assert torch.allclose(loss, again, rtol=1e-4)


def test_validation_changes_nothing_and_warns_once_of_its_fixed_scale(policy, caplog):
    before = weights(policy)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            loss = policy.train_on_batch(batch(), 0, validate=True)["losses"]["action_loss"]
    assert loss > 1e5  # why it warns
    assert not changed(policy, before)
    assert not policy.get_optimizer().state
    assert [r.message for r in caplog.records if "1e-4" in r.message] == [caplog.messages[0]]
    assert len(caplog.messages) == 1


def test_fewer_observations_than_actions_are_refused(policy):
    data = batch() | {"obs": torch.randn(4, 2, 3)}
    with pytest.raises(ConfigError, match=r"2 steps of 'obs' but 10 actions.*dataset_obs_steps"):
        policy.train().train_on_batch(data, 0)


def test_a_copy_is_trained_without_touching_the_original(policy):
    clone = copy.deepcopy(policy).train()
    before = weights(policy)
    clone.train_on_batch(batch(), 0)
    assert not changed(policy, before)
    assert changed(clone, before)
    assert not policy.get_optimizer().state


@pytest.mark.parametrize("move", ["to", "cuda-like"])
def test_the_algorithm_goes_where_the_policy_goes(policy, move):
    if move == "to":
        assert policy.to("meta") is policy
    else:
        policy._apply(lambda tensor: tensor.to("meta"))
    assert policy.device == policy.model.device == torch.device("meta")


@needs_gpu
def test_on_a_gpu_an_episode_has_the_random_numbers_it_has_on_the_cpu(policy):
    obs = observation(20)
    expected = act(policy, obs, seeded(*range(20)))
    policy.reset()
    action = act(policy.cuda(), {"obs": obs["obs"].cuda()}, seeded(*range(20)))
    assert torch.allclose(action.cpu(), expected, atol=1e-3)
    data = dict_apply(batch(), lambda x: x.cuda())
    assert policy.train().train_on_batch(data, 0)["losses"]["action_loss"].is_cuda


# ---- images --------------------------------------------------------------------------------------


def test_bytes_and_floats_are_the_same_images(backend):  # noqa: F811
    policy, obs = image_policy(), images()
    floats = obs | {"cam": obs["cam"].float() / 255}
    results = [act(policy, o, seeded(0, 1, 2)) for o in (obs, floats)]
    assert torch.equal(*results)


def test_crops_in_evaluation_are_random_and_belong_to_the_episode(backend):  # noqa: F811
    policy, obs = image_policy(), images()
    together = act(policy, obs, seeded(0, 1, 2))
    for i in range(3):
        row = dict_apply(obs, lambda x, i=i: x[i : i + 1])
        assert torch.allclose(act(policy, row, seeded(i))[0], together[i], atol=1e-4)

    crop = policy.nets["policy"].nets["encoder"].nets["obs"].obs_randomizers["cam"]
    assert crop.generator is None  # nobody's after the call
    pictures = torch.rand(1, 3, 40, 36)
    assert len({crop(pictures).sum().item() for _ in range(10)}) > 1


@pytest.mark.parametrize("crop_shape", [None, [32, 30]])
def test_an_image_policy_trains_and_acts(backend, crop_shape):  # noqa: F811
    policy = image_policy(crop_shape).train()
    data = {"obs": images(2, 3), "action": torch.rand(2, 3, 2)}
    loss = policy.train_on_batch(data, 0)["losses"]["action_loss"]
    assert torch.isfinite(loss)
    assert act(policy.eval(), images(2), seeded(0, 1)).shape == (2, 1, 2)


def test_observations_that_do_not_fit_are_named(backend):  # noqa: F811
    policy, obs = image_policy(), images()
    with pytest.raises(ConfigError, match=r"'pos' of shape \[3\]"):
        act(policy, obs | {"pos": torch.zeros(3, 1, 3)})
    with pytest.raises(ConfigError, match="has the camera 'cam', but"):
        act(policy, {"pos": obs["pos"]})


def test_a_crop_that_does_not_fit_is_named_with_its_camera(backend):  # noqa: F811
    with pytest.raises(ConfigError, match=r"does not fit into the \[40, 36\] .*camera 'cam'"):
        image_policy((32, 36))


# ---- robomimic -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [lambda: RobomimicLowdimPolicy(action_dim=2, obs_dim=3), lambda: RobomimicImagePolicy(SMALL)],
)
def test_without_robomimic_a_policy_says_how_to_install_it(monkeypatch, build):
    for name in [name for name in sys.modules if name.partition(".")[0] == "robomimic"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "robomimic", None)
    with pytest.raises(
        ConfigError, match=r"needs robomimic.*pip install 'diffusion_policy\[sim\]'"
    ):
        build()


LIFT = make_shape_meta(
    agentview_image=(3, 84, 84),
    robot0_eye_in_hand_image=(3, 84, 84),
    robot0_eef_pos=(3,),
    robot0_eef_quat=(4,),
    robot0_gripper_qpos=(2,),
)
LIFT["action"]["shape"] = [7]


@needs_robomimic
@pytest.mark.parametrize(
    ("config", "build"),
    [
        ("lowdim_workspace", lambda: RobomimicLowdimPolicy(action_dim=2, obs_dim=20)),
        ("image_workspace", lambda: RobomimicImagePolicy(LIFT, task_name="lift")),
    ],
)
def test_state_dicts_are_those_of_the_original(golden, config, build):
    stock = json.loads((golden / "e_stock_state_dicts.json").read_text())
    stock = stock[f"train_robomimic_{config}"]
    policy = build()
    assert layout(policy) == stock["state_dict"]
    assert sum(p.numel() for p in policy.parameters()) == stock["n_params"]


@needs_robomimic
@pytest.mark.parametrize("case", [0, 1, 2], ids=["bc_rnn", "bc", "image"])
def test_reference_actions_and_losses(golden, case):
    case = torch.load(golden / "e_policy_robomimic.pt", weights_only=True)[case]
    cls = RobomimicImagePolicy if "shape_meta" in case["kw"] else RobomimicLowdimPolicy
    policy = cls(**case["kw"])
    policy.load_state_dict(case["normalizer_state"], strict=False)
    shapes = {key: list(value.shape) for key, value in policy.state_dict().items()}
    assert shapes == case["state_dict_shapes"]
    fill_by_recipe(policy, case["fill_recipe_seed"]).eval()
    obs, n = case["batch"]["obs"], case["batch"]["action"].shape[1]
    obs = obs if isinstance(obs, dict) else {"obs": obs}
    for t, expected in enumerate(case["predict_steps"]):
        torch.manual_seed(case["seed"] + t)
        step = t % n
        action = act(policy, dict_apply(obs, lambda x, i=step: x[:, i : i + 1]))
        assert torch.allclose(action, expected, rtol=1e-3, atol=1e-3)
    if "validate_info" in case:
        losses = policy.train_on_batch(case["batch"], 0, validate=True)["losses"]
        for name, value in case["validate_info"]["losses"].items():
            assert losses[name].item() == pytest.approx(value, rel=1e-3)


@needs_robomimic
def test_settings_without_a_mixture_give_actions_without_chance():
    policy = lowdim_policy(dataset_type="mg", obs_type="low_dim_sparse")
    obs = observation()
    first = act(policy, obs, seeded(0, 1, 2))
    policy.reset()
    assert torch.equal(act(policy, obs, seeded(3, 4, 5)), first)
    policy.reset()
    assert torch.equal(act(policy, obs), first)


@needs_robomimic
def test_policies_of_other_observations_do_not_disturb_each_other():
    policy, obs = lowdim_policy(), observation()
    before = act(policy, obs, seeded(0, 1, 2))
    image_policy()
    assert torch.equal(act(policy, obs, seeded(0, 1, 2)), before)


@needs_robomimic
def test_features_keep_the_order_of_the_configuration():
    policy = image_policy()
    encoder = policy.nets["policy"].nets["encoder"].nets["obs"]
    assert list(encoder.obs_shapes) == ["pos", "cam"]
    obs = {"pos": torch.randn(2, 2), "cam": torch.rand(2, 3, 40, 36)}
    assert torch.equal(encoder(obs)[:, :2], obs["pos"])
