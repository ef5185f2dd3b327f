"""What can happen to a process, and what is left of a family of processes.

python -c "..."      with `from fates import FATES, meet`:  meet("SIGSTOP")
"""

import ctypes
import os
import pathlib
import signal
import time

import psutil

SIGNALS = {name: getattr(signal, name) for name in ("SIGKILL", "SIGSTOP", "SIGSEGV", "SIGABRT")}
DEADLY = ("SIGKILL", "SIGSEGV", "SIGABRT", "exit")
ENDLESS = ("SIGSTOP", "sleep", "loop", "loop in C")
FATES = (*DEADLY, *ENDLESS)
GONE_S = 30.0


def meet(fate: str) -> None:
    """It happens to this process."""
    if fate in SIGNALS:
        os.kill(os.getpid(), SIGNALS[fate])
    elif fate == "exit":
        os._exit(3)
    elif fate == "loop":
        while True:
            pass
    elif fate == "loop in C":  # which keeps the interpreter
        ctypes.PyDLL(None).sleep(600)
    elif fate == "sleep":
        time.sleep(600)
    else:
        raise ValueError(fate)


class Family:
    """A process, those that it has started, and the shared memory that they use."""

    def __init__(self, parent: int):
        self.parent = psutil.Process(parent)
        self.members = [self.parent, *self.parent.children(recursive=True)]
        self.memory = {path for member in self.members for path in _shared_memory(member.pid)}

    def kill_parent(self) -> str:
        """SIGKILL to the parent; returns what it left behind after a while, or nothing."""
        self.parent.kill()
        return self.left()

    def left(self) -> str:
        """What is there after a while, of processes and shared memory; nothing, if all is well."""
        deadline = time.monotonic() + GONE_S
        while True:
            alive = [process for process in self.members if _is_alive(process)]
            files = [path for path in self.memory if path.exists()]
            if not alive and not files:
                return ""
            if time.monotonic() > deadline:
                for process in alive:
                    process.kill()
                return f"left behind: {[_describe(p) for p in alive]} {files}"
            time.sleep(0.05)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} ({process.status()}) {' '.join(process.cmdline())[:200]}"
    except psutil.NoSuchProcess:
        return str(process.pid)


def _shared_memory(pid: int) -> set[pathlib.Path]:
    """Files in /dev/shm that a process has mapped and that have a name."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    words = [line.split(maxsplit=5) for line in lines if "/dev/shm/" in line]
    return {pathlib.Path(w[5]) for w in words if not w[5].endswith("(deleted)")}
