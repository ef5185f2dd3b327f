"""What ``shape_meta`` of a configuration says about observations and actions.

.. code-block:: yaml

    shape_meta:
      obs:
        image: {shape: [3, 96, 96], type: rgb}      # channels, height, width
        agent_pos: {shape: [2], type: low_dim}      # low_dim is the default type
      action: {shape: [2]}

The order of the observations is kept: it decides the order of the features of some encoders.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusion_policy.common.errors import ConfigError

TYPES = ("rgb", "low_dim")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapeMeta:
    """Shapes per key, in the order of the configuration.

    Attributes:
        rgb: images, (C, H, W).
        low_dim: everything else, (D,) or whatever the task has.
        action: of one step, (Da,).
    """

    rgb: dict[str, Shape]
    low_dim: dict[str, Shape]
    action: Shape
    keys: tuple[str, ...]  # of all observations

    @property
    def obs(self) -> dict[str, Shape]:
        """All observations, in the order of the configuration."""
        shapes = self.rgb | self.low_dim
        return {key: shapes[key] for key in self.keys}


def parse_shape_meta(shape_meta: Mapping[str, Any]) -> ShapeMeta:
    """Reads a ``shape_meta`` (a dict or a ``DictConfig``).

    Raises:
        ConfigError: a part is missing, a shape is impossible, or a type unknown.
    """
    for part in ("obs", "action"):
        if part not in shape_meta:
            raise ConfigError(
                f"shape_meta has no {part!r} (it has {sorted(shape_meta)}); give it obs and action"
            )
    rgb: dict[str, Shape] = {}
    low_dim: dict[str, Shape] = {}
    for key, entry in shape_meta["obs"].items():
        kind = entry.get("type", "low_dim")
        shape = _shape(f"obs.{key}", entry)
        if kind not in TYPES:
            raise ConfigError(
                f"shape_meta.obs.{key}.type is {kind!r}; expected one of {', '.join(TYPES)}"
            )
        if kind == "rgb" and len(shape) != 3:
            raise ConfigError(
                f"shape_meta.obs.{key}.shape is {list(shape)}; an image needs "
                "[channels, height, width]"
            )
        (rgb if kind == "rgb" else low_dim)[key] = shape
    action = _shape("action", shape_meta["action"])
    return ShapeMeta(rgb, low_dim, action, tuple(shape_meta["obs"]))


def _shape(name: str, entry: Mapping[str, Any]) -> Shape:
    shape = entry.get("shape")
    if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ConfigError(
            f"shape_meta.{name}.shape is {shape}; expected a list of whole numbers above 0"
        )
    return tuple(shape)
