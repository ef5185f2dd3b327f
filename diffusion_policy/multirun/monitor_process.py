"""The monitor of a sweep's metrics as a child process, started again when it dies."""

import logging
import subprocess
from collections.abc import Sequence

from diffusion_policy.common.waiting import Patience, Waiting, describe_process
from diffusion_policy.multirun.monitor import METRICS_DIR, MetricsMonitor
from diffusion_policy.multirun.run_command import (
    REPOSITORY,
    console,
    describe_exit,
    interrupt,
    kill,
    start_command,
)
from diffusion_policy.multirun.sweep import CONSOLE_NAME, Sweep

log = logging.getLogger(__name__)

# With a monitor that is to end: it may have to send a sweep's worth of numbers to wandb.
PATIENCE = Patience(limit_s=1800.0)


class MonitorProcess:
    """Runs ``multirun_metrics.py`` beside a sweep.

    Args:
        sweep: What to watch.
        keys: The metrics.
        use_wandb: Let it log to wandb as well.
        max_retries: How often it is started again.
    """

    def __init__(self, sweep: Sweep, keys: Sequence[str], use_wandb: bool, max_retries: int):
        self._sweep = sweep
        self._keys = list(keys)
        self._command = monitor_command(sweep, keys, use_wandb)
        self._retries_left = max_retries
        self._attempts = 0
        self._console = sweep.folder / METRICS_DIR / CONSOLE_NAME
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Starts the monitor.

        Call it where this process handles SIGINT: where it ignores it, as in the background of a
        shell, the new process would not hear :meth:`interrupt` until it listens itself.
        """
        self._process = self._start()

    def look_after(self) -> None:
        """Starts the monitor again if it died."""
        if self._process is None or self._process.poll() is None:
            return
        end, self._process = describe_exit(self._process.returncode), None
        if self._retries_left > 0:
            self._retries_left -= 1
            log.warning("The monitor of the metrics ended (%s); it is started again.", end)
            self._process = self._start()
        else:
            log.warning(
                "The monitor of the metrics ended (%s) and is not started again; the runs go on. "
                "Its last words are in %s.",
                end,
                self._console,
            )

    def interrupt(self) -> None:
        """Asks it to have a last look and end."""
        if self._process is not None:
            interrupt(self._process)

    def waiting(self) -> Waiting:
        """The clock of the wait for its end."""
        return Waiting(
            PATIENCE,
            lambda: f"the monitor of the metrics ({describe_process(self._pid)})",
            "end",
            "it is killed; the metrics are computed here",
        )

    @property
    def _pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def finish(self) -> None:
        """Takes the last look itself if the monitor could not.

        Raises:
            DataError, CheckpointError: as :meth:`.MetricsMonitor.update`.
        """
        if self._process is None or self._process.poll() != 0:
            MetricsMonitor(self._sweep.folder, self._keys).update(final=True)

    def kill(self) -> None:
        if self._process is not None:
            kill(self._process)

    def _start(self) -> subprocess.Popen | None:
        self._attempts += 1
        try:
            self._console.parent.mkdir(exist_ok=True)
            with console(self._console, self._attempts, self._command) as output:
                return start_command(self._command, output=output, cwd=REPOSITORY)
        except OSError as error:
            log.warning("The monitor of the metrics cannot be started (%s); the runs go on.", error)
            return None


def monitor_command(sweep: Sweep, keys: Sequence[str], use_wandb: bool) -> list[str]:
    """The monitor of a sweep; its wandb run is in the group of the sweep's runs."""
    command = ["python", "multirun_metrics.py", "--input", str(sweep.folder)]
    if use_wandb:
        command += ["--use_wandb", "--project", "diffusion_policy_metrics", "--group", sweep.group]
    return command + [word for key in keys for word in ("--key", key)]
