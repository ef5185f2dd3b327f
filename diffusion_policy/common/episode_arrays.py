"""Episodes as a few long arrays, time first: what a replay buffer holds, and how it is edited.

Where they come from and go to: :mod:`diffusion_policy.common.replay_buffer`.
"""

import functools
from collections.abc import ItemsView, KeysView, Mapping, ValuesView
from typing import Any, Literal, TypeAlias

import numpy as np
import zarr

from diffusion_policy.common.episode_store import atomic, commit_ends, settle
from diffusion_policy.common.errors import DataError
from diffusion_policy.common.zarr_util import (
    create_array,
    resolve_chunks,
    resolve_compressors,
    save_meta,
    write_rows,
)
from diffusion_policy.storage.nodes import arrays_in, store_name

Array: TypeAlias = np.ndarray | zarr.Array
#: ``{key: chunks}``, or one chunk shape for all keys.
Chunks: TypeAlias = dict | tuple
#: ``{key: compressor}``, or one compressor for all keys: ``'default'``, ``'disk'``, a codec, None.
Compressors: TypeAlias = Any


class EpisodeArrays:
    """The arrays of all episodes, and where each episode ends.

    Args:
        root: a zarr group, or a dict ``{'data': {key: array}, 'meta': {'episode_ends': array}}``.

    Raises:
        DataError: when ``data``, ``meta`` or ``episode_ends`` is missing, the ends do not increase,
            or an array's length is not the last one.
    """

    def __init__(self, root: zarr.Group | dict):
        self.root = root
        self._spare: dict[str, np.ndarray] = {}  # numpy: allocations longer than what they hold
        for name in ("data", "meta", "meta/episode_ends"):
            if not _contains(root, name):
                raise DataError(
                    f"{self.name} holds no replay buffer: {name!r} is missing; groups 'data' and "
                    f"'meta' with 'meta/episode_ends' were expected"
                )
        lengths = self.episode_lengths
        if (lengths < 0).any():
            raise DataError(
                f"{self.name}: episode {int(np.argmin(lengths))} ends before it begins; "
                f"'meta/episode_ends' is damaged, get the data again"
            )
        n_steps = int(lengths.sum())
        for key, array in self.items():
            if array.ndim == 0 or array.shape[0] != n_steps:
                raise DataError(
                    f"{self.name}: array {key!r} has shape {array.shape}, but the last of the "
                    f"{len(lengths)} episodes ends at step {n_steps}; the store is incomplete, "
                    f"get the data again"
                )

    # ---- properties ------------------------------------------------------------------------------

    @functools.cached_property
    def data(self) -> zarr.Group | dict[str, np.ndarray]:
        """Group or dict with one array ``(n_steps, ...)`` per key."""
        return self.root["data"]  # type: ignore[return-value]

    @functools.cached_property
    def meta(self) -> zarr.Group | dict[str, np.ndarray]:
        """Group or dict with ``episode_ends`` and other small arrays."""
        return self.root["meta"]  # type: ignore[return-value]

    @property
    def backend(self) -> Literal["numpy", "zarr"]:
        """Where the arrays live."""
        return "zarr" if isinstance(self.root, zarr.Group) else "numpy"

    @property
    def name(self) -> str:
        """The place of the buffer, for messages."""
        return (
            store_name(self.root) if isinstance(self.root, zarr.Group) else "the buffer in memory"
        )

    @property
    def episode_ends(self) -> Array:
        """Exclusive end of every episode, i64 ``(n_episodes,)``."""
        return self.meta["episode_ends"]  # type: ignore[return-value]

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return self.episode_ends.shape[0]

    @property
    def n_steps(self) -> int:
        """Number of steps of all episodes."""
        return int(self.episode_ends[-1]) if self.n_episodes else 0  # type: ignore[arg-type]

    @property
    def episode_lengths(self) -> np.ndarray:
        """Number of steps of every episode, i64 ``(n_episodes,)``."""
        return np.diff(np.asarray(self.episode_ends[:]), prepend=0)

    @property
    def chunk_size(self) -> int | None:
        """First chunk length of the first zarr array; None in memory."""
        first = next(iter(self.values()), None)
        return first.chunks[0] if isinstance(first, zarr.Array) else None

    def keys(self) -> KeysView[str]:
        """Names of the data arrays."""
        return arrays_in(self.data).keys()

    def values(self) -> ValuesView[Array]:
        """The data arrays."""
        return arrays_in(self.data).values()

    def items(self) -> ItemsView[str, Array]:
        """``(name, array)`` of the data arrays."""
        return arrays_in(self.data).items()

    def __getitem__(self, key: str) -> Array:
        return self.data[key]  # type: ignore[return-value]

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def __repr__(self) -> str:
        lines = [f"ReplayBuffer({self.backend}, {self.n_episodes} episodes, {self.n_steps} steps)"]
        lines += [f"  data/{key} {a.shape} {a.dtype}" for key, a in self.items()]
        lines += [f"  meta/{key} {a.shape} {a.dtype}" for key, a in arrays_in(self.meta).items()]
        return "\n".join(lines)

    def get_episode_idxs(self) -> np.ndarray:
        """The episode of every step, i64 ``(n_steps,)``."""
        return np.repeat(np.arange(self.n_episodes), self.episode_lengths)

    # ---- editing ---------------------------------------------------------------------------------

    def update_meta(self, data: Mapping[str, Any]) -> None:
        """Store small arrays under ``/meta``, replacing those of the same name.

        Raises:
            TypeError: when a value is no array of numbers.
        """
        arrays = {key: np.asarray(value) for key, value in data.items()}
        for key, array in arrays.items():
            if array.dtype == object:
                raise TypeError(f"meta value {key!r} is no array of numbers: {data[key]!r}")
        if isinstance(self.meta, zarr.Group):
            with atomic(self.root):  # type: ignore[arg-type]
                save_meta(self.meta, arrays)
        else:
            self.meta.update(arrays)

    def add_episode(
        self,
        data: Mapping[str, np.ndarray],
        chunks: Chunks = {},  # noqa: B006
        compressors: Compressors = {},  # noqa: B006
    ) -> None:
        """Append one episode; durable on return in a store of :meth:`create_from_path`.

        Args:
            data: one array ``(T, ...)`` per key, all of the same length. A key the buffer does not
                have yet is created, with zeros for the earlier episodes.
            chunks: chunks of new zarr arrays (default: chosen by the size of this episode).
            compressors: compressors of new zarr arrays.

        Raises:
            DataError: when the episode is empty, lacks a key of the buffer, has arrays of different
                lengths or of another shape than before, or cannot be written. The buffer is
                unchanged then.
        """
        data = {key: np.asarray(value) for key, value in data.items()}
        start = self.n_steps
        stop = start + self._check_episode(data)
        try:
            for key in [] if self.n_episodes else set(self.keys()) - set(data):
                del self.data[key]  # type: ignore[union-attr]
            for key, value in data.items():
                if self._fits(key, value):
                    self._resize(key, stop)
                else:
                    self._create(key, stop, value, chunks, compressors)
                _write(self[key], start, value)
            self._set_ends(np.append(self.episode_ends[:], stop))
        except OSError as error:
            raise DataError(
                f"{self.name}: the episode could not be written ({error.strerror or error}); the "
                f"{self.n_episodes} earlier episodes are intact, free some space and record again"
            ) from error

    extend = add_episode

    def drop_episode(self) -> None:
        """Remove the last episode."""
        if self.n_episodes == 0:
            raise IndexError("the buffer holds no episode to drop")
        ends = np.asarray(self.episode_ends[:-1])
        self._set_ends(ends)  # first: rows behind the last end are what a repair expects
        for key in list(self.keys()):
            self._resize(key, self.n_steps)
        if isinstance(self.root, zarr.Group):
            settle(self.root)

    def pop_episode(self) -> dict[str, np.ndarray]:
        """Remove the last episode and return a copy of it."""
        episode = self.get_episode(-1, copy=True)
        self.drop_episode()
        return episode

    def _check_episode(self, data: Mapping[str, np.ndarray]) -> int:
        """Return the number of steps of an episode that fits the buffer."""
        lengths = {key: value.shape[0] if value.ndim else 0 for key, value in data.items()}
        if not data or 0 in lengths.values() or len(set(lengths.values())) != 1:
            raise DataError(
                f"an episode needs arrays of one common length of at least 1, one per key; "
                f"got lengths {lengths}"
            )
        missing = sorted(set(self.keys()) - set(data))
        if missing and self.n_episodes:
            raise DataError(
                f"the episode lacks {missing}: every episode of {self.name} has the keys "
                f"{sorted(self.keys())}"
            )
        for key, value in data.items():
            if self.n_episodes and key in self and not self._fits(key, value):
                raise DataError(
                    f"the episode's {key!r} has steps of shape {value.shape[1:]}, those of "
                    f"{self.name} have shape {self[key].shape[1:]}"
                )
        return next(iter(lengths.values()))

    def _fits(self, key: str, value: np.ndarray) -> bool:
        """Whether an array is there that takes such steps.

        Where no episode is, arrays of another shape may be: those of a first episode that was never
        finished. They are replaced.
        """
        return key in self and value.shape[1:] == self[key].shape[1:]

    def _create(
        self, key: str, n_steps: int, like: np.ndarray, chunks: Chunks, compressors: Compressors
    ) -> None:
        shape = (n_steps, *like.shape[1:])
        if isinstance(self.data, dict):
            self.data[key] = np.zeros(shape, dtype=like.dtype)
            return
        layout = resolve_chunks(chunks, key, like), resolve_compressors(compressors, key, like)
        array = create_array(self.data, key, shape, like.dtype, *layout)
        for start in range(0, self.n_steps, array.chunks[0]):  # a missing chunk means damage
            rows = min(array.chunks[0], self.n_steps - start)
            write_rows(array, start, np.zeros((rows, *shape[1:]), like.dtype))

    def _resize(self, key: str, n_steps: int) -> None:
        array = self[key]
        if isinstance(array, zarr.Array):
            array.resize((n_steps, *array.shape[1:]))
        else:
            self.data[key] = self._resized(key, array, n_steps)  # type: ignore[index]

    def _resized(self, key: str, array: np.ndarray, n_steps: int) -> np.ndarray:
        """Grow geometrically: appending costs linear time, and views handed out stay valid."""
        if n_steps <= len(array):
            self._spare.pop(key, None)  # views of dropped steps must not see what comes next
            return array[:n_steps]
        spare = self._spare.get(key)
        if spare is None or array.base is not spare or n_steps > len(spare):
            spare = np.zeros((2 * n_steps, *array.shape[1:]), dtype=array.dtype)
            spare[: len(array)] = array
            self._spare[key] = spare
        return spare[:n_steps]

    def _set_ends(self, ends: np.ndarray) -> None:
        if isinstance(self.root, zarr.Group):
            commit_ends(self.root, ends)
        else:
            self.root["meta"]["episode_ends"] = ends

    # ---- reading ---------------------------------------------------------------------------------

    def get_episode_slice(self, idx: int) -> slice:
        """The steps of episode ``idx`` (0 or more)."""
        ends = np.asarray(self.episode_ends[:])
        if not 0 <= idx < len(ends):
            raise IndexError(f"episode {idx} of {len(ends)}")
        return slice(int(ends[idx - 1]) if idx else 0, int(ends[idx]))

    def get_episode(self, idx: int, copy: bool = False) -> dict[str, np.ndarray]:
        """The arrays of episode ``idx`` (negative: from the end); views unless ``copy``."""
        steps = self.get_episode_slice(idx + self.n_episodes if idx < 0 else idx)
        return self.get_steps_slice(steps.start, steps.stop, copy=copy)

    def get_steps_slice(
        self, start: int | None, stop: int | None, step: int | None = None, copy: bool = False
    ) -> dict[str, np.ndarray]:
        """``array[start:stop:step]`` of every key; views in memory unless ``copy``."""
        steps = slice(start, stop, step)
        return {k: np.array(a[steps], copy=copy or None) for k, a in self.items()}


def _contains(root: zarr.Group | dict, path: str) -> bool:
    """Whether ``'group/name'`` exists in a group or nested dict."""
    group, _, name = path.partition("/")
    return group in root and (not name or name in root[group])


def _write(array: Array, start: int, values: np.ndarray) -> None:
    if isinstance(array, zarr.Array):
        write_rows(array, start, values)
    else:
        array[start : start + len(values)] = values
