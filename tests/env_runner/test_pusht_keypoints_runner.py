"""PushTKeypointsRunner on the real environment, with a scripted policy."""

import inspect
import pathlib

import numpy as np
import pytest
import torch

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.env.pusht.pusht_keypoints_env import PushTKeypointsEnv
from diffusion_policy.env_runner.base_lowdim_runner import BaseLowdimRunner
from diffusion_policy.env_runner.episodes import Episode
from diffusion_policy.env_runner.pusht_keypoints_runner import PushTKeypointsRunner

SMALL = {
    "n_train": 1,
    "n_train_vis": 0,
    "n_test": 3,
    "n_test_vis": 0,
    "test_start_seed": 100000,
    "legacy_test": True,
    "max_steps": 20,
    "n_obs_steps": 2,
    "n_action_steps": 8,
}


class PushAtTheBlock:
    """Runs at the middle of the T's key points, with noise: moves the T within a few steps."""

    device = torch.device("cpu")
    obs_dim = 20
    n_actions = 8

    def __init__(self):
        self.seen = []

    def reset(self):
        pass

    def predict_action(self, obs_dict, generator=None):
        obs = obs_dict["obs"]
        self.seen.append(obs_dict)
        assert obs.dtype == torch.float32
        if generator is None:
            noise = torch.randn(len(obs), self.n_actions, 2)
        else:
            noise = torch.stack([torch.randn(self.n_actions, 2, generator=g) for g in generator])
        middle = obs[:, -1, :18].reshape(len(obs), 9, 2).mean(1)
        return {"action": middle[:, None] + 40 * noise}


def run(tmp_path, policy=None, **options):
    runner = PushTKeypointsRunner(str(tmp_path), **(SMALL | options))
    try:
        return runner.run(policy or PushAtTheBlock())
    finally:
        runner.close()


def test_the_constructor_has_the_published_arguments_and_defaults():
    parameters = inspect.signature(PushTKeypointsRunner).parameters
    published = {
        "keypoint_visible_rate": 1.0,
        "n_train": 10,
        "n_train_vis": 3,
        "train_start_seed": 0,
        "n_test": 22,
        "n_test_vis": 6,
        "legacy_test": False,
        "test_start_seed": 10000,
        "max_steps": 200,
        "n_obs_steps": 8,
        "n_action_steps": 8,
        "n_latency_steps": 0,
        "fps": 10,
        "crf": 22,
        "agent_keypoints": False,
        "past_action": False,
        "tqdm_interval_sec": 5.0,
        "n_envs": None,
    }
    assert next(iter(parameters)) == "output_dir"
    assert list(parameters)[1 : 1 + len(published)] == list(published)
    assert {name: parameters[name].default for name in published} == published
    assert issubclass(PushTKeypointsRunner, BaseLowdimRunner)


def test_the_score_is_the_largest_reward_of_each_episode_played_by_hand(tmp_path):
    log = run(tmp_path)
    scores = []
    for prefix, seed in [("train/", 0), ("test/", 100000), ("test/", 100001), ("test/", 100002)]:
        env, generator = PushTKeypointsEnv(legacy=True), Episode(prefix, seed).noise_generator()
        obs, _ = env.reset(seed=seed)
        history, rewards = [obs, obs], []
        while len(rewards) < 20:
            batch = {"obs": torch.tensor(np.stack(history[-2:])[None, :, :20], dtype=torch.float32)}
            for action in PushAtTheBlock().predict_action(batch, [generator])["action"][0].numpy():
                if len(rewards) < 20:
                    obs, reward, *_ = env.step(action)
                    history.append(obs)
                    rewards.append(reward)
        assert log[f"{prefix}sim_max_reward_{seed}"] == max(rewards)
        scores.append(max(rewards))
    assert log["train/mean_score"] == scores[0]
    assert log["test/mean_score"] == pytest.approx(np.mean(scores[1:]))
    assert len(set(scores)) > 1  # something happened


@pytest.mark.parametrize(
    "options", [{"n_workers": 1}, {"n_workers": 2}, {"n_workers": 2, "n_envs": 3}]
)
def test_the_score_is_the_same_for_any_number_of_workers(tmp_path, options):
    assert run(tmp_path, **options) == run(tmp_path, n_workers=0)


