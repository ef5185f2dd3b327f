"""The replay buffer: episodes of demonstrations as a few long arrays, time first.

    <root>/data/<key>          (n_steps, ...)  one array per key, all of the same length
    <root>/meta/episode_ends   (n_episodes,)   i64, where each episode ends (exclusive); the last
    one is n_steps <root>/meta/<other>        small arrays

Two backends behind one interface: ``numpy`` (everything in memory; what data sets train from) and
``zarr`` (directory, zip or memory store of zarr format 2; what is on disk).
"""

import contextlib
import functools
import pathlib
from collections.abc import ItemsView, KeysView, Mapping, ValuesView
from typing import Any, Literal, TypeAlias

import numpy as np
import zarr
from zarr.storage import MemoryStore, StoreLike

from diffusion_policy.common.episode_store import (
    Mode,
    commit_ends,
    finished_ends,
    is_clean,
    new_store,
    open_root,
)
from diffusion_policy.common.errors import DataError
from diffusion_policy.common.zarr_util import (
    arrays_in,
    check_chunks_compatible,
    compressor_of,
    create_array,
    get_optimal_chunks,
    read_array,
    rechunk_recompress_array,
    resolve_chunks,
    resolve_compressors,
    save_array,
    save_data,
    save_meta,
    store_name,
    write_rows,
)

__all__ = [
    "ReplayBuffer",
    "check_chunks_compatible",
    "get_optimal_chunks",
    "rechunk_recompress_array",
]

Array: TypeAlias = np.ndarray | zarr.Array
#: ``{key: chunks}``, or one chunk shape for all keys.
Chunks: TypeAlias = dict | tuple
#: ``{key: compressor}``, or one compressor for all keys: ``'default'``, ``'disk'``, a codec, None.
Compressors: TypeAlias = Any


