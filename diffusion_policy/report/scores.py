"""Scores as the paper reports them: the best checkpoint, and the mean of the last ten.

Both of every seed, and then their mean over the seeds (Chi et al. 2023, section V and its tables).
All functions are pure.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

N_LAST = 10


@dataclass(frozen=True)
class Score:
    """One score of one run.

    Attributes:
        best: The largest over all evaluations.
        last: The mean of the last ``n_last`` evaluations.
        n_last: :data:`N_LAST`, or less in a run that has fewer.
        n: Number of evaluations.
    """

    best: float
    last: float
    n_last: int
    n: int


@dataclass(frozen=True)
class Spread:
    """A mean over ``n`` seeds, and their standard deviation as a sample; None for a single one."""

    mean: float
    deviation: float | None
    n: int


def score_of(values: Sequence[float]) -> Score | None:
    """The score of a run from those of its evaluations, in their order; None without any.

    Values that are not finite do not count.
    """
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return None
    last = values[-N_LAST:]
    return Score(max(values), statistics.fmean(last), len(last), len(values))


def spread_of(values: Sequence[float]) -> Spread | None:
    """Mean and deviation over seeds; None without any."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, len(values))
