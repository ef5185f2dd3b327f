"""The rollout with a toy task: scheduling, noise, videos, metrics, errors."""

import logging
import os
import pathlib
import re
import signal
import sys
import time

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from diffusion_policy.common import progress_bar
from diffusion_policy.common.errors import ConfigError, DiffusionPolicyError, EnvWorkerError
from diffusion_policy.common.media import VideoFile
from diffusion_policy.env_runner.base_lowdim_runner import BaseLowdimRunner
from diffusion_policy.env_runner.episodes import Episode, make_episodes
from diffusion_policy.env_runner.vector_runner import VectorRunner, wrap_env

cloudpickle.register_pickle_by_value(sys.modules[__name__])

N_OBS, N_ACTION, MAX_STEPS = 2, 3, 12


class Drift(gym.Env):
    """x += action; the reward is sin(x); over after 4 + seed % 7 steps, so episodes differ in
    length.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"
    bonus = 0.0

    def _obs(self):
        return np.array([self.x, self.t, self.seed_])

    def reset(self, *, seed=None, options=None):
        self.seed_ = seed
        self.x, self.t = seed / 10, 0
        return self._obs(), {}

    def step(self, action):
        self.x += float(action[0])
        self.t += 1
        reward = np.sin(self.x) + self.bonus
        return self._obs(), reward, self.t >= 4 + self.seed_ % 7, False, {"x": self.x}

    def render(self):
        return np.full((16, 16, 3), self.t, np.uint8)


class Strict(gym.Wrapper):
    """Outermost: refuses to be stepped once the episode is over."""

    over = True

    def reset(self, **kwargs):
        self.over = False
        return super().reset(**kwargs)

    def step(self, action):
        assert not self.over, "stepped after its end"
        result = super().step(action)
        self.over = result[2] or result[3]
        return result


def make_env(cls=Drift):
    return Strict(
        wrap_env(
            cls(),
            n_obs_steps=N_OBS,
            n_action_steps=N_ACTION,
            max_steps=MAX_STEPS,
            fps=10,
            crf=22,
        )
    )


class ToyRunner(VectorRunner, BaseLowdimRunner):
    label = "ToyRunner"

    def __init__(self, output_dir, n_train=2, n_test=5, n_vis=0, env_fn=make_env, **options):
        episodes = make_episodes("train/", n_train, n_vis, 0, output_dir)
        episodes += make_episodes("test/", n_test, n_vis, 1000, output_dir)
        options = {"n_workers": 0, "tqdm_interval_sec": 1e9} | options
        super().__init__(output_dir, env_fn, episodes, MAX_STEPS, **options)

    def observe(self, obs):
        return {"obs": obs.astype(np.float32)}


class NoisyPolicy:
    """Actions depend on the observation and on noise; every call is noted."""

    device = torch.device("cpu")
    obs_dim = 3

    def __init__(self):
        self.calls = []
        self.resets = 0

    def reset(self):
        self.resets += 1

    def predict_action(self, obs_dict, generator=None):
        obs = obs_dict["obs"]
        shape = (N_ACTION, 1)
        if isinstance(generator, list):
            assert len(generator) == len(obs)
            noise = torch.stack([torch.randn(shape, generator=g) for g in generator])
        else:
            noise = torch.randn((len(obs), *shape), generator=generator)
        self.calls.append(obs)
        return {"action": 0.1 * obs[:, -1:, :1] + noise}


class PolicyWithoutGenerator(NoisyPolicy):
    def predict_action(self, obs_dict):
        return super().predict_action(obs_dict)


class RoundingPolicy(NoisyPolicy):
    """A caricature of matrix products, whose rounding depends on the batch's size and the row."""

    def predict_action(self, obs_dict, generator=None):
        action = super().predict_action(obs_dict, generator)["action"]
        n = len(action)
        return {"action": action + 0.01 * n + 0.001 * torch.arange(n)[:, None, None]}


