"""Batched observations in memory that processes can share, laid out by an observation space."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from diffusion_policy.common.errors import ConfigError

# Makes zeroed memory of so many bytes: `bytearray` for one process, a context's RawArray for
# several.
Allocate = Callable[[int], Any]


def shared_memory_of(context: Any) -> Allocate:
    """Memory that the processes of a context inherit; it has no name and cannot leak."""
    return lambda n_bytes: context.RawArray(ctypes.c_byte, n_bytes)


class ObservationBuffer:
    """One row per environment, one array per leaf of the space, cast to the dtype of the space.

    Args:
        space: Of one environment; Dict and Tuple may be nested, everything else needs a shape and a
            dtype.
        n_rows: Number of environments.
        allocate: Where the memory comes from.
    """

    def __init__(self, space: spaces.Space, n_rows: int, allocate: Allocate):
        self.space = space
        self.n_rows = n_rows
        self._memory = [
            allocate(max(1, n_rows * _n_bytes(path, leaf))) for path, leaf in _leaves(space)
        ]
        self._map()

    def _map(self) -> None:
        self._arrays = [
            np.frombuffer(memory, leaf.dtype, self.n_rows * int(np.prod(leaf.shape))).reshape(
                self.n_rows, *leaf.shape
            )
            for memory, (_, leaf) in zip(self._memory, _leaves(self.space), strict=True)
        ]

    def __getstate__(self) -> dict[str, Any]:
        # Arrays would be pickled by value: the other process maps the same memory anew.
        return {k: v for k, v in self.__dict__.items() if k != "_arrays"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def write(self, row: int, obs: Any) -> None:
        """Store the observation of one environment.

        Raises:
            ConfigError: Its shape is not that of the space.
        """
        for (path, leaf), array in zip(_leaves(self.space), self._arrays, strict=True):
            value = obs
            for key in path:
                value = value[key]
            if np.shape(value) != leaf.shape:
                name = f"observation {'/'.join(map(str, path))}".strip()
                raise ConfigError(
                    f"the {name} has shape {np.shape(value)}, but the observation space says "
                    f"{leaf.shape}"
                )
            array[row] = value

    def read(self, copy: bool = True) -> Any:
        """All rows (n_rows, ...), nested like the space; without ``copy``, the live memory."""
        arrays = iter([a.copy() for a in self._arrays] if copy else self._arrays)
        return _build(self.space, arrays)


def _leaves(space: spaces.Space, path: tuple = ()) -> list[tuple[tuple, Any]]:
    """(keys that lead to it, space) of everything that is stored as one array."""
    if isinstance(space, spaces.Dict):
        return [leaf for k, s in space.spaces.items() for leaf in _leaves(s, (*path, k))]
    if isinstance(space, spaces.Tuple):
        return [leaf for i, s in enumerate(space.spaces) for leaf in _leaves(s, (*path, i))]
    return [(path, space)]


def _n_bytes(path: tuple, leaf: spaces.Space) -> int:
    if leaf.shape is None or leaf.dtype is None:
        raise ConfigError(
            f"an observation space of type {type(leaf).__name__} {path or ''} has no fixed shape "
            "and dtype, expected Box, Discrete, MultiBinary, MultiDiscrete, or a Dict or Tuple of "
            "them"
        )
    return int(np.prod(leaf.shape)) * leaf.dtype.itemsize


def _build(space: spaces.Space, arrays: Any) -> Any:
    if isinstance(space, spaces.Dict):
        return {k: _build(s, arrays) for k, s in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_build(s, arrays) for s in space.spaces)
    return next(arrays)
