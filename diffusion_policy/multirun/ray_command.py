"""One command as a task of a ray cluster: ``ray_exec.py``."""

import logging
import time
from collections.abc import Sequence
from typing import Any

from diffusion_policy.common.errors import DiffusionPolicyError
from diffusion_policy.multirun.ray_backend import RESULT_S, check_nodes, describe_error
from diffusion_policy.multirun.ray_cluster import connect
from diffusion_policy.multirun.resources import per_run_resources, this_machine
from diffusion_policy.multirun.run_command import data_folder, worker_fn
from diffusion_policy.multirun.signals import stop_signals

log = logging.getLogger(__name__)

POLL_S = 0.2
OUTPUT_S = 1.0  # ray forwards the output of workers a little later
N_SIGNALS = 2  # the first interrupts, the second kills


def run_on_cluster(
    command_args: Sequence[str],
    ray_address: str,
    num_cpus: float | None,
    num_gpus: float | None,
    max_retries: int,
    data_src: str | None,
    unbuffer_python: bool,
) -> int:
    """Runs a command and returns its exit code, see :func:`.worker_fn`.

    Args:
        ray_address: As :func:`.ray_cluster.connect` takes it.
        max_retries: How often ray starts the command again when it fails, or its node does.

    Raises:
        ConfigError: There is no such cluster, or none of its nodes has what the command needs.
        DiffusionPolicyError: The command failed, or was killed.
    """
    import ray

    machine = this_machine()
    is_new = connect(ray_address, machine, log_to_driver=True)
    try:
        request = per_run_resources(machine if is_new else None, 1, 1, num_cpus, num_gpus)
        check_nodes(request)
        remote: Any = ray.remote(worker_fn)
        task = remote.options(
            num_cpus=request.num_cpus,
            num_gpus=request.num_gpus,
            max_retries=max_retries,
            retry_exceptions=True,
        )
        return _wait(task.remote(list(command_args), str(data_folder(data_src)), unbuffer_python))
    finally:
        time.sleep(OUTPUT_S)
        ray.shutdown()


def _wait(ref: Any) -> int:
    """The result of the task; SIGINT and SIGTERM reach the command as one SIGINT."""
    import ray
    from ray.exceptions import RayError

    n_heeded = 0
    with stop_signals(N_SIGNALS) as stop:
        while not ray.wait([ref], timeout=POLL_S)[0]:
            if stop.count > n_heeded:
                n_heeded = stop.count
                log.warning(
                    "%s the command%s",
                    *(("Killing", "") if n_heeded > 1 else ("Interrupting", "; Ctrl-C kills it")),
                )
                ray.cancel(ref, force=n_heeded > 1)
        try:
            return ray.get(ref, timeout=RESULT_S)
        except RayError as error:
            raise DiffusionPolicyError(describe_error(error)) from error
