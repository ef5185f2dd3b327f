"""Starting one run as several processes: ``training.num_processes=N`` does what
``accelerate launch train.py`` does on one machine.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

from diffusion_policy.common import interrupts
from diffusion_policy.common.errors import ProcessTimeoutError
from diffusion_policy.common.waiting import LOOK_S, Patience, Waiting, describe_process

if TYPE_CHECKING:
    import psutil

# Read by our own processes, when they start: the process id of the launcher.
_LAUNCHER = "DIFFUSION_POLICY_LAUNCHER"
_RANK = "diffusion_policy.workspace.rank"


def process_index() -> int:
    """Number of this process among those that a launcher started for one run."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """How many processes a launcher started for one run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_launched_by_us() -> bool:
    """Whether :func:`launch` started this process, and will report how it ended."""
    return os.environ.get(_LAUNCHER, str(os.getpid())) != str(os.getpid())


def die_with_launcher() -> None:
    """Ends this process when the launcher is killed."""
    from diffusion_policy.common.orphans import die_with_parent

    die_with_parent(int(os.environ.get(_LAUNCHER, os.getppid())))


def launch(n_processes: int, arguments: list[str], patience: Patience) -> int:
    """Trains with ``n_processes`` processes on this machine and waits for their end.

    If one ends in failure, the others are ended too.

    Args:
        arguments: of ``train.py``, the run directory included.
        patience: with processes that are stopped, all of them: as long as one goes on, it is that
            one's part to wait for the others.

    Returns:
        The exit code: 0, or that of the process that failed first; 128 + n if signal n killed it.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM arrived; the processes have ended.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Processes report their own mistakes, and the end of this function tells of the rest.
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ[_LAUNCHER] = str(os.getpid())
    threads = max(1, (os.cpu_count() or 1) // n_processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if sys.platform == "linux":
        # All of it stays on this machine: nobody else can reach the connections.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        monitor_interval=0.1,
        local_addr="127.0.0.1",
    )
    module = ["-m", _RANK]
    try:
        with _children_start_deaf(), _watching_for_stops(patience):
            elastic_launch(config, sys.executable)(*module, *arguments)
    except SignalException as error:
        interrupts.end_at_once()  # from here on; the launcher of torch has left its own handler
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        index, failure = error.get_first_failure()
        if failure.exitcode == interrupts.EXIT_INTERRUPTED:  # it heard SIGINT, we did not yet
            raise KeyboardInterrupt from error
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            sys.stderr.write(
                f"error: process {index} of {n_processes} was killed by {name}; the run continues "
                "from its last checkpoint when it is started again\n"
            )
            return 128 - failure.exitcode
        return failure.exitcode
    return 0


@contextlib.contextmanager
def _children_start_deaf() -> Iterator[None]:
    """Processes that the main thread starts within this have SIGINT blocked, until they are ready
    for it. This process hears it by another thread, and handles it in the main thread as ever.
    """
    done = threading.Event()
    listener = threading.Thread(target=done.wait, name="hears SIGINT", daemon=True)
    listener.start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        done.set()


@contextlib.contextmanager
def _watching_for_stops(patience: Patience) -> Iterator[None]:
    """Kills the processes that this one starts within this when nothing goes on any more."""
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(patience, done), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()


def _watch(patience: Patience, done: threading.Event) -> None:
    import psutil

    stopped: list[int] = []
    waiting = Waiting(
        patience,
        lambda: " and ".join(f"a process of the run ({describe_process(p)})" for p in stopped),
        "go on",
        "the run continues from its last checkpoint when it is started again",
    )
    while not done.wait(waiting.look_s or LOOK_S):
        ranks = _states_of(psutil.Process().children())
        stopped[:] = [pid for pid, state in ranks.items() if state == psutil.STATUS_STOPPED]
        if len(stopped) < len(ranks) or not ranks:
            waiting.restart()
            continue
        try:
            waiting.tick()
        except ProcessTimeoutError as error:
            sys.stderr.write(f"error: {error}\n")
            for pid in stopped:
                os.kill(pid, signal.SIGKILL)


def _states_of(children: "list[psutil.Process]") -> dict[int, str]:
    """Of the processes of the run, not of helpers of this one."""
    import psutil

    states = {}
    for child in children:
        with contextlib.suppress(psutil.Error):
            if _RANK in child.cmdline():
                states[child.pid] = child.status()
    return states
