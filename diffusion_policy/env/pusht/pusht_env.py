"""Push-T with the true state as observation, and the base of its key point and image versions.

Reference: Chi et al., "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion" (RSS
2023), section V; the task is from Florence et al., "Implicit Behavioral Cloning" (CoRL 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
import pymunk
from gymnasium import spaces

from diffusion_policy.env.pusht import world as table
from diffusion_policy.env.pusht.geometry import GOAL_POSE, T_PARTS, Vector, goal_coverage, to_world
from diffusion_policy.env.pusht.world import PushTWorld

if TYPE_CHECKING:
    import pygame
    import shapely

_GOAL_COLOR = (144, 238, 144)  # LightGreen
_WHITE = (255, 255, 255)
_TELEOP_GRAB_DISTANCE = 30  # px between mouse and agent
RENDER_MODES = ("human", "rgb_array")


def pymunk_to_shapely(body: pymunk.Body, shapes: Sequence[pymunk.Shape]) -> shapely.MultiPolygon:
    """The polygons of ``shapes`` in world coordinates."""
    import shapely

    polygons = []
    for shape in shapes:
        if not isinstance(shape, pymunk.Poly):
            raise TypeError(f"only polygons have corners, got a {type(shape).__name__}")
        corners = [body.local_to_world(v) for v in shape.get_vertices()]
        polygons.append(shapely.Polygon([*corners, corners[0]]))
    return shapely.MultiPolygon(polygons)


class PushTEnv(gym.Env):
    """Push the T-shaped block onto its goal pose with a round agent that follows position targets.

    An observation is ``[agent_x, agent_y, block_x, block_y, block_angle]`` (float64, px and rad in
    [0, 2 pi)), an action the target position of the agent (px, never clipped). The reward is
    ``clip(coverage / 0.95, 0, 1)`` with the covered share of the goal area; an episode terminates
    above 95 %.

    The seed is persistent: every ``reset()`` repeats the same start until a new seed is given.

    Args:
        legacy: Start placement of older versions: the block's position is set before its angle, see
            :meth:`PushTWorld.place`. Published evaluations use it.
        block_cog: Other center of gravity of the block (body frame, px).
        damping: Other damping of the physics.
        render_action: Draw the last action as a red cross.
        render_size: Side of rendered frames (px).
        reset_to_state: Start state of every episode, instead of one drawn from the seed.
        render_mode: ``"rgb_array"`` (in memory, needs no display), ``"human"`` (a window) or None.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": list(RENDER_MODES),
        "render_fps": table.CONTROL_HZ,
    }
    reward_range = (0.0, 1.0)

    def __init__(
        self,
        legacy: bool = False,
        block_cog: Sequence[float] | None = None,
        damping: float | None = None,
        render_action: bool = True,
        render_size: int = 96,
        reset_to_state: Sequence[float] | None = None,
        render_mode: str | None = "rgb_array",
    ):
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(f"render_mode is {render_mode!r}, expected one of {RENDER_MODES}")
        self.seed()
        self.window_size = table.WINDOW_SIZE
        self.sim_hz = table.SIM_HZ
        self.control_hz = table.CONTROL_HZ
        self.success_threshold = 0.95
        self.goal_pose = np.array(GOAL_POSE)
        self.legacy = legacy
        self.block_cog = block_cog
        self.damping = damping
        self.render_action = render_action
        self.render_size = render_size
        self.reset_to_state = reset_to_state
        self.render_mode = render_mode

        size = self.window_size
        self.observation_space = spaces.Box(
            low=np.zeros(5),
            high=np.array([size, size, size, size, 2 * np.pi]),
            dtype=np.float64,
        )
        self.action_space = spaces.Box(low=0.0, high=size, shape=(2,), dtype=np.float64)

        self.world: PushTWorld | None = None  # built by reset()
        self.latest_action: np.ndarray | None = None
        self.teleop = False
        self.window: pygame.Surface | None = None
        self.clock: pygame.time.Clock | None = None

    # ------------------------------------------------------------------ seeding and state

    def seed(self, seed: int | None = None) -> None:
        """Choose the start of all later episodes (None: from numpy's global random state)."""
        self._seed = int(np.random.randint(0, 25536)) if seed is None else int(seed)
        self.np_random = np.random.default_rng(self._seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode.

        Args:
            seed: As :meth:`seed`; None keeps the current one.
            options: ``{"reset_to_state": state}`` starts this one episode from the given state.

        Returns:
            Observation and info.
        """
        if seed is not None:
            self.seed(seed)
        self.world = PushTWorld()
        if self.block_cog is not None:
            x, y = self.block_cog
            self.block.center_of_gravity = x, y  # type: ignore[assignment]
        if self.damping is not None:
            self.space.damping = self.damping
        self.latest_action = None
        self.teleop = False

        state = (options or {}).get("reset_to_state", self.reset_to_state)
        self._set_state(self._draw_state() if state is None else state)
        return self._get_obs(), self._get_info()

    def _draw_state(self) -> np.ndarray:
        rs = np.random.RandomState(self._seed)
        return np.array(
            [
                rs.randint(50, 450),
                rs.randint(50, 450),
                rs.randint(100, 400),
                rs.randint(100, 400),
                rs.randn() * 2 * np.pi - np.pi,
            ]
        )

    def _set_state(self, state: Vector) -> None:
        self._built().place(state, self.legacy)

    def _set_state_local(self, state_local: Vector) -> np.ndarray:
        """Place block (in the goal's frame) and agent (in the block's frame); returns the state
        set.
        """
        agent_x, agent_y, *block = (float(v) for v in state_local)
        (position,) = to_world([(block[0], block[1])], self.goal_pose)
        block_pose = (*position, float(self.goal_pose[2]) + block[2])
        (agent,) = to_world([(agent_x, agent_y)], block_pose)
        state = np.array([*agent, *block_pose])
        self._set_state(state)
        return state

    def _built(self) -> PushTWorld:
        if self.world is None:
            raise RuntimeError("the Push-T environment has no episode yet, call reset() first")
        return self.world

    @property
    def space(self) -> pymunk.Space:
        """The physics space of the running episode."""
        return self._built().space

    @property
    def agent(self) -> pymunk.Body:
        """The agent's body."""
        return self._built().agent

    @property
    def block(self) -> pymunk.Body:
        """The T's body."""
        return self._built().block

    # ------------------------------------------------------------------ stepping

    def step(self, action: Vector | None):
        """Follow ``action`` for one control period; None leaves the world as it is.

        Returns:
            Observation, reward, terminated, truncated (never), info.
        """
        world = self._built()
        if action is not None:
            self.latest_action = np.asarray(action)
            world.advance(action)
        coverage = self._coverage()
        reward = min(max(coverage / self.success_threshold, 0.0), 1.0)
        terminated = coverage > self.success_threshold
        obs = self._get_obs()
        if self.render_mode == "human":
            self.render_frame("human")
        return obs, reward, terminated, False, self._get_info()

    def _coverage(self) -> float:
        return goal_coverage(self._built().block_pose, self.goal_pose)

    def _get_obs(self) -> Any:
        world = self._built()
        x, y, angle = world.block_pose
        return np.array([*world.agent_position, x, y, angle % (2 * math.pi)])

    def _get_info(self) -> dict[str, Any]:
        world = self._built()
        return {
            "pos_agent": np.array(world.agent_position),
            "vel_agent": np.array(world.agent.velocity),
            "block_pose": np.array(world.block_pose),
            "goal_pose": self.goal_pose.copy(),
            "n_contacts": math.ceil(world.n_contact_points / table.SUBSTEPS),
        }

    # ------------------------------------------------------------------ pictures

    def render(self) -> np.ndarray | None:
        """A frame of shape (S, S, 3), uint8, in mode ``rgb_array``; in mode ``human`` updates the
        window.
        """
        if self.render_mode is None:
            raise RuntimeError(
                "this environment was made with render_mode=None, make it with 'rgb_array' or "
                "'human'"
            )
        frame = self.render_frame(self.render_mode)
        return frame if self.render_mode == "rgb_array" else None

    def render_frame(self, mode: str = "rgb_array") -> np.ndarray:
        """The current frame, whatever the render mode; ``mode="human"`` also shows it in a window.

        Returns:
            uint8 array of shape (S, S, 3), RGB.
        """
        canvas = self._draw_world(self._built())
        if mode == "human":
            self._show(canvas)
        frame = self._to_image(canvas)
        if self.render_action and self.latest_action is not None:
            self._mark(frame, self.latest_action)
        return frame

    def render_state(self, state: Vector) -> np.ndarray:
        """The picture of a state ``[agent_x, agent_y, block_x, block_y, angle]``, without an action
        marker.

        The running episode, if any, is left alone.

        Returns:
            uint8 array of shape (S, S, 3), RGB.
        """
        scratch = PushTWorld(count_contacts=False)
        scratch.place(state)
        return self._to_image(self._draw_world(scratch))

    def _draw_world(self, world: PushTWorld) -> pygame.Surface:
        import pygame

        from diffusion_policy.common.pymunk_override import DrawOptions, to_pygame

        canvas = pygame.Surface((self.window_size, self.window_size), depth=32)
        canvas.fill(_WHITE)
        for part in T_PARTS:
            corners = [to_pygame(v, canvas) for v in to_world(part, self.goal_pose)]
            pygame.draw.polygon(canvas, _GOAL_COLOR, corners)
        world.space.debug_draw(DrawOptions(canvas))
        return canvas

    def _to_image(self, canvas: pygame.Surface) -> np.ndarray:
        import cv2

        # The surface's own memory, blue first: half the time of resizing a transposed copy.
        memory: Any = canvas.get_buffer()
        bgrx = np.frombuffer(memory, np.uint8).reshape(*canvas.get_size(), 4)
        small = cv2.resize(bgrx, (self.render_size, self.render_size))
        return np.ascontiguousarray(small[..., 2::-1])

    @staticmethod
    def _mark(frame: np.ndarray, action: np.ndarray) -> None:
        from diffusion_policy.common.cv2_util import draw_action_marker

        draw_action_marker(frame, action, table.WINDOW_SIZE)

    def _show(self, canvas: pygame.Surface) -> None:
        import pygame

        if self.window is None or self.clock is None:
            pygame.init()
            self.window = pygame.display.set_mode((self.window_size, self.window_size))
            self.clock = pygame.time.Clock()
        self.window.blit(canvas, canvas.get_rect())
        pygame.event.pump()
        pygame.display.update()

    def close(self) -> None:
        """Close the window, if one was opened."""
        if self.window is not None:
            import pygame

            pygame.quit()
            self.window = None
            self.clock = None

    # ------------------------------------------------------------------ people

    def teleop_agent(self) -> TeleopAgent:
        """An agent whose actions are the mouse position in the window."""
        return TeleopAgent(self)


class TeleopAgent:
    """Follows the mouse, once it has come near the agent; until then ``act`` returns None."""

    def __init__(self, env: PushTEnv):
        self.env = env

    def act(self, obs: object) -> np.ndarray | None:
        """The mouse position in px as action, or None while nobody has taken hold of the agent."""
        import pygame

        from diffusion_policy.common.pymunk_override import get_mouse_pos

        if self.env.window is None:
            return None
        mouse = pygame.Vector2(get_mouse_pos(self.env.window))
        if mouse.distance_to(self.env.agent.position) < _TELEOP_GRAB_DISTANCE:
            self.env.teleop = True
        return np.array(tuple(mouse)) if self.env.teleop else None
