"""A copy of the episodes before the first damage. The original is only read.

Chunks are copied as they are stored: images keep every bit, also those of lossy codecs.
"""

import contextlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata import ArrayV2Metadata
from zarr.core.sync import sync
from zarr.storage import LocalStore, ZipStore

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.zarr_util import PARTIAL, save_meta, store_name
from diffusion_policy.inspect.chunks import chunks_of_block
from diffusion_policy.inspect.layout import Layout, opened
from diffusion_policy.inspect.summary import Summary, summarize


@dataclass(frozen=True)
class Repaired:
    """What a copy holds, what the original held besides, and other things that were left out."""

    path: pathlib.Path
    n_kept_episodes: int
    n_kept_steps: int
    n_lost_episodes: int
    n_lost_steps: int
    left_out: list[str]


def repair(summary: Summary, new_path: str | pathlib.Path) -> Repaired:
    """Copy the longest run of whole, undamaged episodes from the first one on.

    The copy is read back and checked before it gets its name, and is on the disk on return.

    Args:
        summary: of the data set to copy.
        new_path: where to; a zip where it ends in ``.zip``, else a directory. Nothing may be there.

    Raises:
        DataError: when something is there, no episode is intact, or the copy cannot be written.
    """
    path = pathlib.Path(new_path).expanduser()
    _check_target(summary, path)
    n_episodes = summary.n_intact_episodes
    if n_episodes == 0:
        raise DataError(
            f"{summary.path}: no episode lies before the first damage, there is nothing to copy; "
            f"get the data set again"
        )
    ends = summary.ends[:n_episodes]
    try:
        with _written_beside(path) as partial, opened(summary.path) as layout:
            left_out = _copy(layout, ends, partial)
            _verify(partial, ends)
    except OSError as error:
        raise DataError(
            f"{path} could not be written ({error.strerror or error}); free some space or choose "
            f"another path"
        ) from error
    n_steps = int(ends[-1])
    return Repaired(
        path=path,
        n_kept_episodes=n_episodes,
        n_kept_steps=n_steps,
        n_lost_episodes=summary.n_stored_episodes - n_episodes,
        n_lost_steps=summary.n_stored_steps - n_steps,
        left_out=left_out,
    )


def _check_target(summary: Summary, path: pathlib.Path) -> None:
    if os.path.lexists(path):
        raise DataError(f"{path} exists already; choose a path where nothing is")
    if path.resolve().is_relative_to(summary.path.resolve()):
        raise DataError(f"{path} lies inside the data set itself; choose a path outside of it")
    if not summary.format.startswith("zarr format 2"):
        raise DataError(
            f"{summary.path} is stored in {summary.format}; only format 2 can be repaired"
        )


@contextlib.contextmanager
def _written_beside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path beside ``path``; what is there when the block ends well is moved to ``path``."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}{PARTIAL}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _flush_to_disk(partial)
        os.rename(partial, path)
        _fsync(path.parent)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _flush_to_disk(path: pathlib.Path) -> None:
    for folder, _, names in os.walk(path):
        for name in names:
            _fsync(pathlib.Path(folder, name))
        _fsync(pathlib.Path(folder))
    if path.is_file():
        _fsync(path)


def _fsync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(layout: Layout, ends: np.ndarray, target: pathlib.Path) -> list[str]:
    """Write the episodes up to ``ends`` to ``target``; returns what was left out."""
    store = ZipStore(target, mode="w") if target.suffix == ".zip" else LocalStore(target)
    with contextlib.closing(store):
        root = zarr.open_group(store, mode="w", zarr_format=2)
        meta = {"episode_ends": ends}
        for name, values in layout.meta.items():
            # one entry per episode, such as its seed
            is_per_episode = values.ndim > 0 and len(values) == layout.n_stored_episodes
            meta[name] = values[: len(ends)] if is_per_episode else values
        save_meta(root.create_group("meta"), meta)
        data = root.create_group("data")
        for key, array in layout.arrays.items():
            _copy_rows(array, int(ends[-1]), data, key)
    left_out = [f.text for f in layout.findings if f.level == "damage" and f.row is None]
    # attributes of the root speak of the whole, such as the fingerprint of what it was made from
    left_out += [f"attribute {name!r} of the data set" for name in layout.root.attrs]
    return left_out


def _copy_rows(array: zarr.Array, n_rows: int, group: zarr.Group, name: str) -> None:
    """Copy the stored chunks of the first rows, and the description with a shorter length."""
    if not isinstance(array.metadata, ArrayV2Metadata):
        raise DataError(f"{store_name(array)} is not in zarr format 2; only that can be repaired")
    prototype = default_buffer_prototype()
    source, target = array.store_path, group.store_path / name

    async def copy() -> None:
        document = await (source / ".zarray").get(prototype)
        assert document is not None  # the array was opened from it
        description = json.loads(document.to_bytes())
        description["shape"] = [n_rows, *array.shape[1:]]
        content = json.dumps(description, indent=4).encode()
        await (target / ".zarray").set(prototype.buffer.from_bytes(content))
        attributes = await (source / ".zattrs").get(prototype)
        if attributes is not None:
            await (target / ".zattrs").set(attributes)
        for number in range(math.ceil(n_rows / array.chunks[0])):
            for index in chunks_of_block(array, number):
                chunk_key = array.metadata.encode_chunk_key(index)
                chunk = await (source / chunk_key).get(prototype)
                if chunk is None:
                    raise DataError(f"{store_name(array)}: chunk {chunk_key} vanished")
                await (target / chunk_key).set(chunk)

    sync(copy())


def _verify(path: pathlib.Path, ends: np.ndarray) -> None:
    copy = summarize(path)
    if copy.damages or not np.array_equal(copy.ends, ends):
        reason = copy.damages[0].text if copy.damages else "other episodes than expected"
        raise DataError(
            f"the copy does not read back ({reason}), is the disk or the memory faulty? Nothing "
            f"was kept"
        )
