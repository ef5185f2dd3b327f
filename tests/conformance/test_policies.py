"""Any policy: observations in, a chunk of actions out; nothing else matters to it."""

import copy

import pytest
import torch
from generators import seeded

from diffusion_policy.common.pytorch_util import dict_apply


@pytest.fixture
def obs(run, dataset):
    """Three observations of the data, as a runner passes them: the first n_obs_steps steps."""
    batch = dataset.get_batch([0, len(dataset) // 2, len(dataset) - 1])["obs"]
    batch = batch if isinstance(batch, dict) else {"obs": batch}
    return dict_apply(batch, lambda x: x[:, : run.cfg.n_obs_steps])


def predict(policy, obs, *seeds):
    policy.reset()
    return policy.predict_action(obs, generator=seeded(*seeds))["action"]


def test_actions_are_a_chunk_in_raw_units(run, policy, obs, dataset):
    action = predict(policy, obs, 0, 1, 2)
    known = dataset.get_all_actions()
    assert action.shape == (3, run.cfg.n_action_steps, known.shape[-1])
    assert action.dtype == torch.float32
    assert torch.isfinite(action).all()
    span = known.max() - known.min()
    assert action.min() > known.min() - 20 * span
    assert action.max() < known.max() + 20 * span


def test_no_gradient_is_recorded(policy, obs):
    assert not predict(policy, obs, 0, 1, 2).requires_grad


def test_the_same_noise_gives_the_same_actions(policy, obs):
    assert torch.equal(predict(policy, obs, 3, 4, 5), predict(policy, obs, 3, 4, 5))


def test_a_row_depends_on_its_own_observation_and_noise_only(policy, obs):
    together = predict(policy, obs, 3, 4, 5)
    for row in range(3):
        alone = predict(policy, dict_apply(obs, lambda x, row=row: x[[row]]), 3 + row)
        torch.testing.assert_close(alone, together[[row]], rtol=1e-4, atol=1e-2)


def test_given_noise_leaves_the_global_generator_alone(policy, obs):
    before = torch.get_rng_state()
    predict(policy, obs, 0, 1, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_generators_the_global_one_decides(policy, obs):
    actions = []
    for seed in (0, 0):
        torch.manual_seed(seed)
        policy.reset()
        actions.append(policy.predict_action(obs)["action"])
    assert torch.equal(*actions)


def test_observations_are_not_changed(policy, obs):
    before = copy.deepcopy(obs)
    predict(policy, obs, 0, 1, 2)
    for key, value in before.items():
        assert torch.equal(obs[key], value)


def test_weights_and_normalizer_travel_in_the_state_dict(run, policy, obs):
    from diffusion_policy.config.instantiate import instantiate

    fresh = instantiate(run.cfg.policy)
    fresh.load_state_dict(policy.state_dict())
    fresh.eval()
    # not bitwise: where a tensor lies in memory decides which kernel adds it up
    torch.testing.assert_close(predict(fresh, obs, 0, 1, 2), predict(policy, obs, 0, 1, 2))


def test_a_normalizer_is_copied(run, policy, dataset):
    policy = copy.deepcopy(policy)
    normalizer = dataset.get_normalizer()
    policy.set_normalizer(normalizer)
    before = {k: v.clone() for k, v in policy.normalizer.state_dict().items()}
    for value in normalizer.state_dict().values():
        value.zero_()
    for key, value in policy.normalizer.state_dict().items():
        assert torch.equal(value, before[key])
        assert not value.requires_grad


def test_a_policy_says_where_it_is(policy):
    assert policy.device == torch.device("cpu")
    assert policy.dtype == torch.float32
