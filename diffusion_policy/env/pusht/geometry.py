"""The T block of Push-T as plain numbers: its two rectangles, its outline, and how much of the goal
it covers.

Everything here is closed-form arithmetic on Python floats. That is on purpose: the reward needs one
overlap area per step and the scripted expert tens of thousands per episode, and for two rectangles
clipping by hand is several times faster than a general polygon library (and agrees with it to
rounding error).

Body frame (pixels): the bar lies along x, the stem points towards +y, the origin is the middle of
the bar's free edge.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

Point = tuple[float, float]
Pose = tuple[float, float, float]
Vector = Sequence[float] | np.ndarray  # of whatever length the text says

BAR: tuple[Point, ...] = ((-60.0, 30.0), (60.0, 30.0), (60.0, 0.0), (-60.0, 0.0))
STEM: tuple[Point, ...] = ((-15.0, 30.0), (-15.0, 120.0), (15.0, 120.0), (15.0, 30.0))
T_PARTS = (BAR, STEM)
# Middle and half diagonal of each part: parts farther apart than their half diagonals are disjoint.
PART_CIRCLES: tuple[tuple[Point, float], ...] = (
    ((0.0, 15.0), math.hypot(60.0, 15.0)),
    ((0.0, 75.0), math.hypot(15.0, 45.0)),
)
# The bar's and the stem's outer corners and the two inner ones, once around.
OUTLINE: tuple[Point, ...] = (
    (-60.0, 0.0),
    (60.0, 0.0),
    (60.0, 30.0),
    (15.0, 30.0),
    (15.0, 120.0),
    (-15.0, 120.0),
    (-15.0, 30.0),
    (-60.0, 30.0),
)
T_AREA = 120.0 * 30.0 + 30.0 * 90.0
T_CENTER_OF_GRAVITY: Point = (0.0, 45.0)

GOAL_POSE: Pose = (256.0, 256.0, math.pi / 4)


def to_world(points: Iterable[Point], pose: Vector) -> list[Point]:
    """Map points from the frame of ``pose`` (x, y, angle) to the frame it is given in."""
    x, y, angle = pose
    c, s = math.cos(angle), math.sin(angle)
    return [(x + c * px - s * py, y + s * px + c * py) for px, py in points]


def to_local(points: Iterable[Point], pose: Vector) -> list[Point]:
    """Inverse of :func:`to_world`."""
    x, y, angle = pose
    c, s = math.cos(angle), math.sin(angle)
    return [(c * (px - x) + s * (py - y), c * (py - y) - s * (px - x)) for px, py in points]


def goal_coverage(block_pose: Vector, goal_pose: Vector = GOAL_POSE) -> float:
    """Share of the goal area that the block covers, 0 ... 1."""
    gx, gy, goal_angle = goal_pose
    bx, by, block_angle = block_pose
    # In the goal's frame its two rectangles are axis-aligned, so clipping needs comparisons only.
    c, s = math.cos(goal_angle), math.sin(goal_angle)
    relative = (
        c * (bx - gx) + s * (by - gy),
        c * (by - gy) - s * (bx - gx),
        block_angle - goal_angle,
    )
    area = 0.0
    for part, (middle, radius) in zip(T_PARTS, PART_CIRCLES, strict=True):
        (middle,) = to_world([middle], relative)
        for goal_part, (goal_middle, goal_radius) in zip(T_PARTS, PART_CIRCLES, strict=True):
            if math.dist(middle, goal_middle) < radius + goal_radius:
                area += _area(_clip(to_world(part, relative), goal_part))
    return area / T_AREA


def _clip(polygon: list[Point], rectangle: Sequence[Point]) -> list[Point]:
    """Cut a convex polygon down to an axis-aligned rectangle (Sutherland & Hodgman 1974)."""
    (x0, y0), (x1, y1) = min(rectangle), max(rectangle)
    for axis, bound, sign in ((0, x0, 1.0), (0, x1, -1.0), (1, y0, 1.0), (1, y1, -1.0)):
        polygon = _cut(polygon, axis, bound, sign)
        if not polygon:
            break
    return polygon


def _cut(polygon: list[Point], axis: int, bound: float, sign: float) -> list[Point]:
    """Keep the part of a convex polygon where ``sign * (coordinate - bound) >= 0``."""
    distances = [sign * (p[axis] - bound) for p in polygon]
    if min(distances) >= 0:
        return polygon
    if max(distances) < 0:
        return []
    kept: list[Point] = []
    before, d_before = polygon[-1], distances[-1]
    for point, d in zip(polygon, distances, strict=True):
        if (d >= 0) != (d_before >= 0):
            t = d_before / (d_before - d)
            (bx, by), (px, py) = before, point
            kept.append((bx + t * (px - bx), by + t * (py - by)))
        if d >= 0:
            kept.append(point)
        before, d_before = point, d
    return kept


def _area(polygon: list[Point]) -> float:
    """Area of a simple polygon (shoelace formula)."""
    twice = 0.0
    for i, (x, y) in enumerate(polygon):
        px, py = polygon[i - 1]
        twice += px * y - x * py
    return abs(twice) / 2
