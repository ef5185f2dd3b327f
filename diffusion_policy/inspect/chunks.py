"""The stored chunks of an array, read one after the other and verified.

zarr reads a missing chunk as zeros, and Blosc decodes a truncated file to whatever follows in
memory. An inspection must notice both, and go on behind them.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import zarr
from numcodecs import Blosc
from zarr.core.metadata import ArrayV2Metadata
from zarr.core.sync import sync

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.zarr_util import compressor_of, store_name


@dataclass(frozen=True)
class Block:
    """Some rows of an array: the chunks that begin at the same row.

    ``values`` is None where a chunk is not readable; ``problem`` then says which, and why.
    """

    rows: slice
    values: np.ndarray | None
    problem: str | None = None


class _BadChunk(Exception):
    pass


def iter_blocks(array: zarr.Array, n_rows: int) -> Iterator[Block]:
    """The first ``n_rows`` rows of an array, one block in memory at a time."""
    for number in range(math.ceil(n_rows / array.chunks[0])):
        yield read_block(array, number, n_rows)


def read_block(array: zarr.Array, number: int, n_rows: int) -> Block:
    """Block ``number`` of the first ``n_rows`` rows."""
    length = array.chunks[0]
    rows = slice(number * length, min((number + 1) * length, n_rows))
    values = np.empty((rows.stop - rows.start, *array.shape[1:]), array.dtype)
    for index in chunks_of_block(array, number):
        try:
            chunk = _read_chunk(array, index)
        except _BadChunk as problem:
            return Block(rows, None, str(problem))
        behind = zip(index[1:], array.chunks[1:], strict=True)
        part = values[(slice(None), *(slice(i * n, (i + 1) * n) for i, n in behind))]
        part[...] = chunk[tuple(map(slice, part.shape))]  # chunks at the rim are padded
    return Block(rows, values)


def chunks_of_block(array: zarr.Array, number: int) -> Iterator[tuple[int, ...]]:
    """The indices of the chunks that make up block ``number``."""
    counts = (math.ceil(n / c) for n, c in zip(array.shape[1:], array.chunks[1:], strict=True))
    return itertools.product([number], *map(range, counts))


def read_whole(array: zarr.Array) -> np.ndarray:
    """A small array, every chunk of it verified.

    Raises:
        DataError: naming the chunk that is not readable.
    """
    if array.ndim == 0:
        return np.asarray(array[...])
    blocks = list(iter_blocks(array, array.shape[0]))
    for block in blocks:
        if block.values is None:
            raise DataError(f"{store_name(array)}: {block.problem}; get the data set again")
    if not blocks:
        return np.empty(array.shape, array.dtype)
    return np.concatenate([block.values for block in blocks if block.values is not None])


def _read_chunk(array: zarr.Array, index: tuple[int, ...]) -> np.ndarray:
    name = "chunk " + ".".join(map(str, index))
    try:
        stored = sync((array.store_path / array.metadata.encode_chunk_key(index)).get())
        if stored is None:
            raise _BadChunk(f"{name} is missing (and would be read as zeros)")
        return _decode(array, index, stored.to_bytes())
    except _BadChunk:
        raise
    except Exception as error:  # codecs raise what they like
        raise _BadChunk(f"{name} is truncated or corrupt ({error})") from error


def _decode(array: zarr.Array, index: tuple[int, ...], content: bytes) -> np.ndarray:
    codec = compressor_of(array)
    if isinstance(codec, Blosc):  # bytes 12..16 of its header: length of the chunk, header included
        length = int.from_bytes(content[12:16], "little")
        if len(content) < 16 or len(content) != length:
            raise ValueError(f"{len(content)} bytes, expected {length}")
    metadata = array.metadata
    if not isinstance(metadata, ArrayV2Metadata) or metadata.order != "C" or metadata.filters:
        return np.asarray(array.blocks[index])
    decoded = content if codec is None else codec.decode(content)
    # here and not by zarr: its threads each keep the memory of their largest chunk
    values = np.frombuffer(decoded, array.dtype)  # type: ignore[arg-type]
    expected = math.prod(array.chunks)
    if len(values) != expected:
        raise ValueError(f"{len(values)} values, expected {expected}")
    return values.reshape(array.chunks)
