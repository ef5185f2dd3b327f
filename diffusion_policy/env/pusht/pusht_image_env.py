"""Push-T observed through a camera from above."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gymnasium import spaces

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.env.pusht.pusht_env import PushTEnv

IMAGE_DTYPES = ("float32", "uint8")


class PushTImageEnv(PushTEnv):
    """Observations are a dict of ``image`` (3, S, S), float32 in [0, 1], and ``agent_pos`` (2,),
    float64, px.

    Images never show the action marker; rendered frames do. ``agent_pos`` keeps the precision of
    the simulation while its space is declared float32, as published: vector environments with
    shared memory store it as float32.

    Args:
        legacy, block_cog, damping, render_size, render_mode: See :class:`PushTEnv`.
        image_dtype: ``uint8`` observes the frame itself, a quarter of the bytes; divided by 255 it
            is the float32 image.
    """

    def __init__(
        self,
        legacy: bool = False,
        block_cog: Sequence[float] | None = None,
        damping: float | None = None,
        render_size: int = 96,
        render_mode: str | None = "rgb_array",
        image_dtype: str = "float32",
    ):
        if image_dtype not in IMAGE_DTYPES:
            raise ConfigError(
                f"image_dtype is {image_dtype!r}, expected one of {', '.join(IMAGE_DTYPES)}"
            )
        super().__init__(
            legacy=legacy,
            block_cog=block_cog,
            damping=damping,
            render_size=render_size,
            render_action=False,
            render_mode=render_mode,
        )
        shape = (3, render_size, render_size)
        self.image_dtype = image_dtype
        self.observation_space = spaces.Dict(
            {
                "agent_pos": spaces.Box(0.0, self.window_size, shape=(2,), dtype=np.float32),
                "image": spaces.Box(0, 255, shape=shape, dtype=np.uint8)
                if image_dtype == "uint8"
                else spaces.Box(0.0, 1.0, shape=shape, dtype=np.float32),
            }
        )
        self.render_cache: np.ndarray | None = None  # frame of the latest observation, with marker

    def _get_obs(self) -> dict[str, np.ndarray]:
        frame = super().render_frame()
        image = np.moveaxis(frame, -1, 0)
        obs = {
            "agent_pos": np.array(self.agent.position),
            # A copy either way: the marker is drawn onto the frame.
            "image": image.copy() if self.image_dtype == "uint8" else image / np.float32(255),
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
