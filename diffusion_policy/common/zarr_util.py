"""Arrays in zarr **format 2**, through zarr 3: chunks, compressors, copies, readable errors.

Format 2 is what the published data sets are stored in and what the original implementation can
read, so it is what we write. Two things zarr 3 adds to a format-2 store are allowed by that format
and ignored by old readers: the explicit ``dimension_separator`` (its default) and empty ``.zattrs``
files.
"""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc
from numcodecs.abc import Codec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.storage.nodes import compressor_of
from diffusion_policy.storage.reading import check_chunks, chunk_indices, chunk_key, read_array

COMPRESSORS = {
    "default": Blosc(cname="lz4", clevel=5, shuffle=Blosc.NOSHUFFLE),  # fast to read back
    "disk": Blosc(cname="zstd", clevel=5, shuffle=Blosc.BITSHUFFLE),  # small
}
#: What zarr 2 used where nobody chose: the small arrays of ``/meta`` carry it.
META_COMPRESSOR = Blosc(cname="lz4", clevel=5, shuffle=Blosc.SHUFFLE)

_COPY_BYTES = 64e6  # how much of an array is decoded at a time while it is re-chunked


def resolve_compressor(compressor: Codec | str | None) -> Codec | None:
    """Turn the aliases ``'default'`` and ``'disk'`` into codecs; codecs and None pass through.

    Raises:
        ConfigError: for any other string.
    """
    if not isinstance(compressor, str):
        return compressor
    if compressor not in COMPRESSORS:
        raise ConfigError(
            f"unknown compressor {compressor!r}: use 'default', 'disk', None or a numcodecs codec"
        )
    return COMPRESSORS[compressor]


