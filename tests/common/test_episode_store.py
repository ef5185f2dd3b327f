"""A recording that is killed at any moment keeps every finished episode."""

import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import zarr

from diffusion_policy.common import episode_store
from diffusion_policy.common.episode_store import DurableStore, open_root
from diffusion_policy.common.errors import DataError
from diffusion_policy.common.replay_buffer import ReplayBuffer


def make_episode(i: int) -> dict[str, np.ndarray]:
    """Episode i: 3 to 7 steps, so that chunk borders (set by episode 0) fall everywhere."""
    rng = np.random.default_rng(i)
    length = 3 + i % 5
    return {
        "obs": rng.normal(size=(length, 3)),
        "img": rng.integers(0, 255, size=(length, 4, 4, 3), dtype=np.uint8),
    }


def assert_holds_the_first_episodes(buffer: ReplayBuffer) -> int:
    """Check every episode of the buffer; returns how many there are."""
    expected = [make_episode(i) for i in range(buffer.n_episodes)]
    assert buffer.episode_lengths.tolist() == [len(e["obs"]) for e in expected]
    for key in buffer.keys() if expected else ():
        got = np.asarray(buffer[key][:])
        np.testing.assert_array_equal(got, np.concatenate([e[key] for e in expected]))
    return buffer.n_episodes


def read_and_check(path: pathlib.Path) -> int:
    return assert_holds_the_first_episodes(ReplayBuffer.copy_from_path(path))


