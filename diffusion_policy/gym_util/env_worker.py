"""The main function of an environment worker process.

Every worker imports this module, so it stays light: no torch, nothing of a training script.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

import cloudpickle
import threadpoolctl
from gymnasium import spaces

from diffusion_policy.common.errors import EnvWorkerError
from diffusion_policy.gym_util.env_group import EnvGroup
from diffusion_policy.gym_util.observation_buffer import ObservationBuffer

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_worker(
    connection: Connection,
    parent_pid: int,
    pickled_env_fns: bytes,
    rows: list[int],
    observations: ObservationBuffer,
    action_space: spaces.Space,
) -> None:
    """Build the environments, then answer requests until told to stop or until the parent has gone.

    Every message gets one answer: ``(True, results)``, or ``(False, text of the error)`` and the
        end of this process.
    """
    # Ctrl-C reaches the whole process group: the parent decides what happens, and closes us in
    # order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()  # a crash inside a simulator leaves a traceback
    for name in _THREAD_VARIABLES:
        os.environ[name] = "1"  # for libraries that are loaded with the environments

    parent = _watch(parent_pid)
    group = None
    try:
        group = EnvGroup(cloudpickle.loads(pickled_env_fns), rows, observations, action_space)
        _limit_threads()
        connection.send((True, None))
        while (request := _next_request(connection, parent)) is not None:
            command, requests = request
            _answer(connection, group.run(command, requests))
    except EnvWorkerError as error:
        connection.send((False, str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has gone, or has closed the vector environment in the middle of a request
    finally:
        if group is not None:
            group.close()


def _watch(parent_pid: int) -> int:
    """Something to wait on that becomes ready when the parent dies.

    The end of the pipe does not suffice: other children of the parent may hold copies of its end.
    """
    if hasattr(os, "pidfd_open"):
        try:
            return os.pidfd_open(parent_pid)
        except ProcessLookupError:
            raise SystemExit(1) from None
        except OSError:
            pass  # kernels before 5.3
    parent = parent_process()
    assert parent is not None
    return parent.sentinel


def _next_request(connection: Connection, parent: int) -> Any:
    ready = wait([connection, parent])
    return connection.recv() if connection in ready else None


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