@pytest.mark.parametrize("n_envs", [1, 3, None])
def test_the_score_is_the_same_for_any_number_of_environments_in_fixed_batches(tmp_path, n_envs):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 64), torch.nn.Tanh(), torch.nn.Linear(64, 16))

    class Network(PushAtTheBlock):
        def predict_action(self, obs_dict, generator=None):
            action = super().predict_action(obs_dict, generator)["action"]
            return {"action": action + 50 * model(obs_dict["obs"].flatten(1)).view(action.shape)}

    log = run(tmp_path, Network(), n_envs=n_envs, policy_batch_size=2, n_workers=0)
    assert log == run(tmp_path, Network(), policy_batch_size=2, n_workers=2)


def test_the_policy_sees_values_and_visibility(tmp_path):
    policy = PushAtTheBlock()
    run(tmp_path, policy, keypoint_visible_rate=0.5, n_workers=0)
    first = policy.seen[0]
    assert first["obs"].shape == first["obs_mask"].shape == (4, 2, 20)
    assert first["obs_mask"].dtype == torch.bool
    env = PushTKeypointsEnv(legacy=True, keypoint_visible_rate=0.5)
    obs, _ = env.reset(seed=100000)
    np.testing.assert_array_equal(first["obs"][1, -1].numpy(), obs[:20].astype(np.float32))
    np.testing.assert_array_equal(first["obs_mask"][1, -1].numpy(), obs[20:] > 0.5)
    assert not first["obs_mask"].all()


def test_latency_shows_old_observations_and_drops_the_late_actions(tmp_path):
    class Ramp(PushAtTheBlock):
        n_actions = 10

        def predict_action(self, obs_dict, generator=None):
            self.seen.append(obs_dict["obs"][:, :, 18:20])  # where the agent is
            ramp = torch.arange(10.0)[None, :, None] * 10 + 100
            return {"action": ramp.expand(len(obs_dict["obs"]), 10, 2)}

    policy = Ramp()
    run(tmp_path, policy, n_latency_steps=2, n_train=0, n_test=1, n_workers=0, max_steps=16)
    env = PushTKeypointsEnv(legacy=True)
    obs, _ = env.reset(seed=100000)
    agent = [obs[18:20]]
    for k in range(2, 10):  # the first two of ten are too late
        agent.append(env.step(np.full(2, 100.0 + 10 * k, np.float32))[0][18:20])
    second = policy.seen[1][0].numpy()
    np.testing.assert_array_equal(second, np.array(agent[5:7], np.float32))  # not 7:9


def test_agent_keypoints_need_a_policy_of_that_size(tmp_path):
    with pytest.raises(
        ConfigError, match=r"expects obs_dim=20, but .* observes 24 values per step"
    ):
        run(tmp_path, agent_keypoints=True, n_workers=0)


def test_past_actions_are_refused():
    with pytest.raises(ConfigError, match="past_action_visible=False"):
        PushTKeypointsRunner("out", past_action=True)


def test_videos_are_written_by_the_workers(tmp_path):
    log = run(tmp_path / "run", n_test_vis=1, n_workers=2)
    video = pathlib.Path(log["test/sim_video_100000"].path)
    assert video.parent == tmp_path / "run" / "media"
    import av

    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (96, 96, 10)
        assert sum(1 for _ in container.decode(stream)) == 20


@pytest.mark.parametrize("n_workers", [0, 1])
def test_a_rollout_leaves_the_generators_of_the_training_where_they_were(tmp_path, n_workers):
    numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()
    run(tmp_path, n_workers=n_workers)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])
    assert np.random.get_state()[2:] == numpy_state[2:]
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_making_a_runner_starts_nothing_and_touches_nothing(tmp_path):
    runner = PushTKeypointsRunner(str(tmp_path / "run"))
    assert runner.env is None
    assert not (tmp_path / "run").exists()
    assert len(runner.env_fns) == 32
    assert runner.env_seeds == [*range(10), *range(10000, 10022)]