def check_all_ways_to_open(path: pathlib.Path) -> int:
    """Number of episodes, the same for every way to open the store; the last way repairs it."""
    files = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    counts = {read_and_check(path)}
    counts.add(assert_holds_the_first_episodes(ReplayBuffer.create_from_path(path)))
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == files  # reading only
    counts.add(assert_holds_the_first_episodes(ReplayBuffer.create_from_path(path, mode="a")))
    assert not list(path.rglob("*.partial"))
    assert len(counts) == 1
    return counts.pop()


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the process runs on."""


def run_and_kill(
    action, path: pathlib.Path, n: int, torn: bool = False
) -> tuple[bool, pathlib.Path]:
    """Run ``action(path)``; let its n-th change to the disk, and all after it, not happen.

    ``torn``: that write leaves half of its temporary file behind.

    Returns:
        Whether the action had fewer than n changes to make and ended, and the store to look at: a
        copy of that very moment, because zarr's threads may still be writing when the exception
        arrives here (a killed process would not).
    """
    lock, left = threading.Lock(), n
    frozen = path.with_suffix(".frozen")
    write = episode_store._write_durably

    def count(target=None, content=b""):
        nonlocal left
        left -= 1
        if left >= 0:
            return
        if left == -1:
            if torn and target is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                half = content[: len(content) // 2]
                target.with_name(f"{target.name}.1.partial").write_bytes(half)
            shutil.copytree(path, frozen)
        raise Killed

    def dying_write(target, content):
        with lock:
            count(target, content)
            write(target, content)

    async def dying_delete(self, key):
        with lock:  # nothing is awaited under the lock: the event loop has other tasks
            count()
            self.delete_sync(key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)  # no power cut is played here
        patch.setattr(episode_store, "_write_durably", dying_write)
        patch.setattr(DurableStore, "delete", dying_delete)
        patch.setattr(DurableStore, "delete_dir", dying_delete)
        with contextlib.suppress(Killed):
            action(path)
    return (True, path) if left >= 0 else (False, frozen)


def record(path: pathlib.Path, stop: int) -> None:
    buffer = ReplayBuffer.create_from_path(path, mode="a")
    for i in range(buffer.n_episodes, stop):
        buffer.add_episode(make_episode(i), compressors="disk")


@pytest.mark.parametrize(("finished", "torn", "step"), [(0, False, 5), (3, True, 2)])
def test_any_write_of_add_episode_may_be_the_last(tmp_path, finished, torn, step):
    """3 to 4 episodes is also where ``episode_ends`` changes its chunk size."""
    base = tmp_path / "base.zarr"
    if finished:
        record(base, finished)
    for n in range(0, 200, step):
        path = tmp_path / f"{n}.zarr"
        if finished:
            shutil.copytree(base, path)
        done, path = run_and_kill(lambda p: record(p, finished + 1), path, n, torn)
        if (path / "data" / ".zgroup").exists():
            count = check_all_ways_to_open(path)
            assert count == finished + 1 if done else finished <= count <= finished + 1
        record(path, finished + 2)
        assert read_and_check(path) == finished + 2
        if done:
            break
    assert n > 10  # many different moments were tried
    assert done


def drop_one(path: pathlib.Path) -> None:
    ReplayBuffer.create_from_path(path, mode="a").drop_episode()


def test_any_write_of_drop_episode_may_be_the_last(tmp_path):
    record(tmp_path / "base.zarr", 4)
    for n in range(200):
        path = tmp_path / f"{n}.zarr"
        shutil.copytree(tmp_path / "base.zarr", path)
        done, path = run_and_kill(drop_one, path, n)
        assert check_all_ways_to_open(path) in ((3,) if done else (3, 4))
        if done:
            break
    assert n > 3
    assert done


RECORDER = textwrap.dedent(
    """
    import sys
    sys.path.insert(0, sys.argv[1])
    from test_episode_store import ReplayBuffer, make_episode
    buffer = ReplayBuffer.create_from_path(sys.argv[2], mode="a")
    i = buffer.n_episodes
    print(i, flush=True)
    while True:
        buffer.add_episode(make_episode(i), compressors="disk")
        i += 1
        print(i, flush=True)
    """
)


def test_kill_minus_9_in_a_loop_never_costs_a_finished_episode(tmp_path):
    path, rng = tmp_path / "demo.zarr", random.Random(0)
    for _ in range(3):
        recorder = subprocess.Popen(
            [sys.executable, "-c", RECORDER, str(pathlib.Path(__file__).parent), str(path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert recorder.stdout is not None
        lines = [recorder.stdout.readline() for _ in range(rng.randint(2, 6))]
        # somewhere inside the next add_episode
        try:
            recorder.wait(timeout=rng.uniform(0, 0.03))
        except subprocess.TimeoutExpired:
            os.kill(recorder.pid, signal.SIGKILL)
        lines += recorder.stdout.readlines()
        recorder.wait()
        announced = int(lines[-1])
        assert announced <= check_all_ways_to_open(path) <= announced + 1


def test_what_is_dropped_by_a_repair_is_logged(tmp_path, caplog):
    path = tmp_path / "demo.zarr"
    record(path, 2)
    zarr.open_array(path / "data" / "obs", mode="r+").resize((99, 3))
    assert check_all_ways_to_open(path) == 2
    assert "data/obs: 92 steps of an episode that was never finished are dropped" in caplog.text


def test_a_full_disk_while_recording_keeps_the_earlier_episodes(tmp_path, monkeypatch):
    path = tmp_path / "demo.zarr"
    record(path, 2)
    buffer = ReplayBuffer.create_from_path(path, mode="a")
    real = os.fsync

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left on device.*2 earlier episodes are intact"):
        buffer.add_episode(make_episode(2))
    monkeypatch.setattr(os, "fsync", real)
    buffer.add_episode(make_episode(2))  # the same buffer can go on once there is space
    assert check_all_ways_to_open(path) == 3


def test_every_file_is_synced_before_it_takes_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("name"), replace(a, b)))
    episode_store._write_durably(tmp_path / "a" / "b", b"content")
    assert events == ["fsync", "name", "fsync"]
    assert (tmp_path / "a" / "b").read_bytes() == b"content"


def test_opening_nothing_for_writing_makes_an_empty_buffer(tmp_path):
    buffer = ReplayBuffer.create_from_path(tmp_path / "deep" / "new.zarr", mode="a")
    assert (buffer.n_episodes, buffer.n_steps) == (0, 0)
    with pytest.raises(DataError, match="does not exist"):
        open_root(tmp_path / "other.zarr", mode="r+")
