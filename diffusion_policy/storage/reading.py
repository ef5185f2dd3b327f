"""Reading arrays so that damage is noticed: chunks that are missing, truncated or do not decode.

zarr reads a missing chunk as zeros, and Blosc decodes a truncated file to whatever follows in
memory.
"""

import itertools
import logging
import math
from collections.abc import Iterator

import numpy as np
import zarr
from numcodecs import Blosc
from zarr.abc.store import RangeByteRequest
from zarr.core.metadata import ArrayV2Metadata
from zarr.core.sync import sync
from zarr.storage import LocalStore, ZipStore

from diffusion_policy.common.errors import DataError
from diffusion_policy.storage.checked_stores import Checked
from diffusion_policy.storage.checksums import DamagedFileError, rescue
from diffusion_policy.storage.nodes import UNREADABLE, compressor_of, store_name

logger = logging.getLogger(__name__)

_WHERE_ALLOWED = (
    " (where they were never written because they hold only zeros: allow_missing_chunks=True, in "
    "training +task.dataset.allow_missing_chunks=true)"
)
N_NAMES = 3  # so many chunks are named in a sentence


class BadChunkError(DataError):
    """A chunk that is missing or cannot be decoded.

    Attributes:
        reason: what is wrong, in few words, to follow the name of the array.
    """

    def __init__(self, reason: str, message: str | None = None):
        self.reason = reason
        super().__init__(message or reason)


# ---- which chunks there are ----------------------------------------------------------------------


def chunk_counts(array: zarr.Array, n_rows: int | None = None) -> list[int]:
    """The number of chunks along every axis that hold the first ``n_rows`` rows (None: all)."""
    shape = array.shape
    if n_rows is not None and shape:
        shape = (min(n_rows, shape[0]), *shape[1:])
    return [math.ceil(n / c) for n, c in zip(shape, array.chunks, strict=True)]


def chunk_indices(array: zarr.Array, n_rows: int | None = None) -> Iterator[tuple[int, ...]]:
    """The indices of those chunks, in order."""
    return _indices(chunk_counts(array, n_rows))


def _indices(counts: list[int]) -> Iterator[tuple[int, ...]]:
    """One after the other: ``itertools.product`` would begin by listing absurd lengths."""
    if not counts:
        yield ()
        return
    for i in range(counts[0]):
        for behind in _indices(counts[1:]):
            yield i, *behind


def chunk_key(array: zarr.Array, index: tuple[int, ...]) -> str:
    """The file of a chunk, relative to its array."""
    return array.metadata.encode_chunk_key(index)


def missing_chunks(array: zarr.Array, n_rows: int | None = None) -> tuple[int, list[str]]:
    """How many chunks of the first ``n_rows`` rows are not there, and the first of their names.

    Takes no more time for an array whose description says that it is huge.
    """
    if not isinstance(array.metadata, ArrayV2Metadata):
        n_missing = array.nchunks - array.nchunks_initialized
        return (
            (n_missing, ["?"] if n_missing else []) if n_rows in (None, array.shape[0]) else (0, [])
        )
    counts = chunk_counts(array, n_rows)
    there = {key for key in _stored_keys(array) if is_chunk(key, array, counts)}
    absent = (
        name
        for index in chunk_indices(array, n_rows)
        if (name := chunk_key(array, index)) not in there
    )
    return math.prod(counts) - len(there), list(itertools.islice(absent, N_NAMES))


def _stored_keys(array: zarr.Array) -> list[str]:
    """The files in the folder of an array."""
    prefix = f"{array.store_path.path}/".lstrip("/")

    async def listed() -> list[str]:
        keys = array.store_path.store.list_prefix(prefix)
        return [key.removeprefix(prefix) async for key in keys]

    return sync(listed())


def is_chunk(key: str, array: zarr.Array, counts: list[int]) -> bool:
    """Whether a file in the folder of an array is one of its first chunks, ``counts`` per axis."""
    if array.ndim == 0:
        return key == "0"
    parts = key.split(array.metadata.dimension_separator)  # type: ignore[union-attr]
    return len(parts) == len(counts) and all(
        part.isdecimal() and part == str(int(part)) and int(part) < n
        for part, n in zip(parts, counts, strict=True)
    )


def check_chunks(array: zarr.Array, n_rows: int | None = None, allow_missing: bool = False) -> None:
    """Check, without decoding it, that everything is there of the first rows of an array.

    Args:
        array: of a store.
        n_rows: rows behind those are of an episode that was never finished. None: all rows.
        allow_missing: take a chunk that is not there for one of fill values (zeros), with a
            warning. Some programs do not write chunks that hold nothing else.

    Raises:
        DataError: naming the chunks, when some are missing or truncated.
    """
    n_missing, names = missing_chunks(array, n_rows)
    if n_missing:
        for name in names:
            _check_never_written(array, name)
        n_chunks = math.prod(chunk_counts(array, n_rows))
        which = ", ".join(names) + (", ..." if n_missing > len(names) else "")
        reason = f"{n_missing} of {n_chunks} chunks are missing ({which})"
        if not allow_missing:
            hint = "" if array.path.startswith("meta/") else _WHERE_ALLOWED
            name = store_name(array)
            raise BadChunkError(reason, f"{name}: {reason}; {rescue(_root_name(array))}{hint}")
        logger.warning(
            "%s: %s and are read as %s", store_name(array), reason, array.fill_value or 0
        )
    store = array.store_path.store
    has_checksums = isinstance(store, Checked) and store.ledger is not None
    if isinstance(compressor_of(array), Blosc) and not has_checksums:
        _check_blosc_headers(array, n_rows)


