"""Checkpoint files that survive a kill at any instant, and the list of the best ones."""

import contextlib
import errno
import logging
import math
import os
import re
import shutil
import string
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from diffusion_policy.common.errors import CheckpointError, ConfigError

log = logging.getLogger(__name__)


# --------------------------------------------------------------------------------------------------
# Atomic files
# --------------------------------------------------------------------------------------------------

_in_progress: set[Path] = set()  # temporary files this process is writing now


def atomic_write(path: str | Path, write_fn: Callable[[BinaryIO], object]) -> None:
    """Writes a file that is, at every instant, either the old one or the new one, whole.

    The bytes go to ``.<name>.<pid>.partial`` beside the target, reach the disk, and are then moved
    into place. What a killed writer left behind is removed by the next write into the same folder.

    Args:
        path: the file to create or replace; missing folders are created.
        write_fn: called with the open binary file.

    Raises:
        CheckpointError: the operating system refused (disk full, read-only, ...); an existing file
            is untouched.
    """
    path = Path(path)
    written = 0

    def fill(partial: Path) -> None:
        nonlocal written
        with partial.open("wb") as file:
            try:
                write_fn(file)
                file.flush()
                os.fsync(file.fileno())
            finally:
                written = os.fstat(file.fileno()).st_size

    try:
        _put_in_place(path, fill)
    except Exception as error:
        cause = _os_error_behind(error)
        if cause is None:
            raise
        raise CheckpointError(_write_failure(path, cause, written)) from error


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Makes ``target`` a second name of the finished file ``source``, or else a copy of it.

    A name costs no disk space and no second serialisation. Replacing one of the two by
    :func:`atomic_write` later leaves the other as it is.
    """
    source, target = Path(source), Path(target)
    try:
        _put_in_place(target, lambda partial: os.link(source, partial))
    except OSError:
        with source.open("rb") as original:
            atomic_write(target, lambda file: shutil.copyfileobj(original, file))


def _put_in_place(path: Path, make: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _remove_leftovers(path.parent)
    _in_progress.add(partial)
    try:
        make(partial)
        os.replace(partial, path)
        _sync_folder(path.parent)
    finally:
        # After a success there is nothing to remove, but for links: rename(2) keeps a second name
        # of the same file.
        partial.unlink(missing_ok=True)
        _in_progress.discard(partial)


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    """Removes partial files whose writer no longer lives."""
    for partial in folder.glob(".*.partial"):
        pid = partial.name.split(".")[-2]
        if partial not in _in_progress and pid.isdigit() and not _is_another_process(int(pid)):
            partial.unlink(missing_ok=True)


def _is_another_process(pid: int) -> bool:
    if pid == os.getpid():  # containers start over with the same numbers
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's process, or not a process number
        return True
    return True


def _os_error_behind(error: BaseException | None) -> OSError | None:
    """``torch.save`` turns a full disk into a RuntimeError; the cause is further down the chain."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _write_failure(path: Path, cause: OSError, written: int) -> str:
    reason = os.strerror(cause.errno) if cause.errno else str(cause)
    remedy = "check the folder and resume"
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        reason += (
            f" (it needs more than the {_size(written)} written so far, {_size(free)} are free)"
        )
        remedy = "free some space and resume"
    previous = path if path.exists() else newest_other_checkpoint(path)
    kept = "nothing was there before" if previous is None else f"the previous {previous} is intact"
    return f"cannot write {path}: {reason}; {kept}; {remedy}"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"


def newest_other_checkpoint(path: str | Path) -> Path | None:
    """The most recently written ``*.ckpt`` beside ``path``: what messages offer instead of it."""
    path = Path(path)
    others = [
        other
        for other in path.parent.glob("*.ckpt")
        # links may lead nowhere
        if other.name != path.name and other.is_file() and other.stat().st_size > 0
    ]
    return max(others, key=lambda p: p.stat().st_mtime, default=None)


# --------------------------------------------------------------------------------------------------
# The best k
# --------------------------------------------------------------------------------------------------


