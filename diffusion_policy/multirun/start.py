"""From the options of ``ray_train_multirun.py`` to a sweep that has ended."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from omegaconf import DictConfig, OmegaConf

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.multirun.backend import Backend
from diffusion_policy.multirun.launch import Launcher
from diffusion_policy.multirun.monitor_process import MonitorProcess
from diffusion_policy.multirun.outcome import Outcome, describe_outcome
from diffusion_policy.multirun.progress import Progress
from diffusion_policy.multirun.resources import per_run_resources, this_machine
from diffusion_policy.multirun.run_command import REPOSITORY, data_folder, link_data
from diffusion_policy.multirun.silence import TIMEOUT_S
from diffusion_policy.multirun.status import State, SweepStatus
from diffusion_policy.multirun.sweep import (
    Sweep,
    compose,
    configuration_dir,
    create_sweep,
    extend_sweep,
    load_sweep,
)
from diffusion_policy.workspace.run_lock import RunDirectoryInUse, locked_run
from diffusion_policy.workspace.trackers import wandb_mode

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How a sweep is run; see ``ray_train_multirun.py --help``.

    Attributes:
        words: those of the command line that another call needs to do the same.
    """

    backend: str = "ray"
    ray_address: str = "auto"
    num_cpus: float | None = None
    num_gpus: float | None = None
    max_retries: int = 0
    monitor_max_retries: int = 3
    run_timeout_s: float = TIMEOUT_S
    monitor_keys: Sequence[str] = ("test/mean_score",)
    data_src: str | None = None
    unbuffer_python: bool = False
    single_node: bool = False
    words: Sequence[str] = field(default=())


def run_new_sweep(
    config_name: str,
    config_dir: str | None,
    overrides: Sequence[str],
    seeds: Sequence[int],
    options: Options,
) -> Outcome:
    """Makes a sweep and runs it.

    Raises:
        ConfigError: The configuration, or an option, cannot work. Nothing was made.
        CheckpointError: The disk refuses.
    """
    config_dir = configuration_dir(config_dir)
    cfg = compose(config_name, config_dir, overrides)
    with contextlib.closing(_backend(options, cfg, len(seeds))) as backend:
        data_src = None if options.data_src is None else data_folder(options.data_src)
        sweep = create_sweep(cfg, config_name, config_dir, overrides, seeds, data_src)
        return _run(sweep, cfg, backend, options)


def resume_sweep(folder: str, overrides: Sequence[str], options: Options) -> Outcome:
    """Continues a sweep: the runs that are not finished, or all of them with further overrides.

    Raises:
        ConfigError, CheckpointError: as :func:`run_new_sweep`.
    """
    sweep = load_sweep(folder)
    with contextlib.closing(_backend(options, sweep.config, len(sweep.seeds))) as backend:
        return _run(sweep, sweep.config, backend, options, overrides)


def _run(
    sweep: Sweep,
    cfg: DictConfig,
    backend: Backend,
    options: Options,
    further_overrides: Sequence[str] = (),
) -> Outcome:
    log.info("Sweep: %s", sweep.folder)
    with _locked(sweep):
        status = SweepStatus(sweep.folder, backend.name, [task.name for task in sweep.tasks])
        if further_overrides:
            sweep = extend_sweep(sweep, further_overrides)
            status.restart()
        elif not status.names(State.WAITING):
            log.info("All runs have finished; with overrides after -- they are continued.")
        use_wandb = wandb_mode(OmegaConf.select(cfg, "logging.mode")) != "disabled"
        keys = options.monitor_keys
        launcher = Launcher(
            sweep,
            status,
            backend,
            MonitorProcess(sweep, keys, use_wandb, options.monitor_max_retries),
            Progress(sweep, status, keys),
            options.max_retries,
            options.run_timeout_s,
        )
        launcher.run()
    return describe_outcome(
        sweep, status, launcher.endings, launcher.was_interrupted, options.words
    )


@contextlib.contextmanager
def _locked(sweep: Sweep) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked_run(sweep.folder, patience_s=0))
        except RunDirectoryInUse as error:
            raise ConfigError(
                f"another process runs the sweep in {sweep.folder}; wait for its end, or end it "
                "with Ctrl-C"
            ) from error
        yield


def _backend(options: Options, cfg: DictConfig, n_runs: int) -> Backend:
    machine = this_machine()
    num_processes = OmegaConf.select(cfg, "training.num_processes") or 1

    asked = n_runs, num_processes, options.num_cpus, options.num_gpus
    if options.backend == "process":
        from diffusion_policy.multirun.process_backend import ProcessBackend

        per_run = per_run_resources(machine, *asked)
        if options.data_src is not None:
            link_data(data_folder(options.data_src), REPOSITORY)
        return ProcessBackend(per_run, machine, options.unbuffer_python)

    from diffusion_policy.multirun.ray_backend import RayBackend
    from diffusion_policy.multirun.ray_cluster import connect

    is_new = connect(options.ray_address, machine, log_to_driver=False)
    per_run = per_run_resources(machine if is_new else None, *asked)
    data_src = str(data_folder(options.data_src))
    n_on_one_node = n_runs if options.single_node else None
    return RayBackend(per_run, data_src, options.unbuffer_python, n_on_one_node)
