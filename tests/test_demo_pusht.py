"""Demonstrations by mouse; mouse and keys are played, the window is SDL's dummy driver."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pygame
import pytest

from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.env.pusht.pusht_keypoints_env import PushTKeypointsEnv
from diffusion_policy.scripts.pusht_recorder import PushTRecorder

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


class ShortEnv(PushTKeypointsEnv):
    """Is done after ``length`` steps with an action."""

    length = 5

    def __init__(self, **kwargs):
        super().__init__(render_action=False, **kwargs)
        self.actions = []

    def reset(self, **kwargs):
        self.actions = []
        return super().reset(**kwargs)

    def step(self, action):
        self.actions.append(action)
        obs, reward, _, truncated, info = super().step(action)
        n_taken = sum(a is not None for a in self.actions)
        return obs, reward, n_taken >= self.length, truncated, info


class Person:
    """Moves the mouse and presses keys: one entry of the script per tick of the clock."""

    def __init__(self, monkeypatch, env, script):
        self.env, self.script, self.tick_count = env, list(script), 0
        self.titles = []
        monkeypatch.setattr(pygame.mouse, "get_pos", lambda: self.mouse)
        monkeypatch.setattr(pygame.event, "get", self.events)
        monkeypatch.setattr(pygame.display, "set_caption", self.titles.append)
        self.mouse = (0, 0)

    def events(self):
        self.tick_count += 1
        entry = self.script.pop(0) if self.script else "quit"
        if entry == "grab":
            self.mouse = tuple(int(x) for x in self.env.agent.position)
            return []
        if isinstance(entry, tuple):
            self.mouse = entry
            return []
        keys = {"q": pygame.K_q, "r": pygame.K_r, "space": pygame.K_SPACE}
        if entry == "quit":
            return [pygame.event.Event(pygame.QUIT)]
        name, _, up = entry.partition(" ")
        kind = pygame.KEYUP if up else pygame.KEYDOWN
        return [pygame.event.Event(kind, key=keys[name])]


@pytest.fixture
def record(tmp_path, monkeypatch):
    """record(script, env): let a person act; returns the buffer, what was said, and the person."""
    pygame.display.init()

    def record(script, env=None):
        env = env or ShortEnv()
        buffer = ReplayBuffer.create_from_path(tmp_path / "demo.zarr", mode="a")
        said: list[str] = []
        person = Person(monkeypatch, env, script)
        recorder = PushTRecorder(buffer, env, control_hz=100_000, tell=said.append)
        recorder.run()
        env.close()
        return buffer, said, person

    return record


MOVES = ["grab", (200, 210), (210, 220), (220, 230), (230, 240)]


def test_a_finished_episode_is_saved_in_the_published_layout(record):
    buffer, said, _ = record([(1, 1), (2, 2), *MOVES])
    assert said == ["starting seed 0", "saved seed 0", "starting seed 1"]
    assert {k: (a.shape, str(a.dtype)) for k, a in buffer.items()} == {
        "img": ((5, 96, 96, 3), "uint8"),
        "state": ((5, 5), "float32"),
        "keypoint": ((5, 9, 2), "float32"),
        "action": ((5, 2), "float32"),
        "n_contacts": ((5, 1), "float32"),
    }
    assert {c.cname for c in buffer.get_compressors().values()} == {"zstd"}
    assert buffer["action"][1:].tolist() == [list(m) for m in MOVES[1:]]


def test_each_step_holds_what_was_seen_before_its_action(record):
    buffer, *_ = record(MOVES)
    env = PushTKeypointsEnv(render_action=False)
    obs, info = env.reset(seed=0)
    for step, action in enumerate(np.asarray(buffer["action"][:])):
        expected = np.float32([*info["pos_agent"], *info["block_pose"]])
        np.testing.assert_allclose(buffer["state"][step], expected, rtol=1e-6)
        np.testing.assert_allclose(buffer["keypoint"][step].ravel(), obs[:18], rtol=1e-6)
        np.testing.assert_array_equal(buffer["img"][step], env.render())
        assert buffer["n_contacts"][step] == info["n_contacts"]
        obs, *_, info = env.step(action)


def test_nothing_is_recorded_before_the_mouse_comes_near_the_agent(record):
    env = ShortEnv()
    buffer, _, _ = record([(1, 1)] * 7, env)
    assert buffer.n_episodes == 0
    assert env.actions == [None] * 7


def test_the_next_episode_starts_from_the_next_seed_and_a_later_session_goes_on(record):
    buffer, *_ = record(MOVES * 2)
    assert buffer.episode_lengths.tolist() == [5, 5]
    again, said, _ = record(MOVES)
    assert said[:2] == ["starting seed 2", "saved seed 2"]
    starts = [again["state"][i] for i in (0, 5, 10)]
    for seed, start in enumerate(starts):
        env = PushTKeypointsEnv()
        obs, _ = env.reset(seed=seed)
        np.testing.assert_allclose(start[:2], obs[18:20])


def test_r_discards_the_episode_and_starts_the_same_seed_again(record):
    buffer, said, _ = record([*MOVES[:3], "r", *MOVES])
    assert said == [
        "starting seed 0",
        "retry seed 0",
        "starting seed 0",
        "saved seed 0",
        "starting seed 1",
    ]
    assert buffer.episode_lengths.tolist() == [5]


@pytest.mark.parametrize("leave", ["q", "quit"])
def test_quitting_discards_the_running_episode_and_keeps_the_others(record, tmp_path, leave):
    record([*MOVES, *MOVES[:3], leave, *MOVES])
    assert ReplayBuffer.copy_from_path(tmp_path / "demo.zarr").episode_lengths.tolist() == [5]


def test_space_pauses_while_held_and_counts_plans_in_the_title(record):
    env = ShortEnv()
    buffer, _, person = record(
        [*MOVES[:2], "space", (9, 9), (9, 9), "space up", "space", "space up", *MOVES[2:]], env
    )
    # the key comes up: the mouse still is where it was moved to during the pause
    assert buffer["action"][2].tolist() == [9, 9]
    assert buffer.n_steps == 5
    # 9 ticks, 4 of them paused; then the rest of the script in the next episode, and its end
    assert person.tick_count == 9 + 2 + 1
    assert person.titles[:3] == ["plan_idx:-1", "plan_idx:0", "plan_idx:1"]


def test_an_episode_that_needs_no_action_does_not_crash_and_is_not_saved(record):
    class Solved(ShortEnv):
        length = 0

    buffer, said, _ = record([(1, 1), (1, 1)], Solved())
    assert buffer.n_episodes == 0
    assert said[:4] == [
        "starting seed 0",
        "seed 0 needs no demonstration",
        "starting seed 1",
        "seed 1 needs no demonstration",
    ]


def test_a_real_episode_ends_when_the_t_is_on_its_goal(record):
    env = PushTKeypointsEnv(render_action=False)
    goal = [100, 100, *env.goal_pose]
    env.reset_to_state = goal
    buffer, said, _ = record(["grab"], env)
    assert "saved seed 0" in said
    assert buffer.n_steps == 1


def run_script(*arguments, **environment):
    environment = {k: v for k, v in os.environ.items() if k != "DISPLAY"} | environment
    return subprocess.run(
        [sys.executable, "demo_pusht.py", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )


def test_help_explains_the_keys():
    result = run_script("--help")
    assert result.returncode == 0
    for word in ("Space", "pause", "retry", "quit", "mouse", "--output", "-rs", "-hz"):
        assert word in result.stdout


@pytest.mark.parametrize("driver", ["", "x11"])
def test_without_a_display_it_says_so_and_leaves_no_store(tmp_path, driver):
    result = run_script("-o", tmp_path / "demo.zarr", SDL_VIDEODRIVER=driver, WAYLAND_DISPLAY="")
    assert result.returncode == 1
    assert "error: no display was found" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_zip_cannot_be_recorded_into(tmp_path):
    path = ReplayBuffer.create_empty_numpy().save_to_path(tmp_path / "x.zarr.zip")
    result = run_script("-o", path, SDL_VIDEODRIVER="dummy")
    assert result.returncode == 1
    assert "error: " in result.stderr
    assert "zip store cannot be extended" in result.stderr
