"""Push-T's renderer under the name it was published with; the code is in ``common``."""

from diffusion_policy.common.pymunk_override import (
    DrawOptions,
    from_pygame,
    get_mouse_pos,
    light_color,
    positive_y_is_up,
    to_pygame,
)

__all__ = [
    "DrawOptions",
    "from_pygame",
    "get_mouse_pos",
    "light_color",
    "positive_y_is_up",
    "to_pygame",
]
