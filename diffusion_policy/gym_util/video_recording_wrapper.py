"""Records an environment's frames straight into a video file."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.video_recorder import VideoRecorder
from diffusion_policy.gym_util.gym021_adapter import as_gymnasium

__all__ = ["VideoRecorder", "VideoRecordingWrapper", "require_render_mode"]


def require_render_mode(env: gym.Env, mode: str) -> None:
    """Make sure that ``env`` renders in ``mode``, which gymnasium fixes at construction.

    Raises:
        ConfigError: It does not.
    """
    if env.render_mode != mode:
        raise ConfigError(
            f"recording needs render_mode={mode!r}, but the environment was made with "
            f"render_mode={env.render_mode!r}: make it with render_mode={mode!r}"
        )


class VideoRecordingWrapper(gym.Wrapper):
    """Records while ``file_path`` is set: one frame every ``steps_per_render`` steps, not the one
    after reset.

    Args:
        env: A gymnasium environment, or one with the gym 0.21 interface.
        video_recoder: The recorder (the spelling is part of the published interface).
        mode: The render mode, which yields frames (H, W, 3), uint8.
        file_path: File to record to; None records nothing. May be changed before each reset.
        steps_per_render: Environment steps per frame.
    """

    def __init__(
        self,
        env: Any,
        video_recoder: VideoRecorder,
        mode: str = "rgb_array",
        file_path: str | None = None,
        steps_per_render: int = 1,
    ):
        super().__init__(as_gymnasium(env))
        require_render_mode(self.env, mode)
        self.video_recoder = video_recoder
        self.file_path = file_path
        self.steps_per_render = steps_per_render
        self.step_count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode; the video of the last one is finished."""
        result = self.env.reset(seed=seed, options=options)
        # The reset observation counts as the first, so that with 2 steps per render steps 1, 3, 5
        # ... are seen.
        self.step_count = 1
        self.video_recoder.stop()
        return result

    def step(self, action: Any):
        """Step, and record if it is time to."""
        result = self.env.step(action)
        self.step_count += 1
        if self.file_path is not None and self.step_count % self.steps_per_render == 0:
            if not self.video_recoder.is_ready():
                self.video_recoder.start(self.file_path)
            frame = np.asarray(self.env.render())
            if frame.dtype != np.uint8:
                raise ConfigError(
                    f"the environment rendered a frame of dtype {frame.dtype}, expected uint8 for "
                    "a video"
                )
            self.video_recoder.write_frame(frame)
        return result

    def render(self) -> Any:
        """Finish the video and return its path, None when nothing is recorded."""
        self.video_recoder.stop()
        return self.file_path

    def close(self) -> None:
        """Finish the video and close the environment."""
        self.video_recoder.stop()
        super().close()
