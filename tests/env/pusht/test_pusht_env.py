"""Push-T from state: numbers of the benchmark, gymnasium behaviour, pictures."""

import hashlib
import json
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from diffusion_policy.env.pusht.geometry import GOAL_POSE, T_AREA, goal_coverage
from diffusion_policy.env.pusht.pusht_env import PushTEnv, pymunk_to_shapely

# ---------------------------------------------------------------------- starts

STARTS = [
    (False, 0, (222, 97, 217, 292, 3.0079994677219553)),
    (False, 1, (87, 285, 172, 355, 5.970620860902089)),
    (False, 42, (152, 398, 370, 206, 6.118948081823134)),
    (False, 100000, (235, 124, 335, 128, 5.3782578787546615)),
    (True, 0, (222, 97, 222.99382739283774, 381.59903623605413, 3.0079994677219553)),
    (True, 1, (87, 285, 158.16250724707317, 357.1803340238075, 5.970620860902089)),
    (True, 42, (152, 398, 362.6425059233055, 206.60554898513323, 6.118948081823134)),
    (True, 100000, (235, 124, 299.61288530901334, 145.20158073114663, 5.3782578787546615)),
]


@pytest.mark.parametrize(("legacy", "seed", "state"), STARTS)
def test_a_seed_gives_the_published_start(legacy, seed, state):
    obs, _ = PushTEnv(legacy=legacy).reset(seed=seed)
    assert obs.dtype == np.float64
    np.testing.assert_array_equal(obs, np.array(state))


def test_the_seed_persists_until_the_next_one():
    env = PushTEnv()
    first, _ = env.reset(seed=3)
    env.step([10.0, 10.0])
    again, _ = env.reset()
    env.seed(4)
    other, _ = env.reset()
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_unseeded_environment_seeds_itself_from_numpys_global_state():
    np.random.seed(7)
    expected = np.random.randint(0, 25536)
    np.random.seed(7)
    obs, _ = PushTEnv().reset()
    np.testing.assert_array_equal(obs, PushTEnv().reset(seed=expected)[0])


def test_starts_can_be_given_for_all_episodes_or_for_one():
    state = [100.0, 200.0, 250.0, 300.0, 1.2]
    always, once = PushTEnv(reset_to_state=state), PushTEnv()
    np.testing.assert_array_equal(always.reset(seed=1)[0], state)
    np.testing.assert_array_equal(once.reset(options={"reset_to_state": state})[0], state)
    assert not np.array_equal(once.reset(seed=1)[0], state)


# ---------------------------------------------------------------------- steps

STEPS = {
    (False, 0): (
        (205.48879889953002, 164.5876889586053),
        (217, 292, 3.0079994677219553),
        0.44069944411866163,
        1,
    ),
    (False, 4): (
        (233.51977877898145, 380.641115622509),
        (240.7741188899998, 513.4030815656437, 3.116710868977839),
        0.0,
        2,
    ),
    (False, 29): (
        (521.0607113718099, 143.14919886109504),
        (537.6739091350969, 68.50464733718997, 1.5670466855853458),
        0.0,
        5,
    ),
    (True, 0): (
        (207.2610045492272, 191.07959601864255),
        (222.99382739283774, 381.59903623605413, 3.0079994677219553),
        0.19029749660605202,
        0,
    ),
    (True, 29): (
        (255.4503126381779, 186.81103621497638),
        (308.1223185947498, 186.24299929539026, 0.9832166651867382),
        0.1524301998467135,
        2,
    ),
}


