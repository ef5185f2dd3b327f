"""A small data set that has everything: low-dimensional keys, pictures, other arrays."""

import zlib

import numpy as np
import pytest
from damage import tree, without_checksums

from diffusion_policy.common.replay_buffer import ReplayBuffer

LENGTHS = (10, 12, 8, 15, 11)
ENDS = np.cumsum(LENGTHS)


def smooth_walk(rng, n, width):
    """Curves that move a little every step."""
    phase = rng.uniform(0, 6, width)
    return np.sin(0.2 * np.arange(n)[:, None] + phase).astype(np.float32)


@pytest.fixture
def make_data_set(tmp_path):
    """make_data_set(name='set.zarr', change=None, chunk=4) -> path of a data set in ``tmp_path``.

    ``checksums=False``: as other programs write it. ``change(arrays)`` may edit the arrays before
    they are stored. Keys: action (2), pos (2), joints (2, 3), and pictures img (16, 20, 3) as
    uint8. A block of chunks is four steps.
    """

    def make(name="set.zarr", change=None, chunk=4, lengths=LENGTHS, checksums=True):
        rng = np.random.default_rng(zlib.crc32(b"inspect"))
        n = sum(lengths)
        arrays = {
            "action": smooth_walk(rng, n, 2),
            "pos": 100 + 50 * smooth_walk(rng, n, 2),
            "joints": smooth_walk(rng, n, 6).reshape(n, 2, 3),
            "img": np.zeros((n, 16, 20, 3), np.uint8),
        }
        arrays["img"][:] = np.arange(n, dtype=np.uint8)[:, None, None, None] * 4
        if change is not None:
            change(arrays)
        meta = {"episode_ends": np.cumsum(lengths), "seed": np.arange(len(lengths)) + 100}
        meta["rate"] = np.array(10.0)
        chunks = {key: (chunk, *value.shape[1:]) for key, value in arrays.items()}
        buffer = ReplayBuffer({"data": arrays, "meta": meta})
        path = buffer.save_to_path(tmp_path / name, chunks=chunks)
        return path if checksums else without_checksums(path)

    return make


@pytest.fixture
def contents():
    """The function :func:`tree`."""
    return tree
