"""Images of a zarr store into memory: as uint8, every frame decoded once, a chunk at a time.

The published Push-T images are whole numbers 0..255 stored as float32: 2.8 GB that become 709 MB.
Only one chunk of them exists as floats at any time.
"""

import contextlib
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import zarr
from tqdm import tqdm
from zarr.core.metadata import ArrayV2Metadata

from diffusion_policy.common.episode_store import open_root
from diffusion_policy.common.errors import DataError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.dataset.demonstrations import check_demonstrations, describe_step
from diffusion_policy.storage.nodes import arrays_in, store_name
from diffusion_policy.storage.reading import check_chunks, read_chunk

_BAR_DELAY_S = 2.0  # a progress bar for those who would wonder, not for tests

#: What a step of an image array looks like: numbers, or names of lengths that may be any.
FrameShape = Sequence[int | str]


def stored_keys(path: pathlib.Path) -> list[str]:
    """The arrays under ``data`` of a store.

    Raises:
        DataError: when the store is missing or damaged.
    """
    with _opened(path) as root:
        return sorted(_arrays(root))


def load_demonstrations(
    path: pathlib.Path,
    keys: Sequence[str],
    images: Mapping[str, FrameShape],
    allow_missing_chunks: bool = False,
) -> ReplayBuffer:
    """Load demonstrations with images into memory.

    Args:
        path: zarr directory or zip.
        keys: arrays to load as they are.
        images: arrays to load as uint8, and the shape of their frames, as
            ``{'img': ('height', 'width', 3)}``.
        allow_missing_chunks: take chunks that are not there for zeros.

    Raises:
        DataError: when something is missing, damaged, of another shape or type than expected, not
            finite, or an image holds anything but whole numbers 0..255.
    """
    with _opened(path) as root:
        arrays = _arrays(root)
        missing = [key for key in (*keys, *images) if key not in arrays]
        if missing:
            raise DataError(f"{path} has no data {missing}; it holds {sorted(arrays)}")
        buffer = ReplayBuffer.copy_from_store(
            root, keys=list(keys), allow_missing_chunks=allow_missing_chunks
        )
        check_demonstrations(buffer, str(path))
        for key, frame_shape in images.items():
            _check_layout(arrays[key], frame_shape, buffer.n_steps)
        ends = np.asarray(buffer.episode_ends)
        loaded = {key: read_images(arrays[key], ends, allow_missing_chunks) for key in images}
    return ReplayBuffer({"data": {**buffer.data, **loaded}, "meta": buffer.meta})  # type: ignore[dict-item]


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[zarr.Group]:
    from diffusion_policy.codecs.imagecodecs_numcodecs import register_codecs

    register_codecs(verbose=False)  # zarr cannot even list arrays whose codec it does not know
    root = open_root(path)
    with contextlib.closing(root.store_path.store):
        yield root


def _arrays(root: zarr.Group) -> dict[str, zarr.Array]:
    return arrays_in(root["data"]) if "data" in root else {}


def _check_layout(array: zarr.Array, frame_shape: FrameShape, n_steps: int) -> None:
    fits = len(array.shape) == 1 + len(frame_shape) and all(
        isinstance(wanted, str) or wanted == length
        for wanted, length in zip(frame_shape, array.shape[1:], strict=True)
    )
    if not fits:
        expected = ", ".join(map(str, ("steps", *frame_shape)))
        raise DataError(
            f"{store_name(array)} has shape {array.shape}; images ({expected}) were expected, "
            f"store them like that"
        )
    if array.dtype.kind not in "uif":
        raise DataError(
            f"{store_name(array)} holds {array.dtype}; images of whole numbers 0..255 were "
            f"expected, best as uint8"
        )
    if array.shape[0] < n_steps:
        raise DataError(
            f"{store_name(array)} has {array.shape[0]} images for {n_steps} steps; the store is "
            f"incomplete, get the data again"
        )


def read_images(
    array: zarr.Array, episode_ends: np.ndarray, allow_missing_chunks: bool = False
) -> np.ndarray:
    """Read the images of all finished episodes.

    Args:
        array: ``(N, ...)``; uint8, or another type of which every value is a whole number 0..255.
        episode_ends: exclusive end of every episode, i64 ``(n_episodes,)``.
        allow_missing_chunks: take chunks that are not there for black images.

    Returns:
        uint8 ``(last end, ...)``

    Raises:
        DataError: naming the place, when something is missing, cannot be decoded or is no such
            number.
    """
    n_steps = int(episode_ends[-1])
    check_chunks(array, n_steps, allow_missing_chunks)
    images = np.empty((n_steps, *array.shape[1:]), np.uint8)
    title, length = f"Loading {array.basename}", array.chunks[0]
    with tqdm(total=n_steps, desc=title, unit=" img", delay=_BAR_DELAY_S, leave=False) as bar:
        for start in range(0, n_steps, length):
            rows = slice(start, min(start + length, n_steps))
            _read_rows(array, rows, images[rows], episode_ends)
            bar.update(rows.stop - rows.start)
    return images


def _read_rows(
    array: zarr.Array, rows: slice, images: np.ndarray, episode_ends: np.ndarray
) -> None:
    """Read the rows of one chunk into ``images``."""
    try:
        stored = _decode(array, rows) if _has_whole_images(array) else np.asarray(array[rows])
    except Exception as error:  # codecs raise what they like
        raise DataError(
            f"{store_name(array)}: the images from {describe_step(rows.start, episode_ends)} on "
            f"cannot be decoded ({error}); the file is truncated, corrupt or needs a codec that is "
            f"not installed: get the data set again"
        ) from error
    with np.errstate(invalid="ignore"):  # NaN and the like are found right below
        np.copyto(images, stored, casting="unsafe")
    if stored.dtype == np.uint8:
        return
    changed = images != stored
    if changed.any():
        first = int(np.argmax(changed))
        place = describe_step(rows.start + first // math.prod(images.shape[1:]), episode_ends)
        raise DataError(
            f"{store_name(array)} holds {stored.flat[first]} at {place}; images of whole numbers "
            f"0..255 were expected (those in 0..1 have to be multiplied by 255 and rounded)"
        )


def _has_whole_images(array: zarr.Array) -> bool:
    """Whether a chunk is simply some images one after the other, compressed."""
    metadata = array.metadata
    return (
        isinstance(metadata, ArrayV2Metadata)
        and metadata.order == "C"
        and not metadata.filters
        and array.chunks[1:] == array.shape[1:]
    )


def _decode(array: zarr.Array, rows: slice) -> np.ndarray:
    """The images of one chunk."""
    n_rows = rows.stop - rows.start
    chunk = read_chunk(array, (rows.start // array.chunks[0], *[0] * (array.ndim - 1)))
    return np.zeros((n_rows, *array.shape[1:]), array.dtype) if chunk is None else chunk[:n_rows]
