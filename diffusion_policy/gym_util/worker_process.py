"""The parent's end of an environment worker process: start it, talk to it, end it."""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import socket
import struct
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

from diffusion_policy.common.errors import ConfigError, EnvWorkerError
from diffusion_policy.common.orphans import Lifeline
from diffusion_policy.common.waiting import (
    Patience,
    Waiting,
    call_with_patience,
    describe_process,
    wait_until,
)

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0  # how long workers may take to finish their step and close their environments
_KILL_SECONDS = 5.0  # how long the kernel may take to end a killed process
_REPORT_SECONDS = 1.0  # how long the server that forked a process may take to tell its exit code
_SERVER_LIFELINE = "DIFFUSION_POLICY_SERVER_LIFELINE"  # see fork_server.py
_REMEDY = (
    "if the environment needs longer than that, set worker_timeout_s of the env_runner "
    "(task.env_runner.worker_timeout_s) to more seconds, or to null for no limit"
)


class WorkerProcess:
    """One worker process, which is running when this is made.

    Args:
        context: Of multiprocessing, see :func:`safe_context`.
        main: What it runs, with (its connection, its lifeline, ``*args``).
        args: Travel by pickle.
        about: What it is the worker process of, for messages: ``environments 0, 1``.
        patience: For all waits for it.

    Raises:
        EnvWorkerError: It could not be started in time.
    """

    def __init__(
        self,
        context: Any,
        main: Callable[..., None],
        args: Sequence[Any],
        about: str,
        patience: Patience,
    ):
        self._about = about
        self._patience = patience
        self._lifeline = Lifeline()
        self.connection, theirs = context.Pipe()
        _limit_transfers(self.connection, patience.limit_s)
        self.process = context.Process(
            target=main,
            name=f"env-worker of {about}",
            args=(theirs, self._lifeline.theirs, *args),
            daemon=True,
        )
        with _hidden_main(), _offered_lifeline():
            call_with_patience(self.process.start, self._starting())
        theirs.close()  # so that its end of the pipe closes with the worker
        self._pidfd = _open_pidfd(self.process.pid)

    def _starting(self) -> Waiting:
        def whom() -> str:
            server = getattr(forkserver._forkserver, "_forkserver_pid", None)  # type: ignore
            return f"the server that forks worker processes ({describe_process(server)})"

        return Waiting(
            self._patience, whom, f"start the worker of {self._about}", _REMEDY, EnvWorkerError
        )

    def __str__(self) -> str:
        return f"the worker process of {self._about} ({describe_process(self.process.pid)})"

    @property
    def sentinel(self) -> Any:
        """Ready when the process has ended.

        That of multiprocessing is the word of the server that forked it, which may itself be dead
        or stopped.
        """
        return self.process.sentinel if self._pidfd is None else self._pidfd

    def send(self, message: Any, command: str) -> None:
        """Sends a message.

        Raises:
            EnvWorkerError: The process has died, or takes too long to read it.
        """
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise self._died(command) from None
        except BlockingIOError:
            raise self._too_late(command) from None

    def receive(self, command: str) -> Any:
        """The answer, once the connection or the sentinel is ready.

        Raises:
            EnvWorkerError: The process has died, sends an error, or stopped half-way.
        """
        try:
            if not self.connection.poll():
                raise self._died(command)
            ok, answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._died(command) from None
        except BlockingIOError:
            raise self._too_late(command) from None
        if not ok:
            raise EnvWorkerError(answer)
        return answer

    def ask_to_stop(self) -> None:
        with contextlib.suppress(OSError):
            os.set_blocking(self.connection.fileno(), False)  # it may be stopped, its pipe full
            self.connection.send(None)
        self.connection.close()  # a worker that is sending an answer is freed by this

    def end(self, deadline: float) -> None:
        """Waits for its end until ``deadline``, then kills it and all that it has started."""
        has_ended = self._join(max(0.0, deadline - time.monotonic()))
        self._lifeline.close()
        if not has_ended:
            self._kill()
            if not self._join(_KILL_SECONDS):
                logger.warning("%s was killed and has not ended yet", self)
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def _kill(self) -> None:
        if self._pidfd is None:
            self.process.kill()  # does nothing when the server that forked it is dead
        else:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _join(self, seconds: float) -> bool:
        """Waits for its end for so long; returns whether it has ended."""
        if not wait([self.sentinel], seconds):
            return False
        self.process.join(_REPORT_SECONDS)
        return True

    def _died(self, command: str) -> EnvWorkerError:
        self._join(CLOSE_SECONDS)  # the pipe may close a moment before the process has ended
        return EnvWorkerError(
            f"the worker process of {self._about} (pid {self.process.pid}) died during {command}: "
            f"it {_describe_exit(self.process.exitcode)}; if it was killed for memory, lower "
            "n_envs or n_workers, if it crashed, its last words are on the standard error output "
            "above"
        )

    def _too_late(self, command: str) -> EnvWorkerError:
        return EnvWorkerError(f"{self} stopped in the middle of {command}; {_REMEDY}")


