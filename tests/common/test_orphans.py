"""A child process does not outlive its parent."""

import signal
import subprocess
import sys

import pytest
from child_processes import wait_until_gone

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
