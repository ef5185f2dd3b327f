"""A child process does not outlive its parent, nor another process the holder of its lifeline."""

import os
import signal
import subprocess
import sys
import time

import pytest
from child_processes import is_alive, wait_until_gone

from diffusion_policy.common import orphans

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can do this")

CHILD = """
import os, sys, time
from diffusion_policy.common.orphans import die_with_parent
die_with_parent(int(sys.argv[1]))
print(os.getpid(), flush=True)
time.sleep(300)
"""
PARENT = """
import os, subprocess, sys
subprocess.run([sys.executable, "-c", sys.argv[1], str(os.getpid())])
"""


def test_a_child_dies_with_its_killed_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    wait_until_gone(child)


def test_a_parent_that_is_gone_already():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    child = subprocess.run([sys.executable, "-c", CHILD, str(gone.pid)], timeout=60)
    assert child.returncode == -signal.SIGKILL


# What the other process is doing when the holder of its lifeline dies
DOING = {
    "nothing": "time.sleep(300)",
    "a loop of Python": "while True: pass",
    "a loop of C that keeps the interpreter": "ctypes.PyDLL(None).sleep(300)",
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    "deaf": "[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(300)",
}
OTHER = """
import ctypes, os, signal, subprocess, sys, time
from multiprocessing.connection import Connection
from diffusion_policy.common.orphans import die_with
die_with(Connection(int(sys.argv[1])))
simulator = subprocess.Popen(["sleep", "300"])
print(os.getpid(), simulator.pid, flush=True)
exec(sys.argv[2])
"""
# Lifelines are for processes that are no children: this one is started by a shell that ends.
HOLDER = """
import os, subprocess, sys, time
from diffusion_policy.common.orphans import Lifeline
lifeline = Lifeline()
fd = os.dup(lifeline.theirs.fileno())
subprocess.run(
    ["sh", "-c", '"$@" &', "sh", sys.executable, "-c", sys.argv[1], str(fd), sys.argv[2]],
    pass_fds=[fd],
)
if os.fork() == 0:  # as a worker of a data loader: it holds what we hold
    print(os.getpid(), flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("doing", DOING)
def test_the_holder_of_a_lifeline_is_killed(doing):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, OTHER, DOING[doing]], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    lines = sorted(([*map(int, holder.stdout.readline().split())] for _ in range(2)), key=len)
    [forked], others = lines
    try:
        assert len(others) == 2
        assert all(map(is_alive, others))
        time.sleep(0.2)  # into what it is doing
        holder.kill()
        holder.wait()
        wait_until_gone(*others)
        assert is_alive(forked)
    finally:
        os.kill(forked, signal.SIGKILL)


def test_a_lifeline_that_is_closed_already():
    lifeline = orphans.Lifeline()
    fd = os.dup(lifeline.theirs.fileno())
    lifeline.close()
    other = subprocess.run(
        [sys.executable, "-c", OTHER, str(fd), "time.sleep(300)"], pass_fds=[fd], timeout=60
    )
    os.close(fd)
    assert other.returncode == -signal.SIGKILL


def test_where_the_kernel_cannot_help_a_thread_does(tmp_path):
    lifeline = orphans.Lifeline()
    fd = os.dup(lifeline.theirs.fileno())
    elsewhere = OTHER.replace("die_with(", "sys.platform = 'darwin'; die_with(")
    other = subprocess.Popen(
        [sys.executable, "-c", elsewhere, str(fd), "while True: pass"],
        pass_fds=[fd],
        stdout=subprocess.PIPE,
    )
    os.close(fd)
    assert other.stdout is not None
    assert other.stdout.readline()
    assert other.poll() is None
    lifeline.close()
    assert other.wait(timeout=60) == -signal.SIGKILL
