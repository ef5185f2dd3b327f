"""Ways for the agent around the T without touching it, and how fast to go along them."""

import functools
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely

from diffusion_policy.env.pusht.geometry import OUTLINE, Point, Pose, to_local, to_world
from diffusion_policy.env.pusht.world import AGENT_RADIUS

CLEARANCE = AGENT_RADIUS + 2.5  # the agent's center keeps this distance from the T
_ESCAPE_DISTANCE = AGENT_RADIUS + 5.0  # where it goes first after a push
_ROOM = (8.0, 504.0)  # corners of a way stay inside this range
_HUB = (0.0, 40.0)  # ways go around this point of the T

T_SHAPE = shapely.Polygon(OUTLINE)
shapely.prepare(T_SHAPE)


def offset_curve(distance: float, mitred: bool = False) -> shapely.LinearRing:
    """The closed curve at ``distance`` around the T (body frame)."""
    style = "mitre" if mitred else "round"
    return T_SHAPE.buffer(distance, join_style=style, quad_segs=8).exterior


@functools.cache
def _nodes(inflation: float) -> np.ndarray:
    """Corners to walk around, body frame; shape (N, 2)."""
    return np.array(offset_curve(AGENT_RADIUS + inflation, mitred=True).coords)[:-1]


@functools.cache
def _escape_curve() -> shapely.LinearRing:
    return offset_curve(_ESCAPE_DISTANCE)


def _free(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Whether the agent can go straight; (N, 2) and (M, 2) body frame -> bool (N, M)."""
    pairs = np.stack(np.broadcast_arrays(starts[:, None], ends[None]), axis=2)
    too_close = shapely.dwithin(T_SHAPE, shapely.linestrings(pairs), CLEARANCE - 1e-9)
    return np.logical_not(too_close)


def _goes_round(starts: np.ndarray, ends: np.ndarray, turn: int) -> np.ndarray:
    """Whether a straight step turns around the hub towards ``turn`` (+1, -1); -> bool (N, M)."""
    a, b = starts[:, None] - _HUB, ends[None] - _HUB
    return turn * (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]) >= 0


@dataclass
class Way:
    """A way in world coordinates, from the agent to a point."""

    length: float
    points: list[Point]


class RouteMap:
    """Ways from one place to any other, either way round the T.

    Args:
        block: Pose of the T.
        agent: Where the ways begin.
        inflation: Gap to keep at the T's corners, px.
    """

    def __init__(self, block: Pose, agent: Point, inflation: float):
        self._block, self._agent = block, agent
        start = np.array(to_local([agent], block)[0])
        self._escape_length = 0.0
        if T_SHAPE.distance(shapely.Point(start)) < CLEARANCE:
            curve = _escape_curve()
            outside = np.array(curve.interpolate(curve.project(shapely.Point(start))).coords[0])
            self._escape_length = float(np.linalg.norm(outside - start))
            start = outside
        self._start = start
        self._points = np.vstack([start[None], _nodes(inflation)])
        room = np.array(to_world(self._points.tolist(), block))
        inside = np.all((room >= _ROOM[0]) & (room <= _ROOM[1]), axis=1)
        inside[0] = True
        free = _free(self._points, self._points) & inside[:, None] & inside[None]
        steps = np.linalg.norm(self._points[:, None] - self._points[None], axis=-1)
        self._trees = []
        for turn in (1, -1):
            allowed = free & _goes_round(self._points, self._points, turn)
            self._trees.append((turn, *_shortest_paths(np.where(allowed, steps, np.inf))))

    def lengths(self, goals: np.ndarray) -> np.ndarray:
        """Length of the shorter way to each goal (world, (N, 2)); inf where there is none."""
        goals = np.array(to_local(goals.tolist(), self._block))
        return np.min([length.min(axis=0) for length, _ in self._to(goals)], axis=0)

    def ways(self, goal: Point) -> list[Way]:
        """The shortest way in either direction, the shorter one first; may be empty."""
        local = np.array(to_local([goal], self._block))
        ways = []
        for length, before in self._to(local):
            last = int(np.argmin(length[:, 0]))
            if not math.isfinite(length[last, 0]):
                continue
            chain = [goal]
            node = last
            while node != -1:
                chain.append(to_world([self._points[node].tolist()], self._block)[0])
                node = int(before[node])
            if self._escape_length:
                chain.append(self._agent)
            ways.append(Way(float(length[last, 0]), chain[::-1]))
        ways.sort(key=lambda way: way.length)
        if len(ways) == 2 and ways[0].points == ways[1].points:
            ways.pop()
        return ways

    def _to(self, goals: np.ndarray):
        """Per turn: lengths via each last node, (nodes, goals), and the predecessors."""
        free = _free(self._points, goals)
        steps = np.linalg.norm(self._points[:, None] - goals[None], axis=-1)
        for turn, distance, before in self._trees:
            allowed = free & _goes_round(self._points, goals, turn)
            allowed[0] = free[0]  # a straight way is a way in either direction
            total = np.where(allowed, steps, np.inf) + distance[:, None] + self._escape_length
            yield total, before


def _shortest_paths(steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances and predecessors (-1: none) from node 0 (Dijkstra 1959)."""
    distance = np.full(len(steps), np.inf)
    before = np.full(len(steps), -1)
    distance[0] = 0.0
    queue = [(0.0, 0)]
    while queue:
        so_far, node = heapq.heappop(queue)
        if so_far > distance[node]:
            continue
        for neighbour, step in enumerate(steps[node]):
            if so_far + step < distance[neighbour]:
                distance[neighbour] = so_far + step
                before[neighbour] = node
                heapq.heappush(queue, (so_far + step, neighbour))
    return distance, before


def pace(points: Sequence[Point], cruise: float, arrival: float) -> list[Point]:
    """Targets, one per action, along a way: gentle start, slow corners, braking before the end.

    Args:
        points: Corners of the way.
        cruise: Top speed, px per action.
        arrival: Speed at the end, px per action.
    """
    path = np.array(points)
    legs = np.diff(path, axis=0)
    lengths = np.linalg.norm(legs, axis=1)
    keep = lengths > 1e-6
    legs, lengths = legs[keep], lengths[keep]
    if len(legs) == 0:
        return [points[-1]]
    path = np.vstack([path[:1], path[:1] + np.cumsum(legs, axis=0)])
    marks = np.concatenate([[0.0], np.cumsum(lengths)])
    limits = [*_corner_speeds(legs / lengths[:, None], cruise), arrival]

    targets = []
    travelled, speed = 0.0, 6.0 - _ACCELERATION
    while travelled < marks[-1]:
        speed = min(speed + _ACCELERATION, cruise)
        for mark, limit in zip(marks[1:], limits, strict=True):
            if mark > travelled:
                speed = min(speed, math.sqrt(limit**2 + 2 * _ACCELERATION * (mark - travelled)))
        travelled = min(travelled + max(speed, 3.0), marks[-1])
        targets.append(
            (
                float(np.interp(travelled, marks, path[:, 0])),
                float(np.interp(travelled, marks, path[:, 1])),
            )
        )
    return targets


_ACCELERATION = 5.0  # px per action, per action


def _corner_speeds(directions: np.ndarray, cruise: float) -> list[float]:
    """Speed at each inner corner: cruise when straight, 7 px per action from right angles on."""
    cosines = np.sum(directions[:-1] * directions[1:], axis=1).clip(0, 1)
    slow = min(7.0, cruise)
    return [slow + (cruise - slow) * float(c) ** 1.5 for c in cosines]
