"""Both vector environments: what they return, and that they return the same."""

import multiprocessing
import os
import sys

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from diffusion_policy.common.errors import ConfigError, EnvWorkerError
from diffusion_policy.gym_util.async_vector_env import AsyncVectorEnv, usable_cores
from diffusion_policy.gym_util.multistep_wrapper import MultiStepWrapper
from diffusion_policy.gym_util.sync_vector_env import SyncVectorEnv

# Workers cannot import test modules.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Counter(gym.Env):
    """Observes (seed or draw, steps) in a nested space; over after ``length`` steps."""

    observation_space = spaces.Dict(
        [
            ("z", spaces.Box(-1e9, 1e9, (2,), np.float32)),
            ("nested", spaces.Tuple([spaces.Discrete(100), spaces.Box(0, 255, (2, 2), np.uint8)])),
        ]
    )
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    render_mode = "rgb_array"

    def __init__(self, length=3):
        self.length = length
        self.total_steps = 0
        self.closed = False

    def _obs(self):
        return {"z": [self.start, self.x], "nested": (self.t, np.full((2, 2), self.t, np.uint8))}

    def reset(self, *, seed=None, options=None):
        self.start = -1.0 if seed is None else seed + 0.5
        self.t, self.x = 0, 0.0
        return self._obs(), {"options": options}

    def step(self, action):
        self.t += 1
        self.total_steps += 1
        self.x += float(action[0])
        return self._obs(), self.x, self.t >= self.length, self.t >= 5, {"t": self.t}

    def render(self, scale=1):
        return scale * self.t

    def add(self, a, b=0):
        return self.total_steps + a + b

    def pid(self):
        return os.getpid()

    def loaded(self, module):
        return module in sys.modules


class Counter021(Counter):
    """The same for gym 0.21."""

    next_seed = None

    def seed(self, seed=None):
        self.next_seed = seed

    def reset(self):
        obs, _ = super().reset(seed=self.next_seed)
        self.next_seed = None
        return obs

    def step(self, action):
        obs, reward, terminated, _, info = super().step(action)
        return obs, reward, terminated, info


def fns(n=5, cls=Counter, lengths=(3, 2, 4, 3, 6)):
    return [lambda i=i: cls(lengths[i]) for i in range(n)]


@pytest.fixture(params=["sync", "async"])
def make(request):
    made = []

    def make(env_fns, **kwargs):
        if request.param == "async":
            env = AsyncVectorEnv(env_fns, n_workers=2, **kwargs)
        else:
            env = SyncVectorEnv(env_fns, **kwargs)
        made.append(env)
        return env

    yield make
    for env in made:
        env.close()


def test_observations_are_batched_nested_and_cast_like_the_space(make):
    env = make(fns())
    obs, infos = env.reset(seed=10, options={"a": 1})
    assert list(obs) == ["z", "nested"]
    assert obs["z"].dtype == np.float32
    assert obs["z"][:, 0].tolist() == [10.5, 11.5, 12.5, 13.5, 14.5]
    assert obs["nested"][0].tolist() == [0] * 5
    assert obs["nested"][1].shape == (5, 2, 2)
    assert obs["nested"][1].dtype == np.uint8
    assert infos == ({"options": {"a": 1}},) * 5
    assert env.observation_space["z"].shape == (5, 2)
    assert env.action_space.shape == (5, 1)


def test_seeds_may_be_one_several_or_set_before(make):
    env = make(fns(3))
    assert env.reset(seed=[7, None, 9])[0]["z"][:, 0].tolist() == [7.5, -1, 9.5]
    env.seed(4)
    assert env.reset()[0]["z"][:, 0].tolist() == [4.5, 5.5, 6.5]
    assert env.reset()[0]["z"][:, 0].tolist() == [-1, -1, -1]  # used once
    env.seed([1, 2, 3])
    assert env.reset(active=[1])[0]["z"][:, 0].tolist() == [-1, 2.5, -1]
    assert env.reset(active=[0, 2])[0]["z"][:, 0].tolist() == [1.5, 2.5, 3.5]


def test_steps_end_without_an_automatic_reset(make):
    env = make(fns())
    env.reset()
    for t in range(1, 6):
        obs, rewards, terminated, truncated, infos = env.step(np.full((5, 1), 0.5))
        assert obs["nested"][0].tolist() == [t] * 5
        assert rewards.tolist() == [0.5 * t] * 5
        assert terminated.tolist() == [t >= n for n in (3, 2, 4, 3, 6)]
        assert truncated.tolist() == [t >= 5] * 5
        assert [info["t"] for info in infos] == [t] * 5
    assert env.reset()[0]["nested"][0].tolist() == [0] * 5
    _, rewards, terminated, truncated, _ = env.step(np.full((1, 1), 0.5), active=[2])
    assert rewards.tolist() == [0, 0, 0.5, 0, 0]  # nothing is left of the last episodes
    assert not terminated.any()
    assert not truncated.any()


