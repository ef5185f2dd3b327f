"""Aggregates the logs of a multi-seed sweep, whatever state its seeds are in.

``<sweep>/metrics/logs.json.txt`` gets one line per rollout, ``metrics.json`` the last of them. Both
are computed from the training logs and replaced whole, so a monitor can be killed and started again
at any time, even beside another one.

Which seeds count, while they are at different stages:

- A line is written when all seeds that count have that rollout.
- A seed counts from its first rollout on. Until then the others wait for it, but only until one of
  them has two rollouts: a seed that failed, or has to wait for a free GPU, does not block them.
- When a seed joins late, the lines are computed anew. What is on disk stays until there are as many
  new lines, so that a result over two finished seeds is not lost while the third one trains.
- A seed that stopped for good in the middle holds the lines at its last rollout. To leave it out,
  move its ``train_*`` folder elsewhere.
"""

import contextlib
import itertools
import json
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from diffusion_policy.common.checkpoint_util import atomic_write
from diffusion_policy.common.errors import ConfigError, DataError
from diffusion_policy.common.json_lines import parse_object
from diffusion_policy.common.regular_files import open_regular
from diffusion_policy.multirun.metrics import LOSSES, aggregate_row
from diffusion_policy.multirun.rollout_log import RolloutLog
from diffusion_policy.workspace.run_logger import LOG_NAME, Tracker

log = logging.getLogger(__name__)

METRICS_DIR = "metrics"
SUMMARY_NAME = "metrics.json"
PATIENCE = 2  # a seed with so many rollouts does not wait for one that has none