def check_chunks_compatible(chunks: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Check that ``chunks`` can tile an array of ``shape``.

    Raises:
        ConfigError: when the ranks differ or a chunk length is not a positive integer.
    """
    fits = len(chunks) == len(shape) and all(
        isinstance(c, numbers.Integral) and int(c) > 0 for c in chunks
    )
    if not fits:
        raise ConfigError(
            f"chunks {tuple(chunks)} do not fit an array of shape {tuple(shape)}: "
            f"give one positive integer per axis"
        )


def get_optimal_chunks(
    shape: tuple[int, ...],
    dtype: np.typing.DTypeLike,
    target_chunk_bytes: float = 2e6,
    max_chunk_length: int | None = None,
) -> tuple[int, ...]:
    """Chunks of about ``target_chunk_bytes``: trailing axes whole, one axis cut, leading axes 1.

    Args:
        shape: shape of the whole array, time first.
        dtype: its element type.
        target_chunk_bytes: uncompressed size to aim for.
        max_chunk_length: length to reckon with on the time axis instead of the array's.

    Returns:
        The chunk shape. ``(25650, 96, 96, 3)`` of uint8 gives ``(73, 96, 96, 3)``.
    """
    lengths = list(shape)
    if max_chunk_length is not None:
        lengths[0] = max_chunk_length
    # sizes[i]: bytes of one slab made of the last i axes
    sizes = [
        np.dtype(dtype).itemsize * math.prod(lengths[len(lengths) - i :])
        for i in range(len(lengths) + 1)
    ]
    n_whole = len(lengths) - 1
    for i in range(len(lengths) - 1):
        if sizes[i] <= target_chunk_bytes < sizes[i + 1]:
            n_whole = i
    cut = len(lengths) - 1 - n_whole
    cut_length = min(lengths[cut], math.ceil(target_chunk_bytes / max(sizes[n_whole], 1)))
    return (1,) * cut + (max(cut_length, 1), *lengths[cut + 1 :])


def create_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: np.typing.DTypeLike,
    chunks: tuple[int, ...],
    compressor: Codec | None,
) -> zarr.Array:
    """Create ``group/name`` filled with zeros, replacing an array of that name."""
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=tuple(max(int(c), 1) for c in chunks),
        compressors=compressor,  # type: ignore[arg-type]  (a numcodecs codec for format 2)
        fill_value=np.zeros((), dtype).item(),
        order="C",
        overwrite=True,
    )


def write_rows(array: zarr.Array, start: int, values: np.ndarray) -> None:
    """``array[start : start + len(values)] = values``.

    Chunks of zeros are written like any other, so that a chunk that is missing on disk means
    damage.
    """
    array = array.with_config({"write_empty_chunks": True})
    array[start : start + len(values)] = values


def save_array(
    group: zarr.Group,
    name: str,
    values: np.ndarray,
    chunks: tuple[int, ...],
    compressor: Codec | None,
) -> zarr.Array:
    """Create ``group/name`` with these values, replacing an array of that name."""
    array = create_array(group, name, values.shape, values.dtype, chunks, compressor)
    array.with_config({"write_empty_chunks": True})[...] = values
    return array


def copy_array(
    source: zarr.Array,
    group: zarr.Group,
    name: str,
    chunks: tuple[int, ...],
    compressor: Codec | None,
    n_rows: int | None = None,
    allow_missing_chunks: bool = False,
) -> zarr.Array:
    """Copy ``source`` to ``group/name``: byte by byte where nothing changes, else re-encoded.

    Raises:
        DataError: when something is missing of its first ``n_rows`` rows (None: of all), see
            :func:`check_chunks`.
    """
    check_chunks(source, n_rows, allow_missing_chunks)
    if tuple(chunks) == source.chunks and compressor == compressor_of(source):
        _copy_encoded(source, group, name)
        return group[name]  # type: ignore[return-value]
    target = create_array(group, name, source.shape, source.dtype, chunks, compressor)
    row_bytes = max(source.dtype.itemsize * math.prod(source.shape[1:]), 1)
    # whole chunks of the target, so that none is encoded twice
    step = max(int(_COPY_BYTES / row_bytes) // chunks[0], 1) * chunks[0]
    for start in range(0, source.shape[0], step):
        write_rows(target, start, np.asarray(source[start : start + step]))
    return target


def _copy_encoded(source: zarr.Array, group: zarr.Group, name: str) -> None:
    """Copy the stored bytes of an array without decoding them (lossy images stay as they are)."""
    src, dst = source.store_path, group.store_path / name
    keys = [".zarray", ".zattrs", *(chunk_key(source, index) for index in chunk_indices(source))]

    async def copy() -> None:
        await dst.delete_dir()
        for key in keys:
            value = await (src / key).get(default_buffer_prototype())
            if value is not None:
                await (dst / key).set(value)

    sync(copy())


def rechunk_recompress_array(
    group: zarr.Group,
    name: str,
    chunks: tuple[int, ...] | None = None,
    chunk_length: int | None = None,
    compressor: Codec | str | None = None,
    tmp_key: str = "_temp",
) -> zarr.Array:
    """Store ``group/name`` with other chunks or another compressor.

    Args:
        group: the group that holds the array.
        name: its name there.
        chunks: the new chunk shape. None: ``(chunk_length, *old chunks[1:])``, or the old ones.
        chunk_length: the new first chunk length where ``chunks`` is None.
        compressor: the new codec or alias. None keeps the old one (it cannot remove compression).
        tmp_key: name under which the new array is built before it takes the old one's place.

    Returns:
        The new array, or the old one where nothing changes.
    """
    old: zarr.Array = group[name]  # type: ignore[assignment]
    if chunks is None:
        chunks = old.chunks if chunk_length is None else (chunk_length, *old.chunks[1:])
    check_chunks_compatible(chunks, old.shape)
    codec = compressor_of(old) if compressor is None else resolve_compressor(compressor)
    if tuple(chunks) == old.chunks and codec == compressor_of(old):
        return old
    new = copy_array(old, group, tmp_key, chunks, codec)
    _copy_encoded(new, group, name)
    del group[tmp_key]
    return group[name]  # type: ignore[return-value]


def save_data(
    group: zarr.Group,
    arrays: Mapping[str, np.ndarray | zarr.Array],
    n_steps: int,
    chunks: Any,
    compressors: Any,
    allow_missing_chunks: bool = False,
) -> None:
    """Write the first ``n_steps`` rows of every array; chunks and compressor resolved per key."""
    for key, array in arrays.items():
        layout = resolve_chunks(chunks, key, array), resolve_compressors(compressors, key, array)
        if isinstance(array, np.ndarray):
            save_array(group, key, array[:n_steps], *layout)
            continue
        copy = copy_array(array, group, key, *layout, n_steps, allow_missing_chunks)
        if copy.shape[0] > n_steps:
            copy.resize((n_steps, *copy.shape[1:]))


def save_meta(
    group: zarr.Group,
    arrays: Mapping[str, np.ndarray | zarr.Array],
    like: Mapping[str, zarr.Array | None] = {},
) -> None:
    """Write small arrays; those of a store keep their layout, others become one chunk each.

    Args:
        group: where to.
        arrays: what to write.
        like: arrays of a store whose layout others take.
    """
    for key, array in arrays.items():
        layout = array if isinstance(array, zarr.Array) else like.get(key)
        values = array if isinstance(array, np.ndarray) else read_array(array)
        if layout is None:
            save_array(group, key, values, values.shape, META_COMPRESSOR)
        else:
            save_array(group, key, values, layout.chunks, compressor_of(layout))


def resolve_compressors(compressors: Any, key: str, array: np.ndarray | zarr.Array) -> Codec | None:
    """The codec for a key: the setting's, else the array's own, else ``'default'``."""
    if not isinstance(compressors, dict):
        return resolve_compressor(compressors)
    if key in compressors:
        return resolve_compressor(compressors[key])
    return compressor_of(array) if isinstance(array, zarr.Array) else COMPRESSORS["default"]


def resolve_chunks(chunks: Any, key: str, array: np.ndarray | zarr.Array) -> tuple[int, ...]:
    """The chunks for a key: the setting's, else the array's own, else :func:`get_optimal_chunks`.

    Raises:
        TypeError: when the setting is neither a dict nor a tuple.
        ConfigError: when it does not fit the array.
    """
    if not isinstance(chunks, (dict, tuple)):
        raise TypeError(f"chunks must be a dict or a tuple, not {type(chunks).__name__}")
    setting = chunks if isinstance(chunks, tuple) else chunks.get(key)
    if setting is None:
        own = array.chunks if isinstance(array, zarr.Array) else None
        setting = own or get_optimal_chunks(array.shape, array.dtype)
    check_chunks_compatible(setting, array.shape)
    return tuple(setting)
