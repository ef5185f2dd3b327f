"""A child process that is killed at its n-th disk call.

    with Children() as children:
        whole = children.run(my_job, "folder")               # whole.n_calls: how many it makes
        dead = children.run(my_job, "folder", kill_at=17)    # dead.killed

Disk calls are those that change what other processes see of the disk: opening a file for writing,
every write, fsync, rename, link, remove, mkdir, rmdir, truncate. The process gets SIGKILL just
before the n-th of them; at a write, after half of the bytes.

Children are forked from a process of their own that has imported everything (a kill then costs a
fraction of a second, not the seconds of an import) and has no threads.
"""

import builtins
import contextlib
import dataclasses
import io
import os
import pathlib
import pickle
import select
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

TESTS = pathlib.Path(__file__).resolve().parents[1]
TIMEOUT_S = 120.0


# --------------------------------------------------------------------------------------------------
# In the child: counting, and the end
# --------------------------------------------------------------------------------------------------


class DiskCalls:
    """Counts the disk calls of this process, and kills it at one of them."""

    def __init__(self, kill_at: int | None, watched: str | None = None):
        self.n = 0
        self.kill_at = kill_at
        self.watched = watched  # calls on files elsewhere do not count
        self.trace: list[str] = []

    def count(self, name: str, path: Any = "") -> bool:
        """Whether the process dies at this call, which is about to happen."""
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if self.watched and text and self.watched not in os.path.abspath(text):
            return False
        if text in (os.devnull, "/dev/null"):
            return False
        self.n += 1
        self.trace.append(f"{name} {os.path.basename(text)}")
        return self.n == self.kill_at

    def at(self, name: str, path: Any = "") -> None:
        if self.count(name, path):
            die()

    def install(self) -> None:
        """From now on, for good: the process is made for this."""
        for name in ("fsync", "fdatasync", "rename", "replace", "link", "symlink", "remove"):
            self._wrap(os, name)
        for name in ("unlink", "mkdir", "rmdir", "truncate", "ftruncate", "pwrite"):
            self._wrap(os, name)
        self._wrap_os_write()
        self._wrap_open()

    def _wrap(self, module: Any, name: str) -> None:
        original = getattr(module, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.at(name, _path_of(args[0]) if args else "")
            return original(*args, **kwargs)

        setattr(module, name, counted)

    def _wrap_os_write(self) -> None:
        write, os_open = os.write, os.open

        def counted_write(descriptor: int, data: Any) -> int:
            if self.count("write", _path_of(descriptor)):
                write(descriptor, bytes(data)[: len(data) // 2])
                die()
            return write(descriptor, data)

        def counted_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
                self.at("open", path)
            return os_open(path, flags, *args, **kwargs)

        os.write, os.open = counted_write, counted_open

    def _wrap_open(self) -> None:
        original = io.open
        calls = self

        class Buffered(io.BufferedWriter):
            def write(self, data: Any) -> int:
                if calls.count("write", _path_of(self.raw)):
                    super().write(bytes(data)[: len(bytes(data)) // 2])
                    super().flush()
                    die()
                return super().write(data)

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                if calls.count("write", _path_of(self)):
                    super().write(bytes(data)[: len(bytes(data)) // 2])
                    die()
                return super().write(data)

        def counted(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kw: Any) -> Any:
            if not set(mode) & set("wax+"):
                return original(file, mode, buffering, *args, **kw)
            if not isinstance(file, int):
                self.at("open", file)
            if "b" not in mode or args or kw or ("+" in mode and buffering != 0):
                return original(file, mode, buffering, *args, **kw)
            plain = mode.replace("b", "")
            return Raw(file, plain) if buffering == 0 else Buffered(io.FileIO(file, plain))

        io.open = builtins.open = counted  # type: ignore[assignment]


def _path_of(file: Any) -> Any:
    """The path behind a descriptor, a file object or a path."""
    if hasattr(file, "fileno"):
        file = file.fileno()
    if isinstance(file, int):
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/self/fd/{file}")
        return ""
    return file


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    while True:  # the signal may reach another thread first
        time.sleep(1)


# --------------------------------------------------------------------------------------------------
# In the test: children of a warm process
# --------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Outcome:
    """How a child ended.

    Attributes:
        killed: at its disk call.
        n_calls: disk calls that it made; 0 for a killed one.
        trace: what they were.
        error: the traceback, where the job raised.
        output: what it printed.
        result: what the job returned; it has to be picklable.
    """

    killed: bool
    n_calls: int = 0
    trace: list[str] = dataclasses.field(default_factory=list)
    error: str = ""
    output: str = ""
    result: Any = None


class Children:
    """A process that forks a child for every job.

    Args:
        imports: modules that it imports first.
        environment: added to this process' own.
    """

    def __init__(self, *imports: str, **environment: str):
        self._process = subprocess.Popen(
            [sys.executable, __file__, *imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=TESTS.parent,
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(
                    map(str, (TESTS.parent, TESTS, TESTS / "attack", *sys.path))
                )
            }
            | {"OMP_NUM_THREADS": "1"}
            | environment,
        )

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=TIMEOUT_S)

    def run(
        self,
        job: Callable,
        *args: Any,
        kill_at: int | None = None,
        watched: str | os.PathLike | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Outcome:
        """Runs ``job(*args)``, a function of a module, in a child.

        Args:
            kill_at: number of the disk call, from 1, at which it is killed.
            watched: only calls on paths that contain this count.
        """
        watched = None if watched is None else os.fspath(watched)
        request = (job.__module__, job.__qualname__, args, kill_at, watched, timeout_s)
        _send(self._process.stdin, request)
        return Outcome(**_receive(self._process.stdout))


def _send(stream: Any, value: Any) -> None:
    data = pickle.dumps(value)
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def _receive(stream: Any) -> Any:
    header = stream.read(8)
    if len(header) < 8:
        raise EOFError("the process that forks children has ended")
    return pickle.loads(stream.read(struct.unpack("<Q", header)[0]))


# --------------------------------------------------------------------------------------------------
# In the process between: forks
# --------------------------------------------------------------------------------------------------


def _serve(imports: list[str]) -> None:
    import importlib

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what children print does not get between the answers
    requests = os.fdopen(os.dup(0), "rb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for name in imports:
        importlib.import_module(name)
    while True:
        try:
            module, name, args, kill_at, watched, timeout_s = _receive(requests)
        except EOFError:
            return
        job = getattr(importlib.import_module(module), name)
        _send(answers, _fork(job, args, kill_at, watched, timeout_s))


def _fork(job: Callable, args: tuple, kill_at: int | None, watched: str | None, timeout_s: float):
    answer_fd, child_fd = os.pipe()
    output = os.memfd_create("output")
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.close(answer_fd)
        os.dup2(output, 1)
        os.dup2(output, 2)
        _work(job, args, DiskCalls(kill_at, watched), child_fd)
    os.close(child_fd)
    answer = _read_all(answer_fd, time.monotonic() + timeout_s)
    if answer is None:
        os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # nothing that it started stays
    os.lseek(output, 0, os.SEEK_SET)
    with os.fdopen(output, "rb") as file:
        printed = file.read().decode(errors="replace")
    if answer is None:
        return {"killed": False, "error": f"no end after {timeout_s} s", "output": printed}
    if answer:
        return pickle.loads(answer) | {"killed": False, "output": printed}
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    error = "" if killed else f"the child ended with status {status} and without a word"
    return {"killed": killed, "error": error, "output": printed}


def _read_all(descriptor: int, deadline: float) -> bytes | None:
    """What comes until the other end is closed; None if that takes too long."""
    data = b""
    while select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0]:
        block = os.read(descriptor, 1 << 20)
        if not block:
            os.close(descriptor)
            return data
        data += block
    os.close(descriptor)
    return None


def _work(job: Callable, args: tuple, calls: DiskCalls, answer_fd: int) -> None:
    os_write = os.write
    result, error = None, ""
    calls.install()
    try:
        result = job(*args)
    except BaseException:
        error = traceback.format_exc()
    n, trace = calls.n, calls.trace
    answer = pickle.dumps({"n_calls": n, "trace": trace, "error": error, "result": result})
    calls.kill_at = None
    sys.stdout.flush()
    sys.stderr.flush()
    while answer:
        answer = answer[os_write(answer_fd, answer) :]
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1:])