@pytest.mark.parametrize("legacy", [False, True])
def test_steps_are_the_published_physics_bit_for_bit(legacy):
    env = PushTEnv(legacy=legacy)
    env.reset(seed=0)
    rs = np.random.RandomState(7)
    for t in range(30):
        action = np.array(env.block.position) + rs.uniform(-60, 60, 2)
        obs, reward, terminated, truncated, info = env.step(action)
        assert not terminated
        assert not truncated
        if (legacy, t) in STEPS:
            agent, block, expected_reward, contacts = STEPS[legacy, t]
            np.testing.assert_array_equal(obs, [*agent, *block])
            assert reward == pytest.approx(expected_reward, abs=1e-12)
            assert info["n_contacts"] == contacts
            np.testing.assert_array_equal(info["pos_agent"], agent)
            np.testing.assert_array_equal(info["goal_pose"], GOAL_POSE)


def test_float32_actions_are_followed_in_double_precision():
    action = np.array([123.456, 78.9], dtype=np.float32)
    obs = []
    for given in (action, action.astype(np.float64)):
        env = PushTEnv()
        env.reset(seed=0)
        obs.append(env.step(given)[0])
    np.testing.assert_array_equal(*obs)


def test_without_an_action_the_world_stands_still():
    env = PushTEnv()
    before, _ = env.reset(seed=0)
    env.step([400.0, 400.0])
    moved = env.step(None)[0]
    assert env.latest_action is not None
    np.testing.assert_array_equal(moved, env.step(None)[0])
    assert not np.array_equal(before, moved)


def test_an_episode_terminates_above_95_percent_coverage():
    env = PushTEnv(reset_to_state=[60.0, 60.0, 257.0, 256.0, np.pi / 4])
    env.reset()
    _, reward, terminated, truncated, _ = env.step([60.0, 60.0])
    assert (reward, terminated, truncated) == (1.0, True, False)

    env = PushTEnv(reset_to_state=[60.0, 60.0, 262.0, 256.0, np.pi / 4])
    env.reset()
    _, reward, terminated, _, _ = env.step([60.0, 60.0])
    assert not terminated
    assert 0.8 < reward < 1.0


def test_center_of_gravity_and_damping_can_be_replaced():
    env = PushTEnv(block_cog=[0, 20.0], damping=0.1)
    env.reset(seed=1)
    assert tuple(env.block.center_of_gravity) == (0, 20.0)
    assert env.space.damping == pytest.approx(0.1)


def test_local_states_are_placed_relative_to_the_goal():
    env = PushTEnv()
    env.reset(seed=1)
    state = env._set_state_local([10.0, -50.0, 20.0, -30.0, 0.4])
    expected = [341.44706157, 239.39901423, 291.35533906, 248.92893219, 1.18539816]
    np.testing.assert_allclose(state, expected, atol=1e-8)
    np.testing.assert_allclose(env._get_obs(), expected, atol=1e-8)


def test_stepping_or_drawing_before_reset_says_so():
    env = PushTEnv()
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        env.step([0.0, 0.0])
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        env.render()


# ---------------------------------------------------------------------- coverage


def test_coverage_agrees_with_a_polygon_library():
    rng = np.random.default_rng(0)
    env = PushTEnv()
    env.reset(seed=0)

    def polygon(x, y, angle):
        env.block.angle = angle
        env.block.position = x, y
        return pymunk_to_shapely(env.block, sorted(env.block.shapes, key=lambda s: s.bb.area()))

    goal = polygon(*GOAL_POSE)
    assert goal.area == pytest.approx(T_AREA)
    for _ in range(300):
        pose = rng.normal(GOAL_POSE, (40.0, 40.0, 1.0))
        expected = goal.intersection(polygon(*pose)).area / goal.area
        assert goal_coverage(tuple(pose)) == pytest.approx(expected, abs=1e-12)


def test_coverage_of_the_goal_pose_is_one_and_far_away_zero():
    assert goal_coverage(GOAL_POSE) == pytest.approx(1.0)
    assert goal_coverage((256.0, 256.0, np.pi / 4 + 2 * np.pi)) == pytest.approx(1.0)
    assert goal_coverage((20.0, 20.0, 0.0)) == 0.0


# ---------------------------------------------------------------------- gymnasium


