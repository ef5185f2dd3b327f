"""The rollout rows of a training log that somebody else is writing."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, BinaryIO

import pandas as pd

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.json_lines import as_count, as_float, parse_object
from diffusion_policy.common.regular_files import open_regular


class RolloutLog:
    """Follows a log of JSON lines and keeps the few lines, and of them the columns, that matter.

    :meth:`update` reads what was appended since the last time, complete lines only, so that a log
    of gigabytes costs nothing. A log that does not exist yet is empty. A run that was resumed
    repeats steps: either its log was cut back, or it has steps twice; then the later ones count.

    Args:
        path: The log.
        keys: A line with at least one of these is a rollout row.
        columns: What else to keep of such a line.

    Attributes:
        rows: The rollout rows so far, ``global_step`` rising.
        generation: Grows whenever rows that were there have changed. As long as it is the same,
            rows were only appended.
    """

    def __init__(self, path: str | os.PathLike, keys: Sequence[str], columns: Sequence[str] = ()):
        self.path = pathlib.Path(path)
        self.rows: list[dict[str, Any]] = []
        self.generation = 0
        self._keys = keys
        self._columns = {*keys, *columns, "global_step", "epoch"}
        # Most lines are steps. Looking for the bytes of a key first spares parsing them.
        self._needles = [json.dumps(key).encode() for key in keys]
        self._end = 0
        self._last_line = b""

    @property
    def last_epoch(self) -> int:
        """Epoch of the last complete line, a rollout row or not; -1 if it does not say."""
        epoch = as_count(self.last_line.get("epoch"))
        return -1 if epoch is None else epoch

    @property
    def last_line(self) -> dict[str, Any]:
        """The last complete line, a rollout row or not; empty if there is none."""
        try:
            return self._parse(self._last_line)
        except DataError:  # no line so far, or one that a power failure damaged
            return {}

    def frame(self) -> pd.DataFrame:
        """:attr:`rows` as a table."""
        return pd.DataFrame.from_records(self.rows)

    def update(self) -> None:
        """Reads the lines that are new.

        Raises:
            DataError: If the log cannot be read, or a rollout row is not a JSON object. The next
                call starts over, so it succeeds when the log is whole again.
        """
        try:
            with open_regular(self.path) as file:
                if not self._is_continued_in(file):
                    self._start_over()
                    file.seek(0)
                for line in file:
                    if not line.endswith(b"\n"):  # being written
                        break
                    self._add(line)
                    self._end += len(line)
                    self._last_line = line
        except FileNotFoundError:
            self._start_over()
        except OSError as e:
            raise DataError(
                f"Cannot read the log {self.path}: {e.strerror}; make it readable."
            ) from e
        except DataError:
            self._start_over()
            raise

    def _is_continued_in(self, file: BinaryIO) -> bool:
        """Whether the last line is where it was. A resumed run may have cut the log and already
        have written more than before, so the size alone does not tell."""
        file.seek(self._end - len(self._last_line))
        return file.read(len(self._last_line)) == self._last_line

    def _start_over(self) -> None:
        self.generation += bool(self.rows)
        self.rows = []
        self._end, self._last_line = 0, b""

    def _add(self, line: bytes) -> None:
        if not any(needle in line for needle in self._needles):
            return
        row = self._parse(line)
        if not any(key in row for key in self._keys):
            return
        for name in self._columns & row.keys():
            if as_float(row[name]) is None:
                raise DataError(
                    f"A line of {self.path} has {name}={row[name]!r:.40}, and a number is "
                    "expected; delete that line, or restore the file."
                )
        step = row.get("global_step")
        while self.rows and step is not None and self.rows[-1].get("global_step", -1) >= step:
            self.rows.pop()
            self.generation += 1
        self.rows.append({name: row[name] for name in row if name in self._columns})

    def _parse(self, line: bytes) -> dict[str, Any]:
        row = parse_object(line)
        if row is None:
            raise DataError(
                f"A line of {self.path} is not a JSON object but starts with {line[:40]!r}; delete "
                "that line, or restore the file."
            )
        return row
