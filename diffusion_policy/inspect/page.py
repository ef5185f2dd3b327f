"""The summary as one HTML page, with episodes to scrub through: no request leaves it."""

import base64
import html
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.inspect.layout import Finding, Layout, opened
from diffusion_policy.inspect.pictures import read_pictures
from diffusion_policy.inspect.scan import KeySummary
from diffusion_policy.inspect.summary import Summary, length_histogram
from diffusion_policy.inspect.text import format_bytes, format_number, overall
from diffusion_policy.report.shell import render_page, resource, section, tile, write_page

MAX_POINTS = 2_000  # per curve and episode
N_DEFAULT_EPISODES = 10


def build_page(
    summary: Summary,
    output: str | pathlib.Path,
    episodes: Sequence[int] | None = None,
    max_frames: int = 40,
) -> pathlib.Path:
    """Write the page.

    Args:
        summary: what the inspection found.
        output: the page; replaced if it exists.
        episodes: those to scrub through. Default: the first ten.
        max_frames: so many images of an episode are embedded, of every image key.

    Returns:
        ``output`` as a path.

    Raises:
        ConfigError: when there is no such episode, or the page would lie in the data set.
        DiffusionPolicyError: when the page cannot be written.
    """
    output = pathlib.Path(output).expanduser()
    if output.resolve().is_relative_to(summary.path.resolve()):
        raise ConfigError(f"{output} is the data set itself, or in it; put the page elsewhere")
    n_episodes = len(summary.ends)
    chosen = list(range(min(n_episodes, N_DEFAULT_EPISODES)) if episodes is None else episodes)
    unknown = [i for i in chosen if not 0 <= i < n_episodes]
    if unknown:
        raise ConfigError(
            f"there is no episode {unknown[0]} to show; {summary.path} holds {n_episodes}, counted "
            f"from 0"
        )
    data = player_data(summary, chosen, max_frames)
    body = [
        _tiles(summary),
        _checks(summary, chosen),
        _player(data, len(summary.ends)),
        _lengths(summary),
        _keys(summary),
        _ranges(summary),
    ]
    page = render_page(
        title=summary.path.resolve().name,
        subtitle=f"{summary.path} · {summary.format}",
        body="\n".join(body),
        js=resource("diffusion_policy.inspect", "inspect.js"),
        module="diffusion_policy.inspect",
        extra_css=resource("diffusion_policy.inspect", "inspect.css"),
    )
    write_page(output, page)
    return output


def player_data(summary: Summary, episodes: Sequence[int], max_frames: int) -> dict[str, Any]:
    """What ``inspect.js`` draws: keys, and per episode their values and pictures."""
    low_dim = [key for key in summary.keys if key.kind == "low_dim"]
    starts = summary.ends - summary.lengths
    frames = {i: _frame_rows(summary, i, max_frames) for i in episodes}
    with opened(summary.path) as layout:
        pictures = _all_pictures(summary, layout, sorted({r for f in frames.values() for r in f}))
    return {
        "keys": [_key_data(key) for key in low_dim],
        "episodes": [
            {
                "index": i,
                "length": int(summary.lengths[i]),
                "stride": _stride(summary.lengths[i]),
                "values": {key.name: _episode_values(key, summary, i) for key in low_dim},
                "pictures": {
                    name: _episode_pictures(of_key, frames[i], int(starts[i]))
                    for name, of_key in pictures.items()
                },
            }
            for i in episodes
        ],
    }


def _key_data(key: KeySummary) -> dict[str, Any]:
    low, high, _ = overall(key)
    return {
        "name": key.name,
        "dims": key.dim_names,
        "range": _numbers(np.array([low, high])),
        "dimRanges": [_numbers(pair) for pair in np.stack([key.minimum, key.maximum], axis=1)],
        "scale": None if key.scale is None else _numbers(key.scale),
        "offset": None if key.offset is None else _numbers(key.offset),
    }


def _stride(length: int) -> int:
    return math.ceil(length / MAX_POINTS)


def _episode_values(key: KeySummary, summary: Summary, episode: int) -> list[list[float | None]]:
    """One list per dimension, every ``stride``-th step."""
    assert key.values is not None
    end, length = int(summary.ends[episode]), int(summary.lengths[episode])
    values = key.values[end - length : end : _stride(length)]
    return [_numbers(column) for column in values.T]


def _numbers(values: np.ndarray) -> list[float | None]:
    """Five digits are more than a screen has; NaN is no JSON."""
    return [float(f"{v:.5g}") if math.isfinite(v) else None for v in values.tolist()]


def _frame_rows(summary: Summary, episode: int, max_frames: int) -> list[int]:
    """Evenly spaced rows of an episode, its first and last among them."""
    end, length = int(summary.ends[episode]), int(summary.lengths[episode])
    return np.linspace(end - length, end - 1, min(length, max_frames)).round().astype(int).tolist()


