"""A training log of JSON lines that survives kills: one object per line, numbers only.

The log belongs to a run that may die at any byte. Opening it again keeps every complete line, cuts
an incomplete tail, and continues. A checkpoint can store :meth:`JsonLogger.tell`; resuming from it
calls :meth:`JsonLogger.truncate_to`, so that steps repeated after a resume are logged once.
"""

import contextlib
import json
import logging
import mmap
import numbers
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from diffusion_policy.common.errors import DataError, DiffusionPolicyError
from diffusion_policy.common.json_lines import parse_object
from diffusion_policy.common.regular_files import open_regular

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def is_real_number(key: str, value: Any) -> bool:
    """What :class:`JsonLogger` keeps by default: int, float, bool and their numpy kin."""
    return isinstance(value, numbers.Real)


class JsonLogger:
    """Appends dictionaries to a file, one JSON object per line.

    Not-a-number and infinities are written as ``NaN`` and ``Infinity``: the dialect that Python's
    ``json`` writes and reads, and that published logs contain.

    Args:
        path: The log file; created if missing, continued if present.
        filter_fn: ``filter_fn(key, value)`` says whether an entry is written. Default: numbers.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        filter_fn: Callable[[str, Any], bool] | None = None,
    ):
        self.path = pathlib.Path(path)
        self.filter_fn = filter_fn or is_real_number
        self.last_log: dict[str, Any] | None = None
        self._file: BinaryIO | None = None

    def __enter__(self) -> "JsonLogger":
        self.start()
        return self

    def __exit__(self, *exc_info) -> None:
        self.stop()

    def start(self) -> None:
        """Opens the file, cuts what follows its last complete line, and remembers that line.

        Raises:
            DiffusionPolicyError: If the file cannot be opened for writing.
            DataError: If there is no JSON line in a file that has lines: not a log of ours.
        """
        try:
            # Unbuffered: one line is one write, and in the file as soon as log() returns.
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            self._file = os.fdopen(descriptor, "r+b", buffering=0)
        except OSError as e:
            raise self._write_error(e) from e
        self._cut(self.tell())

    def stop(self) -> None:
        """Closes the file. Harmless when it is closed already."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def log(self, data: dict[str, Any]) -> None:
        """Appends one line with the entries of ``data`` that the filter admits.

        Raises:
            DiffusionPolicyError: If the line cannot be written. The log then ends with the line
                before, so that it is still a log.
        """
        kept = {k: _to_plain(v) for k, v in data.items() if self.filter_fn(k, v)}
        line = (json.dumps(kept) + "\n").encode()
        file, end = self._open_file(), self.tell()
        try:
            file.seek(end)
            written = 0
            while written < len(line):  # a nearly full disk takes part of a line, then raises
                written += file.write(line[written:])
        except OSError as e:
            with contextlib.suppress(OSError):  # if this fails too, the next start() does it
                os.ftruncate(file.fileno(), end)
            raise self._write_error(e) from e
        self.last_log = kept

    def get_last_log(self) -> dict[str, Any] | None:
        """A copy of the last line, an earlier process's included; None for an empty log."""
        return None if self.last_log is None else dict(self.last_log)

    def tell(self) -> int:
        """Size of the log in bytes: the end of a complete line."""
        return os.fstat(self._open_file().fileno()).st_size

    def flush(self, durable: bool = False) -> None:
        """Hands what was logged to the operating system; with ``durable``, to the disk itself.

        Raises:
            DiffusionPolicyError: If the disk refuses.
        """
        file = self._open_file()
        try:
            file.flush()
            if durable:
                os.fsync(file.fileno())
        except OSError as e:
            raise self._write_error(e) from e

    def truncate_to(self, n_bytes: int) -> None:
        """Drops what was logged after :meth:`tell` was ``n_bytes``.

        A log that is shorter has lost lines, and one without a line that ends there is not the log
        of that checkpoint: both are reported as a warning, and the log continues after its last
        complete line.
        """
        missing = n_bytes - self.tell()
        if missing > 0:
            log.warning(
                "%s is %d bytes shorter than when the checkpoint was written: some of its last "
                "lines are lost. Training continues and appends to what is left.",
                self.path,
                missing,
            )
            return
        end = self._cut(n_bytes)
        if end != n_bytes:
            log.warning(
                "%s has no line that ends at byte %d, where the checkpoint says one should; it was "
                "cut after the last complete line before, at byte %d.",
                self.path,
                n_bytes,
                end,
            )

    def _cut(self, limit: int) -> int:
        """Truncates to the last complete line within ``limit`` bytes; returns the new size."""
        file = self._open_file()
        end, self.last_log, n_damaged = _last_complete_line(file, limit)
        if n_damaged and end == 0:
            self.stop()
            raise DataError(
                f"{self.path} exists but holds no JSON lines, so it is not a training log; move it "
                "away, or choose another output directory."
            )
        if n_damaged:
            log.warning(
                "The last %d lines of %s were not JSON objects and were removed: the machine "
                "probably lost power while they were written.",
                n_damaged,
                self.path,
            )
        if end < self.tell():
            os.ftruncate(file.fileno(), end)
        return end

    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise DiffusionPolicyError(
                f"The log {self.path} is not open: use JsonLogger in a with statement, or call "
                "start() first."
            )
        return self._file

    def _write_error(self, error: OSError) -> DiffusionPolicyError:
        return DiffusionPolicyError(
            f"Cannot write the training log {self.path}: {error.strerror} (errno {error.errno}); "
            "free space on that disk or make the file writable, then resume the run."
        )


