"""The replay buffer: episodes of demonstrations, in memory or in a zarr store of format 2.

    <root>/data/<key>          (n_steps, ...)  one array per key, all of the same length
    <root>/meta/episode_ends   (n_episodes,)   i64, where each episode ends (exclusive)
    <root>/meta/<other>        small arrays

Two backends behind one interface: ``numpy`` (everything in memory; what data sets train from) and
``zarr`` (directory, zip or memory store; what is on disk).
"""

import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import zarr
from zarr.storage import MemoryStore, StoreLike

from diffusion_policy.common.episode_arrays import Array, Chunks, Compressors, EpisodeArrays
from diffusion_policy.common.episode_store import (
    Mode,
    atomic,
    finished_ends,
    is_clean,
    open_root,
    settle,
)
from diffusion_policy.common.errors import DataError
from diffusion_policy.common.zarr_util import (
    check_chunks_compatible,
    get_optimal_chunks,
    rechunk_recompress_array,
    save_array,
    save_data,
    save_meta,
)
from diffusion_policy.storage.new_store import new_store
from diffusion_policy.storage.nodes import arrays_in, arrays_of, compressor_of, store_name
from diffusion_policy.storage.reading import check_chunks, read_array

__all__ = [
    "Array",
    "ReplayBuffer",
    "check_chunks_compatible",
    "get_optimal_chunks",
    "rechunk_recompress_array",
]


class ReplayBuffer(EpisodeArrays):
    """Episodes in memory or in a zarr store; see :class:`EpisodeArrays` for what it holds.

    Make one with a ``create_*`` or ``copy_*`` method, add episodes, save it with ``save_to_*``.
    """

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
        with atomic(root, ends):
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
        cls,
        zarr_path: str | pathlib.Path,
        mode: Mode = "r",
        allow_missing_chunks: bool = False,
        **_: Any,
    ) -> "ReplayBuffer":
        """Open a store without loading it.

        Every episode added to a directory opened for writing (``'a'``) is on the disk when
        :meth:`add_episode` returns. What a killed writer began is finished. A store that is damaged
        is refused, and nothing of it is changed. Opened for reading, a store whose writer was
        killed is left as it is, and a compressed copy of its finished episodes in memory is
        returned.

        Args:
            zarr_path: directory, or for reading a zip.
            mode: as :func:`zarr.open_group`.
            allow_missing_chunks: accept chunks that are not there and read as zeros.

        Raises:
            DataError: when the path is missing or damaged, or a zip is to be extended.
        """
        root = open_root(zarr_path, mode, allow_missing_chunks)
        if mode != "r":
            return cls.create_from_group(root)
        if not is_clean(root):
            return cls.copy_from_store(
                root, store=MemoryStore(), allow_missing_chunks=allow_missing_chunks
            )
        for array in [*arrays_of(root, "data").values(), *arrays_of(root, "meta").values()]:
            check_chunks(array, None, allow_missing_chunks)
        return cls(root)

    @classmethod
    def copy_from_store(
        cls,
        src_store: StoreLike | zarr.Group,
        store: StoreLike | None = None,
        keys: list[str] | None = None,
        chunks: Chunks = {},  # noqa: B006 (never written to; a published signature)
        compressors: Compressors = {},  # noqa: B006
        if_exists: Literal["replace", "raise"] = "replace",
        allow_missing_chunks: bool = False,
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
            allow_missing_chunks: take chunks that are not there for zeros, with a warning: some
                programs do not write chunks that hold nothing else.

        Raises:
            DataError: when a key is missing, or something is missing or cannot be read.
        """
        root = src_store if isinstance(src_store, zarr.Group) else open_root(src_store)
        ends = finished_ends(root)
        n_steps = int(ends[-1]) if len(ends) else 0
        arrays = _select(root, keys)
        meta: dict[str, Any] = arrays_of(root, "meta")
        stored_ends = meta.pop("episode_ends", None)  # somebody may have recorded more by now
        if store is None:
            data = {
                key: read_array(array, n_steps, allow_missing_chunks)
                for key, array in arrays.items()
            }
            meta = {key: read_array(array) for key, array in meta.items()}
            return cls({"data": data, "meta": {**meta, "episode_ends": ends}})
        target = _new_root(store, if_exists)
        target_meta = target.create_group("meta")
        save_meta(target_meta, meta)
        save_meta(target_meta, {"episode_ends": ends}, like={"episode_ends": stored_ends})
        data = target.create_group("data")
        save_data(data, arrays, n_steps, chunks, compressors, allow_missing_chunks)
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
        allow_missing_chunks: bool = False,
        **_: Any,
    ) -> "ReplayBuffer":
        """Copy a ``.zarr`` directory or ``.zarr.zip``; see :meth:`copy_from_store`.

        ``backend='numpy'`` is the old way to say ``store=None``.
        """
        root = open_root(zarr_path)
        with contextlib.closing(root.store_path.store):  # a zip store keeps its file open
            return cls.copy_from_store(
                root,
                None if backend == "numpy" else store,
                keys,
                chunks,
                compressors,
                if_exists,
                allow_missing_chunks,
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

        Returns the path. It is written next to the path and moved into place, so at every instant
        a complete one is there, the old or the new, also if the process is killed.

        Raises:
            DataError: when the disk is full or cannot be written, or the path must not be replaced.
        """
        path = pathlib.Path(zarr_path).expanduser()
        if path.exists() and if_exists == "raise":
            raise DataError(f"{path} exists already; remove it or choose another path")
        with new_store(path) as store:
            self.save_to_store(store, chunks, compressors)
        return path

    # ---- layout of zarr arrays -------------------------------------------------------------------

    def get_chunks(self) -> dict[str, tuple[int, ...]]:
        """Chunk shape of every array."""
        return {key: array.chunks for key, array in self._zarr_arrays().items()}

    def set_chunks(self, chunks: Mapping[str, tuple[int, ...]]) -> None:
        """Re-chunk the arrays named; unknown keys are ignored."""
        for key in self._zarr_arrays().keys() & chunks.keys():
            rechunk_recompress_array(self.data, key, chunks=chunks[key])  # type: ignore[arg-type]
        settle(self.root)  # type: ignore[arg-type]

    def get_compressors(self) -> dict[str, Any]:
        """Codec of every array, None where it is stored raw."""
        return {key: compressor_of(array) for key, array in self._zarr_arrays().items()}

    def set_compressors(self, compressors: Mapping[str, Any]) -> None:
        """Re-compress the arrays named (None keeps the old codec); unknown keys are ignored."""
        for key in self._zarr_arrays().keys() & compressors.keys():
            rechunk_recompress_array(self.data, key, compressor=compressors[key])  # type: ignore[arg-type]
        settle(self.root)  # type: ignore[arg-type]

    def _zarr_arrays(self) -> dict[str, zarr.Array]:
        if self.backend != "zarr":
            raise TypeError(
                "this buffer is in memory (numpy); only zarr arrays have chunks and compressors"
            )
        return arrays_in(self.data)


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