@pytest.mark.parametrize("active", [[1, 4], [4, 1], [False, True, False, False, True]])
def test_environments_that_are_not_active_are_left_alone_and_keep_their_values(make, active):
    env = make(fns())
    env.reset()
    env.step(np.ones((5, 1)))
    obs, rewards, terminated, _, infos = env.step(np.array([[5], [7]]), active=active)
    assert rewards.tolist() == [1, 6, 1, 1, 8]  # actions go to environments in ascending order
    assert obs["nested"][0].tolist() == [1, 2, 1, 1, 2]
    assert terminated.tolist() == [False, True, False, False, False]
    assert [info["t"] for info in infos] == [1, 2, 1, 1, 2]
    assert env.call("total_steps") == (1, 2, 1, 1, 2)
    assert env.reset(seed=[0, 0], active=active)[0]["nested"][0].tolist() == [1, 0, 1, 1, 0]


def test_calls_reach_methods_and_attributes_with_arguments_for_all_or_for_each(make):
    env = make(fns(3))
    env.reset()
    assert env.call("add", 1, b=2) == (3, 3, 3)
    assert env.call("length") == (3, 2, 4)
    assert env.call_each("add", [(1,), (2,), (3,)], [{}, {"b": 10}, {}]) == (1, 12, 3)
    assert env.call_each("add", [(5,)], active=[2]) == (5,)
    assert env.render(scale=2, active=[0]) == (0,)
    env.set_attr("length", [7, 8, 9])
    assert env.call("length") == (7, 8, 9)
    env.set_attr("length", 1, active=[1])
    assert env.call("length") == (7, 1, 9)


def test_copies_stay_and_views_follow_the_environments(make):
    for copy in (True, False):
        env = make(fns(2), copy=copy)
        before, _ = env.reset()
        env.step(np.zeros((2, 1)))
        assert before["nested"][0].tolist() == ([0, 0] if copy else [1, 1])