def receive_all(
    workers: Sequence[WorkerProcess], command: str, patience: Patience
) -> dict[WorkerProcess, Any]:
    """One answer from each worker; the first one that failed, died or is too late raises.

    Raises:
        EnvWorkerError: See there.
    """
    answers: dict[WorkerProcess, Any] = {}
    awaited = list(workers)
    waiting = Waiting(
        patience,
        lambda: " and ".join(map(str, awaited)),
        f"answer {command}",
        _REMEDY,
        EnvWorkerError,
    )
    while awaited:
        either = [x for w in awaited for x in (w.connection, w.sentinel)]
        ready = set(wait_until(lambda seconds, either=either: wait(either, seconds), waiting))
        for worker in awaited:
            # The pipe comes first: a worker may well have answered before it died.
            if worker.connection in ready or worker.sentinel in ready:
                answers[worker] = worker.receive(command)
        awaited = [w for w in awaited if w not in answers]
    return answers


def end_all(workers: Sequence[WorkerProcess]) -> None:
    """Asks all workers to stop, and after a few seconds makes them."""
    for worker in workers:
        worker.ask_to_stop()
    deadline = time.monotonic() + CLOSE_SECONDS
    for worker in workers:
        worker.end(deadline)


def safe_context(name: str | None) -> Any:
    """The context of multiprocessing that workers are started in.

    Args:
        name: ``forkserver`` or ``spawn``; None: the first of them that this system has.

    Raises:
        ConfigError: It is another one.
    """
    available = [m for m in ("forkserver", "spawn") if m in multiprocessing.get_all_start_methods()]
    name = name or available[0]
    if name not in available:
        raise ConfigError(
            f"context is {name!r}, expected one of {available}: forking a process that holds "
            "CUDA, GL or threads is not safe"
        )
    context = multiprocessing.get_context(name)
    if name == "forkserver":
        context.set_forkserver_preload(["diffusion_policy.gym_util.fork_server"])
    return context


@functools.cache
def _lifeline_of_server(pid: int) -> Lifeline:
    """For the server that this process, of this id, starts and keeps."""
    return Lifeline()


@contextlib.contextmanager
def _offered_lifeline() -> Iterator[None]:
    """A server that is started within this takes hold of a lifeline of this process."""
    if sys.platform != "linux":
        yield
        return
    os.environ[_SERVER_LIFELINE] = str(_lifeline_of_server(os.getpid()).theirs.fileno())
    try:
        yield
    finally:
        os.environ.pop(_SERVER_LIFELINE, None)


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Keeps multiprocessing from importing our main script (and torch with it) into each worker.

    Nothing is lost: cloudpickle sends what is defined in the main script by value.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _limit_transfers(connection: Connection, seconds: float | None) -> None:
    """A process that is stopped while a message is on its way raises BlockingIOError here."""
    if seconds is None:
        return
    with socket.socket(fileno=os.dup(connection.fileno())) as pipe:
        timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6) + 1)
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)


def _open_pidfd(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):  # Linux alone has it
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # it has ended already, or the kernel is older than 5.3
        return None


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "closed its connection, and nobody knows its exit code"
    if code < 0:
        try:
            return f"was killed by signal {-code} ({signal.Signals(-code).name})"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"ended with exit code {code}"
