"""Stores of episodes: open, extend so that a kill never costs a finished episode, repair.

How an episode is committed, and why a kill at any instant is harmless:

1. The data arrays are extended. Every file is written to a temporary name, flushed to the disk
   (fsync) and renamed into place, so also a chunk that holds rows of earlier episodes is always
   either the old or the new one.
2. One small file, the *commit record* (:data:`COMMIT_RECORD`), takes all episode ends, the new one
   included. The moment it is renamed into place is the moment the episode exists.
3. ``meta/episode_ends`` is rewritten from that record (several files, hence the record), and the
   record deleted.

A store opened for writing is repaired: a record that is still there is carried out (3.), and rows
behind the last episode end (a kill during 1.) are dropped. A store opened for reading is never
changed; whoever loads it takes the ends of the record if there is one, and only the rows up to the
last end.
"""

import asyncio
import contextlib
import json
import logging
import os
import pathlib
import shutil
import zipfile
from collections.abc import Iterator
from typing import Literal

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, StoreLike, ZipStore

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.zarr_util import (
    PARTIAL,
    UNREADABLE,
    arrays_in,
    compressor_of,
    read_array,
    save_array,
    store_name,
)

logger = logging.getLogger(__name__)

Mode = Literal["r", "r+", "a", "w", "w-"]

COMMIT_RECORD = ".committed_episode_ends.json"


class DurableStore(LocalStore):
    """A directory store in which every write is atomic and on the disk when it returns."""

    async def set(self, key: str, value) -> None:
        """Write one file: temporary name, fsync, rename, fsync of the folder."""
        self._check_writable()
        await asyncio.to_thread(_write_durably, self.root / key, value.to_bytes())

    async def set_if_not_exists(self, key: str, value) -> None:
        """The same, for files that may be there already (the ``.zgroup`` of parent groups)."""
        if not await self.exists(key):
            await self.set(key, value)

    def set_sync(self, key: str, value) -> None:
        """The same, for zarr's synchronous code paths."""
        self._check_writable()
        _write_durably(self.root / key, value.to_bytes())


