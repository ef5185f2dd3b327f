"""Records what the expert does, as somebody who will be imitated.

A policy cloned from faultless demonstrations never sees how to mend its own mistakes. So the
expert's hand is disturbed while it works: what is stored is the action it wanted, what is executed
is that action plus a disturbance (Laskey et al., "DART: Noise Injection for Robust Imitation
Learning", CoRL 2017). After each disturbance the expert checks whether its plan still leads where
it should, and plans anew where not: the stored action always suits the stored state.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import shapely

from diffusion_policy.env.pusht.expert.metric import SUCCESS, Style
from diffusion_policy.env.pusht.expert.planner import Plan, Planner
from diffusion_policy.env.pusht.expert.route import CLEARANCE, T_SHAPE
from diffusion_policy.env.pusht.expert.scratch import observe
from diffusion_policy.env.pusht.geometry import (
    GOAL_POSE,
    OUTLINE,
    T_CENTER_OF_GRAVITY,
    Point,
    Pose,
    goal_coverage,
    to_local,
    to_world,
)
from diffusion_policy.env.pusht.pusht_env import PushTEnv
from diffusion_policy.env.pusht.pusht_keypoints_env import PushTKeypointsEnv
from diffusion_policy.env.pusht.pymunk_keypoint_manager import PymunkKeypointManager
from diffusion_policy.env.pusht.world import AGENT_RADIUS, WINDOW_SIZE

MAX_STEPS = 300
_TREMOR = 0.15  # standard deviation, in units of the current speed
_TREMOR_MEMORY = 0.7  # correlation from one action to the next
_BUMP_RATE = 1 / 40  # per action
_BUMP_STRENGTH = (1.0, 3.0)  # in units of the current speed
_MISSED_BY = 40.0  # px, along each axis
_TURNED_BY = 0.4  # rad
_AGENT_OFFSET = 150.0  # px, from the middle of the T, along each axis
_WALL = 8.0  # px: walls are 5 px from the border of the window and 2 px thick to either side
_HAND_RANGE = (10.0, 502.0)  # a disturbed hand stays in the window


@dataclass
class Disturbance:
    """A trembling hand that is bumped into now and then."""

    rng: np.random.Generator
    _tremor: np.ndarray = field(default_factory=lambda: np.zeros(2))
    _bump: np.ndarray = field(default_factory=lambda: np.zeros(2))
    _bump_left: int = 0

    def apply(self, target: Point, speed: float) -> np.ndarray:
        """The target the hand really goes for."""
        fresh = self.rng.normal(0, _TREMOR * speed, 2)
        self._tremor = _TREMOR_MEMORY * self._tremor + np.sqrt(1 - _TREMOR_MEMORY**2) * fresh
        if self._bump_left == 0:
            self._bump = np.zeros(2)
            if self.rng.random() < _BUMP_RATE:
                angle = self.rng.uniform(0, 2 * np.pi)
                strength = self.rng.uniform(*_BUMP_STRENGTH) * speed
                self._bump = strength * np.array([np.cos(angle), np.sin(angle)])
                self._bump_left = int(self.rng.integers(2, 5))
        else:
            self._bump_left -= 1
        return np.clip(np.add(target, self._tremor + self._bump), *_HAND_RANGE)


@dataclass
class Recording:
    """One demonstration: what was seen and what the expert wanted to do about it.

    Attributes:
        data: ``state`` (T, 5), ``keypoint`` (T, 9, 2), ``action`` (T, 2), ``n_contacts`` (T, 1),
            all float32; each row was taken before its action was executed.
        success: Whether the T arrived.
    """

    data: dict[str, np.ndarray]
    success: bool

    def __len__(self) -> int:
        return len(self.data["action"])


class Start(Enum):
    """Where a demonstration begins.

    The expert rarely needs a second try, so its complete episodes hardly show what a learner's
    mistakes lead to. A policy cloned from them alone gets stuck there; so the expert also shows how
    to go on from such places.
    """

    RESET = "as PushTEnv.reset places T and agent"
    NEARLY_THERE = "the T beside its goal, as after a push that missed"
    ASTRAY = "the T anywhere on the table, also in its corners, with the agent close to it"


def draw_state(start: Start, rng: np.random.Generator) -> np.ndarray:
    """A state (5,) that is ``NEARLY_THERE`` or ``ASTRAY``, not solved, the agent clear of the T."""
    while True:
        pose = _draw_pose(start, rng)
        middle = to_world([T_CENTER_OF_GRAVITY], pose)[0]
        agent = np.add(middle, rng.uniform(-_AGENT_OFFSET, _AGENT_OFFSET, 2))
        (seen_from_block,) = to_local([tuple(agent)], pose)
        is_clear = T_SHAPE.distance(shapely.Point(seen_from_block)) > CLEARANCE
        if is_clear and _on_table([tuple(agent)], AGENT_RADIUS) and goal_coverage(pose) < SUCCESS:
            return np.array([*agent, *pose])


def _draw_pose(start: Start, rng: np.random.Generator) -> Pose:
    x, y, angle = GOAL_POSE
    if start is Start.NEARLY_THERE:
        dx, dy = rng.uniform(-_MISSED_BY, _MISSED_BY, 2)
        return x + dx, y + dy, angle + rng.uniform(-_TURNED_BY, _TURNED_BY)
    while True:
        pose = (*rng.uniform(0, WINDOW_SIZE, 2), rng.uniform(0, 2 * np.pi))
        if _on_table(to_world(OUTLINE, pose), _WALL):
            return pose


def _on_table(points: Iterable[Point], margin: float) -> bool:
    return all(margin <= value <= WINDOW_SIZE - margin for point in points for value in point)


def record_episode(
    env_seed: int,
    expert_seed: int,
    legacy: bool,
    max_steps: int = MAX_STEPS,
    start: Start = Start.RESET,
) -> Recording:
    """Let the expert solve one start.

    Args:
        env_seed: Chooses the start, as ``PushTEnv.reset(seed=...)`` does.
        expert_seed: Together with ``env_seed``, decides everything the expert leaves to chance.
        legacy: Start placement, see :class:`PushTEnv`.
        max_steps: When to give up.
        start: From where.
    """
    rng = np.random.default_rng([expert_seed, env_seed])
    env = PushTEnv(legacy=legacy)
    state = None if start is Start.RESET else draw_state(start, rng)
    env.reset(seed=env_seed, options={} if state is None else {"reset_to_state": state})
    assert env.world is not None
    keypoints = PymunkKeypointManager(**PushTKeypointsEnv.genenerate_keypoint_manager_params())
    planner = Planner(Style.draw(rng), rng)
    disturbance = Disturbance(rng)

    rows: dict[str, list] = {"state": [], "keypoint": [], "action": [], "n_contacts": []}
    plan: Plan | None = None
    done_actions = 0
    terminated = False
    while not terminated and len(rows["action"]) < max_steps:
        now = observe(env.world)
        plan, done_actions = _keep_or_renew(planner, plan, done_actions, now)
        target = plan.targets[done_actions] if plan is not None else now.agent
        obs, info = env._get_obs(), env._get_info()
        rows["state"].append(obs)
        rows["keypoint"].append(keypoints.get_keypoints_global({"block": env.block}, True)["block"])
        rows["action"].append(target)
        rows["n_contacts"].append([info["n_contacts"]])

        speed = _pace_of(planner, plan, done_actions)
        terminated = env.step(disturbance.apply(target, speed))[2]
        done_actions += 1
    data = {key: np.array(values, dtype=np.float32) for key, values in rows.items()}
    return Recording(data, terminated)


def _keep_or_renew(planner: Planner, plan: Plan | None, done: int, now) -> tuple[Plan | None, int]:
    """The plan to follow and how much of it is done. None: nothing helps, wait an action."""
    if plan is not None and done < len(plan.targets):
        if planner.still_works(now, plan, done):
            return plan, done
        if done < plan.n_walk:
            again = planner.rewalk(now, plan)
            if again is not None:
                return again, 0
    return planner.plan(now), 0


def _pace_of(planner: Planner, plan: Plan | None, done: int) -> float:
    if plan is None:
        return 0.0
    return planner.style.approach_speed if done < plan.n_walk else plan.phase.speed
