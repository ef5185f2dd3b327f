"""Where the agent can touch the T, and in which directions it can push there."""

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
import shapely

from diffusion_policy.env.pusht.expert.route import T_SHAPE, offset_curve
from diffusion_policy.env.pusht.geometry import Point, Pose, to_local, to_world
from diffusion_policy.env.pusht.world import AGENT_RADIUS

_START_RANGE = (14.0, 498.0)  # where pushes may begin, px of the window
_TARGET_RANGE = (10.0, 502.0)  # where they may lead
_TIGHTEST_GAP = 2.6  # between agent and T at the start of a push, px


@dataclass(frozen=True)
class Push:
    """Straight or gently curved motion at constant speed, world frame.

    Attributes:
        start: Where the agent's center starts.
        direction: Heading of the first action, rad.
        turn: Change of heading per action, rad.
        speed: px per action.
    """

    start: Point
    direction: float
    turn: float
    speed: float

    def heading(self, k: int) -> Point:
        """Unit vector of action ``k``."""
        angle = self.direction + k * self.turn
        return math.cos(angle), math.sin(angle)

    def targets(self, n: int) -> list[Point]:
        """The first ``n`` targets; fewer if they would leave the window."""
        x, y = self.start
        targets = []
        for k in range(n):
            hx, hy = self.heading(k)
            x, y = x + self.speed * hx, y + self.speed * hy
            if not (_within(x, _TARGET_RANGE) and _within(y, _TARGET_RANGE)):
                break
            targets.append((x, y))
        return targets

    def varied(self, rng: np.random.Generator, turn_sigma: float, scale: float) -> "Push":
        """A similar push; ``turn_sigma`` in degrees per action, ``scale`` widens everything."""
        direction = self.direction + math.radians(rng.normal(0, 10 * scale))
        turn = math.radians(rng.normal(0, turn_sigma * scale))
        shift = rng.normal(0, 5 * scale)
        hx, hy = self.heading(0)
        start = (self.start[0] - hy * shift, self.start[1] + hx * shift)
        return replace(self, start=start, direction=direction, turn=turn)

    def is_possible(self, block: Pose) -> bool:
        """Whether the start is inside the window and clear of the T."""
        local = shapely.Point(to_local([self.start], block)[0])
        return (
            all(_within(v, _START_RANGE) for v in self.start)
            and T_SHAPE.distance(local) >= AGENT_RADIUS + _TIGHTEST_GAP
        )


def possible_pushes(block: Pose, speed: float, level: int) -> list[Push]:
    """All combinations of contact points and directions; more of them from ``level`` 1 on."""
    if level == 0:
        gap, spacing, fan = 4.0, 10.0, (-50, -25, 0, 25, 50)
    else:
        gap, spacing, fan = 3.0, 5.0, (-60, -40, -20, 0, 20, 40, 60)
    pushes = []
    for point, inwards in _contact_points(gap, spacing):
        (start,) = to_world([point], block)
        if all(_within(v, _START_RANGE) for v in start):
            for degrees in fan:
                heading = block[2] + inwards + math.radians(degrees)
                pushes.append(Push(start, heading, 0.0, speed))
    return pushes


@functools.cache
def _contact_points(gap: float, spacing: float) -> list[tuple[Point, float]]:
    """Starting points around the T and the direction towards it, body frame."""
    curve = offset_curve(AGENT_RADIUS + gap)
    contacts = []
    for s in np.arange(0.0, curve.length, spacing):
        x, y = curve.interpolate(s).coords[0]
        nearest = shapely.shortest_line(shapely.Point(x, y), T_SHAPE).coords[1]
        contacts.append(((x, y), math.atan2(nearest[1] - y, nearest[0] - x)))
    # In the two inner corners the agent can hook the T and pull it away from a wall.
    corner = 15.0 + AGENT_RADIUS + gap
    for side in (-1.0, 1.0):
        contacts.append(
            ((side * corner, 15.0 + corner), math.atan2(-1.0, -side)),
        )
    return contacts


def _within(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= value <= bounds[1]