def _check_never_written(array: zarr.Array, key: str) -> None:
    """A chunk that the checksums know was written, whatever is allowed."""
    store = array.store_path.store
    if isinstance(store, Checked):
        store.check(f"{array.store_path.path}/{key}", None)


def _root_name(array: zarr.Array) -> str:
    store = array.store_path.store
    return str(getattr(store, "root", None) or getattr(store, "path", "memory"))


def _check_blosc_headers(array: zarr.Array, n_rows: int | None) -> None:
    """Find truncated chunks, and those that claim to be larger than the array says."""
    counts = chunk_counts(array, n_rows)
    for key in _stored_keys(array):
        if not is_chunk(key, array, counts):
            continue
        header, size = _head_of(array, key)
        problem = blosc_problem(array, header, size)
        if problem:
            reason = f"chunk {key} cannot be decoded ({problem})"
            raise BadChunkError(
                reason,
                f"{store_name(array)}: {reason}; the file is truncated or corrupt: "
                f"{rescue(_root_name(array))}",
            )


def _head_of(array: zarr.Array, key: str) -> tuple[bytes, int | None]:
    """The first 16 bytes of a chunk, and its size (None: a zip, which checks itself)."""
    store = array.store_path.store
    if isinstance(store, LocalStore):
        file = store.root / array.store_path.path / key
        with open(file, "rb") as stream:
            return stream.read(16), file.stat().st_size
    part = RangeByteRequest(0, 16) if isinstance(store, ZipStore) else None
    content = sync((array.store_path / key).get(byte_range=part))
    assert content is not None
    whole = content.to_bytes()
    return whole[:16], None if part else len(whole)


def blosc_problem(array: zarr.Array, header: bytes, size: int | None) -> str | None:
    """What is wrong with a Blosc chunk by its header, which is 16 bytes long.

    Bytes 4..8 are the length of the values, 12..16 that of the chunk with its header.
    """
    if len(header) < 16:
        return f"{len(header)} bytes, expected at least 16"
    n_values, n_stored = (int.from_bytes(header[i : i + 4], "little") for i in (4, 12))
    if size is not None and size != n_stored:
        return f"{size} bytes, expected {n_stored}"
    expected = math.prod(array.chunks) * array.dtype.itemsize
    if n_values != expected:
        return f"it holds {n_values} bytes of values, expected {expected}"
    return None


# ---- values --------------------------------------------------------------------------------------


def read_chunk(array: zarr.Array, index: tuple[int, ...]) -> np.ndarray | None:
    """One chunk, verified and decoded; None where it is not there.

    Decoded in this thread: zarr does that in a pool of threads, each of which keeps the memory of
    its largest chunk, 100 MB for the published images.

    Returns:
        An array of the shape of a chunk; those at the rim of some codecs and formats are smaller.

    Raises:
        BadChunkError: when it cannot be decoded, in few words: where it is, and why.
    """
    key = chunk_key(array, index)
    try:
        stored = sync((array.store_path / key).get())
        return None if stored is None else _decode(array, index, stored.to_bytes())
    except DamagedFileError as error:
        raise BadChunkError(f"chunk {key} {error.reason}") from error
    except Exception as error:  # codecs raise what they like
        raise BadChunkError(f"chunk {key} is truncated or corrupt ({error})") from error


def _decode(array: zarr.Array, index: tuple[int, ...], content: bytes) -> np.ndarray:
    codec, metadata = compressor_of(array), array.metadata
    if isinstance(codec, Blosc) and (problem := blosc_problem(array, content[:16], len(content))):
        raise ValueError(problem)
    if not isinstance(metadata, ArrayV2Metadata) or metadata.order != "C" or metadata.filters:
        return np.asarray(array.blocks[index])
    decoded = content if codec is None else codec.decode(content)
    values = np.frombuffer(decoded, array.dtype)  # type: ignore[arg-type]
    expected = math.prod(array.chunks)
    if len(values) != expected:
        raise ValueError(f"{len(values)} values, expected {expected}")
    return values.reshape(array.chunks)


def read_array(
    array: zarr.Array, length: int | None = None, allow_missing: bool = False
) -> np.ndarray:
    """Read an array, or its first ``length`` rows, into memory.

    Raises:
        DataError: naming the damaged chunk, when something is missing (see :func:`check_chunks`)
            or cannot be decoded.
    """
    check_chunks(array, length, allow_missing)
    try:
        return np.asarray(array[...] if length is None else array[:length])
    except DataError:
        raise  # it says what is wrong already
    except MemoryError as error:
        size = array.dtype.itemsize * math.prod(array.shape) / 1e9
        raise DataError(
            f"{store_name(array)} of shape {array.shape} does not fit into the memory of this "
            f"machine ({size:.1f} GB)"
        ) from error
    except Exception as error:  # codecs raise what they like
        reason = f"{_first_bad_chunk(array)} cannot be decoded ({error})"
        raise BadChunkError(
            reason,
            f"{store_name(array)}: {reason}; the file is truncated, corrupt or needs a codec that "
            f"is not installed: get the data set again",
        ) from error


def _first_bad_chunk(array: zarr.Array) -> str:
    for index in chunk_indices(array):
        try:
            array.blocks[index]
        except UNREADABLE:
            return "chunk " + ".".join(map(str, index))
    return "a chunk"
