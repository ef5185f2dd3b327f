"""The life of a monitor process: start, look at the sweep again and again, stop on a signal."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffusion_policy.common.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DiffusionPolicyError,
)
from diffusion_policy.common.json_lines import as_count
from diffusion_policy.common.regular_files import read_regular
from diffusion_policy.config.yaml_files import MAX_BYTES, parse_mapping
from diffusion_policy.multirun.monitor import METRICS_DIR, MetricsMonitor, seed_folders
from diffusion_policy.multirun.signals import StopSignals, stop_signals
from diffusion_policy.workspace.run_logger import Tracker
from diffusion_policy.workspace.trackers import start_wandb, wandb_mode

log = logging.getLogger(__name__)

CONFIG_NAME = "config.yaml"
MESSAGES_NAME = "metrics.log"


def run_monitor(
    sweep_dir: str | pathlib.Path,
    keys: Sequence[str],
    interval: float = 10.0,
    replace_slash: bool = True,
    index_key: str = "global_step",
    wandb_options: Mapping[str, Any] | None = None,
    until_done: bool = False,
) -> dict[str, Any] | None:
    """Watches a sweep until SIGINT or SIGTERM, which end it after one last look.

    A log or a disk that fails for a while is reported and tried again. Only the main thread of a
    process can call this: signals arrive nowhere else.

    Args:
        sweep_dir: Folder with ``config.yaml`` and ``train_*``.
        keys: The metrics to aggregate.
        interval: Seconds between two looks.
        replace_slash: Write ``test_mean_score`` for ``test/mean_score`` behind ``max/`` and so on.
        index_key: The x axis in wandb, a column of the training logs.
        wandb_options: What replaces entries of the configuration's ``logging`` block, None values
            excepted. None: no wandb.
        until_done: Return when no seed will have another rollout.

    Returns:
        The last line of the metrics, None if there is none.

    Raises:
        DataError: If this is not the folder of a sweep, or a log is still damaged at the end.
        ConfigError: If ``config.yaml`` is needed and missing, or an option does not fit the logs.
        DiffusionPolicyError: If nothing can be written; CheckpointError if that is so at the end.
    """
    sweep_dir = pathlib.Path(sweep_dir)
    if not seed_folders(sweep_dir):
        raise DataError(
            f"{sweep_dir} has no folders train_0, train_1, ...; name the folder of a sweep, as "
            "ray_train_multirun.py prints it (Hydra's own sweeps have them with "
            "hydra.sweep.subdir='train_${hydra.job.num}')."
        )
    last_rollout = last_rollout_epoch(_read_config(sweep_dir)) if until_done else None
    metrics_dir = _make_folder(sweep_dir / METRICS_DIR)
    with _messages_to(metrics_dir / MESSAGES_NAME), stop_signals() as stop:
        tracker = None
        if wandb_options is not None:
            tracker = _start_wandb(metrics_dir, _read_config(sweep_dir), wandb_options)
        monitor = MetricsMonitor(sweep_dir, keys, replace_slash, index_key, tracker)
        with contextlib.closing(monitor):
            _watch(monitor, stop, interval, last_rollout)
            return monitor.update(final=True)


def last_rollout_epoch(config: Mapping[str, Any]) -> int:
    """The last epoch in which a run rolls out. Epochs count from 0, and that one is the first.

    Raises:
        ConfigError: If the configuration does not say how long a run is.
    """
    training = section(config, "training")
    if training.get("debug"):  # as TrainWorkspace.apply_debug_limits: two epochs, with rollouts
        return 1
    n_epochs, every = as_count(training.get("num_epochs")), as_count(training.get("rollout_every"))
    if n_epochs and every:
        return (n_epochs - 1) // every * every
    found = [f"training.{key}={training.get(key)}" for key in ("num_epochs", "rollout_every")]
    raise ConfigError(
        f"{CONFIG_NAME} of the sweep has {' and '.join(found)}; --until_done needs two whole "
        "numbers above 0 there."
    )


def section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section of a configuration; empty where there is none."""
    content = config.get(name)
    return content if isinstance(content, dict) else {}


def _watch(
    monitor: MetricsMonitor, stop: StopSignals, interval: float, last_rollout: int | None
) -> None:
    complaint = None
    while not stop.count:
        try:
            monitor.update()
            complaint = None
            if last_rollout is not None and monitor.is_done(last_rollout):
                log.info("All seeds have made their last rollout.")
                return
        except (DataError, CheckpointError) as e:
            if str(e) != complaint:
                log.warning("%s Trying again every %g s.", e, interval)
            complaint = str(e)
        stop.wait(interval)
    log.info("Stopped by a signal.")


def _read_config(sweep_dir: pathlib.Path) -> dict[str, Any]:
    """The configuration of a sweep; for one of Hydra's own, which has none, its first run's."""
    path = sweep_dir / CONFIG_NAME
    of_first_run = seed_folders(sweep_dir)[0] / ".hydra" / CONFIG_NAME
    if not path.exists() and of_first_run.exists():
        path = of_first_run
    try:
        return parse_mapping(read_regular(path, MAX_BYTES), path)
    except (OSError, DataError, ConfigError) as e:
        reason = e.strerror if isinstance(e, OSError) else e
        raise ConfigError(
            f"Cannot read {path} ({reason}); restore the configuration of the sweep, or do without "
            "--until_done and --use_wandb."
        ) from e


def _make_folder(path: pathlib.Path) -> pathlib.Path:
    try:
        path.mkdir(exist_ok=True)
    except OSError as e:
        raise DiffusionPolicyError(
            f"Cannot create {path}: {e.strerror}; make the folder of the sweep writable."
        ) from e
    return path


def _start_wandb(
    metrics_dir: pathlib.Path, config: dict[str, Any], options: Mapping[str, Any]
) -> Tracker | None:
    given = {key: value for key, value in options.items() if value is not None}
    options = {**section(config, "logging"), **given, "resume": True}
    options.pop("tensorboard", None)
    mode = wandb_mode(options.pop("mode", None))
    return None if mode == "disabled" else start_wandb(metrics_dir, mode, options, config)


@contextlib.contextmanager
def _messages_to(path: pathlib.Path) -> Iterator[None]:
    """Sends log messages to a file, after what it holds, and to stderr."""
    try:
        handlers = [logging.FileHandler(path), logging.StreamHandler()]
    except OSError as e:
        raise DiffusionPolicyError(
            f"Cannot write {path}: {e.strerror}; make it writable, and run the monitor again."
        ) from e
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s [%(levelname)s] %(message)s"))
        root.addHandler(handler)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
