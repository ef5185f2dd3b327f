"""What the children of the attacks on recordings do, and what has to hold afterwards."""

import os
import pathlib

import numpy as np
from damage import tree

from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.inspect.summary import summarize
from diffusion_policy.storage import durable_files


def make_episode(i: int) -> dict[str, np.ndarray]:
    """Episode i: 3 to 7 steps, so that chunk borders (set by episode 0) fall everywhere."""
    rng = np.random.default_rng(i)
    length = 3 + i % 5
    return {
        "obs": rng.normal(size=(length, 3)),
        "img": rng.integers(0, 255, size=(length, 4, 4, 3), dtype=np.uint8),
    }


def record(path: str, stop: int) -> None:
    """Records until there are ``stop`` episodes; a folder ``<path>.<n>`` says that n are saved."""
    buffer = ReplayBuffer.create_from_path(path, mode="a")
    for i in range(buffer.n_episodes, stop):
        buffer.add_episode(make_episode(i), compressors="disk")
        os.makedirs(f"{path}.{i + 1}", exist_ok=True)


def drop_one(path: str) -> None:
    ReplayBuffer.create_from_path(path, mode="a").drop_episode()


def announce(path: str) -> None:
    """Adds a small array to the meta data."""
    buffer = ReplayBuffer.create_from_path(path, mode="a")
    buffer.update_meta({"seed": np.arange(1000)})


def make_buffer(n: int) -> ReplayBuffer:
    buffer = ReplayBuffer.create_empty_numpy()
    for i in range(n):
        buffer.add_episode(make_episode(i))
    return buffer


def save(path: str, n: int, can_exchange: bool) -> None:
    """Replaces what is at ``path``."""
    if not can_exchange:
        durable_files.exchange = lambda one, other: False
    make_buffer(n).save_to_path(path)


def assert_holds_the_first_episodes(buffer: ReplayBuffer) -> int:
    """Check every episode of the buffer; returns how many there are."""
    expected = [make_episode(i) for i in range(buffer.n_episodes)]
    assert buffer.episode_lengths.tolist() == [len(e["obs"]) for e in expected]
    for key in buffer.keys() if expected else ():
        got = np.asarray(buffer[key][:])
        np.testing.assert_array_equal(got, np.concatenate([e[key] for e in expected]))
    return buffer.n_episodes


def check_reading(path: pathlib.Path) -> int:
    """The number of episodes, the same for every way to read; none changes anything."""
    files = tree(path)
    counts = {assert_holds_the_first_episodes(ReplayBuffer.copy_from_path(path))}
    counts.add(assert_holds_the_first_episodes(ReplayBuffer.create_from_path(path)))
    summary = summarize(path)
    assert summary.damages == [], summary.damages
    counts.add(len(summary.ends))
    assert len(counts) == 1, counts
    assert tree(path) == files
    return counts.pop()


def check_writing(path: pathlib.Path) -> int:
    """The number of episodes after opening for writing, which deletes no chunk."""
    chunks = {name for name in tree(path) if name.startswith("data/") and "/.z" not in name}
    count = assert_holds_the_first_episodes(ReplayBuffer.create_from_path(path, mode="a"))
    assert {name for name in chunks if not name.endswith(".partial")} <= tree(path).keys()
    return count
