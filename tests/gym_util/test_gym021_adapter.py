"""Both directions between gym 0.21 and gymnasium."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.gym_util.gym021_adapter import (
    Gym021ToGymnasium,
    GymnasiumToGym021,
    as_gymnasium,
    to_gymnasium_space,
)
from diffusion_policy.gym_util.multistep_wrapper import MultiStepWrapper


class Walk021:
    """A random walk, written for gym 0.21; no base class, as gym is not installed."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    metadata = {"render.modes": ["rgb_array"], "video.frames_per_second": 7}
    difficulty = 1

    def __init__(self, time_limit=3, info_says_time_limit=True):
        self.time_limit = time_limit
        self.info_says_time_limit = info_says_time_limit
        self.rng = np.random.RandomState()
        self.closed = False

    def seed(self, seed=None):
        self.rng = np.random.RandomState(seed)

    def reset(self):
        self.t = 0
        self.x = self.rng.uniform()
        return np.array([self.x, 0], np.float32)

    def step(self, action):
        self.t += 1
        self.x += float(action[0])
        done = self.t >= self.time_limit
        info = {"TimeLimit.truncated": True} if done and self.info_says_time_limit else {}
        return np.array([self.x, self.t], np.float32), self.x, done, info

    def render(self, mode="human"):
        assert mode == "rgb_array"
        return np.full((8, 8, 3), self.t, np.uint8)

    def close(self):
        self.closed = True


class Walk(gym.Env):
    """The same walk for gymnasium."""

    observation_space = Walk021.observation_space
    action_space = Walk021.action_space
    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}
    render_mode = "rgb_array"
    difficulty = 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.x = self.np_random.uniform()
        return np.array([self.x, 0], np.float32), {"start": self.x}

    def step(self, action):
        self.t += 1
        self.x += float(action[0])
        obs = np.array([self.x, self.t], np.float32)
        return obs, self.x, self.x > 50, self.t >= 3, {"t": self.t}

    def render(self):
        return np.full((8, 8, 3), self.t, np.uint8)


# ---------------------------------------------------------------------- 0.21 -> gymnasium


def test_the_adapted_environment_keeps_the_numbers_of_the_original():
    old, new = Walk021(), as_gymnasium(Walk021())
    assert isinstance(new, Gym021ToGymnasium)
    old.seed(5)
    expected = old.reset()
    obs, info = new.reset(seed=5)
    np.testing.assert_array_equal(obs, expected)
    assert info == {}
    for action in np.linspace(-1, 1, 3)[:, None]:
        obs, reward, done, _ = old.step(action)
        found = new.step(action)
        np.testing.assert_array_equal(found[0], obs)
        assert found[1] == reward
        assert (found[2] or found[3]) == done


def test_a_reset_without_a_seed_leaves_the_seed_alone():
    old, new = Walk021(), as_gymnasium(Walk021())
    old.seed(5)
    new.reset(seed=5)
    old.reset()
    np.testing.assert_array_equal(new.reset()[0], old.reset())


@pytest.mark.parametrize("time_limit", [True, False])
def test_done_is_truncated_only_if_the_info_says_time_limit(time_limit):
    env = as_gymnasium(Walk021(time_limit=1, info_says_time_limit=time_limit))
    env.reset()
    _, _, terminated, truncated, _ = env.step([0])
    assert (terminated, truncated) == (not time_limit, time_limit)


def test_rendering_metadata_and_closing_are_translated():
    inner = Walk021()
    env = as_gymnasium(inner)
    env.reset()
    assert env.metadata == {"render_modes": ["rgb_array"], "render_fps": 7}
    assert env.render().shape == (8, 8, 3)
    env.close()
    assert inner.closed


def test_attributes_of_the_adapted_environment_can_be_read_and_set_through_wrappers():
    inner = Walk021()
    env = MultiStepWrapper(inner, 1, 1)
    assert env.get_wrapper_attr("difficulty") == 1
    env.set_wrapper_attr("difficulty", 4)
    assert inner.difficulty == 4


def test_a_subclass_of_gymnasium_written_the_old_way_is_adapted_too():
    class Half(Walk021, gym.Env):
        pass

    env = as_gymnasium(Half())
    assert isinstance(env, Gym021ToGymnasium)
    assert len(env.step(env.reset()[0][:1])) == 5


def test_a_gymnasium_environment_is_returned_as_it_is():
    env = Walk()
    assert as_gymnasium(env) is env


def test_an_object_that_is_no_environment_is_refused():
    with pytest.raises(ConfigError, match="list is not an environment: it has no `reset`"):
        as_gymnasium([])


