"""Runs one command as a child process that can be interrupted and never outlives its parent."""

import contextlib
import datetime
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.waiting import Patience, Waiting, describe_process, wait_until

POLL_S = 0.01
KILL_S = 600.0  # a killed process ends at once, but for one that waits for a disk
TERMINATE_S = 5.0  # a child that ignores SIGTERM for so long is killed
# Killed by SIGINT; and how train.py ends after it.
INTERRUPTED = (-signal.SIGINT, 128 + signal.SIGINT)
DATA_LINK = "data"
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]  # where train.py lies
CONSOLE_HEADER = r"==== attempt (?P<attempt>\d+), (?P<time>[^,]+), (?P<host>[^:]+): "


def worker_fn(
    command_args: Sequence[str],
    data_src: str | None = None,
    unbuffer_python: bool = False,
    use_shell: bool = False,
) -> int:
    """Runs a command in the current directory and waits for its end: a task of ray.

    KeyboardInterrupt, which ``ray.cancel(force=False)`` raises, is handed to the command as one
    SIGINT; the command then ends in its own time.

    Args:
        command_args: The command; ``python`` in it is the interpreter of this process.
        data_src: Folder that ``data`` shall be for the command, see :func:`folder_with_data`. None:
            what it is in the current directory.
        unbuffer_python: Make Python in the command write its output at once.
        use_shell: Join the arguments by blanks and let a shell read them.

    Returns:
        The exit code: 0, or that of an interrupted command (-2 or 130).

    Raises:
        RuntimeError: The command failed.
    """
    environment = {"PYTHONUNBUFFERED": "TRUE"} if unbuffer_python else {}
    command = ["/bin/sh", "-c", " ".join(command_args)] if use_shell else list(command_args)
    with folder_with_data(data_src) as cwd:
        process = start_command(command, environment, cwd=cwd)
        code, was_interrupted = wait_for_end(process, use_shell)
    if code in (0, -signal.SIGINT) or (was_interrupted and code in INTERRUPTED):
        return code
    raise RuntimeError(f"Failed execution. {describe_exit(code)}: {shlex.join(command_args)}")


def start_command(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    output: IO | None = None,
    cwd: str | os.PathLike | None = None,
) -> subprocess.Popen:
    """Starts a command in a session of its own: Ctrl-C on the terminal does not reach it.

    It is killed when this process, or the thread that calls this, ends in any way (Linux).

    Args:
        command: ``python`` in it is the interpreter of this process.
        environment: In addition to that of this process.
        output: Open file for stdout and stderr. None: those of this process.
        cwd: Working directory. None: that of this process.
    """
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ.get("PATH", "")])
    child = [sys.executable, "-m", "diffusion_policy.multirun.child", str(os.getpid())]
    return subprocess.Popen(
        [*child, *command],
        env={**os.environ, "PATH": path, **(environment or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def interrupt(process: subprocess.Popen, is_shell: bool = False) -> None:
    """SIGINT to the command, and to it alone: it knows how to end its own processes. A shell does
    not; there all of them get it.
    """
    with contextlib.suppress(ProcessLookupError):
        if is_shell:
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGINT)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the command and everything in its session; returns when it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    wait_until(
        lambda seconds: _has_ended(process, seconds),
        Waiting(
            Patience(limit_s=KILL_S, say_s=KILL_S / 10),
            lambda: f"a killed command ({describe_process(process.pid)})",
            "end",
            "the kernel keeps it, for a disk that does not answer perhaps: restart the machine",
        ),
    )


def _has_ended(process: subprocess.Popen, seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def wait_for_end(process: subprocess.Popen, is_shell: bool = False) -> tuple[int, bool]:
    """Returns (exit code, whether it was interrupted), see :func:`worker_fn`."""
    was_interrupted = False
    with _interrupts() as interrupts:
        try:
            while process.returncode is None:
                try:
                    if process.poll() is None:
                        time.sleep(POLL_S)
                except KeyboardInterrupt:  # in a thread, or raised in another way than by a signal
                    interrupts.set()
                # Once: ray repeats the interrupt every few seconds, and a second SIGINT would keep
                # the command from writing what it wants to leave behind.
                if interrupts.is_set() and not was_interrupted:
                    was_interrupted = True
                    interrupt(process, is_shell)
        except BaseException:
            terminate(process)
            raise
    kill(process)  # what a killed command leaves behind: workers of its data loader ...
    return process.returncode, was_interrupted


def terminate(process: subprocess.Popen) -> None:
    """SIGTERM, and SIGKILL if that does not help."""
    process.terminate()
    if not _has_ended(process, TERMINATE_S):
        kill(process)


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that SIGINT sets instead of raising KeyboardInterrupt somewhere."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    earlier = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, earlier)


def data_folder(data_src: str | None) -> pathlib.Path:
    """The folder that ``data`` shall be for commands on other machines, absolute.

    Args:
        data_src: As given by the user. None: ``data`` of the repository, made if it is missing.

    Raises:
        ConfigError: There is no such folder.
    """
    if data_src is None:
        folder = REPOSITORY / DATA_LINK
        folder.mkdir(exist_ok=True)
        return folder
    folder = pathlib.Path(data_src).absolute()
    if not folder.is_dir():
        raise ConfigError(f"--data_src {data_src}: there is no such folder; create it, or a link")
    return folder


def link_data(data_src: str | os.PathLike, cwd: str | os.PathLike = ".") -> None:
    """Makes ``<cwd>/data`` a link to ``data_src``, unless it is that folder already.

    Raises:
        ConfigError: ``data`` is something else.
    """
    link, source = pathlib.Path(cwd).absolute() / DATA_LINK, pathlib.Path(data_src).absolute()
    with contextlib.suppress(FileExistsError):
        link.symlink_to(source, target_is_directory=True)
    if link.resolve() != source.resolve():
        raise ConfigError(
            f"{link} is {link.resolve()}, not {source}, which --data_src names; move it away, or "
            "leave --data_src out"
        )


@contextlib.contextmanager
def folder_with_data(data_src: str | None) -> Iterator[pathlib.Path]:
    """A folder with what the current directory has, in which ``data`` is ``data_src``.

    That is the current directory, where :func:`link_data` can do it. In ray's copy of the
    repository, ``data`` may be a link that another job has made: then it is one of links to
    everything in the copy, for as long as it is needed.
    """
    cwd = pathlib.Path.cwd()
    if data_src is None:
        yield cwd
        return
    try:
        link_data(data_src, cwd)
    except ConfigError:
        with tempfile.TemporaryDirectory() as folder:
            view = pathlib.Path(folder)
            for path in cwd.iterdir():
                if path.name != DATA_LINK:
                    (view / path.name).symlink_to(path)
            link_data(data_src, view)
            yield view
    else:
        yield cwd


@contextlib.contextmanager
def console(path: str | os.PathLike, attempt: int, command: Sequence[str]) -> Iterator[IO]:
    """The file that a run's output is appended to, after a line that says what is started where,
    :data:`CONSOLE_HEADER`.
    """
    with open(path, "ab", buffering=0) as file:
        now = f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}"
        where = f"attempt {attempt}, {now}, {socket.gethostname()}"
        text = shlex.join(command).replace("\n", "\\n")
        file.write(f"==== {where}: {text}\n".encode())
        yield file


def describe_exit(code: int) -> str:
    """``exit code 1``, or ``killed by SIGKILL``."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"killed by signal {-code}"
