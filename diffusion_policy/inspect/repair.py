"""A copy of the episodes that are whole. The original is only read.

Where the damage lies behind them, chunks are copied as they are stored: images keep every bit, also
those of lossy codecs. Where episodes before them are left out, rows move to other chunks: chunks of
one row are copied all the same, others are decoded and encoded again. For that, lossy codecs give
way to a lossless one, so that every value stays what it was.
"""

import json
import os
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata import ArrayV2Metadata
from zarr.core.sync import sync

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.zarr_util import COMPRESSORS, create_array, save_meta, write_rows
from diffusion_policy.inspect.chunks import chunks_of_block
from diffusion_policy.inspect.layout import Layout, opened
from diffusion_policy.inspect.summary import Summary, summarize
from diffusion_policy.storage.new_store import new_store
from diffusion_policy.storage.nodes import compressor_of, store_name
from diffusion_policy.storage.reading import chunk_key


@dataclass(frozen=True)
class Repaired:
    """What a copy holds, and what the original held besides.

    Attributes:
        path: where the copy is.
        kept: the numbers of the episodes that were copied, i64.
        n_kept_steps: their steps.
        n_lost_episodes: what else the store says it held.
        n_lost_steps: likewise.
        mended: damage of which nothing is left.
        left_out: what is not in the copy besides episodes.
        encoded_again: arrays that have another compressor now.
    """

    path: pathlib.Path
    kept: np.ndarray
    n_kept_steps: int
    n_lost_episodes: int
    n_lost_steps: int
    mended: list[str]
    left_out: list[str]
    encoded_again: list[str]

    @property
    def n_kept_episodes(self) -> int:
        """How many episodes were copied."""
        return len(self.kept)


def repair(summary: Summary, new_path: str | pathlib.Path) -> Repaired:
    """Copy every episode that is whole, and every array that has some.

    The copy is read back and checked before it gets its name, and is on the disk on return.

    Args:
        summary: of the data set to copy.
        new_path: where to; a zip where it ends in ``.zip``, else a directory. Nothing may be there.

    Raises:
        DataError: when something is there, no episode is whole, or the copy cannot be written.
    """
    path = pathlib.Path(new_path).expanduser()
    _check_target(summary, path)
    kept = summary.intact_episodes
    if len(kept) == 0 or set(summary.lost_keys) >= {key.name for key in summary.keys}:
        raise DataError(
            f"{summary.path}: no episode is whole, there is nothing to copy; get the data set again"
        )
    ends = np.cumsum(summary.lengths[kept])
    rows = [slice(summary.ends[i] - summary.lengths[i], summary.ends[i]) for i in kept]
    with opened(summary.path) as layout:
        arrays = {k: a for k, a in layout.arrays.items() if k not in summary.lost_keys}
        with new_store(path, check=lambda new: _verify(new, ends)) as store:
            root = zarr.open_group(store, mode="w", zarr_format=2)
            save_meta(root.create_group("meta"), _meta_of(layout, kept, ends))
            data = root.create_group("data")
            again = [key for key, array in arrays.items() if _copy(array, rows, data, key)]
        attributes = [f"attribute {name!r} of the data set" for name in layout.root.attrs]
    return Repaired(
        path=path,
        kept=kept,
        n_kept_steps=int(ends[-1]),
        n_lost_episodes=summary.n_stored_episodes - len(kept),
        n_lost_steps=summary.n_stored_steps - int(ends[-1]),
        mended=[f.text for f in summary.damages if f.mended],
        # attributes of the root speak of the whole, such as the fingerprint of its source
        left_out=[*_left_out(summary), *attributes],
        encoded_again=again,
    )


def _left_out(summary: Summary) -> Iterator[str]:
    for finding in summary.damages:
        if finding.key in summary.lost_keys or not (finding.mended or finding.lost):
            yield finding.text


def _check_target(summary: Summary, path: pathlib.Path) -> None:
    if os.path.lexists(path):
        raise DataError(f"{path} exists already; choose a path where nothing is")
    if path.resolve().is_relative_to(summary.path.resolve()):
        raise DataError(f"{path} lies inside the data set itself; choose a path outside of it")
    if not summary.format.startswith("zarr format 2"):
        raise DataError(
            f"{summary.path} is stored in {summary.format}; only format 2 can be repaired"
        )


def _meta_of(layout: Layout, kept: np.ndarray, ends: np.ndarray) -> dict[str, np.ndarray]:
    meta = {}
    for name, values in layout.meta.items():
        # one entry per episode, such as its seed
        is_per_episode = values.ndim > 0 and len(values) == layout.n_stored_episodes
        meta[name] = values[kept] if is_per_episode else values
    return {**meta, "episode_ends": ends}


def _copy(array: zarr.Array, rows: list[slice], group: zarr.Group, name: str) -> bool:
    """Copy the rows of some episodes; returns whether they have another compressor now."""
    if not isinstance(array.metadata, ArrayV2Metadata):
        raise DataError(f"{store_name(array)} is not in zarr format 2; only that can be repaired")
    numbers = np.concatenate([np.arange(r.start, r.stop) for r in rows])
    if numbers[-1] + 1 == len(numbers) or array.chunks[0] == 1:
        _copy_chunks(array, numbers, group, name)
        return False
    codec = compressor_of(array)
    is_lossy = codec is not None and str(codec.codec_id).startswith("imagecodecs_")
    shape = (len(numbers), *array.shape[1:])
    new_codec = COMPRESSORS["disk"] if is_lossy else codec
    target = create_array(group, name, shape, array.dtype, array.chunks, new_codec)
    target.attrs.update(array.attrs.asdict())
    for start in range(0, len(numbers), array.chunks[0]):  # every chunk is encoded once
        part = numbers[start : start + array.chunks[0]]
        runs = np.split(part, np.flatnonzero(np.diff(part) != 1) + 1)
        values = [np.asarray(array[run[0] : run[-1] + 1]) for run in runs]
        write_rows(target, start, np.concatenate(values))
    return is_lossy


def _copy_chunks(array: zarr.Array, rows: np.ndarray, group: zarr.Group, name: str) -> None:
    """Copy stored chunks and the description, with another length.

    ``rows`` are the first ones of the array, or chunks have one row.
    """
    prototype = default_buffer_prototype()
    source, target = array.store_path, group.store_path / name
    length = array.chunks[0]
    numbers = rows[::length] // length

    async def copy() -> None:
        document = await (source / ".zarray").get(prototype)
        assert document is not None  # the array was opened from it
        description = json.loads(document.to_bytes())
        description["shape"] = [len(rows), *array.shape[1:]]
        content = json.dumps(description, indent=4).encode()
        await (target / ".zarray").set(prototype.buffer.from_bytes(content))
        attributes = await (source / ".zattrs").get(prototype)
        if attributes is not None:
            await (target / ".zattrs").set(attributes)
        for new_number, number in enumerate(numbers):
            for index in chunks_of_block(array, int(number)):
                chunk = await (source / chunk_key(array, index)).get(prototype)
                if chunk is None:
                    raise DataError(f"{store_name(array)}: chunk {index} vanished")
                await (target / chunk_key(array, (new_number, *index[1:]))).set(chunk)

    sync(copy())


def _verify(path: pathlib.Path, ends: np.ndarray) -> None:
    copy = summarize(path)
    if copy.damages or not np.array_equal(copy.ends, ends):
        reason = copy.damages[0].text if copy.damages else "other episodes than expected"
        raise DataError(
            f"the copy does not read back ({reason}), is the disk or the memory faulty? Nothing "
            f"was kept"
        )