def test_gym_021_environments_run_unchanged(make):
    old, new = make(fns(3, Counter021)), make(fns(3))
    assert old.reset(seed=3)[0]["z"].tolist() == new.reset(seed=3)[0]["z"].tolist()
    for a in (0.25, -0.5):
        actions = np.full((3, 1), a)
        for x, y in zip(old.step(actions)[1:3], new.step(actions)[1:3], strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", ["reset", "step", "seed", "close"])
def test_call_refuses_what_the_vector_environment_does_itself(make, name):
    with pytest.raises(ConfigError, match=rf"use the vector environment's {name}\(\)"):
        make(fns(2)).call(name)


def test_wrong_arguments_are_refused_in_one_sentence(make):
    env = make(fns(2))
    env.reset()
    with pytest.raises(ConfigError, match="actions has 3 entries for 2 active environments"):
        env.step(np.zeros((3, 1)))
    with pytest.raises(ConfigError, match="seeds has 1 entries"):
        env.reset(seed=[1])
    with pytest.raises(ConfigError, match=r"shape \(3,\), expected \(2,\)"):
        env.step(np.zeros((1, 1)), active=[True, False, False])
    env.step(np.zeros((2, 1)))  # nothing was broken by that
    with pytest.raises(ConfigError, match="no env_fns"):
        make([])


def test_unequal_spaces_are_refused(make):
    def odd():
        env = Counter()
        env.action_space = spaces.Box(-1, 1, (9,), np.float32)
        return env

    with pytest.raises(
        EnvWorkerError, match="environment 1 raised ConfigError during its creation"
    ):
        make([Counter, odd])


def test_an_observation_that_does_not_fit_its_space_is_refused(make):
    class Liar(Counter):
        def _obs(self):
            return {**super()._obs(), "z": np.zeros(3)}

    with pytest.raises(EnvWorkerError, match=r"observation z has shape \(3,\).* says \(2,\)"):
        make([Liar]).reset()


def test_a_space_without_a_fixed_shape_is_refused(make):
    class Text(Counter):
        observation_space = spaces.Text(10)

    with pytest.raises(ConfigError, match=r"type Text .*has no fixed shape"):
        make([Text])


def test_an_environment_that_raises_is_named_with_its_traceback(make):
    class Bad(Counter):
        def step(self, action):
            if self.t == 1:
                raise ValueError("the arm fell off")
            return super().step(action)

    env = make([Counter, Counter, Bad])
    env.reset()
    env.step(np.zeros((3, 1)))
    with pytest.raises(EnvWorkerError) as caught:
        env.step(np.zeros((3, 1)))
    first, *rest = str(caught.value).splitlines()
    assert first == "environment 2 raised ValueError during step: the arm fell off"
    assert any("in step" in line for line in rest)


@pytest.mark.parametrize("where", ["reset", "__init__", "hello"])
def test_errors_at_other_times_are_named_too(make, where):
    def fail(self, *args, **kwargs):
        raise OSError("no simulator")

    def use():
        env = make([Counter, bad])
        env.reset()
        env.call("hello", active=[1])

    bad = type("Bad", (Counter,), {where: fail})
    with pytest.raises(EnvWorkerError, match=r"environment 1 raised OSError .*no simulator"):
        use()


def test_closing_closes_the_environments_and_ends_all_use(make, tmp_path):
    class Noted(Counter):
        def close(self):
            (tmp_path / f"{self.length}").touch()

    env = make([lambda: Noted(1), lambda: Noted(2), lambda: Noted(3)])
    env.reset()
    (tmp_path / "1").unlink(missing_ok=True)  # the one that was asked for its spaces
    env.close()
    env.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2", "3"]
    with pytest.raises(ConfigError, match="was closed"):
        env.reset()


# ---------------------------------------------------------------------- worker processes


@pytest.mark.parametrize(("n_workers", "sizes"), [(1, [5]), (2, [3, 2]), (9, [1] * 5)])
def test_environments_are_grouped_evenly_and_in_order(n_workers, sizes):
    env = AsyncVectorEnv(fns(), n_workers=n_workers)
    pids = env.call("pid")
    env.close()
    groups = list(dict.fromkeys(pids))
    assert [pids.count(p) for p in groups] == sizes
    assert os.getpid() not in pids


def test_there_are_as_many_workers_as_cores_by_default():
    env = AsyncVectorEnv(fns())
    assert len(set(env.call("pid"))) == min(5, usable_cores())
    env.close()


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_workers_know_neither_torch_nor_the_main_script(context):
    env = AsyncVectorEnv(fns(1), context=context)
    assert env.call("loaded", "numpy") == (True,)
    assert env.call("loaded", "torch") == (False,)
    assert env.call("loaded", "pytest") == (False,)
    env.close()


def test_workers_use_one_thread_each():
    class Threads(Counter):
        def info(self):
            import cv2
            import threadpoolctl

            pools = threadpoolctl.threadpool_info()
            return {p["num_threads"] for p in pools if p["user_api"] == "blas"}, cv2.getNumThreads()

    def make():
        import cv2  # as simulators that render do

        assert cv2
        return Threads()

    env = AsyncVectorEnv([make])
    assert env.call("info") == (({1}, 1),)
    env.close()


def test_fork_and_impossible_numbers_of_workers_are_refused():
    with pytest.raises(ConfigError, match="context is 'fork', expected one of"):
        AsyncVectorEnv(fns(1), context="fork")
    with pytest.raises(ConfigError, match="n_workers is 0"):
        AsyncVectorEnv(fns(1), n_workers=0)


def test_the_dummy_is_built_here_instead_of_a_real_one():
    here = os.getpid()

    def real():
        assert os.getpid() != here, "a GL context would now be in the main process"
        return Counter()

    env = AsyncVectorEnv([real, real], dummy_env_fn=Counter)
    assert env.single_action_space.shape == (1,)
    env.close()
    obs_space, action_space = Counter.observation_space, Counter.action_space
    env = AsyncVectorEnv([real], observation_space=obs_space, action_space=action_space)
    assert env.num_envs == 1
    env.close()


def test_no_process_is_left_behind():
    env = AsyncVectorEnv(fns(2), n_workers=2)
    assert len(multiprocessing.active_children()) >= 2
    env.close()
    assert not [p for p in multiprocessing.active_children() if p.name.startswith("env-worker")]


def test_pusht_gives_the_same_in_this_process_and_in_workers_that_stay_free_of_torch():
    def make():
        from diffusion_policy.env.pusht.pusht_keypoints_env import PushTKeypointsEnv

        return MultiStepWrapper(PushTKeypointsEnv(legacy=True, keypoint_visible_rate=0.7), 2, 4, 10)

    def has_torch(env):
        return "torch" in sys.modules

    sync, parallel = SyncVectorEnv([make] * 3), AsyncVectorEnv([make] * 3, n_workers=2)
    np.testing.assert_array_equal(sync.reset(seed=100000)[0], parallel.reset(seed=100000)[0])
    rng = np.random.RandomState(0)
    for _ in range(4):
        actions = rng.uniform(100, 400, (3, 4, 2)).astype(np.float32)
        a, b = sync.step(actions), parallel.step(actions)
        for x, y in zip(a[:4], b[:4], strict=True):
            np.testing.assert_array_equal(x, y)
        for x, y in zip(a[4], b[4], strict=True):
            for key in x:
                np.testing.assert_array_equal(x[key], y[key])
    assert a[3].all()
    assert parallel.call("run_dill_function", cloudpickle.dumps(has_torch)) == (False,) * 3
    parallel.close()
