"""Shows how far the runs of a sweep are: bars on a terminal, lines of text elsewhere."""

import contextlib
import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.json_lines import as_count, as_float
from diffusion_policy.multirun.rollout_log import RolloutLog
from diffusion_policy.multirun.status import State, SweepStatus
from diffusion_policy.multirun.sweep import Sweep
from diffusion_policy.workspace.run_logger import LOG_NAME

log = logging.getLogger(__name__)

_BAR = "{desc}: epoch {n_fmt}/{total_fmt} |{bar:20}|"
BARS_EVERY_S, LINES_EVERY_S = 1.0, 60.0


class Progress:
    """Follows the training logs of a sweep.

    Args:
        sweep: What to follow.
        status: The state of its runs.
        keys: The metric to show, the first of these.
        use_bars: One bar per run on stderr. Default: if that is a terminal. Otherwise lines of the
            log, now and then.
    """

    def __init__(
        self,
        sweep: Sweep,
        status: SweepStatus,
        keys: Sequence[str],
        use_bars: bool | None = None,
    ):
        self._status = status
        self._key = keys[0]
        self._logs = {
            task.name: RolloutLog(sweep.run_dir(task.name) / LOG_NAME, [self._key])
            for task in sweep.tasks
        }
        self._n_epochs = _n_epochs(sweep.config)
        self._bars: dict[str, tqdm] = {}
        if sys.stderr.isatty() if use_bars is None else use_bars:
            self._bars = {
                task.name: tqdm(
                    total=self._n_epochs,
                    desc=f"{task.name} (seed {task.seed})",
                    position=position,
                    bar_format=_BAR,
                )
                for position, task in enumerate(sweep.tasks)
            }
        self._next = time.monotonic() + (0 if self._bars else LINES_EVERY_S)

    def update(self, now: bool = False) -> None:
        """Shows what is new, if it is time, or ``now``."""
        if now or time.monotonic() >= self._next:
            self._next = time.monotonic() + (BARS_EVERY_S if self._bars else LINES_EVERY_S)
            self._update()

    def close(self) -> None:
        if self._bars:
            self.update(now=True)
        for bar in self._bars.values():
            bar.close()

    def _update(self) -> None:
        for name, training_log in self._logs.items():
            with contextlib.suppress(DataError):  # the monitor reports it
                training_log.update()
            state, numbers = self._status[name].state, describe_numbers(training_log, self._key)
            epochs = training_log.last_epoch + 1
            if name in self._bars:
                bar = self._bars[name]
                bar.n = min(epochs, self._n_epochs or epochs)
                bar.bar_format = f"{_BAR} {', '.join(filter(None, [state, numbers]))}"
                bar.refresh()
            elif state == State.RUNNING:
                position = f"epoch {epochs} of {self._n_epochs or '?'}"
                log.info("%s: %s", name, ", ".join(filter(None, [position, numbers])))


def describe_numbers(training_log: RolloutLog, key: str) -> str:
    """``train_loss=0.0123, test/mean_score=0.845``: the last ones of a log, as far as there are."""
    numbers = {"train_loss": as_float(training_log.last_line.get("train_loss"))}
    if training_log.rows:
        numbers[key] = as_float(training_log.rows[-1].get(key))
    return ", ".join(f"{name}={value:.3g}" for name, value in numbers.items() if value is not None)


def _n_epochs(cfg: Any) -> int | None:
    training = cfg.get("training") or {}
    return 2 if training.get("debug") else as_count(training.get("num_epochs"))
