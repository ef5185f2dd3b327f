"""Which frames the two video wrappers see."""

import av
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.gym_util.video_recording_wrapper import VideoRecorder, VideoRecordingWrapper
from diffusion_policy.gym_util.video_wrapper import VideoWrapper


class Clock(gym.Env):
    """Renders its step count as brightness."""

    observation_space = action_space = spaces.Box(0, 1, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode="rgb_array", dtype=np.uint8):
        self.render_mode, self.dtype, self.t = render_mode, dtype, 0

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self):
        return np.full((16, 16, 3), 20 * self.t, self.dtype)


def make(path, steps_per_render=1, env=None):
    recorder = VideoRecorder.create_h264(fps=10, crf=1)
    return VideoRecordingWrapper(
        env or Clock(),
        video_recoder=recorder,
        file_path=path,
        steps_per_render=steps_per_render,
    )


def steps_seen(path):
    with av.open(str(path)) as container:
        return [round(f.to_ndarray(format="rgb24").mean() / 20) for f in container.decode(video=0)]


@pytest.mark.parametrize(
    ("steps_per_render", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [1, 3, 5]), (3, [2, 5])]
)
def test_frames_are_taken_as_the_original_does_and_never_after_reset(
    tmp_path, steps_per_render, expected
):
    env = make(str(tmp_path / "a.mp4"), steps_per_render)
    env.reset()
    for _ in range(5):
        env.step([0])
    assert env.render() == str(tmp_path / "a.mp4")
    assert steps_seen(tmp_path / "a.mp4") == expected


def test_nothing_is_recorded_without_a_file_path(tmp_path):
    env = make(None)
    env.reset()
    env.step([0])
    assert env.render() is None
    assert not list(tmp_path.iterdir())


def test_a_reset_finishes_the_video_and_a_new_path_starts_another(tmp_path):
    env = make(str(tmp_path / "a.mp4"))
    for name, n in [("a.mp4", 2), ("b.mp4", 3)]:
        env.file_path = str(tmp_path / name)
        env.reset()
        for _ in range(n):
            env.step([0])
    env.close()
    assert steps_seen(tmp_path / "a.mp4") == [1, 2]
    assert steps_seen(tmp_path / "b.mp4") == [1, 2, 3]


def test_an_environment_that_does_not_render_is_refused_at_once():
    with pytest.raises(ConfigError, match="make it with render_mode='rgb_array'"):
        make(None, env=Clock(render_mode=None))
    with pytest.raises(ConfigError, match="make it with render_mode='human'"):
        VideoWrapper(Clock(), mode="human")


def test_frames_that_are_not_uint8_are_refused(tmp_path):
    env = make(str(tmp_path / "a.mp4"), env=Clock(dtype=np.float32))
    env.reset()
    with pytest.raises(ConfigError, match="dtype float32, expected uint8"):
        env.step([0])


def test_the_frames_in_memory_include_the_one_after_reset():
    env = VideoWrapper(Clock(), steps_per_render=2)
    for _ in range(2):
        env.reset()
        for _ in range(4):
            env.step([0])
        assert [f[0, 0, 0] // 20 for f in env.render()] == [0, 1, 3]
    env.enabled = False
    env.reset()
    env.step([0])
    assert env.render() == []
