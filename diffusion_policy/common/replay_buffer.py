"""The replay buffer: episodes of demonstrations as a few long arrays, time first.

    <root>/data/<key>          (n_steps, ...)  one array per key, all of the same length
    <root>/meta/episode_ends   (n_episodes,)   i64, where each episode ends (exclusive); the last one is n_steps
    <root>/meta/<other>        small arrays

Two backends behind one interface: ``numpy`` (everything in memory; what data sets train from) and ``zarr`` (directory,
zip or memory store of zarr format 2; what is on disk).
"""

import functools
import os
import pathlib
import shutil
from collections.abc import ItemsView, KeysView, Mapping, ValuesView
from typing import Any, Literal, TypeAlias

import numpy as np
import zarr
from zarr.storage import LocalStore, MemoryStore, StoreLike, ZipStore

from diffusion_policy.common.episode_store import (
    Mode,
    close_root,
    commit_ends,
    finished_ends,
    open_root,
)
from diffusion_policy.common.errors import ConfigError, DataError
from diffusion_policy.common.zarr_util import (
    COMPRESSORS,
    META_COMPRESSOR,
    check_chunks_compatible,
    compressor_of,
    copy_array,
    create_array,
    get_optimal_chunks,
    per_key,
    read_array,
    rechunk_recompress_array,
    resolve_compressor,
    save_array,
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
        root: a zarr group, or a dict ``{'data': {key: array}, 'meta': {'episode_ends': array, ...}}``.

    Raises:
        DataError: when ``data``, ``meta`` or ``episode_ends`` is missing, or an array's length is not the last
            episode end.
    """

    def __init__(self, root: zarr.Group | dict):
        self.root = root
        self._spare: dict[str, np.ndarray] = {}  # numpy: allocations longer than what they hold
        for name in ("data", "meta", "meta/episode_ends"):
            if not _contains(root, name):
                raise DataError(
                    f"{self.name} holds no replay buffer: {name!r} is missing; groups 'data' and 'meta' with "
                    f"'meta/episode_ends' were expected"
                )
        for key, array in self.items():
            if array.ndim == 0 or array.shape[0] != self.n_steps:
                raise DataError(
                    f"{self.name}: array {key!r} has shape {array.shape}, but the last of the "
                    f"{self.n_episodes} episodes ends at step {self.n_steps}; the store is incomplete, "
                    f"get the data again"
                )

    # ---- construction ------------------------------------------------------------------------------------------

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
    def create_from_path(cls, zarr_path: str | pathlib.Path, mode: Mode = "r", **_: Any) -> "ReplayBuffer":
        """Open a store without loading it.

        A directory opened for writing (``'a'``) is repaired if its writer was killed, and every episode added is on
        the disk when :meth:`add_episode` returns. Opened for reading, a store in that state is left as it is,
        and a compressed copy of its finished episodes in memory is returned.

        Raises:
            DataError: when the path is missing or damaged, or a zip is to be extended.
        """
        root = open_root(zarr_path, mode)
        if mode == "r" and not _is_clean(root):
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
        """Copy the finished episodes of a store into memory (numpy), or into another zarr ``store``.

        Args:
            src_store: where from: store, path or group.
            store: where to. None: the numpy backend.
            keys: the only keys to read. None: all.
            chunks: chunks in ``store``; where equal to the source's, chunks are copied without decoding.
            compressors: likewise.
            if_exists: 'raise' refuses a ``store`` that holds a buffer already.

        Raises:
            DataError: when a key is missing or something cannot be read.
        """
        root = src_store if isinstance(src_store, zarr.Group) else open_root(src_store)
        ends = finished_ends(root)
        arrays = _select(root, keys)
        n_steps = int(ends[-1]) if len(ends) else 0
        meta = {k: read_array(a) for k, a in root["meta"].arrays() if k != "episode_ends"}  # type: ignore[union-attr]
        if store is None:
            data = {key: read_array(array, n_steps) for key, array in arrays.items()}
            return cls({"data": data, "meta": {**meta, "episode_ends": ends}})
        target = _new_root(store, if_exists)
        source_meta: zarr.Group = root["meta"]  # type: ignore[assignment]
        _save_meta(target, {**meta, "episode_ends": ends}, source_meta)
        _save_data(target, arrays, n_steps, chunks, compressors)
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
        """Copy a ``.zarr`` directory or a ``.zarr.zip`` into memory or into ``store``; see :meth:`copy_from_store`.

        ``backend='numpy'`` is the old way to say ``store=None``.
        """
        root = open_root(zarr_path)
        try:
            return cls.copy_from_store(
                root, None if backend == "numpy" else store, keys, chunks, compressors, if_exists
            )
        finally:
            close_root(root)

    # ---- saving ------------------------------------------------------------------------------------------------

    def save_to_store(
        self,
        store: StoreLike,
        chunks: Chunks = {},  # noqa: B006
        compressors: Compressors = {},  # noqa: B006
        if_exists: Literal["replace", "raise"] = "replace",
        **_: Any,
    ) -> StoreLike:
        """Write the buffer into a zarr store and return the store. Close a zip store afterwards: it is not complete before."""
        target = _new_root(store, if_exists)
        meta = {key: np.asarray(array[...]) for key, array in self.meta.items()}
        _save_meta(target, meta, None if self.backend == "numpy" else self.meta)  # type: ignore[arg-type]
        _save_data(target, dict(self.items()), self.n_steps, chunks, compressors)
        return store

    def save_to_path(
        self,
        zarr_path: str | pathlib.Path,
        chunks: Chunks = {},  # noqa: B006
        compressors: Compressors = {},  # noqa: B006
        if_exists: Literal["replace", "raise"] = "replace",
        **_: Any,
    ) -> pathlib.Path:
        """Write the buffer to a zarr directory, or to a zip when the path ends in ``.zip``.

        It is written next to the path and moved into place, so what was there survives a failure.

        Returns:
            The path.

        Raises:
            DataError: when the disk is full or cannot be written, or the path is something else than a zarr store.
        """
        path = pathlib.Path(zarr_path).expanduser()
        if path.exists() and (if_exists == "raise" or not _is_replaceable(path)):
            raise DataError(
                f"{path} exists and {'may not be replaced' if if_exists == 'raise' else 'is no zarr store'}; "
                f"remove it or choose another path"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        store = ZipStore(partial, mode="w") if path.suffix == ".zip" else LocalStore(partial)
        try:
            self.save_to_store(store, chunks, compressors)
            store.close()
            _move_into_place(partial, path)
        except OSError as error:
            raise DataError(
                f"{path} could not be written ({error.strerror or error}); free some space or choose another path"
            ) from error
        finally:
            _remove(partial)
        return path

    # ---- properties --------------------------------------------------------------------------------------------

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
        return store_name(self.root) if isinstance(self.root, zarr.Group) else "the buffer in memory"

    @property
    def episode_ends(self) -> Array:
        """Exclusive end of every episode, i64 ``(n_episodes,)``."""
        return self.meta["episode_ends"]  # type: ignore[return-value]

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self.episode_ends)

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
        return self.data.keys()  # type: ignore[return-value]

    def values(self) -> ValuesView[Array]:
        """The data arrays."""
        return dict(self.items()).values()

    def items(self) -> ItemsView[str, Array]:
        """``(name, array)`` of the data arrays."""
        return dict(self.data.items()).items()  # type: ignore[return-value]

    def __getitem__(self, key: str) -> Array:
        return self.data[key]  # type: ignore[return-value]

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def __repr__(self) -> str:
        lines = [f"ReplayBuffer({self.backend}, {self.n_episodes} episodes, {self.n_steps} steps)"]
        lines += [f"  data/{key} {a.shape} {a.dtype}" for key, a in self.items()]
        lines += [f"  meta/{key} {a.shape} {a.dtype}" for key, a in self.meta.items()]  # type: ignore[union-attr]
        return "\n".join(lines)

    def get_episode_idxs(self) -> np.ndarray:
        """The episode of every step, i64 ``(n_steps,)``."""
        return np.repeat(np.arange(self.n_episodes), self.episode_lengths)

    # ---- editing -----------------------------------------------------------------------------------------------
