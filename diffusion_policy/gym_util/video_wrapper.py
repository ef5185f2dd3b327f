"""Keeps an environment's frames in memory."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from diffusion_policy.gym_util.gym021_adapter import as_gymnasium
from diffusion_policy.gym_util.video_recording_wrapper import require_render_mode


class VideoWrapper(gym.Wrapper):
    """Collects the frames of the running episode, the one after reset included.

    Args:
        env: A gymnasium environment, or one with the gym 0.21 interface.
        mode: The render mode.
        enabled: Whether to collect anything; may be changed at any time.
        steps_per_render: Environment steps per frame.
    """

    def __init__(
        self, env: Any, mode: str = "rgb_array", enabled: bool = True, steps_per_render: int = 1
    ):
        super().__init__(as_gymnasium(env))
        require_render_mode(self.env, mode)
        self.enabled = enabled
        self.steps_per_render = steps_per_render
        self.frames: list[np.ndarray] = []
        self.step_count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode, forget the frames of the last one."""
        result = self.env.reset(seed=seed, options=options)
        self.frames = []
        self.step_count = 1
        self._collect()
        return result

    def step(self, action: Any):
        """Step, and collect a frame if it is time to."""
        result = self.env.step(action)
        self.step_count += 1
        if self.step_count % self.steps_per_render == 0:
            self._collect()
        return result

    def _collect(self) -> None:
        if self.enabled:
            self.frames.append(np.asarray(self.env.render()))

    def render(self) -> Any:
        """The frames of this episode so far."""
        return self.frames