def _write_durably(path: pathlib.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def open_root(source: StoreLike, mode: Mode = "r") -> zarr.Group:
    """Open the root group of a store.

    Args:
        source: a path (directory, or a file ending in ``.zip``; ``~`` is expanded) or a zarr store.
        mode: as :func:`zarr.open_group`. Anything but ``'r'`` opens a directory durably and repairs
            it.

    Raises:
        DataError: when nothing is there, it is damaged, or a zip is to be extended.
    """
    if isinstance(source, (str, pathlib.Path)):
        source = _open_path(pathlib.Path(source).expanduser(), mode)
    try:
        root = zarr.open_group(source, mode=mode, zarr_format=_format(mode), use_consolidated=False)
    except UNREADABLE as error:
        raise DataError(
            f"{source}: this is not a readable zarr group ({error}); check the path or get the "
            f"data again"
        ) from error
    if mode in ("a", "r+") and "data" in root:
        repair(root)
    return root


def _format(mode: Mode) -> Literal[2] | None:
    return None if mode == "r" else 2  # None: whatever is there


def _open_path(path: pathlib.Path, mode: Mode) -> LocalStore | ZipStore:
    if not path.exists() and mode in ("r", "r+"):
        raise DataError(
            f"{path} does not exist (working directory: {pathlib.Path.cwd()}); check the path, "
            f"relative ones start at the working directory"
        )
    if path.suffix != ".zip":
        if path.is_file():
            raise DataError(f"{path} is a file; a zarr directory or a .zarr.zip was expected")
        return LocalStore(path, read_only=True) if mode == "r" else DurableStore(path)
    if mode != "r":
        raise DataError(
            f"{path}: a zip store cannot be extended; record into a .zarr directory and save it "
            f"as a zip afterwards (ReplayBuffer.save_to_path)"
        )
    store = ZipStore(path, mode="r")
    try:
        store._sync_open()
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(
            f"{path} is not a readable zip file ({error}); it is truncated or corrupt: get it again"
        ) from error
    return store


@contextlib.contextmanager
def new_store(path: pathlib.Path) -> Iterator[LocalStore | ZipStore]:
    """A fresh store that takes the place of ``path`` when the block ends well.

    A failure leaves ``path`` as it was. A path ending in ``.zip`` gets a zip store, any other a
    directory store. Both are closed at the end: a zip is not complete before.

    Raises:
        DataError: when the disk is full or cannot be written, or ``path`` is something else than a
            zarr store.
    """
    if path.is_dir() and not _is_zarr_or_empty(path):
        raise DataError(f"{path} is a folder but no zarr store; remove it or choose another path")
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        store = ZipStore(partial, mode="w") if path.suffix == ".zip" else LocalStore(partial)
        with contextlib.closing(store):
            yield store
        _move_into_place(partial, path)
    except OSError as error:
        raise DataError(
            f"{path} could not be written ({error.strerror or error}); free some space or choose "
            f"another path"
        ) from error
    finally:
        _remove(partial)


def _is_zarr_or_empty(path: pathlib.Path) -> bool:
    return (path / ".zgroup").exists() or (path / "zarr.json").exists() or not any(path.iterdir())


def _move_into_place(partial: pathlib.Path, path: pathlib.Path) -> None:
    if not path.is_dir():
        os.replace(partial, path)
        return
    old = partial.with_suffix(".old")  # a folder with contents cannot be replaced in one move
    os.rename(path, old)
    os.rename(partial, path)
    shutil.rmtree(old)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def finished_ends(root: zarr.Group) -> np.ndarray:
    """The ends of all episodes that were committed, i64 ``(n_episodes,)``.

    Raises:
        DataError: when the store has no readable ``meta/episode_ends``.
    """
    record = sync(root.store_path.store.get(_record_key(root), default_buffer_prototype()))
    if record is not None:
        return np.asarray(json.loads(record.to_bytes())["episode_ends"], dtype=np.int64)
    if "meta/episode_ends" not in root:
        raise DataError(
            f"{store_name(root)} holds no replay buffer: groups 'data' and 'meta' with "
            f"'meta/episode_ends' were expected, found {sorted(root.keys())}"
        )
    return read_array(root["meta/episode_ends"])  # type: ignore[arg-type]


def commit_ends(root: zarr.Group, ends: np.ndarray) -> None:
    """Make ``ends`` the episode ends of a store, all or nothing (steps 2 and 3 above)."""
    store, key = root.store_path.store, _record_key(root)
    record = json.dumps({"episode_ends": ends.tolist()}).encode()
    sync(store.set(key, default_buffer_prototype().buffer.from_bytes(record)))
    _write_ends(root, ends)
    sync(store.delete(key))


def _write_ends(root: zarr.Group, ends: np.ndarray) -> None:
    """Rewrite ``meta/episode_ends``: one chunk, with room to grow as in the published stores."""
    chunk, codec = 1, None
    if "meta/episode_ends" in root:
        old: zarr.Array = root["meta/episode_ends"]  # type: ignore[assignment]
        chunk, codec = old.chunks[0], compressor_of(old)
    if len(ends) > chunk:
        chunk = int(1.5 * len(ends))
    save_array(root.require_group("meta"), "episode_ends", ends, (chunk,), codec)


def _record_key(root: zarr.Group) -> str:
    return (root.store_path / COMMIT_RECORD).path


def _has_record(root: zarr.Group) -> bool:
    return sync(root.store_path.store.exists(_record_key(root)))


def is_clean(root: zarr.Group) -> bool:
    """Whether nothing of an unfinished write is left in a store."""
    ends = finished_ends(root)
    n_steps = int(ends[-1]) if len(ends) else 0
    return not _has_record(root) and all(
        a.shape[0] <= n_steps for a in arrays_in(root["data"]).values()
    )


def repair(root: zarr.Group) -> None:
    """Bring a writable store whose writer was killed back to its last finished episode.

    Arrays that are too *short* are no matter of a kill; the replay buffer reports them.
    """
    ends = finished_ends(root)
    if _has_record(root):
        commit_ends(root, ends)
    n_steps = int(ends[-1]) if len(ends) else 0
    for key, array in arrays_in(root["data"]).items():
        if array.shape[0] <= n_steps:
            continue
        logger.warning(
            "%s: %d steps of an episode that was never finished are dropped",
            store_name(array),
            array.shape[0] - n_steps,
        )
        if n_steps == 0:
            del root["data"][key]  # type: ignore[index]  (not even its shape was agreed on yet)
        else:
            array.resize((n_steps, *array.shape[1:]))
    store = root.store_path.store
    if isinstance(store, LocalStore):
        for left_over in (store.root / root.store_path.path).rglob(f"*{PARTIAL}"):
            left_over.unlink()