@pytest.mark.parametrize("render_mode", [None, "rgb_array", "human"])
def test_gymnasium_accepts_the_environment(render_mode):
    env = PushTEnv(render_mode=render_mode)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env, skip_close_check=True)
    env.close()


def test_the_key_point_environment_is_registered():
    import diffusion_policy.env.pusht  # noqa: F401

    env = gym.make("pusht-keypoints-v0")
    obs, _ = env.reset(seed=0)
    assert obs.shape == (40,)
    assert env.spec is not None
    assert env.spec.max_episode_steps == 200


def test_registering_imports_nothing_heavy():
    code = (
        "import sys, diffusion_policy.env.pusht; "
        "print([m for m in ('torch', 'cv2', 'pygame', 'pymunk', 'shapely') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_unknown_render_modes_are_refused():
    with pytest.raises(ValueError, match="'ansi', expected one of"):
        PushTEnv(render_mode="ansi")


# ---------------------------------------------------------------------- pictures


def test_a_frame_shows_goal_block_agent_and_walls_in_their_colors():
    env = PushTEnv(render_size=512, render_action=False, reset_to_state=[100, 100, 400, 120, 0.0])
    env.reset()
    frame = env.render()
    assert frame.shape == (512, 512, 3)
    assert frame.dtype == np.uint8
    colors = {
        (300, 30): (255, 255, 255),
        (2, 5): (255, 255, 255),
        (300, 5): (211, 211, 211),
        (120, 340): (119, 136, 153),  # edge of the T
        (180, 400): (143, 163, 184),  # its inside
        (300, 200): (144, 238, 144),  # goal
        (100, 100): (78, 126, 255),  # agent
        (100, 113): (65, 105, 225),  # its rim
    }
    assert {at: tuple(frame[at]) for at in colors} == colors


def test_small_frames_are_interpolated_from_the_full_picture():
    import cv2

    big, small = (PushTEnv(render_size=size, render_action=False) for size in (512, 96))
    big.reset(seed=0)
    small.reset(seed=0)
    np.testing.assert_array_equal(cv2.resize(big.render(), (96, 96)), small.render())


def test_frames_are_one_of_the_known_rasterisations():
    env = PushTEnv(render_action=False)
    env.reset(seed=0)
    known = {
        "2a24df80e4a450637b3b01cf0dc60493": "pygame 2.1",
        "8074ec063961c0faf03f2d04c2f1fa10": "pygame 2.6",
        "98d0f6471563624f6e631f556b5dd539": "pygame-ce 2.5.8",
    }
    assert hashlib.md5(env.render().tobytes()).hexdigest() in known


def test_contacts_are_part_of_the_picture():
    env = PushTEnv(render_size=512, reset_to_state=[256, 100, 256, 114, 0.0])
    env.reset()
    red, green, blue = np.moveaxis(env.render().astype(int), -1, 0)
    assert np.any((red > 200) & (green < 100) & (blue < 100))


@pytest.mark.parametrize("size", [48, 96, 128, 512])
def test_the_action_marker_is_where_the_action_is(size):
    env = PushTEnv(render_size=size)
    env.reset(seed=0)
    unmarked = env.render()
    env.latest_action = np.array([384.0, 128.0])
    changed = np.argwhere(np.any(env.render() != unmarked, axis=-1))
    np.testing.assert_allclose(changed.mean(axis=0), [0.25 * size, 0.75 * size], atol=1.0)


def test_the_marker_of_the_last_episode_is_gone_after_reset():
    env = PushTEnv()
    env.reset(seed=0)
    clean = env.render()
    env.step([10.0, 10.0])
    env.reset()
    np.testing.assert_array_equal(env.render(), clean)


def test_any_state_can_be_drawn_without_disturbing_the_episode():
    env, other = PushTEnv(), PushTEnv()
    state, _ = other.reset(seed=5)
    env.reset(seed=1)
    before = env.render()
    np.testing.assert_array_equal(env.render_state(state), other.render())
    np.testing.assert_array_equal(env.render(), before)
    assert PushTEnv(render_size=32).render_state(state).shape == (32, 32, 3)


def test_frames_in_memory_open_no_window():
    import pygame

    env = PushTEnv()
    env.reset(seed=0)
    env.render()
    assert env.window is None
    assert not pygame.display.get_init()


def test_human_mode_shows_and_closes_a_window():
    env = PushTEnv(render_mode="human")
    env.reset(seed=0)
    assert env.render() is None
    assert env.window is not None
    assert env.render_frame("human").shape == (96, 96, 3)
    env.close()
    assert env.window is None


def test_render_without_a_mode_says_what_to_do():
    env = PushTEnv(render_mode=None)
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match="make it with 'rgb_array'"):
        env.render()


