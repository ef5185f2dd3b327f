"""Hydra's own sweeps (``train.py --multirun``): how their jobs differ from a single run.

A job may run in the process of the sweep (Hydra's basic launcher), in a worker process that takes
one job after the other (joblib), or on another machine (submitit). What goes wrong in it must reach
the sweep as an exception: Hydra then runs the other jobs to their end, and fails. An exit of the
process would take the others along.
"""

import contextlib
import datetime
import importlib.util
import logging
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Iterator
from typing import Any

from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from diffusion_policy.common import interrupts
from diffusion_policy.common.errors import ConfigError, DiffusionPolicyError
from diffusion_policy.common.orphans import die_with_parent
from diffusion_policy.config.override import is_override_of
from diffusion_policy.workspace.launch import process_count

logger = logging.getLogger(__name__)

# When the sweep began, in seconds since the epoch; its processes inherit it.
_MOMENT = "DIFFUSION_POLICY_SWEEP_BEGAN"
_PACKAGES = {
    "joblib": "hydra_joblib_launcher",
    "submitit_local": "hydra_submitit_launcher",
    "submitit_slurm": "hydra_submitit_launcher",
}


class SweepJobFailed(CompactHydraException):
    """A sentence about a job that failed; Hydra prints it without a traceback and exits with 1."""


def is_job_of_sweep(job: Any) -> bool:
    """Whether Hydra runs several jobs. ``job`` is ``HydraConfig.get()``."""
    return job["mode"] == RunMode.MULTIRUN


@contextlib.contextmanager
def job_of_sweep(job: Any) -> Iterator[None]:
    """Around a training that is one job of a sweep.

    Args:
        job: ``HydraConfig.get()`` inside of the job.

    Raises:
        SweepJobFailed: what a user can mend went wrong, or the processes of the training ended in
            failure. Logged as well: Hydra shows it after the end of the other jobs only.
    """
    _leave_loky()
    _agree_on_now()
    try:
        if process_count() > 1:
            raise ConfigError(
                "a sweep cannot be launched as several processes; start it without a launcher, "
                "with training.num_processes=N"
            )
        yield
    except DiffusionPolicyError as error:
        raise _failed(job, str(error)) from error
    except SystemExit as end:  # of the processes of training.num_processes
        if end.code:
            raise _failed(job, f"it ended with exit code {end.code}") from end


@contextlib.contextmanager
def command_of_sweep(arguments: list[str]) -> Iterator[None]:
    """Around all that a command line does; without ``--multirun`` it changes nothing.

    When a sweep is interrupted, the exit code is 130, and stderr says how it goes on.

    Args:
        arguments: the command line, as the user gave it.

    Raises:
        ConfigError: the launcher is not installed.
    """
    if not {"--multirun", "-m", "hydra.mode=MULTIRUN"}.intersection(arguments):
        yield
        return
    _check_launcher(arguments)
    os.environ[_MOMENT] = str(time.time())
    try:
        yield
    except KeyboardInterrupt:
        has_dir = any(is_override_of("hydra.sweep.dir", argument) for argument in arguments)
        which = "this" if has_dir else "with hydra.sweep.dir=<folder of this sweep> this"
        hint = f"; {which} continues the sweep: {shlex.join(['python', *arguments])}"
        if any(argument.startswith("hydra/launcher=submitit") for argument in arguments):
            hint += "\njobs that submitit has started may go on; end them first (Slurm: scancel)"
        interrupts.tell(hint)
        sys.exit(interrupts.EXIT_INTERRUPTED)


def _check_launcher(arguments: list[str]) -> None:
    for launcher, package in _PACKAGES.items():
        if f"hydra/launcher={launcher}" in arguments and not _is_installed(package):
            raise ConfigError(
                f"hydra/launcher={launcher} needs the package {package.replace('_', '-')}, which "
                "is not installed; pip install -e '.[launchers]' installs Hydra's launchers"
            )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{package}") is not None
    except ModuleNotFoundError:  # Hydra has no plugins at all
        return False


def _agree_on_now() -> None:
    """Every ``${now:}`` of a sweep is the start of the sweep, in whatever process, at whatever time
    a job starts.
    """
    moment = datetime.datetime.fromtimestamp(float(os.environ.get(_MOMENT, time.time())))
    OmegaConf.register_new_resolver("now", moment.strftime, use_cache=True, replace=True)


def _failed(job: Any, reason: str) -> SweepJobFailed:
    overrides = " ".join(job["overrides"]["task"])
    sentence = f"job {job['job']['num']} ({overrides}) in {job['runtime']['output_dir']}: {reason}"
    logger.error("%s; the other jobs go on", sentence)
    return SweepJobFailed(f"error: {sentence}")


def _leave_loky() -> None:
    """Makes a worker process of joblib one in which a training can live."""
    known = multiprocessing.get_all_start_methods()
    if multiprocessing.get_start_method(allow_none=True) in [None, *known]:
        return
    # Environment and data workers would be told to start their processes joblib's way, which they
    # do not know.
    multiprocessing.set_start_method(None, force=True)
    die_with_parent(os.getppid())
