"""Push-T observed through pictures."""

import json
import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import TransformObservation

from diffusion_policy.env.pusht.pusht_image_env import PushTImageEnv


def test_observations_are_picture_and_agent_position():
    env = PushTImageEnv(render_size=64)
    obs, _ = env.reset(seed=0)
    assert obs["image"].shape == (3, 64, 64)
    assert obs["image"].dtype == np.float32
    assert 0 <= obs["image"].min() < obs["image"].max() == 1.0
    assert obs["agent_pos"].dtype == np.float64
    np.testing.assert_array_equal(obs["agent_pos"], [222, 97])
    assert list(env.observation_space.keys()) == ["agent_pos", "image"]


def test_only_rendered_frames_show_the_action():
    env = PushTImageEnv()
    env.reset(seed=0)
    obs, *_ = env.step([400.0, 400.0])
    seen = np.round(np.moveaxis(obs["image"], 0, -1) * 255).astype(np.uint8)
    changed = np.argwhere(np.any(env.render() != seen, axis=-1))
    np.testing.assert_allclose(changed.mean(axis=0), [75, 75], atol=1)


def test_rendering_shows_the_latest_observation_without_drawing_again():
    env = PushTImageEnv()
    env.reset(seed=0)
    assert env.render() is env.render_cache
    first = env.render().copy()
    env.step([400.0, 400.0])
    assert not np.array_equal(first, env.render())


def test_gymnasium_accepts_the_environment():
    env = PushTImageEnv()
    # The position keeps its double precision (as published) in a space of floats.
    single = TransformObservation(
        env,
        lambda obs: {key: value.astype(np.float32) for key, value in obs.items()},
        env.observation_space,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(single)


def test_image_runs_of_the_original_are_reproduced(golden):
    data = np.load(golden / "f_pusht.npz")
    runs = json.loads((golden / "f_pusht.json").read_text())["runs"]
    for name in ("image", "image-legacy-128"):
        env = PushTImageEnv(**runs[name]["kwargs"])
        observations = [env.reset(seed=runs[name]["seed"])[0]]
        frames = {}
        for t, action in enumerate(data[f"{name}/actions"]):
            obs, reward, _, _, _ = env.step(action)
            assert reward == pytest.approx(data[f"{name}/reward"][t], abs=1e-12)
            observations.append(obs)
            frames[t] = env.render()
        positions = np.stack([obs["agent_pos"] for obs in observations])
        np.testing.assert_array_equal(positions, data[f"{name}/obs_agent_pos"])
        for t, expected in zip(
            data[f"{name}/obs_image_u8_steps"], data[f"{name}/obs_image_u8"], strict=True
        ):
            image = np.round(observations[t]["image"] * 255).astype(np.uint8)
            assert np.any(image != expected, axis=0).mean() < 0.01
        for t, expected in zip(data[f"{name}/frame_steps"], data[f"{name}/frames"], strict=True):
            assert np.any(frames[t] != expected, axis=-1).mean() < 0.01
