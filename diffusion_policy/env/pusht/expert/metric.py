"""How far the T is from its goal, far away and close up, and how boldly to push in either case."""

import math
from dataclasses import dataclass

import numpy as np

from diffusion_policy.env.pusht.geometry import GOAL_POSE, OUTLINE, Pose, goal_coverage, to_world

SUCCESS = 0.95  # coverage that ends an episode
SURE_SUCCESS = 0.953  # what the expert aims for, so that rounding cannot spoil it
FINE_FROM = 0.75  # coverage from which on the T is adjusted rather than moved

_GOAL_OUTLINE = to_world(OUTLINE, GOAL_POSE)


def outline_distance(block: Pose) -> float:
    """Mean distance of the T's corners to their places in the goal, px."""
    corners = to_world(OUTLINE, block)
    return sum(math.dist(p, q) for p, q in zip(corners, _GOAL_OUTLINE, strict=True)) / len(OUTLINE)


def coverage_deficit(block: Pose) -> float:
    """40 x the uncovered share of the goal, less a bonus for having arrived."""
    coverage = goal_coverage(block)
    return 40.0 * (1.0 - coverage) - (30.0 if coverage > SURE_SUCCESS else 0.0)


@dataclass(frozen=True)
class Style:
    """Habits of one demonstrator, in px per action (0.1 s)."""

    approach_speed: float = 15.0
    coarse_speed: float = 10.0
    fine_speed: float = 5.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Style":
        """A random demonstrator."""
        return cls(rng.uniform(12, 18), rng.uniform(8, 12), rng.uniform(4, 6))


@dataclass(frozen=True)
class Phase:
    """One way of pushing: what counts as progress, and at what pace.

    Attributes:
        fine: Whether the T is nearly there.
        speed: Push speed, px per action.
        length: Longest push, actions.
        price: Cost of one action in units of the metric.
        least_gain: Smaller improvements do not count while searching.
        worth_doing: A plan that promises less than this is a stall.
        patience: A trial ends when it is this much worse than its best moment.
        turn_sigma: Spread of the turning rate of pushes, degrees per action.
        temperature: How readily a slightly worse group of contacts is preferred, units of the
            metric.
    """

    fine: bool
    speed: float
    length: int
    price: float
    least_gain: float
    worth_doing: float
    patience: float
    turn_sigma: float
    temperature: float

    def metric(self, block: Pose) -> float:
        """Lower is better; 0 is perfect (fine: below 0)."""
        return coverage_deficit(block) if self.fine else outline_distance(block)


def phase_for(block: Pose, style: Style, level: int) -> Phase:
    """The way of pushing a T at ``block``; ``level`` counts failed attempts to find progress."""
    cheap = 0.2 if level >= 1 else 1.0
    if goal_coverage(block) <= FINE_FROM:
        return Phase(
            fine=False,
            speed=style.coarse_speed,
            length=round(216 / style.coarse_speed),
            price=0.35 * cheap,
            least_gain=1.0,
            worth_doing=0.8,
            patience=25.0,
            turn_sigma=2.5,
            temperature=8.0,
        )
    return Phase(
        fine=True,
        speed=style.fine_speed if level == 0 else 3.0,
        length=12 if level == 0 else 16,
        price=0.35 * 0.35 * cheap,
        least_gain=0.2,
        worth_doing=0.15,
        patience=6.0,
        turn_sigma=2.0,
        temperature=2.4,
    )
