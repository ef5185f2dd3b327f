"""Pictures of recorded states."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class CanRenderState(Protocol):
    """An environment that can show a state it is not in."""

    def render_state(self, state: Sequence[float] | np.ndarray) -> np.ndarray:
        """State -> (H, W, 3), uint8."""
        ...


def render_env_video(
    env: CanRenderState, states: np.ndarray, actions: np.ndarray | None = None
) -> np.ndarray:
    """Frames of a recorded episode.

    Args:
        env: Draws the states.
        states: Shape (T, Ds).
        actions: Shape (T, 2), px of the 512 px window; drawn as red crosses.

    Returns:
        Shape (T, H, W, 3), uint8.
    """
    from diffusion_policy.common.cv2_util import draw_action_marker

    frames = [env.render_state(state).copy() for state in states]
    if actions is not None:
        for frame, action in zip(frames, actions, strict=True):
            draw_action_marker(frame, action)
    return np.stack(frames)
