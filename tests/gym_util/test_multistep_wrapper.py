"""MultiStepWrapper: the numbers of the original, and its contract."""

import dill
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from diffusion_policy.common.errors import ConfigError, NonFiniteEnvError
from diffusion_policy.gym_util import multistep_wrapper as ms
from diffusion_policy.gym_util.multistep_wrapper import MultiStepWrapper


class Sum(gym.Env):
    """The toy environment of the golden file: x += action; rewards as given; done at a given
    step.
    """

    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, rewards, done_at=None, dict_obs=False):
        self.rewards, self.done_at, self.dict_obs = rewards, done_at, dict_obs
        x = spaces.Box(-100, 100, (3,), np.float32)
        self.observation_space = x
        if dict_obs:
            self.observation_space = spaces.Dict(a=x, b=spaces.Box(0, 255, (2, 2), np.uint8))

    def _obs(self):
        a = np.array([*self.x, self.t], np.float32)
        return {"a": a, "b": np.full((2, 2), self.t, np.uint8)} if self.dict_obs else a

    def reset(self, *, seed=None, options=None):
        self.x, self.t = np.zeros(2), 0
        return self._obs(), {"fresh": True}

    def step(self, action):
        self.x = self.x + action
        self.t += 1
        reward = self.rewards[(self.t - 1) % len(self.rewards)]
        info = {"t": self.t, "x": self.x.copy()}
        return self._obs(), reward, self.t == self.done_at, False, info


class Sum021(Sum):
    """The same with the gym 0.21 interface."""

    def reset(self):
        return super().reset()[0]

    def step(self, action):
        obs, reward, terminated, _, info = super().step(action)
        return obs, reward, terminated, info


def equal(found, expected):
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for key in expected:
            equal(found[key], expected[key])
    else:
        expected = np.asarray(expected)
        found = np.asarray(found)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("env_class", [Sum, Sum021])
@pytest.mark.parametrize("case", range(6))
def test_the_golden_cases_come_out_exactly(golden, case, env_class):
    c = torch.load(golden / "g_multistep.pt", weights_only=True)["cases"][case]
    env = MultiStepWrapper(
        env_class([float(r) for r in c["env_rewards"]], c["env_done_at"], c["dict_obs"]),
        c["n_obs_steps"],
        c["n_action_steps"],
        max_episode_steps=c["max_episode_steps"],
        reward_agg_method=c["reward_agg_method"],
    )
    obs, _ = env.reset()
    equal(obs, c["reset_obs"])
    for action, expected in zip(c["actions"].numpy(), c["steps"], strict=True):
        obs, reward, terminated, truncated, info = env.step(action)
        equal(obs, expected["obs"])
        assert reward == expected["reward"]
        assert (terminated or truncated) == expected["done"]
        equal(info, expected["info"])
    equal(env.get_rewards(), c["get_rewards"])
    assert env.get_attr("done") == c["done_list"]
    equal(env.get_infos(), c["infos"])
    for space, name in [(env.action_space, "action"), (env.observation_space, "obs")]:
        assert c[f"{name}_space_shape"] in (None, list(space.shape or []))


def test_observations_are_the_last_low_level_ones_padded_with_the_oldest():
    env = MultiStepWrapper(Sum([0.0]), n_obs_steps=3, n_action_steps=2)
    obs, info = env.reset()
    assert obs[:, 2].tolist() == [0, 0, 0]
    assert info == {"fresh": True}
    assert env.step(np.zeros((1, 2)))[0][:, 2].tolist() == [0, 0, 1]
    assert env.step(np.zeros((5, 2)))[0][:, 2].tolist() == [4, 5, 6]  # any number of actions
    assert env.reset()[0][:, 2].tolist() == [0, 0, 0]


def test_the_end_of_the_episode_cuts_the_chunk_and_later_steps_change_nothing():
    env = MultiStepWrapper(Sum([1.0, 5.0, 2.0], done_at=3), n_obs_steps=2, n_action_steps=8)
    env.reset()
    first = env.step(np.ones((8, 2)))
    assert first[2:4] == (True, False)
    assert first[0][:, 2].tolist() == [2, 3]
    again = env.step(np.ones((8, 2)))
    equal(again[0], first[0])
    assert again[1:4] == first[1:4] == (5.0, True, False)
    equal(again[4], first[4])
    assert env.get_attr("reward") == [1.0, 5.0, 2.0]


def test_the_step_limit_truncates():
    env = MultiStepWrapper(Sum([1.0]), 1, 4, max_episode_steps=6)
    env.reset()
    assert env.step(np.zeros((4, 2)))[2:4] == (False, False)
    assert env.step(np.zeros((4, 2)))[2:4] == (False, True)
    assert len(env.get_rewards()) == 6
    env.reset()
    assert env.step(np.zeros((4, 2)))[2:4] == (False, False)


