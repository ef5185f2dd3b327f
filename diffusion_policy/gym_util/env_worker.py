"""The main functions of environment worker processes.

Every worker imports this module, so it stays light: no torch, nothing of a training script.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import threadpoolctl
from gymnasium import spaces

from diffusion_policy.common.errors import EnvWorkerError
from diffusion_policy.common.orphans import die_with
from diffusion_policy.gym_util.env_group import EnvGroup, spaces_of
from diffusion_policy.gym_util.observation_buffer import ObservationBuffer

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_worker(
    connection: Connection,
    lifeline: Connection,
    pickled_env_fns: bytes,
    rows: list[int],
    observations: ObservationBuffer,
    action_space: spaces.Space,
) -> None:
    """Build the environments, then answer requests until told to stop; be killed with the parent.

    Every message gets one answer: ``(True, results)``, or ``(False, text of the error)`` and the
    end of this process.
    """
    group = None
    with _answering(connection, lifeline):
        try:
            group = EnvGroup(cloudpickle.loads(pickled_env_fns), rows, observations, action_space)
            _limit_threads()
            connection.send((True, None))
            while (request := connection.recv()) is not None:
                command, requests = request
                _answer(connection, group.run(command, requests))
        finally:
            if group is not None:
                group.close()


def tell_spaces(
    connection: Connection, lifeline: Connection, pickled_env_fn: bytes, name: str
) -> None:
    """Build an environment, called ``name``, only to answer what its spaces are."""
    with _answering(connection, lifeline):
        found = spaces_of(cloudpickle.loads(pickled_env_fn), name)
        connection.send((True, cloudpickle.dumps(found)))


@contextlib.contextmanager
def _answering(connection: Connection, lifeline: Connection) -> Iterator[None]:
    """The process in which environments live; what they raise is the last answer."""
    # Ctrl-C reaches the whole process group: the parent decides what happens, and closes us in
    # order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(lifeline)
    faulthandler.enable()  # a crash inside a simulator leaves a traceback
    for name in _THREAD_VARIABLES:
        os.environ[name] = "1"  # for libraries that are loaded with the environments
    try:
        yield
    except EnvWorkerError as error:
        connection.send((False, str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has closed the vector environment in the middle of a request


def _answer(connection: Connection, results: list[Any]) -> None:
    try:
        connection.send((True, results))
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        raise EnvWorkerError(
            f"the result of an environment cannot be sent to the main process: {error}"
        ) from error


def _limit_threads() -> None:
    """All cores have a worker each: more threads would only get in each other's way."""
    threadpoolctl.threadpool_limits(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)
