"""The stored chunks of an array, read one after the other and verified.

An inspection must notice every chunk that is damaged, and go on behind it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import zarr

from diffusion_policy.common.errors import DataError
from diffusion_policy.storage.nodes import store_name
from diffusion_policy.storage.reading import (
    BadChunkError,
    chunk_indices,
    chunk_key,
    read_chunk,
)


@dataclass(frozen=True)
class Block:
    """Some rows of an array: the chunks that begin at the same row.

    ``values`` is None where a chunk is not readable; ``problem`` then says which, and why.
    """

    rows: slice
    values: np.ndarray | None
    problem: str | None = None


def iter_blocks(array: zarr.Array, n_rows: int) -> Iterator[Block]:
    """The first ``n_rows`` rows of an array, one block in memory at a time."""
    for number in range(math.ceil(n_rows / array.chunks[0])):
        yield read_block(array, number, n_rows)


def read_block(array: zarr.Array, number: int, n_rows: int) -> Block:
    """Block ``number`` of the first ``n_rows`` rows."""
    length = array.chunks[0]
    rows = slice(number * length, min((number + 1) * length, n_rows))
    values = None
    for index in chunks_of_block(array, number):
        try:
            chunk = _read_chunk(array, index)
        except BadChunkError as problem:
            return Block(rows, None, str(problem))
        try:
            values = _space(array, rows) if values is None else values
        except (MemoryError, ValueError) as error:  # the description may be absurd
            return Block(rows, None, f"chunks of shape {array.shape} are too large ({error})")
        behind = zip(index[1:], array.chunks[1:], strict=True)
        part = values[(slice(None), *(slice(i * n, (i + 1) * n) for i, n in behind))]
        part[...] = chunk[tuple(map(slice, part.shape))]  # chunks at the rim are padded
    return Block(rows, _space(array, rows) if values is None else values)


def _space(array: zarr.Array, rows: slice) -> np.ndarray:
    return np.empty((rows.stop - rows.start, *array.shape[1:]), array.dtype)


def chunks_of_block(array: zarr.Array, number: int) -> Iterator[tuple[int, ...]]:
    """The indices of the chunks that make up block ``number``."""
    return ((number, *rest) for (_, *rest) in chunk_indices(array, 1))


def read_whole(array: zarr.Array) -> np.ndarray:
    """A small array, every chunk of it verified.

    Raises:
        DataError: naming the chunk that is not readable.
    """
    if array.ndim == 0:
        chunk = _read_chunk(array, ())
        return chunk.reshape(())
    blocks = list(iter_blocks(array, array.shape[0]))
    for block in blocks:
        if block.values is None:
            raise DataError(f"{store_name(array)}: {block.problem}; get the data set again")
    if not blocks:
        return np.empty(array.shape, array.dtype)
    return np.concatenate([block.values for block in blocks if block.values is not None])


def _read_chunk(array: zarr.Array, index: tuple[int, ...]) -> np.ndarray:
    chunk = read_chunk(array, index)
    if chunk is None:
        name = chunk_key(array, index)
        raise BadChunkError(f"chunk {name} is missing (and would be read as zeros)")
    return chunk