class ReplayBuffer:
    """Episodes in memory or in a zarr store.

    Args:
        root: a zarr group, or a dict ``{'data': {key: array}, 'meta': {'episode_ends': array,
            ...}}``.

    Raises:
        DataError: when ``data``, ``meta`` or ``episode_ends`` is missing, or an array's length is
            not the last episode end.
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
        n_steps = self.n_steps
        for key, array in self.items():
            if array.ndim == 0 or array.shape[0] != n_steps:
                raise DataError(
                    f"{self.name}: array {key!r} has shape {array.shape}, but the last of the "
                    f"{self.n_episodes} episodes ends at step {n_steps}; the store is "
                    f"incomplete, get the data again"
                )

    # ---- construction ----------------------------------------------------------------------------

    @classmethod
    def create_empty_zarr(
        cls, storage: StoreLike | None = None, root: zarr.Group | None = None
    ) -> "ReplayBuffer":
        """An empty buffer in ``root``, or in a new group of ``storage`` (default: in memory)."""
        if root is None:
            root = zarr.open_group(MemoryStore() if storage is None else storage, zarr_format=2)
        # 'data' comes last: its presence says that the layout is complete
        ends = np.zeros((0,), dtype=np.int64)
        save_array(root.require_group("meta"), "episode_ends", ends, (1,), None)
        root.require_group("data")
        return cls(root)

    @classmethod
    def create_empty_numpy(cls) -> "ReplayBuffer":
        """An empty buffer in memory."""
        return cls({"data": {}, "meta": {"episode_ends": np.zeros((0,), dtype=np.int64)}})

    @classmethod
    def create_from_group(cls, group: zarr.Group, **_: Any) -> "ReplayBuffer":
        """Wrap a zarr group; one without ``data`` becomes an empty buffer."""
        return cls(group) if "data" in group else cls.create_empty_zarr(root=group)

    @classmethod
    def create_from_path(
        cls, zarr_path: str | pathlib.Path, mode: Mode = "r", **_: Any
    ) -> "ReplayBuffer":
        """Open a store without loading it.

        A directory opened for writing (``'a'``) is repaired if its writer was killed, and every
        episode added is on the disk when :meth:`add_episode` returns. Opened for reading, a store
        in that state is left as it is, and a compressed copy of its finished episodes in memory is
        returned.

        Raises:
            DataError: when the path is missing or damaged, or a zip is to be extended.
        """
        root = open_root(zarr_path, mode)
        if mode == "r" and not is_clean(root):
            return cls.copy_from_store(root, store=MemoryStore())
        return cls.create_from_group(root)

    @classmethod
    def copy_from_store(
        cls,
        src_store: StoreLike | zarr.Group,
        store: StoreLike | None = None,
        keys: list[str] | None = None,
        chunks: Chunks = {},  # noqa: B006 (never written to; a published signature)
        compressors: Compressors = {},  # noqa: B006
        if_exists: Literal["replace", "raise"] = "replace",
        **_: Any,
    ) -> "ReplayBuffer":
        """Copy the finished episodes of a store into memory (numpy) or into another store.

        Args:
            src_store: where from: store, path or group.
            store: where to. None: the numpy backend.
            keys: the only keys to read. None: all.
            chunks: chunks in ``store``; where equal to the source's, chunks are copied without
                decoding.
            compressors: likewise.
            if_exists: 'raise' refuses a ``store`` that holds a buffer already.

        Raises:
            DataError: when a key is missing or something cannot be read.
        """
        root = src_store if isinstance(src_store, zarr.Group) else open_root(src_store)
        ends = finished_ends(root)
        n_steps = int(ends[-1]) if len(ends) else 0
        arrays = _select(root, keys)
        meta: dict[str, Any] = arrays_in(root["meta"])
        if not is_clean(root):
            meta["episode_ends"] = ends
        if store is None:
            data = {key: read_array(array, n_steps) for key, array in arrays.items()}
            meta = {k: read_array(a) if isinstance(a, zarr.Array) else a for k, a in meta.items()}
            return cls({"data": data, "meta": meta})
        target = _new_root(store, if_exists)
        save_meta(target.create_group("meta"), meta)
        save_data(target.create_group("data"), arrays, n_steps, chunks, compressors)
        return cls(target)

    @classmethod
    def copy_from_path(
        cls,
        zarr_path: str | pathlib.Path,
        backend: str | None = None,
        store: StoreLike | None = None,
        keys: list[str] | None = None,
        chunks: Chunks = {},  # noqa: B006
        compressors: Compressors = {},  # noqa: B006
        if_exists: Literal["replace", "raise"] = "replace",
        **_: Any,
    ) -> "ReplayBuffer":
        """Copy a ``.zarr`` directory or ``.zarr.zip``; see :meth:`copy_from_store`.

        ``backend='numpy'`` is the old way to say ``store=None``.
        """
        root = open_root(zarr_path)
        with contextlib.closing(root.store_path.store):  # a zip store keeps its file open
            return cls.copy_from_store(
                root, None if backend == "numpy" else store, keys, chunks, compressors, if_exists
            )

    # ---- saving ----------------------------------------------------------------------------------

    def save_to_store(
        self,
        store: StoreLike,
        chunks: Chunks = {},  # noqa: B006
        compressors: Compressors = {},  # noqa: B006
        if_exists: Literal["replace", "raise"] = "replace",
        **_: Any,
    ) -> StoreLike:
        """Write the buffer into a zarr store and return it.

        Close a zip store afterwards: it is not complete before.
        """
        target = _new_root(store, if_exists)
        save_meta(target.create_group("meta"), arrays_in(self.meta))
        arrays = arrays_in(self.data)
        save_data(target.create_group("data"), arrays, self.n_steps, chunks, compressors)
        return store

    def save_to_path(
        self,
        zarr_path: str | pathlib.Path,
        chunks: Chunks = {},  # noqa: B006
        compressors: Compressors = {},  # noqa: B006
        if_exists: Literal["replace", "raise"] = "replace",
        **_: Any,
    ) -> pathlib.Path:
        """Write the buffer to a zarr directory, or to a zip where the path ends in ``.zip``.

        Returns the path. It is written next to the path and moved into place, so what was there
        survives a failure.

        Raises:
            DataError: when the disk is full or cannot be written, or the path must not be replaced.
        """
        path = pathlib.Path(zarr_path).expanduser()
        if path.exists() and if_exists == "raise":
            raise DataError(f"{path} exists already; remove it or choose another path")
        with new_store(path) as store:
            self.save_to_store(store, chunks, compressors)
        return path

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
            for key, value in data.items():
                if key in self:
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
        if missing:
            raise DataError(
                f"the episode lacks {missing}: every episode of {self.name} has the keys "
                f"{sorted(self.keys())}"
            )
        for key, value in data.items():
            if key in self and value.shape[1:] != self[key].shape[1:]:
                raise DataError(
                    f"the episode's {key!r} has steps of shape {value.shape[1:]}, those of "
                    f"{self.name} have shape {self[key].shape[1:]}"
                )
        return next(iter(lengths.values()))

    def _create(
        self, key: str, n_steps: int, like: np.ndarray, chunks: Chunks, compressors: Compressors
    ) -> None:
        shape = (n_steps, *like.shape[1:])
        if isinstance(self.data, dict):
            self.data[key] = np.zeros(shape, dtype=like.dtype)
            return
        layout = resolve_chunks(chunks, key, like), resolve_compressors(compressors, key, like)
        create_array(self.data, key, shape, like.dtype, *layout)

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

    # ---- layout of zarr arrays -------------------------------------------------------------------

    def get_chunks(self) -> dict[str, tuple[int, ...]]:
        """Chunk shape of every array."""
        return {key: array.chunks for key, array in self._zarr_arrays().items()}

    def set_chunks(self, chunks: Mapping[str, tuple[int, ...]]) -> None:
        """Re-chunk the arrays named; unknown keys are ignored."""
        for key in self._zarr_arrays().keys() & chunks.keys():
            rechunk_recompress_array(self.data, key, chunks=chunks[key])  # type: ignore[arg-type]

    def get_compressors(self) -> dict[str, Any]:
        """Codec of every array, None where it is stored raw."""
        return {key: compressor_of(array) for key, array in self._zarr_arrays().items()}

    def set_compressors(self, compressors: Mapping[str, Any]) -> None:
        """Re-compress the arrays named (None keeps the old codec); unknown keys are ignored."""
        for key in self._zarr_arrays().keys() & compressors.keys():
            rechunk_recompress_array(self.data, key, compressor=compressors[key])  # type: ignore[arg-type]

    def _zarr_arrays(self) -> dict[str, zarr.Array]:
        if self.backend != "zarr":
            raise TypeError(
                "this buffer is in memory (numpy); only zarr arrays have chunks and compressors"
            )
        return arrays_in(self.data)


def _contains(root: zarr.Group | dict, path: str) -> bool:
    """Whether ``'group/name'`` exists in a group or nested dict."""
    group, _, name = path.partition("/")
    return group in root and (not name or name in root[group])


def _select(root: zarr.Group, keys: list[str] | None) -> dict[str, zarr.Array]:
    arrays = arrays_in(root["data"]) if "data" in root else {}
    missing = [key for key in keys or [] if key not in arrays]
    if missing:
        raise DataError(f"{store_name(root)} has no data {missing}; it holds {sorted(arrays)}")
    return {key: arrays[key] for key in (sorted(arrays) if keys is None else keys)}


def _new_root(store: StoreLike, if_exists: str) -> zarr.Group:
    root = zarr.open_group(store, mode="a", zarr_format=2)
    for name in ("meta", "data"):
        if name not in root:
            continue
        if if_exists == "raise":
            raise DataError(
                f"{store_name(root)} holds a replay buffer already; choose another place"
            )
        del root[name]
    return root


def _write(array: Array, start: int, values: np.ndarray) -> None:
    if isinstance(array, zarr.Array):
        write_rows(array, start, values)
    else:
        array[start : start + len(values)] = values
