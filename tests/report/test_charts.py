"""Curves: thinning keeps peaks, axes and labels say what the numbers are."""

import math
import random
import re

import pytest

from diffusion_policy.report.bands import Band
from diffusion_policy.report.charts import (
    MAX_POINTS,
    UNITS,
    Curve,
    _linear_axis,
    _log_axis,
    _short,
    downsample,
    draw_chart,
)
from diffusion_policy.report.run_log import Series


def all_coordinates(svg: str, css_class: str) -> list[list[tuple[int, int]]]:
    paths = re.findall(rf'<path class="{css_class}"[^>]* d="M([^"]*?)Z?"', svg)
    return [[tuple(map(int, point.split(" "))) for point in path.split("L")] for path in paths]


def coordinates(svg: str, css_class: str) -> list[tuple[int, int]]:
    (path,) = all_coordinates(svg, f"line {css_class}")
    return path


def test_a_short_series_is_not_thinned():
    series = Series(list(range(100)), [1.0] * 100)
    assert downsample(series) is series


@pytest.mark.parametrize("n", [2001, 2002, 5000, 123_457])
def test_thinning_keeps_the_ends_and_every_extreme_within_the_limit(n):
    rng = random.Random(n)
    values = [rng.gauss(0, 1) for _ in range(n)]
    values[n // 3], values[n // 2] = 50.0, -50.0  # single spikes
    thin = downsample(Series(list(range(n)), values))
    assert len(thin.steps) <= MAX_POINTS
    assert len(thin.steps) > MAX_POINTS * 0.7
    assert thin.steps == sorted(set(thin.steps))
    assert (thin.steps[0], thin.steps[-1]) == (0, n - 1)
    assert max(thin.values) == 50.0
    assert min(thin.values) == -50.0
    assert all(values[s] == v for s, v in zip(thin.steps, thin.values, strict=True))


def test_curves_are_drawn_where_their_values_are():
    svg = draw_chart("Score", [Curve("a", "c1", Series([0, 5, 10], [0.0, 0.25, 1.0]))], 10, True)
    assert coordinates(svg, "c1") == [(0, UNITS), (UNITS // 2, UNITS * 3 // 4), (UNITS, 0)]


def test_values_over_decades_get_a_logarithmic_axis():
    svg = draw_chart("Loss", [Curve("a", "c1", Series([0, 1, 2], [1.0, 0.1, 0.01]))], 2)
    assert 'data-log="1"' in svg
    (_, y0), (_, y1), (_, y2) = coordinates(svg, "c1")
    assert y1 - y0 == pytest.approx(y2 - y1, abs=1)


def test_values_that_may_be_zero_get_a_linear_axis():
    svg = draw_chart("Loss", [Curve("a", "c1", Series([0, 1], [0.0, 100.0]))], 1)
    assert 'data-log="0"' in svg


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-12, 1e12])
def test_constant_and_single_values_can_be_drawn(value):
    for steps in ([0], [0, 1]):
        svg = draw_chart("x", [Curve("a", "c1", Series(steps, [value] * len(steps)))], steps[-1])
        assert all(0 <= y <= UNITS for _, y in coordinates(svg, "c1"))


def test_no_points_no_chart():
    assert draw_chart("x", [Curve("a", "c1", Series([], []))], 10) == ""


def test_titles_and_labels_are_escaped():
    svg = draw_chart("<b>", [Curve('"<i>', "c1", Series([0], [1.0]))], 1)
    assert "<i>" not in svg
    assert "&lt;b&gt;" in svg


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 3.7), (-5, 7), (0, 123_456), (0, 1e-4)])
def test_linear_ticks_are_few_round_and_inside(low, high):
    axis = _linear_axis([low, high])
    assert 2 <= len(axis.ticks) <= 7
    assert all(low - 1e-9 <= t <= high * (1 + 1e-9) for t in axis.ticks)
    step = axis.ticks[1] - axis.ticks[0]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9)) in (1, 2, 5)


