"""A private copy of the table, to try things out."""

from typing import NamedTuple

from diffusion_policy.env.pusht.geometry import Point, Pose, Vector, goal_coverage
from diffusion_policy.env.pusht.world import PushTWorld


class Situation(NamedTuple):
    """Everything that decides what happens next (up to the solver's contact cache)."""

    agent: Point
    agent_velocity: Point
    block: Pose
    block_velocity: Point
    block_spin: float

    def with_agent_at(self, position: Point) -> "Situation":
        """The same block with the agent at rest somewhere else."""
        return Situation(position, (0.0, 0.0), self.block, (0.0, 0.0), 0.0)


def observe(world: PushTWorld) -> Situation:
    """The situation on a table."""
    agent_vx, agent_vy = world.agent.velocity
    block_vx, block_vy = world.block.velocity
    return Situation(
        world.agent_position,
        (agent_vx, agent_vy),
        world.block_pose,
        (block_vx, block_vy),
        world.block.angular_velocity,
    )


class Scratch:
    """Replays what would happen, without touching the table it is about.

    Agrees with the real table up to the contact cache, which cannot be copied: for pushes (not
        collisions at full
    speed) that is far below a pixel.
    """

    def __init__(self):
        self._world = PushTWorld(count_contacts=False)
        (self._agent_shape,) = self._world.agent.shapes

    def load(self, situation: Situation) -> None:
        """Start from ``situation``."""
        world = self._world
        agent, block = world.agent, world.block
        agent.position = situation.agent
        agent.velocity = situation.agent_velocity
        block.angle = situation.block[2]  # first: turning happens about the center of gravity
        block.position = situation.block[:2]
        block.velocity = situation.block_velocity
        block.angular_velocity = situation.block_spin
        # A shape that is taken out and put back has no remembered contacts: no memory of the
        # previous trial.
        world.space.remove(self._agent_shape)
        world.space.add(self._agent_shape)

    def advance(self, target: Vector) -> None:
        """One control period."""
        self._world.advance(target)

    @property
    def agent(self) -> Point:
        """Where the agent is."""
        return self._world.agent_position

    @property
    def block(self) -> Pose:
        """Where the T is."""
        return self._world.block_pose

    @property
    def coverage(self) -> float:
        """Share of the goal covered."""
        return goal_coverage(self.block)
