"""Small pieces of HTML and text that the sections of a report share."""

import datetime
import html
import math
import os
import pathlib
import re
import urllib.parse
from collections.abc import Sequence

from diffusion_policy.report.groups import Member
from diffusion_policy.report.run_data import Run
from diffusion_policy.report.run_log import Series
from diffusion_policy.report.shell import section

N_COLORS = 8  # c1 to c8 in report.css
EMPTY = Series([], [])


class Links:
    """Makes links from a page to files beside it.

    Args:
        page: Where the page will lie; None if it is served: then only the names are shown.
    """

    def __init__(self, page: pathlib.Path | None):
        self._page = page

    def __call__(self, target: pathlib.Path, label: str) -> str:
        """A link, relative: it works as long as both are moved together."""
        if self._page is None:
            return f'<span title="{html.escape(str(target))}">{html.escape(label)}</span>'
        # The file itself may be a link that leads anywhere, or nowhere.
        place = target.parent.resolve() / target.name
        relative = os.path.relpath(place, self._page.parent.resolve())
        return f'<a href="{urllib.parse.quote(os.fsencode(relative))}">{html.escape(label)}</a>'


def group_style(index: int) -> str:
    """CSS classes of a group's color; further groups have the colors again, in dashes."""
    again = " again" if index >= N_COLORS else ""
    return f"c{index % N_COLORS + 1}{again}"


def key_label(label: str, style: str) -> str:
    """A name behind a stroke of its color."""
    return f'<span class="key {style}">{html.escape(label)}</span>'


def bar(fraction: float) -> str:
    """A horizontal bar, filled from 0 to 1."""
    width = 100 * min(max(fraction, 0.0), 1.0) if math.isfinite(fraction) else 0.0
    return f'<span class="bar"><span style="width:{width:.1f}%"></span></span>'


def state_label(member: Member) -> str:
    """The state of a run, in its color, with what there is to say about it."""
    text = html.escape(member.state)
    note = member.problem or member.place.note
    note = f' <small class="muted">{html.escape(note)}</small>' if note else ""
    return f'<span class="state {text.replace(" ", "-")}">{text}</span>{note}'


def notes_section(notes: Sequence[str]) -> str:
    """What is left out of a page, if anything is."""
    items = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return section("Left out", items) if items else ""


def where(run: Run, step: int) -> str:
    """A step in words: its epoch, if it ends one."""
    return f"epoch {run.epochs[step]}" if step in run.epochs else f"step {step:,}"


def moment(timestamp: float) -> str:
    """A time of change in words."""
    try:
        return f"{datetime.datetime.fromtimestamp(timestamp):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):  # a file can claim any year
        return "–"


def count(n: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def enumerate_words(words: Sequence[str], limit: int = 6) -> str:
    """``a, b, c and 4 more``."""
    shown = ", ".join(words[:limit])
    return shown if len(words) <= limit else f"{shown} and {len(words) - limit} more"


def highlight_yaml(text: str) -> str:
    """Escaped YAML with its keys marked up; the text stays as it is, to be copied."""
    key = re.compile(r"^([ \t]*(?:- )*)([\w./-]+)(?=:(?:\s|$))", re.MULTILINE)
    return key.sub(r"\1<i>\2</i>", html.escape(text))
