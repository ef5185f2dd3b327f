"""Push-T observed through key points."""

import json
import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from diffusion_policy.env.pusht.pusht_env import PushTEnv
from diffusion_policy.env.pusht.pusht_keypoints_env import (
    AGENT_KEYPOINTS,
    BLOCK_KEYPOINTS,
    PushTKeypointsEnv,
)
from diffusion_policy.env.pusht.pymunk_keypoint_manager import (
    PymunkKeypointManager,
    farthest_point_sampling,
)

# fmt: off
SEED_0_VALUES = [
    195.819697619, 203.996019125, 277.598158825, 285.053391032, 156.815586476, 301.494294322,
    213.8657803, 266.6479465, 214.581004163, 168.405078862, 173.968307611, 264.63038041,
    252.250836884, 254.238602693, 225.301300018, 227.456013092, 193.894772254, 296.820770359,
    222, 97,
]
# fmt: on


def test_observations_are_key_points_and_agent_then_their_visibility():
    obs, _ = PushTKeypointsEnv().reset(seed=0)
    assert obs.shape == (40,)
    assert obs.dtype == np.float64
    np.testing.assert_allclose(obs[:20], SEED_0_VALUES, atol=1e-8)
    np.testing.assert_array_equal(obs[20:], np.ones(20))