class TopKCheckpointManager:
    """Keeps the ``k`` best checkpoints of a run, by one metric of the log.

    :meth:`propose` decides and changes nothing; :meth:`commit` records the new file and deletes the
    one it displaces. Between the two the caller writes the file, so that a kill never leaves fewer
    than ``k`` good ones; :meth:`finish_commit` makes up for what the kill prevented.
    :meth:`get_ckpt_path` proposes and commits at once.

    Args:
        save_dir: the folder of the checkpoints.
        monitor_key: name of the metric in the data.
        mode: ``max`` or ``min``, which values are good.
        k: how many to keep; 0 keeps none.
        format_str: file name, formatted with the data.

    Raises:
        ConfigError: ``mode`` or ``k`` is impossible.
    """

    def __init__(
        self,
        save_dir: str | Path,
        monitor_key: str,
        mode: str = "min",
        k: int = 1,
        format_str: str = "epoch={epoch:03d}-train_loss={train_loss:.3f}.ckpt",
    ):
        if mode not in ("max", "min"):
            raise ConfigError(f"checkpoint.topk.mode is {mode!r}; set it to 'max' or 'min'")
        if k < 0:
            raise ConfigError(f"checkpoint.topk.k is {k}; set it to 0 (keep none) or more")
        _check_file_name(format_str, format_str)  # what can be known before the first epoch ends
        self.save_dir = str(save_dir)
        self.monitor_key = monitor_key
        self.mode = mode
        self.k = k
        self.format_str = format_str
        self.path_value_map: dict[str, float] = {}
        self._proposed: dict[str, float] = {}
        self._displaced: list[str] = []  # by the proposal of a loaded state
        self._warned_missing = False

    def propose(self, data: Mapping[str, Any]) -> str | None:
        """Where this state should be saved, or None if it is not among the best.

        Args:
            data: the log of the step, with ``/`` in names replaced by ``_``.

        Raises:
            ConfigError: ``format_str`` names a key that the data lacks.
        """
        self._proposed = {}
        value = self._metric(data) if self.k > 0 else None
        if value is None:
            return None
        path = os.path.join(self.save_dir, self._file_name(data))
        # A file of this very name would be replaced, so it is no rival.
        rivals = [rival for rival in self._best_first() if rival != path]
        if len(rivals) >= self.k and not self._is_better(
            value, self.path_value_map[rivals[self.k - 1]]
        ):
            return None
        self._proposed = {path: value}
        return path

    def commit(self, path: str) -> None:
        """Records the proposed file, in place by now, and deletes what it displaces."""
        self._record(path)
        self._delete(self._best_first()[self.k :])

    def get_ckpt_path(self, data: Mapping[str, Any]) -> str | None:
        """Proposes and commits at once, for callers that write afterwards, as the original did."""
        path = self.propose(data)
        if path is not None:
            Path(self.save_dir).mkdir(parents=True, exist_ok=True)
            self.commit(path)
        return path

    def state_dict(self) -> dict[str, Any]:
        """Recorded files, the proposed one, and what that displaces; all without folder, so that a
        run can be moved.

        The proposal belongs to it because the state is part of the very file that is about to be
        written.
        """
        return {
            "files": self._names(self.path_value_map),
            "proposed": self._names(self._proposed),
            "displaced": [os.path.basename(path) for path in self._displaced_by_proposal()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the list as far as the files exist.

        The state decides: a file that it does not know is none of the list's, and is never deleted.
        Only ``{}`` (the original implementation kept no state) rebuilds the list from the names of
        the files. Nothing is deleted here; a proposal that a kill left open can still be committed.
        """
        self._proposed = self._paths(state.get("proposed", {}))
        recorded = state["files"] if "files" in state else self._values_in_file_names()
        values = {**self._paths(recorded), **self._proposed}
        self.path_value_map = {path: v for path, v in values.items() if os.path.isfile(path)}
        displaced = self._paths(dict.fromkeys(state.get("displaced", []), 0.0))
        self._displaced = [path for path in displaced if path in self.path_value_map]

    def finish_commit(self, checkpoint: str | Path) -> None:
        """Does what a kill prevented of the :meth:`commit` of the loaded state; after one that was
        complete it changes nothing.

        What is deleted is what the state says, whatever ``k`` is now.

        Args:
            checkpoint: the file that the state was loaded from. The proposed file is the same one;
                if it is not in place, it becomes a second name of this one.
        """
        for path in list(self._proposed):
            if not os.path.isfile(path):
                link_or_copy(checkpoint, path)
            self._record(path)
        self._delete(self._displaced)
        self._displaced = []

    def _displaced_by_proposal(self) -> list[str]:
        if not self._proposed:
            return []
        values = {**_without(self.path_value_map, self._proposed), **self._proposed}
        return self._best_first(values)[self.k :]

    def _record(self, path: str) -> None:
        self.path_value_map = _without(self.path_value_map, [path])  # the newest comes last
        self.path_value_map[path] = self._proposed.pop(path)

    def _delete(self, displaced: list[str]) -> None:
        for path in displaced:
            del self.path_value_map[path]
            Path(path).unlink(missing_ok=True)

    def _names(self, values: Mapping[str, float]) -> dict[str, float]:
        return {os.path.basename(path): value for path, value in values.items()}

    def _paths(self, values: Mapping[str, float]) -> dict[str, float]:
        """Paths in ``save_dir`` whatever folders the names say: what is listed may be deleted."""
        return {
            os.path.join(self.save_dir, os.path.basename(name)): float(value)
            for name, value in values.items()
        }

    def _metric(self, data: Mapping[str, Any]) -> float | None:
        if self.monitor_key not in data:
            if not self._warned_missing:
                log.warning(
                    "checkpoint.topk.monitor_key %r is not in the log of this epoch, so no best "
                    "checkpoint is kept; make checkpoint_every a multiple of the interval at which "
                    "it is measured",
                    self.monitor_key,
                )
                self._warned_missing = True
            return None
        value = float(data[self.monitor_key])
        if math.isnan(value):
            log.warning("%s is NaN; this epoch is not among the best", self.monitor_key)
            return None
        return value

    def _file_name(self, data: Mapping[str, Any]) -> str:
        try:
            name = self.format_str.format(**data)
        except KeyError as error:
            raise ConfigError(
                f"checkpoint.topk.format_str {self.format_str!r} uses {error}, which is not in the "
                "log of this epoch; name a key that is logged at every checkpoint"
            ) from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise ConfigError(
                f"checkpoint.topk.format_str {self.format_str!r} cannot be filled in ({error}); "
                "write it as in epoch={epoch:04d}-loss={train_loss:.3f}.ckpt"
            ) from error
        _check_file_name(self.format_str, name)
        return name

    def _is_better(self, a: float, b: float) -> bool:
        return a > b if self.mode == "max" else a < b

    def _best_first(self, values: Mapping[str, float] | None = None) -> list[str]:
        """Paths by value; among equals the newer first, so that the older is displaced."""
        values = self.path_value_map if values is None else values
        newest_first = list(reversed([*values]))
        return sorted(newest_first, key=values.__getitem__, reverse=self.mode == "max")

    def _values_in_file_names(self) -> dict[str, float]:
        pattern = _format_to_regex(self.format_str, self.monitor_key)
        matches = {p.name: pattern.fullmatch(p.name) for p in sorted(Path(self.save_dir).glob("*"))}
        with contextlib.suppress(IndexError):  # the names do not tell the metric
            return {name: float(match["metric"]) for name, match in matches.items() if match}
        return {}


def _check_file_name(format_str: str, name: str) -> None:
    """What a configuration makes up is written into the folder of checkpoints, nowhere else."""
    is_plain = "/" not in name and os.sep not in name and "\0" not in name
    if not is_plain or name.startswith(".") or not 0 < len(os.fsencode(name)) < 240:
        raise ConfigError(
            f"checkpoint.topk.format_str {format_str!r} makes {name[:80]!r}, which is not the name "
            "of a file in the folder of the checkpoints; leave out slashes"
        )


def _without(values: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name not in set(names)}


def _format_to_regex(format_str: str, metric: str) -> re.Pattern[str]:
    """Matches the file names a format string makes; the value of ``metric`` is group "metric"."""
    number = r"(?P<metric>-?(?:inf|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?))"
    parts = []
    for literal, field, _, _ in string.Formatter().parse(format_str):
        parts.append(re.escape(literal))
        if field == metric:
            parts.append(number)
            number = r".+?"  # a group can have its name only once
        elif field is not None:
            parts.append(r".+?")
    return re.compile("".join(parts))
