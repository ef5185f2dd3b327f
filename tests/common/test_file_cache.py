"""Caches: made once, never mistaken for another, whole or not there."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import zarr
from zarr.storage import ZipStore

from diffusion_policy.common import file_cache
from diffusion_policy.common.errors import DataError
from diffusion_policy.common.file_cache import cached, fingerprint_of, identity_of, rebuild
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.common.waiting import Patience

MINE = fingerprint_of(options="mine")


def builder(value, calls=None):
    """A build that stores one episode of this value."""

    def build(store):
        if calls is not None:
            calls.append(value)
        buffer = ReplayBuffer.create_empty_numpy()
        buffer.add_episode({"x": np.full((50, 3), value)})
        buffer.save_to_store(store, compressors=None)

    return build


def read(path):
    return int(ReplayBuffer.copy_from_path(path)["x"][0, 0])


@pytest.fixture(params=[".zarr", ".zarr.zip"])
def path(tmp_path, request):
    return tmp_path / "folder" / f"cache{request.param}"


def test_it_is_made_once_and_then_read(path):
    calls = []
    assert cached(path, MINE, builder(1, calls), read) == 1
    assert cached(path, MINE, builder(2, calls), read) == 1
    assert calls == [1]


def test_it_is_made_again_for_another_fingerprint(path, caplog):
    cached(path, MINE, builder(1), read)
    with caplog.at_level(logging.INFO):
        assert cached(path, fingerprint_of(options="others"), builder(2), read) == 2
    assert "belongs to other data or options" in caplog.text
    assert cached(path, MINE, builder(3), read) == 3


def test_others_can_open_it_as_a_plain_store_of_format_2(path):
    cached(path, MINE, builder(1), read)
    store = ZipStore(path) if path.suffix == ".zip" else path
    root = zarr.open_group(store, mode="r", zarr_format=2)
    assert root.attrs["fingerprint"] == MINE
    assert root["data/x"][:].tolist() == [[1, 1, 1]] * 50


def damage(path, how):
    if path.is_dir():
        victim = path / "data" / "x" / "0.0"
        victim = victim if how != "description" else path / ".zattrs"
    else:
        victim = path
    content = victim.read_bytes()
    if how == "truncated":
        victim.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        victim.write_bytes(b"")
    else:
        victim.write_bytes(b"\xff" * len(content))


@pytest.mark.parametrize("how", ["truncated", "empty", "description"])
def test_a_damaged_one_is_made_again_with_one_warning(path, how, caplog):
    cached(path, MINE, builder(1), read)
    damage(path, how)
    assert cached(path, MINE, builder(2), read) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{path} is made again, it is damaged: " in caplog.text
    assert cached(path, MINE, builder(3), read) == 2


def test_one_that_reading_finds_incomplete_is_made_again(path):
    def picky(path):
        if read(path) == 1:
            raise DataError("a camera is missing")
        return read(path)

    cached(path, MINE, builder(1), read)
    assert cached(path, MINE, builder(2), picky) == 2


def test_a_build_that_makes_something_unreadable_is_not_repeated_for_ever(path):
    calls = []

    def refuse(_path):
        raise DataError("not good enough")

    with pytest.raises(DataError, match="not good enough"):
        cached(path, MINE, builder(1, calls), refuse)
    assert calls == [1]


def test_data_that_are_no_cache_are_never_replaced(path):
    ReplayBuffer.create_empty_numpy().save_to_path(path)
    before = sorted(path.rglob("*")) or path.read_bytes()
    with pytest.raises(DataError, match="was not made by this program as a cache"):
        cached(path, MINE, builder(1), read)
    assert (sorted(path.rglob("*")) or path.read_bytes()) == before
    rebuild(path, MINE, builder(1))
    assert cached(path, MINE, builder(2), read) == 1


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    with pytest.raises(DataError, match="is a folder but no zarr store"):
        cached(tmp_path / "photos", MINE, builder(1), read)
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "meow"


def test_a_build_that_fails_leaves_the_old_one(path):
    def fail(store):
        builder(9)(store)
        raise OSError(28, "No space left on device")

    cached(path, MINE, builder(1), read)
    with pytest.raises(DataError, match="No space left on device"):
        cached(path, fingerprint_of(other=1), fail, read)
    assert cached(path, MINE, builder(2), read) == 1
    assert not list(path.parent.glob("*.partial"))


def build_and_die(path):
    def build(store):
        builder(9)(store)
        os.kill(os.getpid(), signal.SIGKILL)

    cached(path, fingerprint_of(other=1), build, read)


def test_a_kill_while_it_is_written_leaves_the_old_one_and_no_lock(path):
    cached(path, MINE, builder(1), read)
    process = multiprocessing.get_context("fork").Process(target=build_and_die, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left_over = list(path.parent.glob(".*.partial"))
    assert left_over
    assert cached(path, MINE, builder(2), read) == 1
    assert cached(path, fingerprint_of(other=1), builder(3), read) == 3
    assert not any(file.exists() for file in left_over)  # the next writer tidies up


def test_two_that_want_it_at_once_make_it_once(path):
    calls, together = [], threading.Barrier(3)

    def want():
        together.wait()
        assert cached(path, MINE, builder(1, calls), read) == 1

    threads = [threading.Thread(target=want) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/cache\.zarr could not be written"):
        cached(tmp_path / "file" / "cache.zarr", MINE, builder(1), read)


def test_a_complete_one_is_read_without_writing_anything(path, monkeypatch):
    cached(path, MINE, builder(1), read)
    monkeypatch.setattr(file_cache, "_lock", None)  # as in a folder that is read-only
    assert cached(path, MINE, builder(2), read) == 1


# ---- fingerprints --------------------------------------------------------------------------------


def test_a_fingerprint_depends_on_every_part_and_on_no_order():
    assert fingerprint_of(a=1, b=[2, {"c": 3}]) == fingerprint_of(b=[2, {"c": 3}], a=1)
    parts = [{"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": [1]}, {"a": None}, {}]
    assert len({fingerprint_of(**part) for part in parts}) == len(parts)


def test_a_small_source_is_its_content_wherever_it_lies(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder / "x.zarr").mkdir(parents=True)
        (tmp_path / folder / "x.zarr" / "0").write_text("zero")
    first, second = tmp_path / "a" / "x.zarr", tmp_path / "b" / "x.zarr"
    os.utime(second / "0", (1, 1))
    assert identity_of(first) == identity_of(second)
    assert identity_of(first / "0") == identity_of(second / "0")
    (second / "0").write_text("Zero")
    assert identity_of(first) != identity_of(second)
    (second / "0").rename(second / "1")
    assert identity_of(first) != identity_of(second)


def test_a_large_source_is_its_path_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr(file_cache, "_HASHED_BYTES", 3)
    file, copy = tmp_path / "a", tmp_path / "b"
    file.write_text("four")
    copy.write_text("four")
    identity = identity_of(file)
    assert identity_of(copy) != identity
    assert identity_of(file) == identity
    os.utime(file, (1, 1))
    assert identity_of(file) != identity


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="nothing does not exist"):
        identity_of(tmp_path / "nothing")


def test_another_process_that_never_finishes_it_is_named(path, monkeypatch, caplog):
    monkeypatch.setattr(file_cache, "PATIENCE", Patience(limit_s=1.0, say_s=0.3))
    code = (
        "import sys, time, filelock;"
        "lock = filelock.FileLock(sys.argv[1]);"
        "lock.acquire(); print(flush=True); time.sleep(300)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, f"{path}.lock"], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    other.stdout.readline()
    other.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(
            DataError, match=r"did not finish it within 1\.0 s; end that process"
        ) as caught:
            cached(path, "f", builder(1), read)
        assert f"pid {other.pid}, which is stopped" in str(caught.value)
        assert f"the process that makes {path}" in caplog.text
    finally:
        other.kill()
        other.wait()
    assert cached(path, "f", builder(1), read) == 1