def test_hidden_key_points_keep_their_values_and_lose_their_mask():
    env = PushTKeypointsEnv(keypoint_visible_rate=0.5)
    obs, _ = env.reset(seed=0)
    np.testing.assert_allclose(obs[:20], SEED_0_VALUES, atol=1e-8)
    mask = [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    np.testing.assert_array_equal(obs[20:], mask)


def test_visibility_draws_advance_the_generator_even_when_all_is_visible():
    always, sometimes = (PushTKeypointsEnv(keypoint_visible_rate=rate) for rate in (1.0, 0.5))
    for env in (always, sometimes):
        env.reset(seed=0)
        env.step([100.0, 100.0])
    assert always.np_random.random() == sometimes.np_random.random()


def test_the_agent_can_be_observed_through_key_points_too():
    env = PushTKeypointsEnv(agent_keypoints=True)
    obs, _ = env.reset(seed=0)
    assert obs.shape == env.observation_space.shape == (48,)
    np.testing.assert_allclose(obs[18:24].reshape(3, 2), np.add(AGENT_KEYPOINTS, (222, 97)))


def test_the_key_point_table_is_what_sampling_gives():
    sampled = PymunkKeypointManager.create_from_pusht_env(PushTEnv()).local_keypoint_map
    table = PushTKeypointsEnv.genenerate_keypoint_manager_params()["local_keypoint_map"]
    np.testing.assert_array_equal(table["block"], BLOCK_KEYPOINTS)
    np.testing.assert_array_equal(table["agent"], AGENT_KEYPOINTS)
    # Another renderer may fill the rim of a polygon differently, but not by more than a pixel or
    # two.
    np.testing.assert_allclose(sampled["agent"], table["agent"], atol=2.0)
    np.testing.assert_allclose(sampled["block"], table["block"], atol=2.0)


def test_key_points_drawn_hidden_are_at_the_origin():
    shown, hidden = (
        PushTKeypointsEnv(draw_keypoints=True, keypoint_visible_rate=rate, render_size=512)
        for rate in (1.0, 0.0)
    )
    color = shown.kp_manager.color_map["block"]
    obs, _ = shown.reset(seed=0)
    hidden.reset(seed=0)
    x, y = obs[:2].astype(int)
    np.testing.assert_array_equal(shown.render()[y, x], color)
    np.testing.assert_array_equal(hidden.render()[0, 0], color)
    assert not np.array_equal(hidden.render()[y, x], color)


def test_bodies_and_their_poses_have_the_same_key_points():
    env = PushTKeypointsEnv()
    env.reset(seed=1)
    manager = PymunkKeypointManager(**env.kp_manager.kwargs)
    by_body = manager.get_keypoints_global({"block": env.block}, is_obj=True)["block"]
    pose = (*env.block.position, env.block.angle)
    by_pose = manager.get_keypoints_global({"block": pose})["block"]
    np.testing.assert_array_equal(by_body, by_pose)
    transform = manager.get_tf_img_obj(env.block)
    np.testing.assert_allclose(transform(manager.local_keypoint_map["block"]), by_body, atol=1e-10)
    images = [np.zeros((96, 96, 3), np.uint8) for _ in range(2)]
    manager.draw_keypoints(images[0], {"block": by_body})
    manager.draw_keypoints_pose(images[1], {"block": pose})
    assert images[0].any()
    np.testing.assert_array_equal(*images)


def test_default_colors_are_matplotlibs():
    manager = PymunkKeypointManager({"block": np.zeros((1, 2)), "agent": np.zeros((1, 2))})
    assert manager.color_map["block"].tolist() == [31, 119, 180]
    assert manager.color_map["agent"].tolist() == [255, 127, 14]


def test_farthest_points_spread_over_a_line():
    points = np.stack([np.arange(11.0), np.zeros(11)], axis=1)
    chosen = farthest_point_sampling(points, 4, 2)
    assert chosen[:, 0].tolist() == [2, 10, 6, 0]


def test_gymnasium_accepts_the_environment():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(PushTKeypointsEnv())


def test_key_points_of_a_block_at_the_edge_lie_outside_the_declared_window():
    # As in the original, whose bounds are kept: its T may start with an end beyond the edge.
    env = PushTKeypointsEnv()
    obs, _ = env.reset(seed=2)
    assert obs[:18].min() == pytest.approx(-1.57098, abs=1e-4)
    assert env.observation_space.low[:18].min() == 0


def test_key_point_runs_of_the_original_are_reproduced(golden):
    data = np.load(golden / "f_pusht.npz")
    runs = json.loads((golden / "f_pusht.json").read_text())["runs"]
    for name in ("kp", "kp-rate-agentkp-draw", "kp-draw"):
        env = PushTKeypointsEnv(**runs[name]["kwargs"])
        obs, _ = env.reset(seed=runs[name]["seed"])
        np.testing.assert_allclose(obs, data[f"{name}/obs"][0], rtol=0, atol=1e-9)
        frame_steps = data.get(f"{name}/frame_steps", np.array([])).tolist()
        for t, action in enumerate(data[f"{name}/actions"]):
            obs, reward, _, _, _ = env.step(action)
            np.testing.assert_allclose(obs, data[f"{name}/obs"][t + 1], rtol=0, atol=1e-9)
            assert reward == pytest.approx(data[f"{name}/reward"][t], abs=1e-12)
            if t in frame_steps:
                expected = data[f"{name}/frames"][frame_steps.index(t)]
                assert np.any(env.render() != expected, axis=-1).mean() < 0.01
    np.testing.assert_array_equal(env.observation_space.high, data["space/kp_high"])


def test_key_point_tables_of_the_original_are_reproduced(golden):
    data = np.load(golden / "f_pusht.npz")
    np.testing.assert_array_equal(BLOCK_KEYPOINTS, data["keypoints/local_block"])
    np.testing.assert_array_equal(AGENT_KEYPOINTS, data["keypoints/local_agent"])
    np.testing.assert_array_equal(
        farthest_point_sampling(data["fps/points"], len(data["fps/out"]), 3), data["fps/out"]
    )
    other = PymunkKeypointManager.create_from_pusht_env(
        PushTEnv(), n_block_kps=5, n_agent_kps=2, seed=4
    ).local_keypoint_map
    np.testing.assert_allclose(other["block"], data["keypoints/alt_local_block"], atol=2.0)
    np.testing.assert_allclose(other["agent"], data["keypoints/alt_local_agent"], atol=2.0)
