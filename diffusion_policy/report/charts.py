"""Line charts as HTML with inline SVG: responsive, themed by CSS, readable without JavaScript.

The curves live in an SVG that stretches with the page; labels are HTML beside it and keep their
size. ``report.js`` reads values for its tooltips back from the curves' coordinates, so the numbers
are in the page once.
"""

import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffusion_policy.report.bands import Band
from diffusion_policy.report.run_log import Series

UNITS = 100_000  # of the SVG's coordinates in either direction: tooltips are precise to 1e-5
MAX_POINTS = 2_000  # per curve
MAX_DOTS = 40  # curves with fewer points show them


@dataclass
class Curve:
    """A series with its name and one of the CSS classes ``c1`` to ``c8``, ``faint``.

    A :class:`Band` is drawn as its mean, dashed where seeds are missing in it, over its range.
    """

    label: str
    style: str
    series: Series


@dataclass
class Axis:
    """A linear or logarithmic range with labelled ticks."""

    low: float
    high: float
    ticks: list[float]
    log: bool = False

    def place(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Positions of values along the axis, 0 to 1."""
        scale = np.log10 if self.log else np.asarray
        low, high = scale(self.low), scale(self.high)
        return (scale(np.asarray(values, dtype=float)) - low) / (high - low)


def draw_chart(
    title: str,
    curves: list[Curve],
    last_step: int,
    unit_interval: bool = False,
    has_legend: bool = True,
) -> str:
    """Draws a chart over the steps 0 to ``last_step``, or nothing if no curve has a point.

    Args:
        title: Heading of the chart.
        curves: Drawn in this order, the last one on top.
        last_step: Where the run is: charts of one run share their horizontal axis.
        unit_interval: The values are scores: show 0 to 1, if they lie within.
        has_legend: Name the curves; unnecessary where several charts share a legend.
    """
    curves = [curve for curve in curves if curve.series.steps]
    if not curves:
        return ""
    x_axis = _linear_axis([0, max(last_step, 1)])
    y_axis = _value_axis([v for c in curves for v in _extent(c.series)], unit_interval)
    legend = "".join(
        f'<span class="key {c.style}">{html.escape(c.label)}</span>'
        for c in (reversed(curves) if has_legend else ())
    )
    return (
        f'<figure class="chart" data-x="{x_axis.low!r},{x_axis.high!r}"'
        f' data-y="{y_axis.low!r},{y_axis.high!r}" data-log="{int(y_axis.log)}">'
        f"<figcaption><b>{html.escape(title)}</b>{legend}</figcaption>"
        f'<div class="plot">'
        f'<svg viewBox="0 0 {UNITS} {UNITS}" preserveAspectRatio="none" aria-hidden="true">'
        f"{_grid(y_axis)}{_draw_curves(curves, x_axis, y_axis)}</svg>"
        f"{_labels(x_axis, y_axis)}</div></figure>"
    )


def downsample(series: Series, limit: int = MAX_POINTS) -> Series:
    """Thins a series to at most ``limit`` points, such that every peak and dip stays visible.

    Between the first and the last point, which stay, each of ``limit / 2 - 1`` equal stretches
    keeps its smallest and its largest value. Where a :class:`Band` is thinned, its range is that of
    all points up to the next one.
    """
    n = len(series.values)
    if n <= limit:
        return series
    values = np.asarray(series.values)
    edges = np.linspace(1, n - 1, (limit - 2) // 2 + 1).astype(int)
    keep = {0, n - 1}
    for start, end in itertools.pairwise(edges):
        stretch = values[start:end]
        keep |= {start + int(stretch.argmin()), start + int(stretch.argmax())}
    order = sorted(keep)
    thin = Series([series.steps[i] for i in order], [series.values[i] for i in order])
    if not isinstance(series, Band):
        return thin
    low, high = np.asarray(series.low), np.asarray(series.high)
    return Band(
        thin.steps,
        thin.values,
        np.minimum.reduceat(low, order).tolist(),
        np.maximum.reduceat(high, order).tolist(),
        [series.counts[i] for i in order],
    )


def _extent(series: Series) -> list[float]:
    """Values that include the smallest and the largest of what is drawn."""
    return [*series.low, *series.high] if isinstance(series, Band) else series.values


def _draw_curves(curves: list[Curve], x_axis: Axis, y_axis: Axis) -> str:
    """All ranges below all lines."""
    thin = [(curve, downsample(curve.series)) for curve in curves]

    def place(series: Series, values: list[float]) -> list[str]:
        xs = np.rint(x_axis.place(series.steps) * UNITS).astype(int)
        ys = np.rint((1 - y_axis.place(values)) * UNITS).astype(int)
        return [f"{x} {y}" for x, y in zip(xs, ys, strict=True)]

    ranges = [
        f'<path class="band {curve.style}" data-label="{html.escape(curve.label)}"'
        f' d="M{"L".join([*place(series, series.high), *place(series, series.low)[::-1]])}Z"/>'
        for curve, series in thin
        if isinstance(series, Band)
    ]
    lines = [_draw_line(curve, series, place(series, series.values)) for curve, series in thin]
    return "".join(ranges + lines)


def _draw_line(curve: Curve, series: Series, points: list[str]) -> str:
    path = "".join(
        f'<path class="line {curve.style}{style}" data-label="{html.escape(curve.label)}"{note}'
        f' d="M{"L".join(points[start:end])}"/>'
        for start, end, style, note in _stretches(series)
    )
    if len(points) <= MAX_DOTS:
        path += f'<path class="dots {curve.style}" d="{"".join(f"M{p}h0" for p in points)}"/>'
    return path


def _stretches(series: Series) -> list[tuple[int, int, str, str]]:
    """Slices of a line that are drawn differently: (start, end, class, attribute)."""
    n = len(series.steps)
    if not isinstance(series, Band):
        return [(0, n, "", "")]
    counts, most = series.counts, max(series.counts)
    edges = [0, *(np.flatnonzero(np.diff(counts)) + 1).tolist(), n]
    stretches = []
    for start, end in itertools.pairwise(edges):
        count = counts[start]
        style, note = "", ""
        if count < most:
            style, note = " partial", f' data-note="{count} of {most} seeds"'
        # The line between two stretches belongs to the one of fewer seeds.
        start -= start > 0 and count < counts[start - 1]
        end += end < n and count < counts[end]
        stretches.append((start, end, style, note))
    return stretches


def _grid(y_axis: Axis) -> str:
    lines = [f"M0 {UNITS * (1 - p):.0f}H{UNITS}" for p in y_axis.place(y_axis.ticks)]
    return f'<path class="grid" d="{"".join(lines)}"/>'


def _labels(x_axis: Axis, y_axis: Axis) -> str:
    y_labels = [
        f'<span class="y" style="top:{100 * (1 - p):.2f}%">{_short(v)}</span>'
        for v, p in zip(y_axis.ticks, y_axis.place(y_axis.ticks), strict=True)
    ]
    x_labels = [
        f'<span class="x" style="left:{100 * p:.2f}%">{_short(v)}</span>'
        for v, p in zip(x_axis.ticks, x_axis.place(x_axis.ticks), strict=True)
    ]
    return "".join(y_labels + x_labels)


def _value_axis(values: list[float], unit_interval: bool) -> Axis:
    low, high = min(values), max(values)
    if unit_interval and low >= 0 and high <= 1:
        return Axis(0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0])
    if low > 0 and high / low > 20:
        return _log_axis(low, high)
    return _linear_axis([min(low, 0.0), high + 0.05 * (high - min(low, 0.0))])


def _linear_axis(values: Sequence[float]) -> Axis:
    low, high = float(min(values)), float(max(values))
    if low == high:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 5)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(low, high, [i * step for i in range(first, last + 1)])


def _log_axis(low: float, high: float) -> Axis:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    multiples = (1, 2, 5) if len(decades) <= 3 else (1,)
    ticks = [m * 10.0**d for d in decades for m in multiples]
    every = math.ceil(len(decades) / 8)
    low, high = low / 1.1, high * 1.1
    return Axis(low, high, [t for t in ticks[::every] if low <= t <= high], log=True)


def _short(value: float) -> str:
    """A tick label: 1500000 as 1.5M, 2000 as 2k, 0.00005 as 5e-5."""
    for unit, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{suffix}"
    text = f"{value:.4g}"
    return text.replace("e-0", "e-")
