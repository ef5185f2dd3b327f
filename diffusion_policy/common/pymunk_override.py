"""Pymunk's pygame debug renderer with the look of Push-T.

Only the differences to ``pymunk.pygame_util`` (MIT) are here: discs carry no orientation line but a
lighter core, and polygons get a lighter fill and a fat outline. The pictures are observations of a
published benchmark, so the rules, down to the rounding, may not change.
"""

import os

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import pygame
from pymunk import pygame_util
from pymunk.pygame_util import from_pygame, get_mouse_pos, to_pygame
from pymunk.space_debug_draw_options import SpaceDebugColor

__all__ = [
    "DrawOptions",
    "from_pygame",
    "get_mouse_pos",
    "light_color",
    "positive_y_is_up",
    "to_pygame",
]

positive_y_is_up = False
_EDGE_RADIUS = 2
_RIM_WIDTH = 4


def light_color(color: SpaceDebugColor) -> SpaceDebugColor:
    """The color 1.2 times brighter, saturating at 255."""
    return SpaceDebugColor(*(min(1.2 * channel, 255) for channel in color))


class DrawOptions(pygame_util.DrawOptions):
    """Draws a ``pymunk.Space`` on a pygame surface: ``space.debug_draw(DrawOptions(surface))``."""

    def draw_circle(self, pos, angle, radius, outline_color, fill_color) -> None:
        """A disc with a lighter core."""
        center = to_pygame(pos, self.surface)
        pygame.draw.circle(self.surface, fill_color.as_int(), center, round(radius), 0)
        core = light_color(fill_color).as_int()
        pygame.draw.circle(self.surface, core, center, round(radius - _RIM_WIDTH), 0)

    def draw_polygon(self, verts, radius, outline_color, fill_color) -> None:
        """A polygon with a light fill and edges in the full color."""
        corners = [to_pygame(v, self.surface) for v in verts]
        pygame.draw.polygon(self.surface, light_color(fill_color).as_int(), corners)
        for i, corner in enumerate(verts):
            following = verts[(i + 1) % len(verts)]
            self.draw_fat_segment(corner, following, _EDGE_RADIUS, fill_color, fill_color)