@pytest.mark.parametrize(("low", "high"), [(0.9, 30), (1e-8, 1e3), (2e-3, 1.0), (1e-300, 1e300)])
def test_logarithmic_ticks_are_few_and_inside(low, high):
    axis = _log_axis(low, high)
    assert 2 <= len(axis.ticks) <= 10
    assert all(axis.low <= t <= axis.high for t in axis.ticks)


def test_tick_labels_are_short():
    values = [0, 0.25, 1500, 1_500_000, 0.00005, 100]
    assert [_short(v) for v in values] == ["0", "0.25", "1.5k", "1.5M", "5e-5", "100"]


def band(counts: list[int]) -> Band:
    """Means of 0.5, 10 steps apart, in a range from 0.25 to 1."""
    n = len(counts)
    return Band([10 * i for i in range(n)], [0.5] * n, [0.25] * n, [1.0] * n, counts)


def test_the_range_of_the_seeds_is_drawn_below_their_mean():
    svg = draw_chart("Score", [Curve("a", "c3", band([3, 3]))], 10, unit_interval=True)
    low, middle, high = (UNITS * 3 // 4, UNITS // 2, 0)
    assert coordinates(svg, "c3") == [(0, middle), (UNITS, middle)]
    ((*upper, right, left),) = all_coordinates(svg, "band c3")
    assert upper == [(0, high), (UNITS, high)]
    assert (right, left) == ((UNITS, low), (0, low))
    assert svg.index('"band c3"') < svg.index('"line c3"')
    assert "partial" not in svg


def test_a_range_beyond_the_means_has_room():
    low_and_high = Band([0, 1], [0.5, 0.5], [-4.0, 0.0], [0.5, 9.0], [2, 2])
    svg = draw_chart("Loss", [Curve("a", "c1", low_and_high)], 1)
    (points,) = all_coordinates(svg, "band c1")
    assert all(0 <= y <= UNITS for _, y in points)


@pytest.mark.parametrize(
    ("counts", "whole", "partial"),
    [
        ([3, 3, 2], [[0, 1]], [[1, 2]]),
        ([3, 2, 1], [[0]], [[0, 1], [1, 2]]),
        ([1, 3, 3, 1], [[1, 2]], [[0, 1], [2, 3]]),
        ([2, 1, 2], [[0], [2]], [[0, 1, 2]]),
    ],
)
def test_where_seeds_are_missing_the_mean_is_dashed(counts, whole, partial):
    svg = draw_chart("Score", [Curve("a", "c1", band(counts))], 10 * (len(counts) - 1))

    def points(css_class: str) -> list[list[int]]:
        n = len(counts) - 1
        return [[round(x * n / UNITS) for x, _ in p] for p in all_coordinates(svg, css_class)]

    assert points("line c1") == whole
    assert points("line c1 partial") == partial
    notes = re.findall(r'data-note="(\d) of (\d) seeds"', svg)
    assert {(int(n), int(m)) for n, m in notes} == {(c, max(counts)) for c in counts} - {
        (max(counts), max(counts))
    }


def test_a_thinned_range_still_has_every_extreme():
    n = 20_000
    rng = random.Random(0)
    means = [rng.gauss(0, 1) for _ in range(n)]
    low, high = [m - 1 for m in means], [m + 1 for m in means]
    low[7777], high[9999] = -99.0, 99.0
    thin = downsample(Band(list(range(n)), means, low, high, [3] * n))
    assert isinstance(thin, Band)
    assert len(thin.steps) <= MAX_POINTS
    assert {len(column) for column in (thin.values, thin.low, thin.high, thin.counts)} == {
        len(thin.steps)
    }
    assert (min(thin.low), max(thin.high)) == (-99.0, 99.0)


def test_charts_that_share_a_legend_have_none():
    curve = Curve("some name", "c1", Series([0, 1], [1.0, 2.0]))
    assert "key c1" in draw_chart("x", [curve], 1)
    assert "key c1" not in draw_chart("x", [curve], 1, has_legend=False)