def test_the_mouse_takes_over_once_it_has_touched_the_agent(monkeypatch):
    import pygame

    env = PushTEnv(render_mode="human")
    env.reset(seed=0)
    agent = env.teleop_agent()
    assert agent.act(None) is None  # no window yet
    env.render()
    x, y = env.agent.position
    for mouse, expected in (
        ((x + 100, y), None),
        ((x + 10, y), (x + 10, y)),
        ((x + 100, y), (x + 100, y)),
    ):
        monkeypatch.setattr(pygame.mouse, "get_pos", lambda mouse=mouse: mouse)
        action = agent.act(None)
        assert action is None if expected is None else tuple(action) == expected
    env.reset()
    assert agent.act(None) is None
    env.close()


# ---------------------------------------------------------------------- reference data


def _golden_runs(golden, cls):
    runs = json.loads((golden / "f_pusht.json").read_text())["runs"]
    return {name: run for name, run in runs.items() if run["cls"].endswith("." + cls)}


def test_state_runs_of_the_original_are_reproduced(golden):
    data = np.load(golden / "f_pusht.npz")
    runs = _golden_runs(golden, "PushTEnv")
    assert len(runs) == 15
    for name, run in runs.items():
        env = PushTEnv(**run["kwargs"])
        obs, _ = env.reset(seed=run["seed"])
        np.testing.assert_array_equal(obs, data[f"{name}/obs"][0])
        frame_steps = data.get(f"{name}/frame_steps", np.array([])).tolist()
        for t, action in enumerate(data[f"{name}/actions"]):
            obs, reward, terminated, _, info = env.step(action)
            np.testing.assert_array_equal(obs, data[f"{name}/obs"][t + 1])
            assert reward == pytest.approx(data[f"{name}/reward"][t], abs=1e-12)
            assert terminated == data[f"{name}/done"][t]
            for key, value in info.items():
                np.testing.assert_array_equal(value, data[f"{name}/info_{key}"][t])
            if t in frame_steps:
                expected = data[f"{name}/frames"][frame_steps.index(t)]
                assert np.any(env.render() != expected, axis=-1).mean() < 0.01


def test_spaces_are_those_of_the_original(golden):
    data = np.load(golden / "f_pusht.npz")
    env = PushTEnv()
    np.testing.assert_array_equal(env.observation_space.low, data["space/obs_low"])
    np.testing.assert_array_equal(env.observation_space.high, data["space/obs_high"])
    np.testing.assert_array_equal(env.action_space.low, data["space/act_low"])
    np.testing.assert_array_equal(env.action_space.high, data["space/act_high"])


def test_mass_and_shape_of_the_block_are_those_of_the_original(golden):
    data = np.load(golden / "f_pusht.npz")
    env = PushTEnv()
    env.reset(seed=0)
    assert (env.block.mass, env.block.moment) == tuple(data["geom/block_mass_moment"])
    assert tuple(env.block.center_of_gravity) == tuple(data["geom/block_cog"])
    corners = {tuple(v) for shape in env.block.shapes for v in shape.get_vertices()}
    assert corners == {tuple(v) for v in data["geom/block_local_verts"].reshape(-1, 2)}