class MetricsMonitor:
    """Aggregates what the logs of a sweep hold at this moment, see the top of this module.

    Args:
        sweep_dir: Folder with ``train_*``.
        keys: The metrics to aggregate.
        replace_slash: See :func:`.metrics.compute_metrics`.
        index_key: The step that the tracker gets, a column of the training logs.
        tracker: Gets every new line, in the order of the steps. One that fails is switched off.
    """

    def __init__(
        self,
        sweep_dir: str | pathlib.Path,
        keys: Sequence[str],
        replace_slash: bool = True,
        index_key: str = "global_step",
        tracker: Tracker | None = None,
    ):
        self.sweep_dir = pathlib.Path(sweep_dir)
        self.keys = list(dict.fromkeys(keys))
        self.axes = list(dict.fromkeys(["global_step", "epoch", index_key]))
        self._replace_slash = replace_slash
        self._index_key = index_key
        self._tracker = tracker
        self._tracked_step: float = -1
        self._logs: dict[pathlib.Path, RolloutLog] = {}
        self._basis: list[tuple[RolloutLog, int]] = []
        self._lines: list[bytes] = []
        self._warned: set[str] = set()

    def update(self, final: bool = False) -> dict[str, Any] | None:
        """Reads what is new in the logs and writes what follows from it.

        Args:
            final: Do not wait for seeds that have no rollout yet.

        Returns:
            The last line of the metrics, None if there is none yet.

        Raises:
            DataError: If a log is damaged.
            ConfigError: If the rollout rows lack ``index_key``.
            CheckpointError: If the disk refuses.
        """
        logs = self._read_logs()
        self._warn_about_unknown_keys(logs)
        started = [seed for seed in logs if seed.rows]
        is_waiting = len(started) < len(logs) and all(len(s.rows) < PATIENCE for s in started)
        if started and (final or not is_waiting):
            self._compute(started, n_seeds=len(logs))
        lines = self._write()
        return json.loads(lines[-1]) if lines else None

    def is_done(self, last_rollout: int) -> bool:
        """Whether every seed has passed the last epoch in which the configuration has a rollout."""
        return all(
            seed.last_epoch > last_rollout
            or (seed.rows and seed.rows[-1].get("epoch", -1) >= last_rollout)
            for seed in self._logs.values()
        )

    def close(self) -> None:
        """Ends the tracker."""
        if self._tracker is not None:
            with self._one_warning():
                self._tracker.close(exit_code=0)
        self._tracker = None

    def _read_logs(self) -> list[RolloutLog]:
        columns = [*self.axes, *LOSSES]
        self._logs = {
            folder: self._logs.get(folder) or RolloutLog(folder / LOG_NAME, self.keys, columns)
            for folder in seed_folders(self.sweep_dir)
        }
        for seed in self._logs.values():
            seed.update()
        return list(self._logs.values())

    def _compute(self, seeds: list[RolloutLog], n_seeds: int) -> None:
        basis = [(seed, seed.generation) for seed in seeds]
        if basis != self._basis:
            names = ", ".join(seed.path.parent.name for seed in seeds)
            log.info("Averaging over %s: %d of %d seeds have rollouts.", names, len(seeds), n_seeds)
            self._basis, self._lines = basis, []
        n_rows = min(len(seed.rows) for seed in seeds)
        if n_rows == len(self._lines):
            return
        frames = [seed.frame() for seed in seeds]
        for end in range(len(self._lines) + 1, n_rows + 1):
            row = aggregate_row(
                frames, self.keys, end, self.axes, replace_slash=self._replace_slash
            )
            if self._index_key not in row:
                raise ConfigError(
                    f"The rollout rows of {seeds[0].path} have no {self._index_key!r}; set "
                    "--index_key to global_step or epoch."
                )
            self._lines.append(json.dumps(row).encode() + b"\n")
        log.info("%d rollouts: %s", n_rows, self._lines[-1].decode().rstrip())

    def _write(self) -> list[bytes]:
        """Replaces the files, where they differ; returns the lines that they have now."""
        folder = self.sweep_dir / METRICS_DIR
        lines = _longer(_lines(_read(folder / LOG_NAME)), self._lines)
        if lines:
            summary = json.dumps(json.loads(lines[-1]), indent=2, sort_keys=True).encode()
            for name, content in ((LOG_NAME, b"".join(lines)), (SUMMARY_NAME, summary)):
                if _read(folder / name) != content:
                    atomic_write(folder / name, lambda file, content=content: file.write(content))
            self._track(lines)
        return lines

    def _track(self, lines: list[bytes]) -> None:
        """wandb takes no step twice: it keeps what was the mean when the step was new."""
        if self._tracker is None:
            return
        for row in map(json.loads, lines):
            step = row.get(self._index_key, -1)
            if self._tracker is not None and step > self._tracked_step:
                with self._one_warning():
                    self._tracker.log(row, step)
                self._tracked_step = step

    @contextlib.contextmanager
    def _one_warning(self) -> Iterator[None]:
        try:
            yield
        except Exception as e:
            self._tracker = None
            log.warning(
                "wandb failed (%s) and is switched off; %s has every number.",
                repr(e).splitlines()[0],
                self.sweep_dir / METRICS_DIR / LOG_NAME,
            )

    def _warn_about_unknown_keys(self, logs: list[RolloutLog]) -> None:
        """The first epoch always has a rollout; a run that passed it without a key has no such."""
        passed = [seed for seed in logs if seed.last_epoch > 0]
        for key in self.keys:
            unknown = passed and not any(key in row for seed in logs for row in seed.rows)
            if unknown and key not in self._warned:
                self._warned.add(key)
                log.warning(
                    "No rollout in %s has %r; check the spelling of --key.", self.sweep_dir, key
                )


def seed_folders(sweep_dir: pathlib.Path) -> list[pathlib.Path]:
    """``train_*``, train_2 before train_10."""
    folders = [path for path in sweep_dir.glob("train_*") if path.is_dir()]
    return sorted(folders, key=lambda path: (len(path.name), path.name))


def _lines(content: bytes) -> list[bytes]:
    """The lines that an earlier monitor wrote, up to one that it cannot have written."""
    lines = content.splitlines(keepends=True)
    return list(itertools.takewhile(lambda line: parse_object(line) is not None, lines))


def _longer(old: list[bytes], new: list[bytes]) -> list[bytes]:
    """The new lines, unless there are fewer: then the old ones, if they are about the same."""
    if len(old) > len(new) and (not new or _names(old[-1]) == _names(new[-1])):
        return old
    return new


def _names(line: bytes) -> set[str]:
    return set(parse_object(line) or ())


def _read(path: pathlib.Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except FileNotFoundError:
        return b""
    except OSError as e:
        raise DataError(f"Cannot read {path}: {e.strerror}; make it readable, or remove it.") from e