def run(tmp_path, policy=None, seed=0, **options):
    torch.manual_seed(seed)
    runner = ToyRunner(str(tmp_path), **options)
    try:
        return runner.run(policy or NoisyPolicy())
    finally:
        runner.close()


# ---------------------------------------------------------------------- episode noise


def test_scores_equal_those_of_playing_each_episode_alone(tmp_path):
    log = run(tmp_path)
    scores = {"train/": [], "test/": []}
    for prefix, seed in [("train/", s) for s in (0, 1)] + [("test/", 1000 + i) for i in range(5)]:
        env, generator = make_env(), Episode(prefix, seed).noise_generator()
        obs, _ = env.reset(seed=seed)
        over = False
        while not over:
            batch = {"obs": torch.from_numpy(obs[None].astype(np.float32))}
            action = NoisyPolicy().predict_action(batch, [generator])["action"][0].numpy()
            obs, reward, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
        assert log[f"{prefix}sim_max_reward_{seed}"] == reward
        scores[prefix].append(reward)
    assert log["train/mean_score"] == pytest.approx(np.mean(scores["train/"]), rel=1e-12)
    assert log["test/mean_score"] == pytest.approx(np.mean(scores["test/"]), rel=1e-12)
    assert set(log) == {f"train/sim_max_reward_{s}" for s in (0, 1)} | {
        f"test/sim_max_reward_{1000 + i}" for i in range(5)
    } | {"train/mean_score", "test/mean_score"}
    assert all(type(value) is float for value in log.values())


@pytest.mark.parametrize(
    "options", [{"n_workers": 1}, {"n_workers": 2}, {"n_workers": 2, "n_envs": 3}]
)
def test_scores_do_not_depend_on_workers(tmp_path, options):
    assert run(tmp_path, **options) == run(tmp_path)


