"""One process at a time in a run directory."""

import multiprocessing
import time

import pytest

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.workspace.run_lock import locked_run


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


def test_a_second_process_is_refused(other_process, tmp_path):
    other_process(300)
    lock = locked_run(tmp_path, patience_s=0.1)
    with pytest.raises(ConfigError, match=r"another process trains in .*choose another"), lock:
        pass


def test_a_second_process_waits_for_the_end_of_the_first(other_process, tmp_path, caplog):
    process = other_process(1)
    with locked_run(tmp_path, patience_s=60):
        process.join(10)
    assert "Another process trains in" in caplog.text


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
