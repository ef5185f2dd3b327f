"""Records what the expert does, as somebody who will be imitated.

A policy cloned from faultless demonstrations never sees how to mend its own mistakes. So the
expert's hand is disturbed while it works: what is stored is the action it wanted, what is executed
is that action plus a disturbance (Laskey et al., "DART: Noise Injection for Robust Imitation
Learning", CoRL 2017). After each disturbance the expert checks whether its plan still leads where
it should, and plans anew where not: the stored action always suits the stored state.
"""

from dataclasses import dataclass, field

import numpy as np
import shapely

from diffusion_policy.env.pusht.expert.metric import SUCCESS, Style
from diffusion_policy.env.pusht.expert.planner import Plan, Planner
from diffusion_policy.env.pusht.expert.route import CLEARANCE, T_SHAPE
from diffusion_policy.env.pusht.expert.scratch import observe
from diffusion_policy.env.pusht.geometry import GOAL_POSE, Point, goal_coverage, to_local
from diffusion_policy.env.pusht.pusht_env import PushTEnv
from diffusion_policy.env.pusht.pusht_keypoints_env import PushTKeypointsEnv
from diffusion_policy.env.pusht.pymunk_keypoint_manager import PymunkKeypointManager

MAX_STEPS = 300
_TREMOR = 0.15  # standard deviation, in units of the current speed
_TREMOR_MEMORY = 0.7  # correlation from one action to the next
_BUMP_RATE = 1 / 40  # per action
_BUMP_STRENGTH = (1.0, 3.0)  # in units of the current speed
_UNFINISHED_OFFSET = 40.0  # px, of the T from its goal, along each axis
_UNFINISHED_TURN = 0.4  # rad
_AGENT_OFFSET = 150.0  # px, of the agent from the goal, along each axis
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


def draw_unfinished_state(rng: np.random.Generator) -> np.ndarray:
    """A state (5,) in which somebody failed to finish: the T nearly in place, the agent anywhere.

    The expert rarely needs a second try, so its complete episodes hardly ever show one; a policy
    cloned from them alone brings the T close and then does not know how to finish.
    """
    goal_x, goal_y, goal_angle = GOAL_POSE
    while True:
        x, y = rng.uniform(-_UNFINISHED_OFFSET, _UNFINISHED_OFFSET, 2)
        turn = rng.uniform(-_UNFINISHED_TURN, _UNFINISHED_TURN)
        pose = (goal_x + x, goal_y + y, goal_angle + turn)
        agent = (goal_x, goal_y) + rng.uniform(-_AGENT_OFFSET, _AGENT_OFFSET, 2)
        (seen_from_block,) = to_local([tuple(agent)], pose)
        is_free = T_SHAPE.distance(shapely.Point(seen_from_block)) > CLEARANCE
        if is_free and goal_coverage(pose) < SUCCESS:
            return np.array([*agent, *pose])


def record_episode(
    env_seed: int,
    expert_seed: int,
    legacy: bool,
    max_steps: int = MAX_STEPS,
    unfinished: bool = False,
) -> Recording:
    """Let the expert solve one start.

    Args:
        env_seed: Chooses the start, as ``PushTEnv.reset(seed=...)`` does.
        expert_seed: Together with ``env_seed``, decides everything the expert leaves to chance.
        legacy: Start placement, see :class:`PushTEnv`.
        max_steps: When to give up.
        unfinished: Start from :func:`draw_unfinished_state` instead.
    """
    rng = np.random.default_rng([expert_seed, env_seed])
    env = PushTEnv(legacy=legacy)
    env.reset(
        seed=env_seed, options={"reset_to_state": draw_unfinished_state(rng)} if unfinished else {}
    )
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
