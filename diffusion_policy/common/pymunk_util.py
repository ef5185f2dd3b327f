"""Short ways to make pymunk bodies."""

from typing import Any

import numpy as np
import pymunk

COLLTYPE_DEFAULT = 0
COLLTYPE_MOUSE = 1
COLLTYPE_BALL = 2


def get_body_type(static: bool = False) -> int:
    """Pymunk's body type: static or dynamic."""
    return pymunk.Body.STATIC if static else pymunk.Body.DYNAMIC


def create_rectangle(
    space: pymunk.Space,
    pos_x: float,
    pos_y: float,
    width: float,
    height: float,
    density: float = 3,
    static: bool = False,
) -> tuple[pymunk.Body, pymunk.Shape]:
    """Add an axis-aligned box centered at (pos_x, pos_y)."""
    body = pymunk.Body(body_type=get_body_type(static))
    body.position = pos_x, pos_y
    return _add(space, body, pymunk.Poly.create_box(body, (width, height)), density)


def create_rectangle_bb(
    space: pymunk.Space, left: float, bottom: float, right: float, top: float, **kwargs: Any
) -> tuple[pymunk.Body, pymunk.Shape]:
    """:func:`create_rectangle` by its bounds."""
    center = (left + right) / 2, (bottom + top) / 2
    return create_rectangle(space, *center, right - left, top - bottom, **kwargs)


def create_circle(
    space: pymunk.Space,
    pos_x: float,
    pos_y: float,
    radius: float,
    density: float = 3,
    static: bool = False,
) -> tuple[pymunk.Body, pymunk.Shape]:
    """Add a disc with the collision type of a ball."""
    body = pymunk.Body(body_type=get_body_type(static))
    body.position = pos_x, pos_y
    shape = pymunk.Circle(body, radius)
    shape.collision_type = COLLTYPE_BALL
    return _add(space, body, shape, density)


def get_body_state(body: pymunk.Body) -> np.ndarray:
    """``[x, y, angle, vx, vy, angular velocity]``, float32."""
    return np.array(
        [*body.position, body.angle, *body.velocity, body.angular_velocity], dtype=np.float32
    )


def _add(
    space: pymunk.Space, body: pymunk.Body, shape: pymunk.Shape, density: float
) -> tuple[pymunk.Body, pymunk.Shape]:
    shape.density = density
    space.add(body, shape)
    return body, shape
