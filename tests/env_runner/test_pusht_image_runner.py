"""PushTImageRunner on the real environment, with policies that look at the pictures."""

import inspect
import os
import pathlib
import signal
import sys

import av
import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn

from diffusion_policy.common.errors import ConfigError, EnvWorkerError
from diffusion_policy.env.pusht.pusht_image_env import PushTImageEnv
from diffusion_policy.env_runner.base_image_runner import BaseImageRunner
from diffusion_policy.env_runner.episodes import Episode
from diffusion_policy.env_runner.pusht_image_runner import PushTImageRunner
from diffusion_policy.env_runner.pusht_keypoints_runner import PushTKeypointsRunner
from diffusion_policy.env_runner.vector_runner import wrap_env

cloudpickle.register_pickle_by_value(sys.modules[__name__])

SMALL = {
    "n_train": 1,
    "n_train_vis": 0,
    "n_test": 3,
    "n_test_vis": 0,
    "test_start_seed": 100000,
    "legacy_test": True,
    "max_steps": 12,
    "n_obs_steps": 2,
    "n_action_steps": 4,
}
SHAPE_META = {
    "obs": {
        "image": {"shape": [3, 96, 96], "type": "rgb"},
        "agent_pos": {"shape": [2], "type": "low_dim"},
    },
    "action": {"shape": [2]},
}
T_FILL = torch.tensor([143, 163, 184]).view(3, 1, 1)


def as_floats(image):
    """What an image policy does first."""
    return image.float() / 255 if image.dtype == torch.uint8 else image


class PushAtTheBlock:
    """Runs at the middle of the pixels of the T, with noise: moves the T within a few steps."""

    device = torch.device("cpu")
    shape_meta = SHAPE_META

    def __init__(self):
        self.seen = []

    def reset(self):
        pass

    def predict_action(self, obs_dict, generator=None):
        self.seen.append(obs_dict)
        image = as_floats(obs_dict["image"][:, -1])
        is_block = ((image - T_FILL / 255).abs() < 1e-6).all(dim=1)
        middle = torch.stack([m.nonzero().float().mean(0).flip(0) for m in is_block])
        middle = middle * (512 / image.shape[-1])
        if generator is None:
            noise = torch.randn(len(image), 4, 2)
        else:
            noise = torch.stack([torch.randn(4, 2, generator=g) for g in generator])
        return {"action": middle[:, None] + 40 * noise}


def run(tmp_path, policy=None, **options):
    runner = PushTImageRunner(str(tmp_path), **(SMALL | options))
    try:
        return runner.run(policy or PushAtTheBlock())
    finally:
        runner.close()


def test_the_constructor_has_the_published_arguments_and_defaults():
    parameters = inspect.signature(PushTImageRunner).parameters
    published = {
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
        "fps": 10,
        "crf": 22,
        "render_size": 96,
        "past_action": False,
        "tqdm_interval_sec": 5.0,
        "n_envs": None,
    }
    assert next(iter(parameters)) == "output_dir"
    assert list(parameters)[1 : 1 + len(published)] == list(published)
    assert {name: parameters[name].default for name in published} == published
    assert issubclass(PushTImageRunner, BaseImageRunner)


def test_making_a_runner_starts_nothing_and_touches_nothing(tmp_path):
    runner = PushTImageRunner(str(tmp_path / "run"))
    assert runner.env is None
    assert not (tmp_path / "run").exists()
    assert len(runner.env_fns) == 32
    assert runner.env_seeds == [*range(10), *range(10000, 10022)]
    assert runner.label == "PushtImageRunner"


def test_an_unknown_option_is_refused(tmp_path):
    with pytest.raises(TypeError, match="n_wokers"):
        PushTImageRunner(str(tmp_path), n_wokers=2)
    with pytest.raises(ConfigError, match="past_action_visible=False"):
        PushTImageRunner(str(tmp_path), past_action=True)


# ---------------------------------------------------------------------- what the policy sees


@pytest.mark.parametrize("n_workers", [0, 1])
def test_the_policy_sees_frames_as_bytes_and_the_agents_position(tmp_path, n_workers):
    policy = PushAtTheBlock()
    policy.shape_meta = None
    run(tmp_path, policy, n_workers=n_workers, render_size=64)
    first = policy.seen[0]
    assert set(first) == {"image", "agent_pos"}
    assert first["image"].shape == (4, 2, 3, 64, 64)
    assert first["image"].dtype == torch.uint8
    assert first["agent_pos"].shape == (4, 2, 2)
    assert first["agent_pos"].dtype == torch.float32
    env = PushTImageEnv(legacy=True, render_size=64)  # float32 images, as published
    for row, seed in enumerate([0, 100000, 100001, 100002]):
        obs, _ = env.reset(seed=seed)
        for step in range(2):  # the first observation, repeated
            np.testing.assert_array_equal(as_floats(first["image"][row, step]), obs["image"])
            np.testing.assert_array_equal(first["agent_pos"][row, step], obs["agent_pos"])


