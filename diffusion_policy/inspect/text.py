"""The summary as text for a terminal."""

import numpy as np

from diffusion_policy.inspect.scan import KeySummary
from diffusion_policy.inspect.summary import Summary, length_histogram

BAR_WIDTH = 40
MAX_DIMS = 24  # of one key; the page has all


def render_text(summary: Summary) -> str:
    """Everything a :class:`Summary` says, ready to print."""
    blocks = [_head(summary), _episodes(summary), _table(summary.keys)]
    blocks += [_dimensions(key) for key in summary.keys if key.kind == "low_dim"]
    blocks += [_checks(summary)]
    return "\n\n".join("\n".join(block) for block in blocks)


def format_bytes(n: float) -> str:
    """``'33.2 MB'``."""
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"


def format_number(value: float) -> str:
    """Four digits; a dash where there is no value."""
    return "-" if np.isnan(value) else f"{value:.4g}"


def _head(summary: Summary) -> list[str]:
    return [str(summary.path), f"{summary.format}, {format_bytes(summary.n_bytes)} on disk"]


def _episodes(summary: Summary) -> list[str]:
    lengths = summary.lengths
    lines = [f"{len(lengths)} episodes, {summary.n_steps} steps"]
    if len(lengths) == 0:
        return lines
    lines.append(
        f"length: shortest {lengths.min()}, mean {lengths.mean():.1f}, longest {lengths.max()}"
    )
    histogram = length_histogram(lengths)
    most = max(n for _, _, n in histogram)
    for low, high, n in histogram:
        bar = "#" * -(-n * BAR_WIDTH // most)  # rounded up: one episode is visible
        lines.append(f"  {low:>6} .. {high:<6} {n:>6}  {bar}".rstrip())
    return lines


def _table(keys: list[KeySummary]) -> list[str]:
    rows: list[tuple[str, ...]] = [
        ("key", "shape", "type", "chunks", "compressor", "size", "min", "max", "mean")
    ]
    for key in keys:
        rows.append(
            (
                key.name,
                "x".join(map(str, key.shape)),
                key.dtype,
                "x".join(map(str, key.chunks)),
                key.compressor,
                format_bytes(key.n_bytes),
                *map(format_number, overall(key)),
            )
        )
    return _aligned(rows)


def overall(key: KeySummary) -> tuple[float, float, float]:
    """Minimum, maximum and mean over all dimensions that have values."""
    if np.isnan(key.minimum).all():
        return np.nan, np.nan, np.nan
    return float(np.nanmin(key.minimum)), float(np.nanmax(key.maximum)), float(np.nanmean(key.mean))


def _dimensions(key: KeySummary) -> list[str]:
    """The range of every dimension, and what the normalizer makes of it."""
    rows: list[tuple[str, ...]] = [(key.name, "min", "max", "mean", "scale", "offset")]
    nothing = np.full(len(key.minimum), np.nan)
    columns = (
        key.minimum,
        key.maximum,
        key.mean,
        nothing if key.scale is None else key.scale,
        nothing if key.offset is None else key.offset,
    )
    for i, name in enumerate(key.dim_names[:MAX_DIMS]):
        rows.append((name, *(format_number(column[i]) for column in columns)))
    lines = _aligned(rows)
    n_more = len(key.dim_names) - MAX_DIMS
    return [*lines, f"  ... {n_more} further dimensions"] if n_more > 0 else lines


def _checks(summary: Summary) -> list[str]:
    lines = [f"{finding.level.upper():<8} {finding.text}" for finding in summary.findings]
    return [*lines, f"Result: {summary.verdict}"]


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Columns as wide as their widest entry, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    n_text = len(rows[0]) - 3 if len(rows[0]) > 6 else 1
    return [
        "  ".join(
            entry.ljust(width) if i < n_text else entry.rjust(width)
            for i, (entry, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