def _all_pictures(summary: Summary, layout: Layout, rows: list[int]) -> dict[str, dict[int, bytes]]:
    pictures = {}
    for key in summary.keys:
        if key.kind == "image":
            array = layout.arrays[key.name]
            stored = [row for row in rows if row < array.shape[0]]
            pictures[key.name] = read_pictures(array, stored, float(key.maximum[0]))
    return pictures


def _episode_pictures(pictures: dict[int, bytes], rows: list[int], start: int) -> dict[str, list]:
    there = [row for row in rows if row in pictures]
    return {
        "steps": [row - start for row in there],
        "jpeg": [base64.b64encode(pictures[row]).decode() for row in there],
    }


def _tiles(summary: Summary) -> str:
    lengths = summary.lengths
    n_damages, n_warnings = len(summary.damages), len(summary.warnings)
    tiles = [
        tile("Episodes", f"{len(lengths):,}", f"{summary.n_steps:,} steps", "accent"),
        tile("On disk", format_bytes(summary.n_bytes), summary.format),
        tile(
            "Result",
            "damaged" if n_damages else "no damage",
            f"damages: {n_damages}, warnings: {n_warnings}",
            "damaged" if n_damages else "",
        ),
    ]
    if len(lengths):
        note = f"{lengths.min()} to {lengths.max()} steps"
        tiles.insert(1, tile("Mean length", f"{lengths.mean():.1f}", note))
    return f'<section class="tiles">{"".join(tiles)}</section>'


def _checks(summary: Summary, chosen: list[int]) -> str:
    items = "".join(_finding(summary, finding, chosen) for finding in summary.findings)
    return section("Checks", f'<ul class="findings">{items}</ul>' if items else _NOTHING_FOUND)


_NOTHING_FOUND = (
    '<p class="muted">Every chunk reads back, every value is finite, no dimension is constant, and '
    "there is no gap.</p>"
)


def _finding(summary: Summary, finding: Finding, chosen: list[int]) -> str:
    place = summary.place_of(finding)
    show = ""
    if place is not None and place[0] in chosen:
        position = chosen.index(place[0])
        where = f'data-episode="{position}" data-step="{place[1]}"'
        show = f'<button type="button" {where}>show</button>'
    text = html.escape(finding.text)
    return f'<li class="{finding.level}"><b>{finding.level}</b><span>{text}</span>{show}</li>'


def _player(data: dict[str, Any], n_episodes: int) -> str:
    if not data["episodes"]:
        return ""
    options = "".join(
        f'<option value="{i}">episode {episode["index"]} ({episode["length"]} steps)</option>'
        for i, episode in enumerate(data["episodes"])
    )
    player = resource("diffusion_policy.inspect", "player.html").replace("$options", options)
    # in a script, only the end of the script would have a meaning
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return section(
        "Look inside",
        f'{player}<script type="application/json" id="data">{embedded}</script>',
        note=f"{len(data['episodes'])} of {n_episodes} episodes",
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _lengths(summary: Summary) -> str:
    histogram = length_histogram(summary.lengths)
    if not histogram:
        return ""
    most = max(n for _, _, n in histogram)
    rows = "".join(
        f"<tr><td>{low} to {high} steps</td><td>"
        f'<span class="bar"><span style="width:{100 * n / most:.1f}%"></span></span>{n}</td></tr>'
        for low, high, n in histogram
    )
    return section(
        "Lengths of the episodes",
        f'<div class="scroll lengths"><table><tbody>{rows}</tbody></table></div>',
    )


def _keys(summary: Summary) -> str:
    header = ("Key", "Shape", "Type", "Chunks", "Compressor", "On disk", "Min", "Max", "Mean")
    rows = [
        (
            key.name,
            " × ".join(map(str, key.shape)),
            key.dtype,
            " × ".join(map(str, key.chunks)),
            key.compressor,
            format_bytes(key.n_bytes),
            *map(format_number, overall(key)),
        )
        for key in summary.keys
    ]
    return section("Keys", _table(header, rows))


def _ranges(summary: Summary) -> str:
    """What the normalizer makes of every dimension."""
    header = ("Dimension", "Min", "Max", "Mean", "Scale", "Offset")
    details = ""
    for key in summary.keys:
        if key.kind != "low_dim":
            continue
        nothing = np.full(len(key.minimum), np.nan)
        scale = nothing if key.scale is None else key.scale
        offset = nothing if key.offset is None else key.offset
        columns = (key.minimum, key.maximum, key.mean, scale, offset)
        rows = [
            (key.name + name, *(format_number(column[i]) for column in columns))
            for i, name in enumerate(key.dim_names)
        ]
        details += (
            f"<details><summary>{html.escape(key.name)}, {len(rows)} "
            f"dimension{'s' if len(rows) > 1 else ''}</summary>{_table(header, rows)}</details>"
        )
    note = "normalized = value × scale + offset, in -1 to 1"
    return section("Ranges and normalizer", details, note=note) if details else ""
