"""wandb and tensorboard, as a run log's followers (see :mod:`.run_logger`)."""

import contextlib
import inspect
import logging
import numbers
import os
import pathlib
import secrets
import sys
from collections.abc import Iterator
from typing import Any, Literal

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.media import VideoFile

log = logging.getLogger(__name__)

WANDB_MODES = ("online", "offline", "disabled")
WANDB_ID_NAME = "wandb_run_id.txt"
WANDB_INIT_TIMEOUT_S = 30.0  # then the run goes on offline
WANDB_FINISH_TIMEOUT_S = 600.0  # then what is left waits for `wandb sync`


class WandbTracker:
    """Sends records to a wandb run, online or offline.

    Args:
        run: What ``wandb.init`` returned.
    """

    name = "wandb"

    def __init__(self, run: Any):
        self._run = run

    def log(self, record: dict[str, Any], step: int) -> None:
        import wandb

        # The server has what it received before a kill, and refuses the repetition after a resume.
        if step < self._run.starting_step:
            return
        values = {
            key: wandb.Video(value.path, format="mp4") if isinstance(value, VideoFile) else value
            for key, value in record.items()
        }
        self._run.log(values, step=step)

    def close(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


class TensorboardTracker:
    """Writes numbers as tensorboard scalars into ``<output_dir>/tensorboard``.

    Args:
        output_dir: Folder of the run.
        first_step: Events of an earlier session from this step on are hidden: they come again.

    Raises:
        ConfigError: If tensorboard is not installed.
    """

    name = "tensorboard"

    def __init__(self, output_dir: pathlib.Path, first_step: int):
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as e:
            raise ConfigError(
                "logging.tensorboard is true but the package tensorboard is not installed; "
                "pip install tensorboard, or set logging.tensorboard=false."
            ) from e
        self._writer = SummaryWriter(
            str(output_dir / "tensorboard"), purge_step=first_step or None, flush_secs=10
        )

    def log(self, record: dict[str, Any], step: int) -> None:
        for key, value in record.items():
            if isinstance(value, numbers.Real):
                self._writer.add_scalar(key, float(value), step)

    def close(self, exit_code: int) -> None:
        self._writer.close()


def wandb_mode(configured: str | None) -> str:
    """The mode that applies: ``WANDB_MODE``, else the configured one, else ``online``.

    The environment is closer to the person at this machine than a published configuration is.

    Raises:
        ConfigError: If it is none of ``online``, ``offline``, ``disabled``.
    """
    from_environment = os.environ.get("WANDB_MODE")
    mode = from_environment or configured or "online"
    if mode not in WANDB_MODES:
        source = "The environment variable WANDB_MODE" if from_environment else "logging.mode"
        raise ConfigError(f"{source} is {mode!r}; it can be {', '.join(WANDB_MODES)}.")
    return mode


def start_wandb(
    output_dir: pathlib.Path, mode: str, options: dict[str, Any], config: dict[str, Any]
) -> WandbTracker | None:
    """Starts or continues the wandb run of an output folder.

    Without a login or a network, an ``online`` run continues offline after one warning.

    Args:
        output_dir: Folder of the run.
        mode: ``online`` or ``offline``.
        options: Further keyword arguments of ``wandb.init``.
        config: The configuration that wandb shows.

    Returns:
        None if wandb works neither online nor offline; one warning was given.

    Raises:
        ConfigError: If ``wandb.init`` does not know one of the options.
    """
    import wandb

    unknown = sorted(set(options) - set(inspect.signature(wandb.init).parameters))
    if unknown:
        raise ConfigError(
            f"The logging block of the configuration has {', '.join(unknown)}, which wandb.init "
            "does not know; remove it or correct its name."
        )
    online_error = None
    try:
        options = _resumable(options, output_dir)
        if mode == "online":
            try:
                return _init(output_dir, "online", options, config)
            except Exception as e:
                online_error = e
                wandb.teardown()  # frees the id of the failed attempt
        tracker = _init(output_dir, "offline", options, config)
    except Exception as e:
        log.warning("wandb cannot start (%s); this run goes on without it.", _first_line(e))
        return None
    if online_error is not None:
        log.warning(
            "wandb cannot go online (%s), so this run is logged offline. Run `wandb login` once to "
            "go online; `wandb sync %s` uploads this run later; logging.mode=offline silences this "
            "warning.",
            _first_line(online_error).rstrip("."),
            output_dir / "wandb" / "offline-run-*",
        )
    return tracker


def _init(
    output_dir: pathlib.Path,
    mode: Literal["online", "offline"],
    options: dict[str, Any],
    config: dict[str, Any],
) -> WandbTracker:
    import wandb

    settings = wandb.Settings(
        init_timeout=WANDB_INIT_TIMEOUT_S, finish_timeout=WANDB_FINISH_TIMEOUT_S
    )
    with _no_terminal_input():
        run = wandb.init(
            dir=str(output_dir), config=config, mode=mode, settings=settings, **options
        )
    run.config.update({"output_dir": str(output_dir)}, allow_val_change=True)
    return WandbTracker(run)


def _resumable(options: dict[str, Any], output_dir: pathlib.Path) -> dict[str, Any]:
    """With ``resume``, every session in an output folder continues the same wandb run.

    wandb's own ``resume=True`` forgets a run that finished, so we keep the id ourselves.
    """
    if not options.get("resume"):
        return options
    resume = "allow" if options["resume"] in (True, "auto") else options["resume"]
    return options | {"resume": resume, "id": options.get("id") or _stable_id(output_dir)}


def _stable_id(output_dir: pathlib.Path) -> str:
    """The wandb id of an output folder: drawn at its first start, then read from a file."""
    path = output_dir / WANDB_ID_NAME
    run_id = path.read_text().strip() if path.exists() else ""
    if not run_id:
        run_id = secrets.token_hex(4)
        path.write_text(run_id + "\n")
    return run_id


@contextlib.contextmanager
def _no_terminal_input() -> Iterator[None]:
    """Makes wandb raise where it would ask for a login: a prompt hangs an unattended run."""
    stdin = sys.stdin
    with open(os.devnull) as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = stdin


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