@pytest.mark.parametrize("noise", ["episode", "batch"])
def test_what_the_policy_saw_does_not_change_under_its_hands(tmp_path, noise):
    class Remembers(PushAtTheBlock):
        def predict_action(self, obs_dict, generator=None):
            self.copies = [*getattr(self, "copies", []), obs_dict["image"].clone()]
            return super().predict_action(obs_dict, generator)

    policy = Remembers()
    run(tmp_path, policy, noise=noise, n_workers=0)
    assert len(policy.seen) == 3
    for obs, copy in zip(policy.seen, policy.copies, strict=True):
        assert torch.equal(obs["image"], copy)
    assert not torch.equal(policy.copies[0], policy.copies[1])


# ---------------------------------------------------------------------- scores


def test_the_score_is_the_largest_reward_of_each_episode_played_by_hand_with_float_images(tmp_path):
    log = run(tmp_path, n_workers=0)
    scores = []
    for prefix, seed in [("train/", 0), ("test/", 100000), ("test/", 100001), ("test/", 100002)]:
        env, generator = PushTImageEnv(legacy=True), Episode(prefix, seed).noise_generator()
        obs, _ = env.reset(seed=seed)
        rewards = []
        while len(rewards) < 12:
            batch = {"image": torch.from_numpy(obs["image"])[None, None]}
            for action in PushAtTheBlock().predict_action(batch, [generator])["action"][0].numpy():
                obs, reward, *_ = env.step(action)
                rewards.append(reward)
        assert log[f"{prefix}sim_max_reward_{seed}"] == max(rewards)
        scores.append(max(rewards))
    assert log["train/mean_score"] == scores[0]
    assert log["test/mean_score"] == pytest.approx(np.mean(scores[1:]))
    assert len(set(scores)) > 1  # something happened


@pytest.mark.parametrize("options", [{"n_workers": 1}, {"n_workers": 2, "n_envs": 3}])
def test_the_score_is_the_same_for_any_number_of_workers(tmp_path, options):
    assert run(tmp_path, **options) == run(tmp_path, n_workers=0)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_the_score_is_the_same_for_any_number_of_environments_in_fixed_batches(tmp_path, n_envs):
    torch.manual_seed(0)
    eyes = nn.Sequential(nn.Conv2d(6, 8, 8, stride=8), nn.Tanh(), nn.Flatten(), nn.Linear(1152, 8))

    class Network(PushAtTheBlock):
        def predict_action(self, obs_dict, generator=None):
            image = as_floats(obs_dict["image"]).flatten(1, 2)
            noise = torch.stack([torch.randn(4, 2, generator=g) for g in generator])
            return {"action": 250 + 100 * eyes(image).view(noise.shape) + 40 * noise}

    log = run(tmp_path, Network(), n_envs=n_envs, policy_batch_size=2, n_workers=0)
    assert log == run(tmp_path, Network(), policy_batch_size=2, n_workers=2)


