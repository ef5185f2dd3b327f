"""A vector environment whose environments run in groups, one worker process per core."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import cloudpickle
import numpy as np
from gymnasium import spaces

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.waiting import Patience
from diffusion_policy.gym_util.env_group import EnvFn
from diffusion_policy.gym_util.env_worker import run_worker, tell_spaces
from diffusion_policy.gym_util.observation_buffer import shared_memory_of
from diffusion_policy.gym_util.vector_env import VectorEnv
from diffusion_policy.gym_util.worker_process import (
    WorkerProcess,
    end_all,
    receive_all,
    safe_context,
)

WORKER_TIMEOUT_S = 3600.0


def usable_cores() -> int:
    """Cores this process may use: containers and job schedulers give fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class AsyncVectorEnv(VectorEnv):
    """See :class:`VectorEnv`. One message per worker and step; observations travel through shared
    memory.

    Workers are never forked from this process: it may hold CUDA, GL and threads, none of which
    survive a fork. They do not import its main script either, so they start fast and small. No
    environment is built in this process. A worker that dies is reported at once, one that does not
    answer when its time is over. Workers are killed when this process dies, in the middle of
    whatever they do, and what they have started with them.

    Args:
        env_fns: See :class:`VectorEnv`; they travel through cloudpickle, so closures and lambdas
            are fine.
        dummy_env_fn: Builds the environment that the spaces are read from, instead of
            ``env_fns[0]``: one that costs less. It is built in a process of its own.
        observation_space, action_space, copy: See :class:`VectorEnv`.
        context: ``"forkserver"`` or ``"spawn"``; default: the first of them that this system has.
        n_workers: Number of processes; default: one per usable core, and no more than environments.
        worker_timeout_s: Seconds that a worker may take for one command (its start, or a step of
            all its environments); None: no limit.

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
        worker_timeout_s: float | None = WORKER_TIMEOUT_S,
    ):
        if n_workers is None:
            n_workers = usable_cores()
        if n_workers < 1:
            raise ConfigError(f"n_workers is {n_workers}, expected at least 1")
        self._context = safe_context(context)
        self._patience = Patience.from_option("worker_timeout_s", worker_timeout_s)
        self._workers: list[WorkerProcess] = []
        super().__init__(
            env_fns,
            shared_memory_of(self._context),
            lambda: self._ask_for_spaces(env_fns, dummy_env_fn),
            observation_space,
            action_space,
            copy,
        )
        groups = np.array_split(np.arange(self.num_envs), min(n_workers, self.num_envs))
        try:
            for group in groups:
                self._workers.append(self._start_worker(env_fns, group.tolist()))
            receive_all(self._workers, "its start", self._patience)
        except BaseException:
            self.close()
            raise
        self._worker_of = [w for w, rows in zip(self._workers, groups, strict=True) for _ in rows]

    def _ask_for_spaces(
        self, env_fns: Sequence[EnvFn], dummy_env_fn: EnvFn | None
    ) -> tuple[spaces.Space, spaces.Space]:
        """Asks an environment in a process that lives for this only: a constructor that crashes
        takes nothing else down.
        """
        name = "environment 0" if dummy_env_fn is None else "the environment of dummy_env_fn"
        args = (cloudpickle.dumps(dummy_env_fn or env_fns[0]), name)
        worker = WorkerProcess(self._context, tell_spaces, args, name, self._patience)
        try:
            [pickled] = receive_all([worker], "its creation", self._patience).values()
            return cloudpickle.loads(pickled)
        finally:
            end_all([worker])

    def _start_worker(self, env_fns: Sequence[EnvFn], rows: list[int]) -> WorkerProcess:
        pickled = cloudpickle.dumps([env_fns[i] for i in rows])
        args = (pickled, rows, self._observations, self.single_action_space)
        about = f"environments {', '.join(map(str, rows))}"
        return WorkerProcess(self._context, run_worker, args, about, self._patience)

    def _run(self, command: str, requests: list[tuple[int, tuple]]) -> list[Any]:
        shares: dict[WorkerProcess, list[tuple[int, tuple]]] = {}
        for row, args in requests:
            shares.setdefault(self._worker_of[row], []).append((row, args))
        try:
            for worker, share in shares.items():
                worker.send((command, share), command)
            answers = receive_all(list(shares), command, self._patience)
        except BaseException:
            # Some workers have work in hand that nobody will fetch any more: there is no way back
            # from here.
            self.close()
            raise
        # Requests come in ascending order and so do the rows of successive workers.
        return [result for worker in shares for result in answers[worker]]

    def close(self) -> None:
        """End the workers: ask them, and after a few seconds make them."""
        if self.closed:
            return
        self.closed = True
        end_all(self._workers)
