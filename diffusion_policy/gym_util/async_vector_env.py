"""A vector environment whose environments run in groups, one worker process per core."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import types
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import cloudpickle
import numpy as np
from gymnasium import spaces

from diffusion_policy.common.errors import ConfigError, EnvWorkerError
from diffusion_policy.gym_util.env_group import EnvFn
from diffusion_policy.gym_util.env_worker import run_worker
from diffusion_policy.gym_util.observation_buffer import shared_memory_of
from diffusion_policy.gym_util.vector_env import VectorEnv

_CLOSE_SECONDS = 5.0  # how long workers may take to finish their step and close their environments


def usable_cores() -> int:
    """Cores this process may use: containers and job schedulers give fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class AsyncVectorEnv(VectorEnv):
    """See :class:`VectorEnv`. One message per worker and step; observations travel through shared
    memory.

    Workers are never forked from this process: it may hold CUDA, GL and threads, none of which
        survive a fork. They do
    not import its main script either, so they start fast and small. A worker that dies is reported
    at once; workers whose parent dies end by themselves.

    Args:
        env_fns: See :class:`VectorEnv`; they travel through cloudpickle, so closures and lambdas
            are fine.
        dummy_env_fn, observation_space, action_space, copy: See :class:`VectorEnv`.
        context: ``"forkserver"`` or ``"spawn"``; default: the first of them that this system has.
        n_workers: Number of processes; default: one per usable core, and no more than environments.

    Raises:
        EnvWorkerError: An environment could not be built.
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        dummy_env_fn: EnvFn | None = None,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
        copy: bool = True,
        context: str | None = None,
        n_workers: int | None = None,
    ):
        mp = _safe_context(context)
        super().__init__(
            env_fns, shared_memory_of(mp), dummy_env_fn, observation_space, action_space, copy
        )
        if n_workers is None:
            n_workers = usable_cores()
        if n_workers < 1:
            raise ConfigError(f"n_workers is {n_workers}, expected at least 1")
        groups = np.array_split(np.arange(self.num_envs), min(n_workers, self.num_envs))
        self._workers: list[_Worker] = []
        try:
            with _hidden_main():
                for group in groups:
                    self._workers.append(self._start_worker(mp, env_fns, group.tolist()))
            self._receive(self._workers, "its start")
        except BaseException:
            self.close()
            raise
        self._worker_of = [w for w in self._workers for _ in w.rows]

    def _start_worker(self, mp: Any, env_fns: Sequence[EnvFn], rows: list[int]) -> _Worker:
        ours, theirs = mp.Pipe()
        pickled = cloudpickle.dumps([env_fns[i] for i in rows])
        process = mp.Process(
            target=run_worker,
            name=f"env-worker-{rows[0]}-{rows[-1]}",
            args=(theirs, os.getpid(), pickled, rows, self._observations, self.single_action_space),
            daemon=True,
        )
        process.start()
        theirs.close()  # so that its end of the pipe closes with the worker
        return _Worker(process, ours, rows)

    # ------------------------------------------------------------------ talking to the workers

    def _run(self, command: str, requests: list[tuple[int, tuple]]) -> list[Any]:
        shares: dict[_Worker, list[tuple[int, tuple]]] = {}
        for row, args in requests:
            shares.setdefault(self._worker_of[row], []).append((row, args))
        try:
            for worker, share in shares.items():
                worker.send((command, share), command)
            answers = self._receive(list(shares), command)
        except BaseException:
            # Some workers have work in hand that nobody will fetch any more: there is no way back
            # from here.
            self.close()
            raise
        # Requests come in ascending order and so do the rows of successive workers.
        return [result for worker in shares for result in answers[worker]]

    @staticmethod
    def _receive(workers: list[_Worker], command: str) -> dict[_Worker, Any]:
        """One answer from each worker; the first one that failed or died raises."""
        answers: dict[_Worker, Any] = {}
        while len(answers) < len(workers):
            awaited = [w for w in workers if w not in answers]
            ready = set(wait([x for w in awaited for x in (w.connection, w.process.sentinel)]))
            for worker in awaited:
                # The pipe comes first: a worker may well have answered before it died.
                if worker.connection in ready or worker.process.sentinel in ready:
                    answers[worker] = worker.receive(command)
        return answers

    def close(self) -> None:
        """End the workers: ask them, and after a few seconds make them."""
        if self.closed:
            return
        self.closed = True
        workers = getattr(self, "_workers", [])
        for worker in workers:
            worker.ask_to_stop()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
        for worker in workers:
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, process: Any, connection: Connection, rows: list[int]):
        self.process = process
        self.connection = connection
        self.rows = rows

    def send(self, message: Any, command: str) -> None:
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise self._died(command) from None

    def receive(self, command: str) -> Any:
        try:
            if not self.connection.poll():
                raise self._died(command)
            ok, answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._died(command) from None
        if not ok:
            raise EnvWorkerError(answer)
        return answer

    def ask_to_stop(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.connection.close()  # a worker that is sending an answer is freed by this

    def _died(self, command: str) -> EnvWorkerError:
        self.process.join(
            _CLOSE_SECONDS
        )  # the pipe may close a moment before the process has ended
        rows = ", ".join(map(str, self.rows))
        return EnvWorkerError(
            f"the worker process of environments {rows} (pid {self.process.pid}) died during "
            f"{command}: it {_describe_exit(self.process.exitcode)}; if it was killed for memory, "
            "lower n_envs or n_workers, if it crashed, its last words are on the standard error "
            "output above"
        )


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "closed its connection and hangs"
    if code < 0:
        try:
            return f"was killed by signal {-code} ({signal.Signals(-code).name})"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"ended with exit code {code}"


# ---------------------------------------------------------------------- starting processes


def _safe_context(name: str | None) -> Any:
    available = [m for m in ("forkserver", "spawn") if m in multiprocessing.get_all_start_methods()]
    name = name or available[0]
    if name not in available:
        raise ConfigError(
            f"context is {name!r}, expected one of {available}: forking a process that holds "
            "CUDA, GL or threads is not safe"
        )
    context = multiprocessing.get_context(name)
    if name == "forkserver":
        # Workers are forked from a server that has numpy and gymnasium, and nothing of the main
        # script, loaded.
        context.set_forkserver_preload([run_worker.__module__])
    return context


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
