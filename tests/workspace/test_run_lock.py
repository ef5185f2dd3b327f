"""One process at a time in a run directory."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time

import pytest

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.workspace import run_lock
from diffusion_policy.workspace.run_lock import HOLDER_NAME, RunDirectoryInUse, locked_run


def hold(run_dir, seconds, held):
    with locked_run(run_dir):
        held.set()
        time.sleep(seconds)


@pytest.fixture
def other_process(tmp_path):
    """other_process(seconds): a process that trains, so to speak, in ``tmp_path``."""
    context = multiprocessing.get_context("spawn")
    started = []

    def start(seconds):
        held = context.Event()
        process = context.Process(target=hold, args=(tmp_path, seconds, held))
        process.start()
        started.append(process)
        assert held.wait(60)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def test_a_second_process_is_refused_and_told_who_trains_there(
    other_process, tmp_path, monkeypatch
):
    """Whatever the patience: a process that lives is not waited for."""
    monkeypatch.setattr(run_lock, "PATIENCE_S", 10_000.0)
    process = other_process(300)
    with pytest.raises(RunDirectoryInUse) as error, locked_run(tmp_path):
        pass
    who = f"(process {process.pid} on {socket.gethostname()}, since 20"
    assert str(error.value).startswith(f"another process trains in {tmp_path} {who}")
    assert str(error.value).endswith("end it, or choose another hydra.run.dir")


def test_this_very_process_is_no_exception(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "GRACE_S", 0.0)
    with (
        locked_run(tmp_path),
        pytest.raises(RunDirectoryInUse, match=f"process {os.getpid()}"),
        locked_run(tmp_path),
    ):
        pass


def test_a_process_that_is_about_to_end_is_given_a_moment(other_process, tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "GRACE_S", 60.0)
    process = other_process(1)
    with locked_run(tmp_path):
        process.join(10)
        assert process.exitcode == 0


def test_workers_that_outlive_a_killed_process_are_waited_for(
    other_process, tmp_path, monkeypatch, caplog
):
    """They are forked, as those that read data: some versions of filelock share the lock then."""
    monkeypatch.setattr(run_lock, "GRACE_S", 0.0)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    worker = other_process(2)
    holder = {"pid": dead.pid, "host": socket.gethostname(), "since": "yesterday"}
    (tmp_path / HOLDER_NAME).write_text(json.dumps(holder))
    with locked_run(tmp_path):
        worker.join(10)
        assert worker.exitcode == 0
    assert f"(process {dead.pid} on" in caplog.text
    assert "something of it still holds the directory; waiting 60 s" in caplog.text


@pytest.mark.parametrize("patience", [0.3, 0.0])
def test_whether_another_machine_still_trains_cannot_be_known(
    other_process, tmp_path, patience, caplog
):
    other_process(300)
    holder = {"pid": 7, "host": "elsewhere", "since": "yesterday"}
    (tmp_path / HOLDER_NAME).write_text(json.dumps(holder))
    refused = pytest.raises(RunDirectoryInUse, match=r"process 7 on elsewhere, since yesterday")
    with refused, locked_run(tmp_path, patience_s=patience):
        pass
    assert ("waiting 0.3 s" in caplog.text) == (patience > 0)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x", "host": 1, "since": 2}'])
def test_a_process_that_has_not_said_who_it_is_is_refused_all_the_same(
    other_process, tmp_path, content
):
    other_process(300)
    (tmp_path / HOLDER_NAME).write_text(content)
    refused = pytest.raises(RunDirectoryInUse, match=f"trains in {tmp_path}; end it")
    with refused, locked_run(tmp_path, patience_s=0.1):
        pass


def test_the_folder_is_made_and_afterwards_nobody_is_named(tmp_path):
    with locked_run(tmp_path / "a" / "b"):
        assert json.loads((tmp_path / "a" / "b" / HOLDER_NAME).read_text())["pid"] == os.getpid()
    assert not (tmp_path / "a" / "b" / HOLDER_NAME).exists()


@pytest.mark.parametrize("place", ["file", "file/run", "link", "link/run"])
def test_a_place_that_cannot_be_a_folder_is_one_sentence(tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refused = pytest.raises(ConfigError, match=r"run directory: .*choose another hydra\.run\.dir")
    with refused, locked_run(tmp_path / place):
        pass


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path, monkeypatch):
    import filelock

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(tmp_path / ".lock"))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    refused = pytest.raises(ConfigError, match=r"Permission denied \(.*\.lock\); make it a folder")
    with refused, locked_run(tmp_path):
        pass


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    import filelock

    def refuse(self, *args, **kwargs):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with locked_run(tmp_path):
        pass
    assert "has no locks" in caplog.text


def test_a_killed_process_holds_nothing(other_process, tmp_path):
    process = other_process(300)
    process.kill()
    process.join()
    with locked_run(tmp_path, patience_s=5):
        pass
    with locked_run(tmp_path, patience_s=0):  # nor does one that has ended
        pass
