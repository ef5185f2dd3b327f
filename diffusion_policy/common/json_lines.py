"""Reading JSON that somebody else wrote, or half wrote, in a bounded time and without surprises."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

MAX_LINE_BYTES = 4 * 2**20
MAX_KEYS = 20_000  # in one object; rollouts of 5,000 environments log 10,000
MAX_COUNT = 2**53  # steps and epochs are exact as floats, too
BLOCK_LINES = 1000


def parse_object(text: bytes) -> dict[str, Any] | None:
    """A JSON object; None if the text is anything else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def iter_objects(
    file: BinaryIO, on_odd: Callable[[int, str], object]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number from 1, object) for every complete line that holds a JSON object.

    The last line of a log that is being written is not complete. Empty lines do not count.

    Args:
        file: Where to read on.
        on_odd: Is called with the number of any other line, and what is odd about it.
    """
    numbered = _complete_lines(file, on_odd)
    while block := list(itertools.islice(numbered, BLOCK_LINES)):
        rows = _parse_block([line for _, line in block])
        for (number, line), row in zip(block, rows, strict=True):
            if row is None:
                on_odd(number, f"is not a JSON object but starts with {line[:40]!r}")
            elif len(row) > MAX_KEYS:
                on_odd(number, f"has {len(row):,} entries, and no log has more than {MAX_KEYS:,}")
            else:
                yield number, row


def as_float(value: Any) -> float | None:
    """A number of a log as a float, NaN and infinities included; None if it is no number."""
    if not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # JSON has integers of any size
        return None


def as_finite(value: Any) -> float | None:
    """As :func:`as_float`, without NaN and infinities."""
    number = as_float(value)
    return number if number is not None and math.isfinite(number) else None


def as_count(value: Any) -> int | None:
    """A number of steps, epochs, bytes: whole, and not below 0; None if it is anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    is_count = 0 <= value < MAX_COUNT and value == int(value)
    return int(value) if is_count else None


def _complete_lines(
    file: BinaryIO, on_odd: Callable[[int, str], object]
) -> Iterator[tuple[int, bytes]]:
    for number in itertools.count(1):
        line = file.readline(MAX_LINE_BYTES)
        if line.endswith(b"\n"):
            if not line.isspace():
                yield number, line
        elif len(line) < MAX_LINE_BYTES:
            return  # the end, or a line that is being written
        else:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE_BYTES)
            on_odd(number, f"is longer than {MAX_LINE_BYTES / 1e6:.0f} MB")


def _parse_block(lines: list[bytes]) -> Iterable[dict[str, Any] | None]:
    """One object per line: all at once, since a call of the parser costs more than a short line."""
    try:
        rows = json.loads(b"[%s]" % b",".join(lines))
    except (ValueError, RecursionError):
        rows = []
    is_whole = len(rows) == len(lines) and all(type(row) is dict for row in rows)
    return rows if is_whole else map(parse_object, lines)