def test_episode_noise_leaves_the_global_generator_alone(tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    runner = ToyRunner(str(tmp_path))
    first = runner.run(NoisyPolicy())
    assert torch.equal(torch.get_rng_state(), before)
    assert runner.run(NoisyPolicy()) == first  # a second rollout starts from the same streams


def test_streams_belong_to_prefix_and_seed():
    def draw(prefix, seed):
        return torch.rand(4, generator=Episode(prefix, seed).noise_generator()).tolist()

    assert draw("test/", 5) == draw("test/", 5)
    torch.manual_seed(5)
    others = [draw("train/", 5), draw("test/", 6), torch.rand(4).tolist()]
    assert draw("test/", 5) not in others


@pytest.mark.parametrize("n_envs", [1, 3, 7, 20])
def test_fixed_policy_batches_make_scores_independent_of_n_envs(tmp_path, n_envs):
    policy = RoundingPolicy()
    expected = run(tmp_path, RoundingPolicy(), policy_batch_size=4)
    assert run(tmp_path, policy, policy_batch_size=4, n_envs=n_envs) == expected
    assert {len(obs) for obs in policy.calls} == {4}


def test_without_fixed_policy_batches_rounding_shows(tmp_path):
    """Without this, the test above could not fail."""
    assert run(tmp_path, RoundingPolicy(), n_envs=1) != run(tmp_path, RoundingPolicy())


def test_only_episodes_that_play_are_rows_and_free_environments_take_the_next(tmp_path):
    policy = NoisyPolicy()
    run(tmp_path, policy, n_envs=3)
    # Policy steps per episode: ceil((4 + seed % 7) / 3), seeds 0, 1, 1000 (% 7 = 6) ... 1004.
    calls_needed = [-(-min(4 + s % 7, MAX_STEPS) // N_ACTION) for s in (0, 1, *range(1000, 1005))]
    assert sum(len(obs) for obs in policy.calls) == sum(calls_needed)
    assert [len(obs) for obs in policy.calls][:3] == [3, 3, 3]
    # Greedy filling of three environments, by hand: 0-1 | 2-3 | 4-7 ...
    free_at = [0, 0, 0]
    for n in calls_needed:
        i = int(np.argmin(free_at))
        free_at[i] += n
    assert len(policy.calls) == max(free_at)


# ---------------------------------------------------------------------- batch noise


def play_like_the_original(policy, n_envs, seeds):
    """Spec 02d, 2.2, word by word: rounds, padding with init function 0, until all are done."""
    best = []
    for start in range(0, len(seeds), n_envs):
        chunk = seeds[start : start + n_envs]
        padded = chunk + [seeds[0]] * (n_envs - len(chunk))
        envs = [make_env().env for _ in padded]  # without Strict: finished ones are stepped on
        obs = np.stack([env.reset(seed=s)[0] for env, s in zip(envs, padded, strict=True)])
        policy.reset()
        done = False
        while not done:
            with torch.no_grad():
                out = policy.predict_action({"obs": torch.from_numpy(obs.astype(np.float32))})
            results = [e.step(a) for e, a in zip(envs, out["action"].numpy(), strict=True)]
            obs = np.stack([r[0] for r in results])
            done = all(r[2] or r[3] for r in results)
        best += [max(env.get_attr("reward")) for env in envs[: len(chunk)]]
    return best


@pytest.mark.parametrize("n_envs", [3, 7, 10])
@pytest.mark.parametrize("n_workers", [0, 2])
def test_batch_noise_draws_like_the_original(tmp_path, n_envs, n_workers):
    seeds = [0, 1, *range(1000, 1005)]
    torch.manual_seed(11)
    reference = NoisyPolicy()
    expected = play_like_the_original(reference, n_envs, seeds)
    expected_rng = torch.get_rng_state()

    policy = NoisyPolicy()
    log = run(tmp_path, policy, seed=11, noise="batch", n_envs=n_envs, n_workers=n_workers)
    found = [value for key, value in log.items() if "sim_max_reward" in key]
    assert found == expected
    assert torch.equal(torch.get_rng_state(), expected_rng)
    assert policy.resets == reference.resets
    for a, b in zip(policy.calls, reference.calls, strict=True):
        assert torch.equal(a, b)


def test_a_policy_without_generators_falls_back_to_the_batch_with_one_warning(tmp_path, caplog):
    runner = ToyRunner(str(tmp_path), n_envs=3)
    with caplog.at_level(logging.WARNING):
        torch.manual_seed(2)
        log = runner.run(PolicyWithoutGenerator())
        runner.run(PolicyWithoutGenerator())
    assert log == run(tmp_path, seed=2, noise="batch", n_envs=3)
    assert [r.message for r in caplog.records] == [
        "PolicyWithoutGenerator.predict_action takes no `generator`: its noise comes from the "
        "global generator, so scores depend on n_envs"
    ]


# ---------------------------------------------------------------------- videos and other results


@pytest.mark.parametrize("options", [{}, {"noise": "batch", "n_envs": 4}, {"n_envs": 1}])
def test_the_first_episodes_of_each_prefix_are_filmed(tmp_path, options):
    log = run(tmp_path, n_vis=1, **options)
    videos = {key: value for key, value in log.items() if "video" in key}
    assert set(videos) == {"train/sim_video_0", "test/sim_video_1000"}
    for key, stem in [("train/sim_video_0", "train_0_"), ("test/sim_video_1000", "test_1000_")]:
        assert isinstance(videos[key], VideoFile)
        path = pathlib.Path(videos[key].path)
        assert path.parent == tmp_path / "media"
        assert path.name.startswith(stem)
        assert len(path.name) == len(stem) + 8 + len(".mp4")
        import av

        with av.open(str(path)) as container:
            n_frames = sum(1 for _ in container.decode(video=0))
        assert n_frames == 4 + int(key.rsplit("_")[-1]) % 7
    # Padding leaves no orphans.
    assert len(list((tmp_path / "media").iterdir())) == 2


def test_a_second_rollout_does_not_overwrite_the_videos_of_the_first(tmp_path):
    runner = ToyRunner(str(tmp_path), n_vis=1)
    first, second = runner.run(NoisyPolicy()), runner.run(NoisyPolicy())
    assert first["train/sim_video_0"] != second["train/sim_video_0"]
    assert len(list((tmp_path / "media").iterdir())) == 4
    runner.close()


def test_episodes_can_be_prepared_where_they_run(tmp_path):
    runner = ToyRunner(str(tmp_path), n_workers=1)
    plain = runner.run(NoisyPolicy())

    def add_bonus(env):
        env.set_wrapper_attr("bonus", 100.0)

    runner.episodes = [Episode(e.prefix, e.seed, prepare=add_bonus) for e in runner.episodes]
    prepared = runner.run(NoisyPolicy())
    runner.close()
    for key in plain:
        assert prepared[key] == pytest.approx(plain[key] + 100)


def test_the_lists_of_the_published_interface_are_there(tmp_path):
    runner = ToyRunner(str(tmp_path), n_envs=3)
    assert isinstance(runner, BaseLowdimRunner)
    assert runner.output_dir == str(tmp_path)
    assert runner.env_seeds == [0, 1, 1000, 1001, 1002, 1003, 1004]
    assert runner.env_prefixs == ["train/"] * 2 + ["test/"] * 5
    assert len(runner.env_init_fn_dills) == 7
    assert len(runner.env_fns) == 3


def test_without_episodes_there_is_nothing_to_report(tmp_path):
    assert run(tmp_path, n_train=0, n_test=0) == {}
    log = run(tmp_path, n_train=0, n_test=1)
    assert not [key for key in log if key.startswith("train/")]


def test_workers_start_with_the_first_rollout_and_stay_until_closed(tmp_path):
    runner = ToyRunner(str(tmp_path), n_workers=1)
    assert runner.env is None
    runner.run(NoisyPolicy())
    env = runner.env
    runner.run(NoisyPolicy())
    assert runner.env is env
    runner.close()
    assert env.closed
    runner.close()
    assert runner.run(NoisyPolicy())["test/mean_score"] != 0  # and may be run again
    runner.close()


def test_the_policy_runs_without_gradients(tmp_path):
    class Grad(NoisyPolicy):
        def predict_action(self, obs_dict, generator=None):
            assert not torch.is_grad_enabled()
            return super().predict_action(obs_dict, generator)

    run(tmp_path, Grad(), n_test=1)


@pytest.mark.parametrize("options", [{"n_envs": 2}, {"n_envs": 4, "noise": "batch"}])
def test_the_bar_grows_to_full_with_episodes_and_score(tmp_path, monkeypatch, options):
    bars = []

    class Bar(progress_bar.ProgressBar):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)
            self.states = []

        def update(self, n=1):
            assert n >= 0
            super().update(n)
            self.states.append((self.n, self.desc))

    monkeypatch.setattr(progress_bar, "ProgressBar", Bar)
    log = run(tmp_path, **options)
    (bar,) = bars
    assert bar.total == 7 * MAX_STEPS
    assert not bar.leave
    assert bar.states[0] == (options["n_envs"] * N_ACTION, "Eval ToyRunner 0/7: ")
    assert bar.states[-1] == (bar.total, "Eval ToyRunner 7/7: ")
    scores = [value for key, value in log.items() if "sim_max_reward" in key]
    assert bar.postfix == f"score={np.mean(scores):.3f}"


# ---------------------------------------------------------------------- things that go wrong


class RaisesInStep(Drift):
    def step(self, action):
        if self.seed_ == 1001 and self.t == 2:
            raise ValueError("joint limit")
        return super().step(action)


class RaisesInReset(Drift):
    def reset(self, *, seed=None, options=None):
        if seed == 1001:
            raise FileNotFoundError("scene.xml")
        return super().reset(seed=seed)


class Dies(Drift):
    def step(self, action):
        if self.seed_ == 1001 and self.t == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (RaisesInStep, r"environment 3 raised ValueError during step: joint limit"),
        (RaisesInReset, r"environment 3 raised FileNotFoundError during reset: scene\.xml"),
    ],
)
def test_an_environment_that_raises_stops_the_rollout_and_names_itself(
    tmp_path, cls, message, n_workers
):
    with pytest.raises(EnvWorkerError, match=message):
        run(tmp_path, env_fn=lambda: make_env(cls), n_workers=n_workers)


