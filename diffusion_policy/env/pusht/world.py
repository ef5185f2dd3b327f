"""The physics of Push-T: a table with walls, a position-controlled round agent, and the T block.

One class builds and advances it, for the environments and for the scripted expert alike. Every
number here is part of a published benchmark, including two mistakes of the original that decide how
the block turns: the stem's moment of inertia is computed from the bar, and friction never reaches
the shapes.
"""

import pymunk

from diffusion_policy.env.pusht.geometry import BAR, STEM, T_CENTER_OF_GRAVITY, Point, Pose, Vector

WINDOW_SIZE = 512
AGENT_RADIUS = 15.0
SIM_HZ = 100
CONTROL_HZ = 10
SUBSTEPS = SIM_HZ // CONTROL_HZ
DT = 1.0 / SIM_HZ
K_P, K_V = 100.0, 20.0

_WALLS = (
    ((5, 506), (5, 5)),
    ((5, 5), (506, 5)),
    ((506, 5), (506, 506)),
    ((5, 506), (506, 506)),
)
_WALL_COLOR = (211, 211, 211, 255)  # LightGray
_AGENT_COLOR = (65, 105, 225, 255)  # RoyalBlue
_BLOCK_COLOR = (119, 136, 153, 255)  # LightSlateGray


class PushTWorld:
    """A fresh Push-T table.

    Args:
        count_contacts: Count contact points while advancing. Costs a Python call per contact and
            substep.

    Attributes:
        space: The pymunk space.
        agent: Kinematic disc. It ignores walls, so it can leave the window.
        block: The T. Damping 0 stops it after every substep: pushing is quasi-static.
        n_contact_points: Contact points seen during the last :meth:`advance`.
    """

    def __init__(self, count_contacts: bool = True):
        self.space = pymunk.Space()
        self.space.gravity = 0, 0
        self.space.damping = 0
        for a, b in _WALLS:
            wall = pymunk.Segment(self.space.static_body, a, b, 2)
            _paint(wall, _WALL_COLOR)
            self.space.add(wall)
        self.agent = self._add_agent()
        self.block = self._add_block()
        self.n_contact_points = 0
        if count_contacts:
            self.space.on_collision(0, 0, post_solve=self._on_contact)

    @property
    def agent_position(self) -> Point:
        """Center of the agent."""
        x, y = self.agent.position
        return x, y

    @property
    def block_pose(self) -> Pose:
        """x, y and angle (not wrapped) of the block."""
        x, y = self.block.position
        return x, y, self.block.angle

    def advance(self, target: Vector) -> None:
        """Let the agent follow ``target`` (x, y), PD-controlled, for one control period (0.1 s)."""
        tx, ty = float(target[0]), float(target[1])
        agent, space = self.agent, self.space
        self.n_contact_points = 0
        # Nothing pushes a kinematic body, so its motion can be followed here instead of read back
        # every substep.
        (x, y), (vx, vy) = agent.position, agent.velocity
        for _ in range(SUBSTEPS):
            vx += (K_P * (tx - x) + K_V * (0.0 - vx)) * DT
            vy += (K_P * (ty - y) + K_V * (0.0 - vy)) * DT
            agent.velocity = vx, vy
            space.step(DT)
            x += vx * DT
            y += vy * DT

    def place(self, state: Vector, legacy: bool = False) -> None:
        """Put agent and block somewhere, then resolve overlaps with one substep.

        Args:
            state: agent x, y, block x, y, block angle.
            legacy: Set the block's position before its angle, as older versions of the benchmark
                did. Turning then happens about the center of gravity and moves the block away from
                the requested position.
        """
        x, y, block_x, block_y, angle = (float(v) for v in state)
        self.agent.position = x, y
        if legacy:
            self.block.position = block_x, block_y
            self.block.angle = angle
        else:
            self.block.angle = angle
            self.block.position = block_x, block_y
        self.space.step(DT)

    def _add_agent(self) -> pymunk.Body:
        body = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        body.position = 256, 400
        shape = pymunk.Circle(body, AGENT_RADIUS)
        _paint(shape, _AGENT_COLOR)
        self.space.add(body, shape)
        return body

    def _add_block(self) -> pymunk.Body:
        moment = 2 * pymunk.moment_for_poly(1, BAR)
        body = pymunk.Body(1, moment)
        shapes = [pymunk.Poly(body, BAR), pymunk.Poly(body, STEM)]
        for shape in shapes:
            _paint(shape, _BLOCK_COLOR)
        body.center_of_gravity = T_CENTER_OF_GRAVITY
        body.position = 256, 300
        body.angle = 0
        self.space.add(body, *shapes)
        return body

    def _on_contact(self, arbiter: pymunk.Arbiter, space: pymunk.Space, data: object) -> None:
        self.n_contact_points += len(arbiter.contact_point_set.points)


def _paint(shape: pymunk.Shape, color: tuple[int, int, int, int]) -> None:
    shape.color = color  # type: ignore[attr-defined]  # read by pymunk's debug renderer