def test_a_new_style_environment_that_is_not_of_gymnasium_is_refused():
    class Modern(Walk021):
        def reset(self, seed=None, options=None):
            return super().reset(), {}

    with pytest.raises(ConfigError, match=r"Modern is not a gymnasium\.Env: derive it"):
        as_gymnasium(Modern())


def test_an_old_reset_with_a_new_step_is_refused():
    class Mixed(Walk021):
        def step(self, action):
            return 0, 0, False, False, {}

    with pytest.raises(ConfigError, match=r"Mixed\.step returned 5 values"):
        as_gymnasium(Mixed()).step([0])


def test_options_and_seeds_that_cannot_be_passed_on_are_refused():
    class Unseeded:
        observation_space = action_space = Walk021.action_space
        reset = step = lambda self: None

    with pytest.raises(ConfigError, match=r"reset options \['easy'\]"):
        as_gymnasium(Walk021()).reset(options={"easy": True})
    with pytest.raises(ConfigError, match="no `seed` method"):
        as_gymnasium(Unseeded()).reset(seed=1)


# Stand-ins for gym's own space classes: same names and attributes.
class Box:
    low, high, dtype = np.zeros(3, np.float32), np.ones(3, np.float32), np.dtype(np.float32)


class Discrete:
    n = 4


class Dict:
    spaces = {"z": Box(), "a": Discrete()}


class Tuple:
    spaces = (Box(), Discrete())


class Graph:
    pass


def test_spaces_of_gym_become_spaces_of_gymnasium_with_keys_in_order():
    assert to_gymnasium_space(Box()) == spaces.Box(0, 1, (3,), np.float32)
    assert to_gymnasium_space(Tuple()) == spaces.Tuple(
        [spaces.Box(0, 1, (3,), np.float32), spaces.Discrete(4)]
    )
    assert list(to_gymnasium_space(Dict()).spaces) == ["z", "a"]
    with pytest.raises(ConfigError, match="cannot be translated"):
        to_gymnasium_space(Graph())


# ---------------------------------------------------------------------- gymnasium -> 0.21


def test_an_environment_of_ours_looks_like_gym_021():
    env = GymnasiumToGym021(Walk())
    assert env.seed(3) == [3]
    expected, _ = Walk().reset(seed=3)
    np.testing.assert_array_equal(env.reset(), expected)
    obs, reward, done, info = env.step([0.5])
    assert reward == pytest.approx(expected[0] + 0.5)
    assert obs.shape == (2,)
    assert done is False
    assert info == {"t": 1}
    assert env.metadata == {"render.modes": ["rgb_array"], "video.frames_per_second": 7}
    assert env.difficulty == 1
    assert env.render(mode="rgb_array")[0, 0, 0] == 1


def test_a_seed_is_kept_until_there_is_another():
    env = GymnasiumToGym021(Walk())
    env.seed(3)
    first = env.reset()
    np.testing.assert_array_equal(env.reset(), first)
    env.seed(4)
    assert (env.reset() != first).any()
    env.seed(None)
    assert (env.reset() != env.reset()).any()


def test_a_truncation_is_told_in_the_info():
    env = GymnasiumToGym021(Walk())
    env.reset()
    for _ in range(2):
        assert env.step([0])[2] is False
    _, _, done, info = env.step([0])
    assert done
    assert info["TimeLimit.truncated"] is True
    env.reset()
    env.step([100])
    env.step([0])
    assert env.step([0])[3]["TimeLimit.truncated"] is False  # terminated at the same time


def test_a_mode_that_the_environment_was_not_made_for_is_refused():
    with pytest.raises(ConfigError, match="make it with render_mode='human'"):
        GymnasiumToGym021(Walk()).render(mode="human")


def test_there_and_back_again_gives_the_same_episode():
    plain, twice = Walk(), as_gymnasium(GymnasiumToGym021(Walk()))
    assert isinstance(twice, Gym021ToGymnasium)
    np.testing.assert_array_equal(twice.reset(seed=9)[0], plain.reset(seed=9)[0])
    for _ in range(3):
        a, b = plain.step([0.1]), twice.step([0.1])
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:4] == b[1:4]


def test_pusht_behind_gym_021_has_the_published_starts():
    from diffusion_policy.env.pusht.pusht_env import PushTEnv

    env = GymnasiumToGym021(PushTEnv())
    env.seed(0)
    for _ in range(2):  # the seed is persistent
        np.testing.assert_allclose(env.reset(), [222, 97, 217, 292, 3.0079994677219553], rtol=1e-12)
    obs, reward, done, info = env.step(np.array([256.0, 256.0]))
    assert obs.shape == (5,)
    assert 0 <= reward <= 1
    assert done is False
    assert "pos_agent" in info
    assert env.render(mode="rgb_array").shape == (96, 96, 3)
