"""Push-T observed through key points on the T (and, optionally, on the agent)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from diffusion_policy.env.pusht.pusht_env import PushTEnv
from diffusion_policy.env.pusht.pymunk_keypoint_manager import PymunkKeypointManager

# What PymunkKeypointManager.create_from_pusht_env samples with seed 0. They are written out because
# published demonstrations hold exactly these points, while sampling again would depend on how a
# renderer fills polygons.
BLOCK_KEYPOINTS = (
    (9.269786713763871, 90.04097352393619),
    (-60.983472364471474, -1.1867297607997276),
    (60.91275557727772, -1.3933642242328201),
    (-0.2705034390160016, 25.54362499146542),
    (-14.064927576212233, 122.81585355412153),
    (39.002738500170146, 32.857404276587566),
    (-39.966414424694534, 32.729655446429945),
    (-16.82434437939744, 62.86317892234989),
    (23.54146122024909, -1.7002881094626152),
)
AGENT_KEYPOINTS = (
    (-9.57731277880234, 3.028319671145463),
    (14.124283276499565, -2.32937558530637),
    (-1.35281048842575, -14.384614888518746),
)


class PushTKeypointsEnv(PushTEnv):
    """Observations are ``concat(values, visible)``, float64, two halves of equal length.

    The values are the key points of the block in world coordinates (9 x 2 px), then those of the
    agent if ``agent_keypoints`` or else its position; ``visible`` is 1 or 0 for each value. Hidden
    key points keep their true values: it is up to the policy to ignore them.

    ``observation_space`` declares the window, as the published environment does; key points of a
    block at the edge lie some pixels outside of it (in about 3 % of the initial states).

    Args:
        keypoint_visible_rate: Probability of a key point to be visible, drawn anew for every
            observation.
        agent_keypoints: Observe key points on the agent instead of its position.
        draw_keypoints: Overlay the key points on rendered frames (hidden ones at the origin).
        local_keypoint_map: See :class:`PymunkKeypointManager`; default: the published table.
        color_map: See :class:`PymunkKeypointManager`.
        legacy, block_cog, damping, render_size, reset_to_state, render_action, render_mode:
            See :class:`PushTEnv`.
    """

    def __init__(
        self,
        legacy: bool = False,
        block_cog: Sequence[float] | None = None,
        damping: float | None = None,
        render_size: int = 96,
        keypoint_visible_rate: float = 1.0,
        agent_keypoints: bool = False,
        draw_keypoints: bool = False,
        reset_to_state: Sequence[float] | None = None,
        render_action: bool = True,
        local_keypoint_map: Mapping[str, np.ndarray] | None = None,
        color_map: Mapping[str, np.ndarray] | None = None,
        render_mode: str | None = "rgb_array",
    ):
        super().__init__(
            legacy=legacy,
            block_cog=block_cog,
            damping=damping,
            render_size=render_size,
            reset_to_state=reset_to_state,
            render_action=render_action,
            render_mode=render_mode,
        )
        if local_keypoint_map is None:
            self.kp_manager = PymunkKeypointManager(**self.genenerate_keypoint_manager_params())
        else:
            self.kp_manager = PymunkKeypointManager(local_keypoint_map, color_map)
        self.keypoint_visible_rate = keypoint_visible_rate
        self.agent_keypoints = agent_keypoints
        self.draw_keypoints = draw_keypoints
        self.draw_kp_map: dict[str, np.ndarray] | None = None  # of the latest observation

        table = self.kp_manager.local_keypoint_map
        n_keypoints = len(table["block"]) + (len(table["agent"]) if agent_keypoints else 0)
        n_values = 2 * n_keypoints + (0 if agent_keypoints else 2)
        high = np.concatenate([np.full(n_values, float(self.window_size)), np.ones(n_values)])
        self.observation_space = spaces.Box(low=np.zeros_like(high), high=high, dtype=np.float64)

    @classmethod
    def genenerate_keypoint_manager_params(cls) -> dict[str, Any]:
        """The published key point table and its colors (the spelling is part of the published
        interface).
        """
        table = {"block": np.array(BLOCK_KEYPOINTS), "agent": np.array(AGENT_KEYPOINTS)}
        return PymunkKeypointManager(table).kwargs

    def _get_obs(self) -> np.ndarray:
        bodies = {"block": self.block}
        if self.agent_keypoints:
            bodies["agent"] = self.agent
        kp_map = self.kp_manager.get_keypoints_global(bodies, is_obj=True)

        keypoints = np.concatenate(list(kp_map.values()))
        # One draw per key point even at rate 1.0: the generator's state is part of reproducing an
        # evaluation.
        visible = self.np_random.random(len(keypoints)) < self.keypoint_visible_rate
        values, mask = keypoints.flatten(), np.repeat(visible, 2)
        if not self.agent_keypoints:
            values = np.append(values, self.agent.position)
            mask = np.append(mask, [True, True])

        if self.draw_keypoints:
            shown = np.split(
                keypoints * visible[:, None], np.cumsum([len(k) for k in kp_map.values()])
            )
            self.draw_kp_map = dict(zip(kp_map, shown, strict=False))
        return np.concatenate([values, mask.astype(np.float64)])

    def render_frame(self, mode: str = "rgb_array") -> np.ndarray:
        """See :meth:`PushTEnv.render_frame`; with the key points on top if asked for."""
        frame = super().render_frame(mode)
        if self.draw_keypoints and self.draw_kp_map is not None:
            radius = int(frame.shape[0] / 96)
            self.kp_manager.draw_keypoints(frame, self.draw_kp_map, radius=radius)
        return frame
