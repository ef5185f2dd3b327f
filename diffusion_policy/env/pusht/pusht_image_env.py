"""Push-T observed through a camera from above."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gymnasium import spaces

from diffusion_policy.env.pusht.pusht_env import PushTEnv


class PushTImageEnv(PushTEnv):
    """Observations are a dict of ``image`` (3, S, S), float32 in [0, 1], and ``agent_pos`` (2,),
    float64, px.

    Images never show the action marker; rendered frames do. ``agent_pos`` keeps the precision of
    the simulation while its space is declared float32, as published: vector environments with
    shared memory store it as float32.

    Args:
        legacy, block_cog, damping, render_size, render_mode: See :class:`PushTEnv`.
    """

    def __init__(
        self,
        legacy: bool = False,
        block_cog: Sequence[float] | None = None,
        damping: float | None = None,
        render_size: int = 96,
        render_mode: str | None = "rgb_array",
    ):
        super().__init__(
            legacy=legacy,
            block_cog=block_cog,
            damping=damping,
            render_size=render_size,
            render_action=False,
            render_mode=render_mode,
        )
        self.observation_space = spaces.Dict(
            {
                "agent_pos": spaces.Box(0.0, self.window_size, shape=(2,), dtype=np.float32),
                "image": spaces.Box(
                    0.0, 1.0, shape=(3, render_size, render_size), dtype=np.float32
                ),
            }
        )
        self.render_cache: np.ndarray | None = None  # frame of the latest observation, with marker

    def _get_obs(self) -> dict[str, np.ndarray]:
        frame = super().render_frame()
        obs = {
            "agent_pos": np.array(self.agent.position),
            "image": np.moveaxis(frame / np.float32(255), -1, 0).astype(np.float32),
        }
        if self.latest_action is not None:
            self._mark(frame, self.latest_action)
        self.render_cache = frame
        return obs

    def render_frame(self, mode: str = "rgb_array") -> np.ndarray:
        """The frame of the latest observation, with the action marker."""
        if mode == "human":
            self._show(self._draw_world(self._built()))
        if self.render_cache is None:
            self._get_obs()
        assert self.render_cache is not None
        return self.render_cache
