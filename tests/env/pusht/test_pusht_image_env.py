"""Push-T observed through pictures."""

import json
import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import TransformObservation

from diffusion_policy.common.errors import ConfigError
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


@pytest.mark.parametrize("image_dtype", ["float32", "uint8"])
def test_observation_and_video_frame_share_one_drawing_per_step(monkeypatch, image_dtype):
    drawn = []
    draw = PushTImageEnv._draw_world
    monkeypatch.setattr(
        PushTImageEnv, "_draw_world", lambda env, world: drawn.append(1) or draw(env, world)
    )
    env = PushTImageEnv(image_dtype=image_dtype)
    env.reset(seed=0)
    env.render()
    for n in (2, 3):
        env.step([400.0, 400.0])
        env.render()
        assert len(drawn) == n


def test_uint8_images_are_the_float_images_before_the_division():
    floats, frames = PushTImageEnv(), PushTImageEnv(image_dtype="uint8")
    observed = [(floats.reset(seed=3)[0], frames.reset(seed=3)[0])]
    for action in np.random.default_rng(0).uniform(100, 400, (5, 2)):
        a, b = floats.step(action), frames.step(action)
        assert a[1] == b[1]
        observed.append((a[0], b[0]))
    for a, b in observed:
        assert b["image"].dtype == np.uint8
        assert b["image"].shape == (3, 96, 96)
        np.testing.assert_array_equal(b["image"].astype(np.float32) / 255, a["image"])
        np.testing.assert_array_equal(b["agent_pos"], a["agent_pos"])
    assert not np.array_equal(observed[0][1]["image"], observed[-1][1]["image"])


def test_uint8_images_do_not_show_the_marker_either():
    env = PushTImageEnv(image_dtype="uint8")
    env.reset(seed=0)
    obs, *_ = env.step([400.0, 400.0])
    changed = np.argwhere(np.any(env.render() != np.moveaxis(obs["image"], 0, -1), axis=-1))
    np.testing.assert_allclose(changed.mean(axis=0), [75, 75], atol=1)


def test_other_image_dtypes_are_refused():
    with pytest.raises(ConfigError, match="image_dtype is 'int8', expected one of float32, uint8"):
        PushTImageEnv(image_dtype="int8")


def test_rendering_shows_the_latest_observation_without_drawing_again():
    env = PushTImageEnv()
    env.reset(seed=0)
    assert env.render() is env.render_cache
    first = env.render().copy()
    env.step([400.0, 400.0])
    assert not np.array_equal(first, env.render())


@pytest.mark.parametrize("image_dtype", ["float32", "uint8"])
def test_gymnasium_accepts_the_environment(image_dtype):
    env = PushTImageEnv(image_dtype=image_dtype)
    # The position keeps its double precision (as published) in a space of floats.
    single = TransformObservation(
        env,
        lambda obs: obs | {"agent_pos": obs["agent_pos"].astype(np.float32)},
        env.observation_space,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(single)


@pytest.mark.parametrize("image_dtype", ["float32", "uint8"])
def test_image_runs_of_the_original_are_reproduced(golden, image_dtype):
    data = np.load(golden / "f_pusht.npz")
    runs = json.loads((golden / "f_pusht.json").read_text())["runs"]
    for name in ("image", "image-legacy-128"):
        env = PushTImageEnv(**runs[name]["kwargs"], image_dtype=image_dtype)
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
            image = observations[t]["image"]
            if image_dtype == "float32":
                image = np.round(image * 255).astype(np.uint8)
            assert np.any(image != expected, axis=0).mean() < 0.01
        for t, expected in zip(data[f"{name}/frame_steps"], data[f"{name}/frames"], strict=True):
            assert np.any(frames[t] != expected, axis=-1).mean() < 0.01
