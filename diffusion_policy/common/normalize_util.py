"""Normalizers from the statistics of a field.

``stat`` is a dictionary of arrays ``min``, ``max``, ``mean``, ``std``, each (D,), as
:func:`array_to_stats` makes it.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch

from diffusion_policy.model.common.normalizer import SingleFieldLinearNormalizer, range_scale_offset

Stat = Mapping[str, np.ndarray]
POSITION = slice(0, 3)


class _Rotation(Protocol):
    def forward(self, x: Any) -> Any: ...


def array_to_stats(arr: np.ndarray) -> dict[str, np.ndarray]:
    """min, max, mean and population std of ``arr`` (N, D) over N."""
    return {
        "min": np.min(arr, axis=0),
        "max": np.max(arr, axis=0),
        "mean": np.mean(arr, axis=0),
        "std": np.std(arr, axis=0),
    }


def get_range_normalizer_from_stat(
    stat: Stat, output_max: float = 1, output_min: float = -1, range_eps: float = 1e-7
) -> SingleFieldLinearNormalizer:
    """Maps [min, max] to [output_min, output_max]; dimensions that do not move go to the middle."""
    minimum, maximum = (torch.as_tensor(np.asarray(stat[name])) for name in ("min", "max"))
    scale, offset = range_scale_offset(minimum, maximum, output_min, output_max, range_eps)
    return SingleFieldLinearNormalizer.create_manual(scale, offset, stat)


def get_image_range_normalizer() -> SingleFieldLinearNormalizer:
    """Maps images in [0, 1] to [-1, 1]; the statistics are those of uniform noise."""
    stats = {"min": 0.0, "max": 1.0, "mean": 0.5, "std": np.sqrt(1 / 12)}
    return SingleFieldLinearNormalizer.create_manual(
        scale=np.array([2], dtype=np.float32),
        offset=np.array([-1], dtype=np.float32),
        input_stats_dict={
            name: np.array([value], dtype=np.float32) for name, value in stats.items()
        },
    )


def get_identity_normalizer_from_stat(stat: Stat) -> SingleFieldLinearNormalizer:
    """Changes nothing, but remembers the statistics."""
    scale = np.ones_like(stat["min"])
    return SingleFieldLinearNormalizer.create_manual(scale, np.zeros_like(scale), stat)


def robomimic_abs_action_normalizer_from_stat(
    stat: Stat, rotation_transformer: _Rotation
) -> SingleFieldLinearNormalizer:
    """Absolute actions [position 3, rotation 3, gripper]: the position is scaled to [-1, 1].

    The rotation is left alone, at the length that ``rotation_transformer.forward`` gives it: its
    representation is bounded already, and scaling its components separately would not keep it a
    rotation.
    """
    rotation = np.asarray(rotation_transformer.forward(stat["mean"][3:6]))
    gripper = stat["mean"][6:]
    return _concatenate(_position(stat, POSITION), _unit(rotation), _unit(gripper))


def robomimic_abs_action_only_normalizer_from_stat(stat: Stat) -> SingleFieldLinearNormalizer:
    """As above for data whose rotation is converted already: all but the position is left alone."""
    return _concatenate(_position(stat, POSITION), _unit(stat["mean"][3:]))


def robomimic_abs_action_only_dual_arm_normalizer_from_stat(
    stat: Stat,
) -> SingleFieldLinearNormalizer:
    """As above for two arms, each half of the dimensions."""
    half = len(stat["mean"]) // 2
    parts = []
    for start in (0, half):
        parts.append(_position(stat, slice(start, start + 3)))
        parts.append(_unit(stat["mean"][start + 3 : start + half]))
    return _concatenate(*parts)


def _position(stat: Stat, dims: slice) -> SingleFieldLinearNormalizer:
    return get_range_normalizer_from_stat({name: value[dims] for name, value in stat.items()})


def _unit(like: np.ndarray) -> SingleFieldLinearNormalizer:
    """The identity for values of the shape of ``like`` that fill [-1, 1]."""
    fill = {"min": -1, "max": 1, "mean": 0, "std": 1}
    return get_identity_normalizer_from_stat(
        {name: np.full_like(like, value) for name, value in fill.items()}
    )


def _concatenate(*parts: SingleFieldLinearNormalizer) -> SingleFieldLinearNormalizer:
    """One normalizer for the dimensions of all parts, in order."""
    stats = [part.get_input_stats() for part in parts]
    return SingleFieldLinearNormalizer.create_manual(
        scale=torch.cat([part.params_dict["scale"] for part in parts]),
        offset=torch.cat([part.params_dict["offset"] for part in parts]),
        input_stats_dict={name: torch.cat([stat[name] for stat in stats]) for name in stats[0]},
    )