def test_dictionary_observations_keep_keys_and_dtypes():
    env = MultiStepWrapper(Sum([0.0], dict_obs=True), 2, 1)
    env.reset()
    obs = env.step(np.zeros((1, 2)))[0]
    assert list(obs) == list(env.observation_space.spaces) == ["a", "b"]
    assert obs["b"].dtype == np.uint8
    assert obs["b"][:, 0, 0].tolist() == [0, 1]
    assert env.observation_space.contains(obs)


def test_a_pickled_function_is_run_on_the_wrapper():
    env = MultiStepWrapper(Sum([0.0]), 2, 1)
    assert env.run_dill_function(dill.dumps(lambda wrapper: wrapper.n_obs_steps + 5)) == 7


def test_steps_that_cannot_be_are_refused():
    env = MultiStepWrapper(Sum([0.0]), 2, 1)
    with pytest.raises(RuntimeError, match="before reset"):
        env.step(np.zeros((1, 2)))
    env.reset()
    with pytest.raises(ConfigError, match="no actions"):
        env.step(np.zeros((0, 2)))


def test_take_last_n():
    assert ms.take_last_n([1, 2, 3], 2).tolist() == [2, 3]
    assert ms.take_last_n([1, 2, 3], 5).tolist() == [1, 2, 3]
    assert ms.take_last_n([1, 2, 3], 0).tolist() == [1, 2, 3]
    assert ms.take_last_n([{"a": 1}, {"b": 2}], 2).tolist() == [{"a": 1}, {"b": 2}]
    ragged = ms.take_last_n([[1], [1, 2]], 2)
    assert ragged.dtype == object
    assert ragged.tolist() == [[1], [1, 2]]
    equal(ms.dict_take_last_n({"a": [1, 2], "b": [3]}, 1), {"a": [2], "b": [3]})


def test_stack_last_n_obs_has_the_dtype_of_the_newest():
    stacked = ms.stack_last_n_obs([np.zeros(2), np.ones(2, np.float32)], 3)
    assert stacked.dtype == np.float32
    assert stacked.tolist() == [[0, 0], [0, 0], [1, 1]]


def test_aggregate():
    for method, expected in {"max": 3, "min": 1, "mean": 2, "sum": 6}.items():
        assert ms.aggregate([1, 2, 3], method) == expected
    with pytest.raises(NotImplementedError, match=r"'median'.*expected one of"):
        ms.aggregate([1], "median")


def test_repeated_spaces_keep_bounds_dtypes_and_the_order_of_keys():
    box = spaces.Box(np.array([0, 1]), np.array([2, 3]), dtype=np.float64)
    repeated = ms.repeated_space(box, 3)
    assert repeated.dtype == np.float64
    equal(repeated.low, ms.stack_repeated(box.low, 3))
    assert repeated.high.tolist() == [[2, 3]] * 3
    both = spaces.Dict([("z", box), ("a", box)])
    assert list(ms.repeated_space(both, 2).spaces) == ["z", "a"]
    with pytest.raises(RuntimeError, match="Discrete"):
        ms.repeated_space(spaces.Discrete(3), 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, np.float32("nan")])
@pytest.mark.parametrize("method", ["max", "min"])
def test_a_reward_that_is_not_finite_is_named_and_not_aggregated_away(bad, method):
    env = MultiStepWrapper(Sum([1.0, 0.5, bad, 2.0]), 2, 4, reward_agg_method=method)
    env.reset(seed=17)
    with pytest.raises(
        NonFiniteEnvError,
        match=rf"its reward is {float(bad)} in step 3 of the episode with seed 17",
    ):
        env.step(np.zeros((4, 2)))


@pytest.mark.parametrize("dict_obs", [False, True])
def test_an_observation_that_is_not_finite_is_named(dict_obs):
    env = MultiStepWrapper(Sum([1.0], dict_obs=dict_obs), 2, 3)
    env.reset()
    name = "a" if dict_obs else ""
    with pytest.raises(
        NonFiniteEnvError,
        match=rf"its observation {name}\[1\] is nan in step 2 of the episode without a seed: "
        "this comes from the environment",
    ):
        env.step(np.array([[0, 0], [0, np.nan], [0, 0]]))


def test_a_start_that_is_not_finite_is_named():
    class Lost(Sum):
        def _obs(self):
            return np.full(3, np.inf, np.float32)

    env = MultiStepWrapper(Lost([1.0]), 2, 3)
    with pytest.raises(
        NonFiniteEnvError, match="is inf after its reset of the episode with seed 3"
    ):
        env.reset(seed=3)
