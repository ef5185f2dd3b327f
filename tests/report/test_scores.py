"""The numbers of the paper's tables."""

import math
import statistics

import pytest

from diffusion_policy.report.scores import Score, Spread, score_of, spread_of


def test_the_best_checkpoint_and_the_mean_of_the_last_ten():
    values = [0.1 * (i % 7) for i in range(25)]
    score = score_of(values)
    assert score is not None
    assert score.best == pytest.approx(0.6)
    assert score.last == pytest.approx(sum(values[15:]) / 10)
    assert (score.n_last, score.n) == (10, 25)


def test_fewer_than_ten():
    assert score_of([0.5, 0.25]) == Score(best=0.5, last=0.375, n_last=2, n=2)
    assert score_of([0.5]) == Score(best=0.5, last=0.5, n_last=1, n=1)


def test_what_is_not_finite_does_not_count():
    assert score_of([0.5, math.nan, 0.25, math.inf]) == Score(0.5, 0.375, 2, 2)
    assert score_of([math.nan]) is None
    assert score_of([]) is None


def test_spread_over_seeds():
    assert spread_of([0.25, 0.5, 0.75]) == Spread(0.5, statistics.stdev([0.25, 0.5, 0.75]), 3)
    assert spread_of([0.25, 0.5, 0.75]) == Spread(0.5, 0.25, 3)
    assert spread_of([0.5]) == Spread(0.5, None, 1)
    assert spread_of([]) is None