def test_a_worker_killed_in_a_rollout_is_reported_and_the_next_rollout_has_new_ones(tmp_path):
    runner = ToyRunner(str(tmp_path), env_fn=lambda: make_env(Dies), n_workers=2)
    with pytest.raises(EnvWorkerError, match=r"environments 0, 1, 2, 3 .*killed by signal 9"):
        runner.run(NoisyPolicy())
    assert runner.env is None
    runner.env_fns = [make_env] * 7
    assert runner.run(NoisyPolicy()) == run(tmp_path)
    runner.close()


class NotFinite(Drift):
    """A reward or an observation turns NaN in the third step of one episode."""

    what = "reward"

    def step(self, action):
        obs, reward, *rest = super().step(action)
        if self.seed_ == 1001 and self.t == 3:
            if self.what == "reward":
                reward = float("nan")
            else:
                obs[1] = float("nan")
        return obs, reward, *rest


class ObservesNaN(NotFinite):
    what = "observation"


@pytest.mark.parametrize("options", [{"n_workers": 0}, {"n_workers": 2}, {"noise": "batch"}])
@pytest.mark.parametrize(
    ("cls", "what"), [(NotFinite, "reward is nan"), (ObservesNaN, r"observation \[1\] is nan")]
)
def test_a_reward_or_an_observation_that_is_not_finite_is_not_blamed_on_the_policy(
    tmp_path, cls, what, options
):
    with pytest.raises(EnvWorkerError) as caught:
        run(tmp_path, env_fn=lambda: make_env(cls), **options)
    text = str(caught.value)
    assert re.match(
        rf"environment 3 raised NonFiniteEnvError during step: its {what} in step 3 of the episode "
        "with seed 1001: this comes from the environment, not from the policy's weights$",
        text,
    ), text


