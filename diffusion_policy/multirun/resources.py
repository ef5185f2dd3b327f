"""CPUs and GPUs: what a machine has, what one run of a sweep gets."""

import logging
import os
import pathlib
from dataclasses import dataclass

from diffusion_policy.common.errors import ConfigError

log = logging.getLogger(__name__)

# Per run, on a cluster: what the published sweeps used.
CLUSTER_CPUS, CLUSTER_GPUS = 7.0, 1.0
_GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, Windows' Linux


@dataclass(frozen=True)
class Resources:
    """So many CPUs and GPUs; a run may have a fraction of one GPU, or several whole ones."""

    num_cpus: float
    num_gpus: float

    def __str__(self) -> str:
        return f"{_count(self.num_cpus, 'CPU')} and {_count(self.num_gpus, 'GPU')}"


@dataclass(frozen=True)
class Machine:
    """What this machine has.

    Attributes:
        num_cpus: that this process may use.
        gpus: as ``CUDA_VISIBLE_DEVICES`` names them.
    """

    num_cpus: int
    gpus: tuple[str, ...]

    @property
    def resources(self) -> Resources:
        return Resources(self.num_cpus, len(self.gpus))


def this_machine() -> Machine:
    if hasattr(os, "sched_getaffinity"):
        num_cpus = len(os.sched_getaffinity(0))
    else:
        num_cpus = os.cpu_count() or 1
    return Machine(num_cpus, _gpus())


def _gpus() -> tuple[str, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip() not in ("", "-1"))
    if not any(pathlib.Path(driver).exists() for driver in _GPU_DRIVERS):
        return ()  # without importing torch
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))


def per_run_resources(
    machine: Machine | None,
    n_runs: int,
    num_processes: int = 1,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
) -> Resources:
    """What one run gets, where the user did not say.

    On one machine: a GPU for each of its processes if there is any, and an equal share of the CPUs
    of all runs that take place at a time, up to what a run gets on a cluster.

    Args:
        machine: Where everything takes place. None: on a cluster, whatever it has.
        n_runs: Runs that would like to take place at a time.
        num_processes: Of each run.
        num_cpus, num_gpus: What the user said.

    Raises:
        ConfigError: That cannot be, or is more than the machine has.
    """
    if num_gpus is None:
        has_gpus = machine is None or bool(machine.gpus)
        num_gpus = max(CLUSTER_GPUS, num_processes) if has_gpus else 0.0
    if num_cpus is None and machine is not None:
        num_cpus = _share_of_cpus(machine, n_runs, num_processes, num_gpus)
    request = Resources(CLUSTER_CPUS if num_cpus is None else num_cpus, num_gpus)
    check_request(request)
    if machine is not None:
        check_fits(request, machine.resources, "this machine")
    where = "the ray cluster" if machine is None else f"{machine.resources} on this machine"
    log.info("Every run gets %s, of %s.", request, where)
    return request


def _share_of_cpus(machine: Machine, n_runs: int, num_processes: int, num_gpus: float) -> float:
    at_a_time = machine.num_cpus // num_processes
    if num_gpus > 0:
        at_a_time = min(at_a_time, int(len(machine.gpus) / num_gpus))
    at_a_time = max(1, min(n_runs, at_a_time))
    share = max(1, machine.num_cpus // at_a_time)
    return min(float(share), max(CLUSTER_CPUS, num_processes))


def check_request(request: Resources) -> None:
    """Raises ConfigError if nobody can give that."""
    if request.num_cpus < 0 or request.num_gpus < 0:
        raise ConfigError(f"a run cannot have {request}; give 0 or more")
    if request.num_gpus > 1 and request.num_gpus != int(request.num_gpus):
        raise ConfigError(
            f"--num_gpus {request.num_gpus:g}: runs can share one GPU (0.5), or have several whole "
            "ones (2), not both"
        )


def check_fits(request: Resources, largest: Resources, where: str) -> None:
    """Raises ConfigError if ``request`` is more than the largest machine there, ``where``, has."""
    if request.num_cpus > largest.num_cpus or request.num_gpus > largest.num_gpus:
        raise ConfigError(
            f"every run asks for {request}, but {where} has {largest}; pass --num_cpus "
            f"{min(request.num_cpus, largest.num_cpus):g} --num_gpus "
            f"{min(request.num_gpus, largest.num_gpus):g}, or less"
        )


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"