def read_json_log(path: str | os.PathLike, required_keys: Sequence[str] = ()) -> "pd.DataFrame":
    """Reads a log as a table: one row per line, NaN where a line lacks a key.

    Args:
        path: A file that :class:`JsonLogger` wrote.
        required_keys: Keep only lines that have at least one of these keys; all lines if empty.

    Raises:
        DataError: If the file is missing, or a complete line is not a JSON object.
    """
    import pandas as pd

    needles = [json.dumps(key).encode() for key in required_keys]
    rows = []
    for number, line in _complete_lines(path):
        # Most lines are steps. Looking for the bytes of a key first spares parsing them.
        if not needles or any(needle in line for needle in needles):
            row = _parse(line, path, number)
            if not needles or any(key in row for key in required_keys):
                rows.append(row)
    return pd.DataFrame.from_records(rows)


def _complete_lines(path: str | os.PathLike) -> Iterator[tuple[int, bytes]]:
    """Yields (line number from 1, line) for every non-empty line that ends with a line feed."""
    try:
        with open_regular(path) as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n") and line.strip():
                    yield number, line
    except OSError as e:
        raise DataError(
            f"Cannot read the log {os.fspath(path)}: {e.strerror}; name a training run, which has "
            "a logs.json.txt in its folder."
        ) from e


def _parse(line: bytes, path: str | os.PathLike, number: int) -> dict[str, Any]:
    row = parse_object(line)
    if row is None:
        raise DataError(
            f"Line {number} of {os.fspath(path)} is not a JSON object but starts with "
            f"{line[:40]!r}; delete that line, or restore the file."
        )
    return row


def _last_complete_line(file: BinaryIO, limit: int) -> tuple[int, dict[str, Any] | None, int]:
    """Searches backwards from ``limit``: (end of that line, its object, damaged lines after it)."""
    n_damaged = 0
    if limit > 0:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            end = text.rfind(b"\n", 0, limit) + 1
            while end > 0:
                start = text.rfind(b"\n", 0, end - 1) + 1
                row = parse_object(text[start:end])
                if row is not None:
                    return end, row, n_damaged
                n_damaged += 1
                end = start
    return 0, None, n_damaged


def _to_plain(value: Any) -> Any:
    """numpy numbers and bool as int and float; what a custom filter lets through, as it is."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(cast(float, value))
    return value
