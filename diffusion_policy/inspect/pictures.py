"""Images of a data set as small JPEG files."""

import itertools
from collections.abc import Sequence

import numpy as np
import zarr

from diffusion_policy.inspect.chunks import read_block

MAX_SIDE = 256  # pixels; larger pictures are scaled down
QUALITY = 80  # of JPEG, percent


def read_pictures(array: zarr.Array, rows: Sequence[int], maximum: float) -> dict[int, bytes]:
    """Some rows of an image array as JPEG; rows that are not readable are left out.

    Args:
        array: ``(N, ..., height, width, channels)``; several views per row are put side by side.
        rows: which, in increasing order.
        maximum: the largest value of the array, which tells how bright white is.
    """
    length = array.chunks[0]
    pictures = {}
    for number, rows_of_block in itertools.groupby(rows, lambda row: row // length):
        block = read_block(array, number, array.shape[0])
        if block.values is None:
            continue
        for row in rows_of_block:
            pictures[row] = encode(block.values[row - block.rows.start], maximum)
    return pictures


def encode(frame: np.ndarray, maximum: float) -> bytes:
    """One frame ``(..., height, width, channels)``, RGB or grey, as JPEG."""
    import cv2

    views = frame.reshape(-1, *frame.shape[-3:])[..., :3]  # without the alpha channel
    picture = to_uint8(np.concatenate(list(views), axis=1), maximum)
    shrink = MAX_SIDE / max(views.shape[1:3])
    if shrink < 1:
        picture = cv2.resize(picture, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    bgr = picture[..., ::-1] if picture.ndim == 3 else picture
    ok, jpeg = cv2.imencode(".jpg", np.ascontiguousarray(bgr), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert ok
    return jpeg.tobytes()


def to_uint8(picture: np.ndarray, maximum: float) -> np.ndarray:
    """Values 0..255 whatever they were stored as: 0..1 and 0..255 are usual, others are scaled."""
    if picture.dtype == np.uint8:
        return picture
    white = 1.0 if maximum <= 1 else max(maximum, 255.0)
    scaled = np.nan_to_num(picture.astype(np.float32)) * (255 / white)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
