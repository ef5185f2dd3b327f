"""Means over seeds and their ranges, with seeds of different lengths and steps."""

import pytest

from diffusion_policy.report.bands import Band, average
from diffusion_policy.report.run_log import Series


def test_seeds_with_the_same_steps():
    seeds = [Series([0, 10], [0.0, 1.0]), Series([0, 10], [1.0, 3.0]), Series([0, 10], [2.0, 5.0])]
    assert average(seeds) == Band([0, 10], [1.0, 3.0], [0.0, 1.0], [2.0, 5.0], [3, 3])


def test_a_seed_that_is_not_so_far_does_not_count_beyond_its_end():
    band = average([Series([0, 10, 20], [0.0, 1.0, 2.0]), Series([0, 10], [2.0, 3.0])])
    assert isinstance(band, Band)
    assert band.values == [1.0, 2.0, 2.0]
    assert (band.low, band.high, band.counts) == ([0.0, 1.0, 2.0], [2.0, 3.0, 2.0], [2, 2, 1])
    assert band.is_whole.tolist() == [True, True, False]


def test_between_its_steps_a_seed_is_on_a_straight_line():
    band = average([Series([0, 10], [0.0, 10.0]), Series([2, 8], [2.0, 2.0])])
    assert isinstance(band, Band)
    assert band.steps == [0, 2, 8, 10]
    assert band.values == pytest.approx([0.0, 2.0, 5.0, 10.0])
    assert band.counts == [1, 2, 2, 1]


def test_seeds_that_do_not_meet():
    band = average([Series([0, 1], [1.0, 1.0]), Series([5, 6], [2.0, 2.0])])
    assert band == Band([0, 1, 5, 6], [1, 1, 2, 2], [1, 1, 2, 2], [1, 1, 2, 2], [1, 1, 1, 1])


def test_one_seed_and_none():
    seed = Series([0, 1], [1.0, 2.0])
    assert average([Series([], []), seed]) is seed
    assert average([]).steps == []
    assert average([Series([], [])]).steps == []
