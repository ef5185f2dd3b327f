"""Starting one run as several processes: ``training.num_processes=N`` does what
``accelerate launch train.py`` does on one machine.
"""

import logging
import os
import signal
import sys
import uuid

# Read by our own processes, when they start: the process id of the launcher.
_LAUNCHER = "DIFFUSION_POLICY_LAUNCHER"


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


def launch(n_processes: int, arguments: list[str]) -> int:
    """Trains with ``n_processes`` processes on this machine and waits for their end.

    If one ends in failure, the others are ended too.

    Args:
        arguments: of ``train.py``, the run directory included.

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
    module = ["-m", "diffusion_policy.workspace.command_line"]
    try:
        elastic_launch(config, sys.executable)(*module, *arguments)
    except SignalException as error:
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        index, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            sys.stderr.write(
                f"error: process {index} of {n_processes} was killed by {name}; the run continues "
                "from its last checkpoint when it is started again\n"
            )
            return 128 - failure.exitcode
        return failure.exitcode
    return 0
