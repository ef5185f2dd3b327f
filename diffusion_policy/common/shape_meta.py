"""What ``shape_meta`` of a configuration says about observations and actions.

.. code-block:: yaml

    shape_meta:
      obs:
        image: {shape: [3, 96, 96], type: rgb}      # channels, height, width
        agent_pos: {shape: [2], type: low_dim}      # low_dim is the default type
      action: {shape: [2]}

The order of the observations is kept: it decides the order of the features of some encoders.
"""

import math
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


def parse_shape_meta(shape_meta: Mapping[str, Any] | ShapeMeta) -> ShapeMeta:
    """Reads a ``shape_meta``: a dict or a ``DictConfig``; one that was read already stays as is.

    Raises:
        ConfigError: a part is missing, a shape is impossible, or a type unknown.
    """
    if isinstance(shape_meta, ShapeMeta):
        return shape_meta
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


def check_observations(
    meta: ShapeMeta, obs: Mapping[str, Any], *, n_leading: int, holder: str, remedy: str
) -> None:
    """Compares raw observations with what a shape_meta says about them.

    Args:
        meta, obs, n_leading, holder, remedy: see :func:`check_shapes`.

    Raises:
        ConfigError: a key is missing, a shape differs, or an image is neither uint8 nor floats in
            [0, 1].
    """
    check_shapes(meta, obs, n_leading=n_leading, holder=holder, remedy=remedy)
    for key in meta.rgb:
        _check_image(obs[key], f"{holder} {key!r}")


def check_shapes(
    meta: ShapeMeta, obs: Mapping[str, Any], *, n_leading: int, holder: str, remedy: str
) -> None:
    """Compares the keys and shapes of observations with those of a shape_meta.

    Keys that shape_meta does not name are nobody's business and pass.

    Args:
        obs: arrays or tensors per key, of shape (leading dimensions, *shape).
        n_leading: how many leading dimensions (batch, time) there are.
        holder: what has them, for the message, such as "items of PushTImageDataset hold".
        remedy: what to do when they differ.

    Raises:
        ConfigError: a key is missing or a shape differs.
    """
    for key, expected in meta.obs.items():
        if key not in obs:
            kind = "camera" if key in meta.rgb else "observation"
            found = ", ".join(map(str, obs)) or "nothing"
            raise ConfigError(
                f"shape_meta.obs has the {kind} {key!r}, but {holder} {found}: {remedy}"
            )
        shape = tuple(obs[key].shape[n_leading:])
        if shape != expected:
            raise ConfigError(
                f"shape_meta.obs.{key}.shape is {list(expected)}, but {holder} {key!r} of shape "
                f"{list(shape)}: {remedy}"
            )


def check_encodable(meta: ShapeMeta, obs: Mapping[str, Any]) -> None:
    """Refuses what no encoder of single steps, ``{key: (N, *shape)}``, could encode.

    Raises:
        ConfigError: a key is missing, a shape differs, or an image is not of floats.
    """
    remedy = "make shape_meta and data agree"
    check_shapes(meta, obs, n_leading=1, holder="the encoder was given", remedy=remedy)
    for key in meta.rgb:
        if not obs[key].is_floating_point():
            raise ConfigError(
                f"the encoder was given {key!r} as {obs[key].dtype}; it takes normalised floats: "
                "divide by 255 and apply the normalizer first"
            )


def _check_image(image: Any, holder_and_key: str) -> None:
    dtype = str(image.dtype).removeprefix("torch.")
    advice = "expected uint8, or floats in [0, 1]: convert the images"
    if dtype != "uint8" and "float" not in dtype:
        raise ConfigError(f"{holder_and_key} as {dtype}, {advice}")
    if dtype != "uint8" and math.prod(image.shape):
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):  # a NaN fails too
            raise ConfigError(f"{holder_and_key} as {dtype} from {low:g} to {high:g}, {advice}")
