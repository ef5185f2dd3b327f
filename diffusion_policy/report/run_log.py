"""The log and the times of one training run as columns, each file read once."""

import pathlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.json_lines import as_count, as_finite, iter_objects
from diffusion_policy.common.regular_files import open_regular
from diffusion_policy.workspace.run_logger import LOG_NAME, TIMES_NAME
from diffusion_policy.workspace.stopwatch import PREFIX as TIME_PREFIX

AXES = ("global_step", "epoch")
MAX_METRICS = 1_000
LARGEST, SMALLEST = 1e100, 1e-100  # what a chart can show; a diverged loss is as good as infinite


class NothingLoggedError(DataError):
    """A run that has no record yet."""


@dataclass
class Series:
    """A metric over training steps, in the order of the steps."""

    steps: list[int]
    values: list[float]


class OddLines:
    """What is left out of a file, in one sentence."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._first = ""
        self._n = 0

    def add(self, number: int, reason: str) -> None:
        """Notes that a line is left out."""
        self._first = self._first or f"Line {number} of {self._path} {reason}"
        self._n += 1

    @property
    def sentences(self) -> list[str]:
        """One, or none."""
        if self._n == 0:
            return []
        others = {1: "", 2: ", and so is another line"}
        more = others.get(self._n, f", and so are {self._n - 1:,} other lines")
        return [f"{self._first}; it is left out{more}."]


@dataclass
class RunLog:
    """The log by columns. Of repeated steps (a run resumed by other means) the last one counts.

    Attributes:
        values: of every metric, by step.
        epoch_ends: the last step of every epoch so far, by epoch.
        last: the newest record.
        evaluation: the newest record with metrics of rollouts.
        notes: sentences about what is left out.
    """

    values: dict[str, dict[int, float]] = field(default_factory=dict)
    epoch_ends: dict[int, int] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, row: dict[str, Any], step: int) -> None:
        columns = self.values
        for key, value in row.items():
            if "/" in key:
                self.evaluation = row
                if "/sim_" in key:  # one of many episodes, not a curve
                    continue
            if key in columns:
                columns[key][step] = value
            elif key not in AXES and len(columns) < MAX_METRICS:
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
    """Reads ``logs.json.txt``; odd lines are left out.

    Raises:
        NothingLoggedError: If there is no log, or no complete line in it yet.
        DataError: If it is no file of the run.
    """
    log, path = RunLog(), folder / LOG_NAME
    odd = OddLines(path)
    for n_rows, row in enumerate(iter_rows(path, folder, odd)):
        log.add(row, row.get("global_step", n_rows))
    log.notes += odd.sentences
    if len(log.values) >= MAX_METRICS:
        log.notes.append(f"Of the metrics in {path}, the first {MAX_METRICS:,} are shown.")
    if not log.last:
        raise NothingLoggedError(
            " ".join(
                [
                    f"{path} has no complete line yet; wait for the first training step, or name "
                    "another run.",
                    *odd.sentences,
                ]
            )
        )
    return log


def read_times(folder: pathlib.Path, epoch_ends: dict[int, int], odd: OddLines) -> Times | None:
    """Sums up ``times.json.txt``; None if there is none. Of repeated epochs the last line counts.

    Args:
        folder: Of the run.
        epoch_ends: The last step of every epoch, which says how many steps an epoch has.
        odd: Gets the lines that are left out.

    Raises:
        DataError: If it is no file of the run.
    """
    rows = iter_rows(folder / TIMES_NAME, folder, odd)
    epochs = {row.get("epoch", n): row for n, row in enumerate(rows)}
    seconds: dict[str, float] = {}
    for row in epochs.values():
        for key, value in row.items():
            spent = as_finite(value) if key.startswith(TIME_PREFIX) else None
            if spent is not None and 0 <= spent < LARGEST:
                part = key.removeprefix(TIME_PREFIX)
                seconds[part] = seconds.get(part, 0.0) + spent
    if not seconds:
        return None
    lengths = _epoch_lengths(epoch_ends)
    n_steps = sum(lengths.get(epoch, 0) for epoch in epochs)
    order = sorted(seconds.items(), key=lambda item: -item[1])[:MAX_METRICS]
    return Times(dict(order), max(n_steps, 0))


def iter_rows(path: pathlib.Path, folder: pathlib.Path, odd: OddLines) -> Iterator[dict[str, Any]]:
    """The records of a file of JSON lines, whose steps and epochs are whole numbers; none if there
    is no such file.

    Args:
        path: The file.
        folder: Of the run, in which it has to lie.
        odd: Gets the lines that are left out.

    Raises:
        DataError: If it is no regular file there.
    """
    try:
        file = open_regular(path, within=folder)
    except FileNotFoundError:
        return
    with file:
        for number, row in iter_objects(file, odd.add):
            for axis in AXES:
                if axis in row:
                    count = as_count(row[axis])
                    if count is None:
                        found = f"{row[axis]!r:.40}"
                        odd.add(number, f"has {axis}={found}, and a whole number is expected")
                        break
                    row[axis] = count
            else:
                yield row


def to_series(values: dict[int, float]) -> Series:
    """The finite values, by step."""
    try:
        numbers = np.fromiter(values.values(), float, len(values))
    except (TypeError, ValueError, OverflowError):  # other programs log words and null, too
        finite = {step: as_finite(value) for step, value in values.items()}
        values = {step: value for step, value in finite.items() if value is not None}
        numbers = np.fromiter(values.values(), float, len(values))
    steps = np.fromiter(values, int, len(values))
    order = np.argsort(steps, kind="stable")
    order = order[np.abs(numbers[order]) < LARGEST]  # neither NaN
    numbers[np.abs(numbers) < SMALLEST] = 0.0
    return Series(steps[order].tolist(), numbers[order].tolist())


def _epoch_lengths(epoch_ends: dict[int, int]) -> dict[int, int]:
    lengths, before = {}, -1
    for epoch, end in sorted(epoch_ends.items()):
        lengths[epoch], before = end - before, end
    return lengths
