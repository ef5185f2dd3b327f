"""The log and the times of one training run as columns, each file read once."""

import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.json_logger import iter_json_log
from diffusion_policy.workspace.run_logger import LOG_NAME, TIMES_NAME
from diffusion_policy.workspace.stopwatch import PREFIX as TIME_PREFIX

AXES = ("global_step", "epoch")
BLOCK_LINES = 1000


class NothingLoggedError(DataError):
    """A run that has no record yet."""


@dataclass
class Series:
    """A metric over training steps, in the order of the steps."""

    steps: list[int]
    values: list[float]


@dataclass
class RunLog:
    """The log by columns. Of repeated steps (a run resumed by other means) the last one counts.

    Attributes:
        values: of every metric, by step.
        epoch_ends: the last step of every epoch so far, by epoch.
        last: the newest record.
        evaluation: the newest record with metrics of rollouts.
    """

    values: dict[str, dict[int, float]] = field(default_factory=dict)
    epoch_ends: dict[int, int] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)

    def add(self, row: dict[str, Any], step: int) -> None:
        columns = self.values
        for key, value in row.items():
            if "/" in key:
                self.evaluation = row
                if "/sim_" in key:  # one of many episodes, not a curve
                    continue
            if key in columns:
                columns[key][step] = value
            elif key not in AXES:
                columns[key] = {step: value}
        self.epoch_ends[row.get("epoch", 0)] = step
        self.last = row

    def train_loss_means(self) -> dict[int, float]:
        """The last record of a finished epoch holds the mean of its losses, not a batch's loss."""
        losses = self.values.get("train_loss", {})
        ends = list(self.epoch_ends.values())
        if len(ends) < 2 or ends[-1] - ends[-2] < ends[0] - min(losses, default=0) + 1:
            ends.pop()  # shorter than the first: still in progress
        return {step: losses[step] for step in ends if step in losses}


@dataclass
class Times:
    """Where the time of a run went.

    Attributes:
        seconds: spent on each part (``step``, ``rollout`` ...) so far, the largest first.
        n_steps: training steps that these seconds hold; 0 if unknown.
    """

    seconds: dict[str, float]
    n_steps: int = 0

    @property
    def step_seconds(self) -> float | None:
        """Mean duration of a training step, without waiting for its data."""
        return (
            self.seconds["step"] / self.n_steps if self.n_steps and "step" in self.seconds else None
        )


def read_log(folder: pathlib.Path) -> RunLog:
    """Reads ``logs.json.txt``. Lines at its end that a crash damaged do not count.

    Raises:
        NothingLoggedError: If there is no log, or no complete line in it yet.
        DataError: If it is damaged.
    """
    log = RunLog()
    rows = _rows(folder / LOG_NAME) if (folder / LOG_NAME).exists() else ()
    for number, row in enumerate(rows):
        log.add(row, int(row.get("global_step", number)))
    if not log.last:
        raise NothingLoggedError(
            f"{folder / LOG_NAME} has no complete line yet; wait for the first training step, or "
            "name another run."
        )
    return log


def read_times(folder: pathlib.Path, epoch_ends: dict[int, int]) -> Times | None:
    """Sums up ``times.json.txt``; None if there is none. Of repeated epochs the last line counts.

    Args:
        folder: Of the run.
        epoch_ends: The last step of every epoch, which says how many steps an epoch has.

    Raises:
        DataError: If the file is damaged.
    """
    if not (folder / TIMES_NAME).exists():
        return None
    epochs = {row.get("epoch", n): row for n, row in enumerate(_rows(folder / TIMES_NAME))}
    seconds: dict[str, float] = {}
    for row in epochs.values():
        for key, value in row.items():
            if key.startswith(TIME_PREFIX) and isinstance(value, int | float):
                part = key.removeprefix(TIME_PREFIX)
                seconds[part] = seconds.get(part, 0.0) + value
    if not seconds:
        return None
    lengths = _epoch_lengths(epoch_ends)
    n_steps = sum(lengths.get(epoch, 0) for epoch in epochs)
    order = sorted(seconds.items(), key=lambda item: -item[1])
    return Times(dict(order), n_steps)


def to_series(values: dict[int, float]) -> Series:
    """The finite values, by step."""
    try:
        numbers = np.fromiter(values.values(), float, len(values))
    except (TypeError, ValueError):  # other programs log words and null, too
        values = {step: v for step, v in values.items() if isinstance(v, int | float)}
        numbers = np.fromiter(values.values(), float, len(values))
    steps = np.fromiter(values, int, len(values))
    order = np.argsort(steps, kind="stable")
    order = order[np.isfinite(numbers[order])]
    return Series(steps[order].tolist(), numbers[order].tolist())


def _epoch_lengths(epoch_ends: dict[int, int]) -> dict[int, int]:
    lengths, before = {}, -1
    for epoch, end in sorted(epoch_ends.items()):
        lengths[epoch], before = end - before, end
    return lengths


def _rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The records of a file, many at a time: a call of the parser costs more than a short line."""
    n_rows = 0
    with open(path, "rb") as file:
        while lines := list(itertools.islice(file, BLOCK_LINES)):
            rows = _parse_block(line for line in lines if line.endswith(b"\n") and line.strip())
            if rows is None:
                break
            yield from rows
            n_rows += len(rows)
        else:
            return
    try:  # something is damaged: line by line, with a sentence about it
        yield from itertools.islice(iter_json_log(path), n_rows, None)
    except DataError:
        if _ends_with_a_record(path):
            raise


def _parse_block(lines: Iterable[bytes]) -> list[dict[str, Any]] | None:
    """One object per line, or None if that is not what they are."""
    lines = list(lines)
    try:
        rows = json.loads(b"[%s]" % b",".join(lines))
    except ValueError:
        return None
    is_whole = len(rows) == len(lines) and all(type(row) is dict for row in rows)
    return rows if is_whole else None


def _ends_with_a_record(path: pathlib.Path) -> bool:
    """Whether the last complete line is whole: then damage before it is not that of a crash."""
    with open(path, "rb") as file:
        file.seek(-min(os.fstat(file.fileno()).st_size, 2**20), os.SEEK_END)
        tail = file.read()
    lines = tail[: tail.rfind(b"\n") + 1].split(b"\n")
    try:
        return isinstance(json.loads(next(line for line in reversed(lines) if line.strip())), dict)
    except (ValueError, StopIteration):
        return False