def test_a_rollout_does_not_wait_for_ever(tmp_path):
    class Stuck(Drift):
        def step(self, action):
            time.sleep(1000)

    runner = ToyRunner(
        str(tmp_path), env_fn=lambda: make_env(Stuck), n_workers=2, worker_timeout_s=5
    )
    with pytest.raises(EnvWorkerError, match=r"environments 0, .* did not answer .* within 5.0 s"):
        runner.run(NoisyPolicy())
    assert runner.env is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", [{}, {"noise": "batch"}, {"policy_batch_size": 4}])
def test_an_action_that_is_not_finite_stops_the_rollout(tmp_path, value, options):
    class Broken(NoisyPolicy):
        def predict_action(self, obs_dict, generator=None):
            action = super().predict_action(obs_dict, generator)["action"]
            second_step = (obs_dict["obs"][:, -1, 1] == N_ACTION) & (
                obs_dict["obs"][:, -1, 2] == 1002
            )
            action[second_step] = value
            return {"action": action}

    with pytest.raises(
        DiffusionPolicyError,
        match=rf"NaN or infinite action in episode test/1002 at environment step {N_ACTION}:",
    ):
        run(tmp_path, Broken(), **options)


def test_a_policy_of_another_obs_dim_is_refused(tmp_path):
    policy = NoisyPolicy()
    policy.obs_dim = 20
    with pytest.raises(ConfigError, match=r"expects obs_dim=20, but .*ToyRunner observes 3 values"):
        run(tmp_path, policy)
    assert policy.calls == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_envs": 0}, "n_envs is 0"),
        ({"n_workers": -1}, "n_workers is -1"),
        ({"worker_timeout_s": 0}, "worker_timeout_s is 0; set it to seconds"),
        ({"noise": "pink"}, "noise is 'pink', expected one of"),
        ({"policy_batch_size": 0}, "policy_batch_size is 0"),
        ({"policy_batch_size": 4, "noise": "batch"}, "remove one of the two"),
    ],
)
def test_impossible_options_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        ToyRunner(str(tmp_path), **options)
