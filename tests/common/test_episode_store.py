"""Recordings: what is refused, what is finished, and that opening never deletes anything.

Kills at every disk call are in tests/attack/test_recording_kills.py.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import zarr
from attack.recording_jobs import (
    assert_holds_the_first_episodes,
    check_reading,
    check_writing,
    make_episode,
    record,
)
from damage import flip_a_bit, tree, without_checksums

from diffusion_policy.common import episode_arrays
from diffusion_policy.common.episode_store import open_root
from diffusion_policy.common.errors import DataError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.inspect.repair import repair
from diffusion_policy.inspect.summary import summarize
from diffusion_policy.storage.checksums import CHECKSUMS, JOURNAL


@pytest.fixture
def recording(tmp_path) -> pathlib.Path:
    """Four episodes."""
    path = tmp_path / "demo.zarr"
    record(str(path), 4)
    return path


def open_for_writing(path: pathlib.Path) -> ReplayBuffer:
    return ReplayBuffer.create_from_path(path, mode="a")


def assert_refused(path: pathlib.Path, message: str) -> None:
    """Opening for writing fails with a sentence and changes nothing."""
    before = tree(path)
    for mode in ("a", "r+"):
        with pytest.raises(DataError, match=message):
            ReplayBuffer.create_from_path(path, mode=mode)
    assert tree(path) == before


# ---- damage --------------------------------------------------------------------------------------


DAMAGE = {
    "missing": lambda file: file.unlink(),
    "bit": flip_a_bit,
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize(
    "file",
    [".zgroup", "data/.zgroup", "meta/.zgroup", "data/obs/.zarray", "meta/episode_ends/.zarray"]
    + ["meta/episode_ends/0"],
)
def test_a_damaged_recording_is_not_opened_for_writing_and_rescued_whole(
    recording, tmp_path, file, how
):
    DAMAGE[how](recording / file)
    assert_refused(recording, rf"the file {file} is .*inspect .*demo\.zarr --repair NEW\.zarr")
    repaired = repair(summarize(recording), tmp_path / "new.zarr")
    assert (repaired.n_kept_episodes, repaired.n_lost_steps) == (4, 0)
    assert check_writing(tmp_path / "new.zarr") == 4


def test_a_chunk_that_vanished_is_noticed_before_anything_is_recorded(recording):
    (recording / "data/img/1.0.0.0").unlink()
    assert_refused(recording, r"the file data/img/1\.0\.0\.0 is missing")


def test_a_damaged_last_chunk_stops_the_recording_before_it_is_written_again(recording):
    """It holds rows of an earlier episode; a check of all chunks would take too long."""
    record(str(recording), 5)
    buffer = open_for_writing(recording)
    chunk = max((recording / "data/obs").glob("[0-9]*"), key=lambda p: int(p.name.split(".")[0]))
    flip_a_bit(chunk)
    before = chunk.read_bytes()
    with pytest.raises(DataError, match=r"data/obs/.* is damaged \(its checksum is wrong\)"):
        buffer.add_episode(make_episode(5))
    assert chunk.read_bytes() == before
    assert open_for_writing(recording).n_episodes == 5


@pytest.mark.parametrize("how", [*DAMAGE, "gone"])
def test_damaged_ends_of_another_program_delete_nothing(recording, how):
    """The published stores carry no checksums."""
    without_checksums(recording)
    if how == "gone":
        shutil.rmtree(recording / "meta/episode_ends")
    else:
        damage = {**DAMAGE, "bit": lambda file: flip_a_bit(file, at=3 * 8)}  # of the last one
        damage[how](recording / "meta/episode_ends/0")
    message = r"episode_ends|the last of \d+ episodes ends at step|ends? before it begins"
    assert_refused(recording, message)


def test_ends_that_say_less_than_the_arrays_hold_are_refused(recording, tmp_path):
    """One flipped bit: nobody can tell that from a recording that was killed."""
    ends = ReplayBuffer.create_from_path(recording).episode_ends[:]
    without_checksums(recording)
    root = zarr.open_group(recording, mode="r+", zarr_format=2)
    root["meta/episode_ends"][:] = [*ends[:-1], ends[-1] - 1]
    assert_refused(recording, "either 'meta/episode_ends' is damaged, or a recording was killed")
    assert "nobody can tell" in summarize(recording).warnings[0].text
    repaired = repair(summarize(recording), tmp_path / "new.zarr")
    assert (repaired.n_kept_episodes, repaired.n_lost_steps) == (4, 1)
    assert open_for_writing(tmp_path / "new.zarr").n_steps == ends[-1] - 1


@pytest.mark.parametrize("checksums", [True, False])
def test_a_group_that_vanished_makes_no_new_recording(recording, checksums):
    if not checksums:
        without_checksums(recording)
    (recording / "data/.zgroup").unlink()
    assert_refused(recording, r"data/\.zgroup is missing|has no group 'data', but holds \['data'\]")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_text("meow")
    assert_refused(tmp_path / "photos", "not a readable zarr group")
    zarr.open_group(tmp_path / "other.zarr", mode="w", zarr_format=2).create_group("things")
    assert_refused(tmp_path / "other.zarr", r"has no group 'data', but holds \['things'\]")


def test_missing_chunks_of_another_program_may_be_allowed(recording):
    without_checksums(recording)
    (recording / "data/img/0.0.0.0").unlink()
    assert_refused(recording, r"1 of \d+ chunks are missing \(0\.0\.0\.0\)")
    buffer = ReplayBuffer.create_from_path(recording, mode="a", allow_missing_chunks=True)
    assert buffer.n_episodes == 4


# ---- kills ---------------------------------------------------------------------------------------


def interrupt(path: pathlib.Path) -> None:
    """Leaves what a writer leaves that is killed before its episode counts."""
    buffer = open_for_writing(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(episode_arrays, "commit_ends", _raise_interrupted)
        with pytest.raises(_InterruptedError):
            buffer.add_episode(make_episode(9))


class _InterruptedError(Exception):
    pass


def _raise_interrupted(*_args) -> None:
    raise _InterruptedError


def test_rows_of_an_episode_that_was_never_finished_are_left_out_and_stay(recording, caplog):
    interrupt(recording)
    assert check_reading(recording) == 4
    chunks = {k: v for k, v in tree(recording).items() if "/.z" not in k and k.startswith("data")}
    assert check_writing(recording) == 4
    assert "7 steps of an episode that was never finished are left out" in caplog.text
    after = tree(recording)
    assert {name: after.get(name) for name in chunks} == chunks  # not one byte of them
    record(str(recording), 6)
    assert check_reading(recording) == 6


def test_a_recording_that_goes_on_after_a_kill_has_shorter_episodes_too(recording):
    """Rows behind them were written before; they must not come back."""
    interrupt(recording)
    buffer = open_for_writing(recording)
    buffer.add_episode({k: v[:1] for k, v in make_episode(4).items()})
    assert buffer.episode_lengths.tolist()[-1] == 1
    copy = ReplayBuffer.copy_from_path(recording)
    np.testing.assert_array_equal(copy["obs"][-1], make_episode(4)["obs"][0])
    assert summarize(recording).damages == []


def test_a_first_episode_that_was_never_finished_may_have_had_another_shape(tmp_path):
    path = tmp_path / "demo.zarr"
    open_for_writing(path)
    interrupt(path)
    buffer = open_for_writing(path)
    assert buffer.n_episodes == 0
    buffer.add_episode({"obs": np.ones((3, 5))})
    assert {k: a.shape for k, a in ReplayBuffer.copy_from_path(path).items()} == {"obs": (3, 5)}


def legacy_kill(path: pathlib.Path, ends: list[int]) -> None:
    """What an earlier version left that was killed while it committed an episode."""
    root = zarr.open_group(without_checksums(path), mode="r+", zarr_format=2)
    record = {"episode_ends": ends or root["meta/episode_ends"][:].tolist()}
    (path / ".committed_episode_ends.json").write_text(json.dumps(record))
    (path / "meta/episode_ends/0").unlink()


def test_what_an_earlier_version_had_committed_is_finished(recording):
    legacy_kill(recording, [])
    assert check_reading(recording) == 4
    assert check_writing(recording) == 4
    assert not (recording / ".committed_episode_ends.json").exists()
    assert check_reading(recording) == 4


@pytest.mark.parametrize("ends", [[3, 7, 12, 17], [3, 1, 12, 18]])
def test_a_damaged_record_of_an_earlier_version_is_refused(recording, ends):
    legacy_kill(recording, ends)
    assert_refused(recording, "nothing was changed|does not increase|Nothing was changed")


# ---- checksums while recording -------------------------------------------------------------------


def test_opening_a_sound_recording_for_writing_changes_nothing(recording):
    before = tree(recording)
    open_for_writing(recording)
    assert tree(recording) == before
    without_checksums(recording)
    before = tree(recording)
    open_for_writing(recording)
    assert tree(recording) == before


def test_temporary_files_of_dead_writers_are_removed_and_of_living_ones_not(recording):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, alive = (recording / "data" / f"x.{pid}.partial" for pid in (dead.pid, os.getppid()))
    left.write_text("half")
    alive.write_text("half")
    ReplayBuffer.create_from_path(recording)
    assert left.exists(), "reading changes nothing"
    ReplayBuffer.create_from_path(recording, mode="a")
    assert not left.exists()
    assert alive.exists()


def test_a_recording_of_another_program_gets_checksums_when_it_is_extended(recording):
    without_checksums(recording)
    record(str(recording), 5)
    assert (recording / CHECKSUMS).exists()
    assert check_reading(recording) == 5
    flip_a_bit(recording / "data/img/0.0.0.0")  # written before there were checksums
    with pytest.raises(DataError, match="checksum is wrong"):
        ReplayBuffer.copy_from_path(recording)


def test_what_another_program_changed_is_refused_with_a_way_out(recording):
    zarr.open_group(recording, mode="r+", zarr_format=2)["data/obs"][0] = 7
    with pytest.raises(DataError, match=rf"you want that: remove \{CHECKSUMS} from it"):
        ReplayBuffer.copy_from_path(recording)
    assert (ReplayBuffer.copy_from_path(without_checksums(recording))["obs"][0] == 7).all()


def test_between_episodes_the_journal_is_empty(recording):
    buffer = open_for_writing(recording)
    for edit in (
        lambda: buffer.add_episode(make_episode(4)),
        lambda: buffer.update_meta({"seed": np.arange(5)}),
        lambda: buffer.set_chunks({"obs": (2, 3)}),
        lambda: buffer.set_compressors({"obs": "default"}),
        lambda: buffer.drop_episode(),
    ):
        edit()
        assert not (recording / JOURNAL).exists()
        assert summarize(recording).findings == []
    assert check_reading(recording) == 4


def test_a_recording_can_be_read_while_it_is_written(recording):
    """A reader sees chunks before or after a write; neither is damage."""
    buffer, done, errors = open_for_writing(recording), threading.Event(), []

    def read():
        while not done.is_set():
            try:
                assert_holds_the_first_episodes(ReplayBuffer.copy_from_path(recording))
            except Exception as error:
                errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(4, 12):
        buffer.add_episode(make_episode(i), compressors="disk")
    done.set()
    reader.join()
    assert errors == []


def test_opening_with_mode_w_begins_again(recording):
    buffer = ReplayBuffer.create_from_path(recording, mode="w")
    assert buffer.n_episodes == 0
    buffer.add_episode({"pos": np.ones((2, 2))})
    assert sorted(ReplayBuffer.copy_from_path(recording).keys()) == ["pos"]
    assert summarize(recording).damages == []


def test_a_full_disk_while_recording_keeps_the_earlier_episodes(tmp_path, monkeypatch):
    path = tmp_path / "demo.zarr"
    record(str(path), 2)
    buffer = open_for_writing(path)
    real = os.fsync

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left on device.*2 earlier episodes are intact"):
        buffer.add_episode(make_episode(2))
    monkeypatch.setattr(os, "fsync", real)
    buffer.add_episode(make_episode(2))  # the same buffer can go on once there is space
    assert check_reading(path) == 3


def test_opening_nothing_for_writing_makes_an_empty_buffer(tmp_path):
    buffer = ReplayBuffer.create_from_path(tmp_path / "deep" / "new.zarr", mode="a")
    assert (buffer.n_episodes, buffer.n_steps) == (0, 0)
    with pytest.raises(DataError, match="does not exist"):
        open_root(tmp_path / "other.zarr", mode="r+")
