"""Work spread over processes that die, stop, or lose their parent."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from child_processes import children, wait_until_gone

from diffusion_policy.common.errors import EnvWorkerError
from diffusion_policy.common.waiting import Patience
from diffusion_policy.scripts.worker_pool import map_in_processes

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Functions that a fresh interpreter finds: those of the standard library.
SCRIPT = """
import sys, time
from diffusion_policy.scripts.worker_pool import map_in_processes

def busy(seconds):
    if sys.argv[1] == "loop":
        while True:
            pass
    time.sleep(seconds)

if __name__ == "__main__":
    list(map_in_processes(busy, [300, 300], 2))
"""


def test_results_come_in_order():
    assert list(map_in_processes(abs, [-3, 2, -1], 2)) == [3, 2, 1]
    assert list(map_in_processes(abs, [-3], 2)) == [3]
    assert list(map_in_processes(abs, [], 2)) == []


def test_an_exception_is_that_of_the_function():
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(map_in_processes(os.stat, ["/nowhere", "/nowhere"], 2))


def test_one_that_does_not_go_on_is_named():
    with pytest.raises(
        EnvWorkerError,
        match=r"^one of the worker processes \(pid \d+; pid \d+\) did not finish its part within",
    ):
        list(map_in_processes(time.sleep, [600, 600], 2, Patience(3.0, 1.0)))


def test_one_that_dies_is_reported():
    with pytest.raises(EnvWorkerError, match="a worker process died"):
        list(map_in_processes(os._exit, [3, 3], 2))


@pytest.mark.parametrize("doing", ["sleep", "loop"])
def test_they_end_with_their_killed_parent(tmp_path, doing):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, str(script), doing], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    deadline = time.monotonic() + 60
    workers = []
    while len(workers) < 2 or not all(os.getpgid(w.pid) == w.pid for w in workers):
        assert parent.poll() is None
        assert time.monotonic() < deadline
        workers = children(parent, "spawn_main")
        time.sleep(0.05)
    time.sleep(0.5)  # into their work
    family = [child.pid for child in children(parent)]
    if doing == "loop":
        os.kill(workers[0].pid, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    wait_until_gone(*family)