@pytest.fixture(scope="module")
def hybrid_policy():
    """The policy of the paper with a tiny U-Net, untrained."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    from diffusion_policy.common.normalize_util import get_image_range_normalizer
    from diffusion_policy.model.common.normalizer import LinearNormalizer
    from diffusion_policy.policy.diffusion_unet_hybrid_image_policy import (
        DiffusionUnetHybridImagePolicy,
    )

    torch.manual_seed(0)
    policy = DiffusionUnetHybridImagePolicy(
        shape_meta=SHAPE_META,
        noise_scheduler=DDIMScheduler(num_train_timesteps=10),
        horizon=8,
        n_action_steps=4,
        n_obs_steps=2,
        num_inference_steps=2,
        crop_shape=(84, 84),
        diffusion_step_embed_dim=8,
        down_dims=(8, 16),
        obs_encoder_group_norm=True,
        eval_fixed_crop=True,
    )
    normalizer = LinearNormalizer()
    normalizer.fit({key: torch.tensor([[0.0, 0], [512, 512]]) for key in ("agent_pos", "action")})
    normalizer["image"] = get_image_range_normalizer()
    policy.set_normalizer(normalizer)
    return policy.eval()


def test_the_hybrid_policy_scores_the_same_with_one_environment_and_with_all(
    tmp_path, hybrid_policy
):
    options = {"n_train": 0, "max_steps": 8, "policy_batch_size": 3, "n_workers": 0}
    alone = run(tmp_path, hybrid_policy, n_envs=1, **options)
    assert alone == run(tmp_path, hybrid_policy, **options)
    assert len(set(alone.values())) > 1


def test_the_hybrid_policy_is_compared_with_the_environment(tmp_path, hybrid_policy):
    with pytest.raises(
        ConfigError, match=r"is \[3, 96, 96\], but .* 'image' of shape \[3, 64, 64\]"
    ):
        run(tmp_path, hybrid_policy, render_size=64, n_workers=0)


# ---------------------------------------------------------------------- videos


@pytest.mark.parametrize(
    ("fps", "steps_per_render"), [(10, 1), (30, 1), (12.5, 1), (5, 2), (3, 3), (2.5, 4)]
)
def test_slow_videos_leave_out_steps(tmp_path, fps, steps_per_render):
    runner = PushTImageRunner(str(tmp_path), **SMALL, fps=fps)
    env = runner.env_fns[0]()
    assert env.env.steps_per_render == steps_per_render
    assert isinstance(env.env.steps_per_render, int)


def test_videos_are_written_by_the_workers(tmp_path):
    log = run(tmp_path / "run", n_train=0, n_test=1, n_test_vis=1, n_workers=1, fps=5)
    assert set(log) == {
        "test/sim_max_reward_100000",
        "test/sim_video_100000",
        "test/mean_score",
    }
    video = pathlib.Path(log["test/sim_video_100000"].path)
    assert video.parent == tmp_path / "run" / "media"
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (96, 96, 5)
        assert sum(1 for _ in container.decode(stream)) == 6


# ---------------------------------------------------------------------- things that go wrong


class Dies(PushTImageEnv):
    def step(self, action):
        if self._seed == 100000:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def make_dying_env():
    wrap_kwargs = {"n_obs_steps": 2, "n_action_steps": 4, "max_steps": 12, "fps": 10, "crf": 22}
    return wrap_env(Dies(image_dtype="uint8"), **wrap_kwargs)


def test_a_killed_worker_is_reported_in_one_sentence(tmp_path):
    runner = PushTImageRunner(str(tmp_path), **SMALL, n_workers=2)
    runner.env_fns = [make_dying_env] * 4
    with pytest.raises(EnvWorkerError, match=r"environments 0, 1 .*killed by signal 9"):
        runner.run(PushAtTheBlock())
    assert runner.env is None


@pytest.mark.parametrize(
    ("key", "entry", "message"),
    [
        (
            "wrist",
            {"shape": [3, 96, 96], "type": "rgb"},
            r"shape_meta\.obs has the camera 'wrist', but the environment of PushTImageRunner "
            r"observes agent_pos, image: evaluate on the task that the policy was trained for",
        ),
        (
            "image",
            {"shape": [3, 64, 64], "type": "rgb"},
            r"shape_meta\.obs\.image\.shape is \[3, 64, 64\], but the environment of "
            r"PushTImageRunner observes 'image' of shape \[3, 96, 96\]: evaluate on",
        ),
        (
            "agent_pos",
            {"shape": [7]},
            r"obs\.agent_pos\.shape is \[7\], but .* observes 'agent_pos' of shape \[2\]",
        ),
    ],
)
def test_a_policy_of_other_observations_is_refused_before_the_first_episode(
    tmp_path, key, entry, message
):
    policy = PushAtTheBlock()
    policy.shape_meta = SHAPE_META | {"obs": SHAPE_META["obs"] | {key: entry}}
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, policy, n_workers=0)
    assert policy.seen == []


def test_policies_of_vectors_and_of_images_do_not_swap_tasks(tmp_path):
    policy = PushAtTheBlock()
    policy.shape_meta, policy.obs_dim = None, 20
    with pytest.raises(ConfigError, match=r"one vector 'obs' of obs_dim=20, but .* agent_pos, im"):
        run(tmp_path, policy, n_workers=0)
    runner = PushTKeypointsRunner(str(tmp_path), **SMALL, n_workers=0)
    with pytest.raises(
        ConfigError, match=r"camera 'image', but .*PushTKeypointsRunner observes obs, obs_mask"
    ):
        runner.run(PushAtTheBlock())


def test_a_policy_that_says_nothing_about_its_observations_is_just_run(tmp_path):
    policy = PushAtTheBlock()
    policy.shape_meta = None
    assert run(tmp_path, policy, n_test=0, n_workers=0)["train/mean_score"] >= 0
