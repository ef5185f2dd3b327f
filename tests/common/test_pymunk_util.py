"""Short ways to make pymunk bodies."""

import numpy as np
import pymunk
import pytest
from pymunk.space_debug_draw_options import SpaceDebugColor

from diffusion_policy.common import pymunk_override
from diffusion_policy.common.pymunk_util import (
    COLLTYPE_BALL,
    create_circle,
    create_rectangle,
    create_rectangle_bb,
    get_body_state,
    get_body_type,
)


def test_boxes_have_their_size_place_and_mass():
    space = pymunk.Space()
    body, shape = create_rectangle(space, 10, 20, 4, 6, density=2)
    space.reindex_shapes_for_body(body)
    assert tuple(body.position) == (10, 20)
    assert body.mass == pytest.approx(2 * 4 * 6)
    assert (shape.bb.left, shape.bb.bottom, shape.bb.right, shape.bb.top) == (8, 17, 12, 23)
    assert shape in space.shapes


def test_boxes_by_bounds_are_the_same_boxes():
    space = pymunk.Space()
    body, shape = create_rectangle_bb(space, left=8, bottom=17, right=12, top=23, static=True)
    assert tuple(body.position) == (10, 20)
    assert body.body_type == get_body_type(static=True) == pymunk.Body.STATIC
    assert shape.area == pytest.approx(24)


def test_discs_collide_as_balls():
    body, shape = create_circle(pymunk.Space(), 1, 2, 3)
    assert shape.collision_type == COLLTYPE_BALL
    assert shape.radius == 3
    assert body.body_type == get_body_type() == pymunk.Body.DYNAMIC


def test_the_state_of_a_body_is_pose_and_velocity():
    body, _ = create_circle(pymunk.Space(), 1, 2, 3)
    body.angle, body.velocity, body.angular_velocity = 0.5, (4, 5), 6
    state = get_body_state(body)
    assert state.dtype == np.float32
    np.testing.assert_allclose(state, [1, 2, 0.5, 4, 5, 6])


def test_light_colors_are_a_fifth_brighter_and_saturate():
    color = SpaceDebugColor(119, 136, 225, 255)
    assert pymunk_override.light_color(color).as_int() == (143, 163, 255, 255)


def test_push_t_uses_the_common_renderer():
    from diffusion_policy.env.pusht import pymunk_override as pusht_override

    assert pusht_override.DrawOptions is pymunk_override.DrawOptions
    assert pusht_override.get_mouse_pos is pymunk_override.get_mouse_pos
