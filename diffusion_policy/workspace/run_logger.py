"""One place that knows where the numbers of a training run go.

``logs.json.txt`` is the log: always written, and a run that cannot write it stops. Everything else
follows along and may fail without harm: wandb and tensorboard when the configuration asks for
them, ``media.json.txt`` with the videos of every evaluation, ``times.json.txt`` with the seconds
that every epoch took, ``run_info.json`` with the time, the memory and the machine that the run
used. Times are kept out of the log, which has to be identical whether or not a run was interrupted.
"""

import contextlib
import datetime
import itertools
import json
import logging
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf

from diffusion_policy.common.errors import DiffusionPolicyError
from diffusion_policy.common.json_logger import JsonLogger
from diffusion_policy.common.machine import describe_machine, peak_memory
from diffusion_policy.common.media import VideoFile
from diffusion_policy.workspace.stopwatch import PREFIX as TIME_PREFIX
from diffusion_policy.workspace.trackers import TensorboardTracker, start_wandb, wandb_mode

log = logging.getLogger(__name__)

LOG_NAME = "logs.json.txt"
MEDIA_NAME = "media.json.txt"
TIMES_NAME = "times.json.txt"
INFO_NAME = "run_info.json"
INFO_INTERVAL_S = 30.0


class Tracker(Protocol):
    """A follower of the log. Whatever it raises costs the run one warning and this follower."""

    name: str

    def log(self, record: dict[str, Any], step: int) -> None: ...

    def close(self, exit_code: int) -> None: ...


class RunLogger:
    """Writes the records of a training run; use it in a ``with`` statement.

    Args:
        output_dir: Folder of the run.
        logging_cfg: The ``logging:`` block of the configuration: keyword arguments of
            ``wandb.init``, and ``tensorboard`` (default false), which writes event files as well.
            The environment variable ``WANDB_MODE`` takes precedence over its ``mode``. None: no
            trackers.
        config: The whole configuration, shown by wandb.
        resume_bytes: What :meth:`sync` returned when the checkpoint was written that this run
            continues from: later lines are dropped, because training repeats them. 0 begins a new
            log; one that is there is moved aside. None appends to whatever is there.

    Raises:
        ConfigError: If ``logging_cfg`` has a key or mode that does not exist.
        DiffusionPolicyError: If the log cannot be written, at any time.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        logging_cfg: Mapping[str, Any] | DictConfig | None,
        config: Mapping[str, Any] | DictConfig,
        resume_bytes: int | None = None,
    ):
        self.output_dir = pathlib.Path(output_dir)
        self._options = _to_dict(logging_cfg or {})
        self._has_trackers = logging_cfg is not None
        self._config = _to_dict(config)
        self._resume_bytes = resume_bytes
        self._json = JsonLogger(self.output_dir / LOG_NAME)
        self._trackers: list[Tracker] = []

    def __enter__(self) -> "RunLogger":
        if self._resume_bytes == 0:
            self._move_log_aside()
        self._json.start()
        if self._resume_bytes:
            self._json.truncate_to(self._resume_bytes)
        try:
            for tracker in self._make_trackers():
                self._trackers.append(tracker)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        for tracker in list(self._trackers):
            with self._one_warning(tracker):
                tracker.close(exit_code=0 if exc_type is None else 1)
        self._trackers.clear()
        self._json.stop()

    def log(self, record: dict[str, Any], step: int) -> None:
        """Writes one record: numbers to the log, numbers and :class:`VideoFile` to the trackers.

        Args:
            record: Metrics by name, ``global_step`` and ``epoch`` among them.
            step: The x axis of the trackers.

        Raises:
            DiffusionPolicyError: If the log cannot be written.
        """
        self._json.log(record)
        self._track(record, step)

    def log_times(self, record: dict[str, Any], step: int) -> None:
        """Gives the trackers, and them alone, the seconds that an epoch took.

        Args:
            record: ``time/...`` in seconds, beside ``global_step`` and ``epoch``.
            step: as in :meth:`log`.
        """
        self._track(record, step)

    def sync(self) -> int:
        """Makes the log durable; returns its size in bytes, to be stored in a checkpoint."""
        self._json.flush(durable=True)
        return self._json.tell()

    def get_last_log(self) -> dict[str, Any] | None:
        """The last record of the log, an earlier process's included; None for an empty log."""
        return self._json.get_last_log()

    def _move_log_aside(self) -> None:
        """Keeps the log of a run that wrote no checkpoint: as ``logs.json.txt.1``, or 2, ..."""
        path = self.output_dir / LOG_NAME
        if not path.is_file() or path.stat().st_size == 0:
            return
        number = next(n for n in itertools.count(1) if not _is_taken(path, n))
        aside = path.with_name(f"{LOG_NAME}.{number}")
        try:
            path.rename(aside)
        except OSError as error:
            raise DiffusionPolicyError(
                f"cannot move the old log {path} aside: {error.strerror}; move it away, or choose "
                "another hydra.run.dir"
            ) from error
        log.warning(
            "There is a log but no checkpoint to continue from: training begins anew, and the old "
            "log is kept as %s",
            aside,
        )

    def _track(self, record: dict[str, Any], step: int) -> None:
        for tracker in list(self._trackers):
            with self._one_warning(tracker):
                tracker.log(record, step)

    def _make_trackers(self) -> Iterator[Tracker]:
        yield MediaTracker(self.output_dir)
        yield TimesTracker(self.output_dir)
        yield RunInfoTracker(self.output_dir)
        if not self._has_trackers:
            return
        wants_tensorboard = self._options.pop("tensorboard", False)
        mode = wandb_mode(self._options.pop("mode", None))
        if mode != "disabled":  # disabled: not even imported, it costs half a second
            tracker = start_wandb(self.output_dir, mode, self._options, self._config)
            if tracker is not None:
                yield tracker
        if wants_tensorboard:
            last = self._json.get_last_log() or {}
            yield TensorboardTracker(self.output_dir, first_step=last.get("global_step", -1) + 1)

    @contextlib.contextmanager
    def _one_warning(self, tracker: Tracker) -> Iterator[None]:
        """Training outlives its trackers: one that raises is reported and switched off."""
        try:
            yield
        except Exception as e:
            self._trackers.remove(tracker)
            log.warning(
                "%s failed (%s) and is switched off for the rest of this run; training goes on, "
                "and %s has every number.",
                tracker.name,
                repr(e).splitlines()[0],
                self._json.path,
            )


class MediaTracker:
    """Notes which videos belong to which step, one JSON line per record that has videos.

    The log holds numbers only. A resumed run repeats steps: of equal steps, the later line counts.
    """

    name = f"The list of videos {MEDIA_NAME}"

    def __init__(self, output_dir: pathlib.Path):
        self._output_dir = output_dir.absolute()

    def log(self, record: dict[str, Any], step: int) -> None:
        videos = {k: self._relative(v) for k, v in record.items() if isinstance(v, VideoFile)}
        if not videos:
            return
        where = {k: record[k] for k in ("global_step", "epoch") if k in record}
        with JsonLogger(self._output_dir / MEDIA_NAME, filter_fn=lambda k, v: True) as media:
            media.log(where | videos)

    def close(self, exit_code: int) -> None:
        pass

    def _relative(self, video: VideoFile) -> str:
        path = pathlib.Path(video.path).absolute()
        return str(path.relative_to(self._output_dir) if self._output_dir in path.parents else path)


class TimesTracker:
    """Keeps ``times.json.txt``: the seconds that an epoch took, part by part, one JSON line each.

    A resumed run repeats epochs: of equal ones, the later line counts.
    """

    name = f"The list of times {TIMES_NAME}"

    def __init__(self, output_dir: pathlib.Path):
        self._path = output_dir / TIMES_NAME

    def log(self, record: dict[str, Any], step: int) -> None:
        times = {key: value for key, value in record.items() if key.startswith(TIME_PREFIX)}
        if not times:
            return
        where = {key: record[key] for key in ("global_step", "epoch") if key in record}
        with JsonLogger(self._path) as lines:
            lines.log(where | times)

    def close(self, exit_code: int) -> None:
        pass


class RunInfoTracker:
    """Keeps ``run_info.json``: since when, for how long, with how much memory at most, and on what
    machine the run trained.

    Seconds add up over resumed sessions.
    """

    name = f"The run information {INFO_NAME}"

    def __init__(self, output_dir: pathlib.Path):
        self._path = output_dir / INFO_NAME
        now = _now()
        try:
            earlier = json.loads(self._path.read_text())
            earlier = {k: earlier[k] for k in ("started", "seconds", "sessions")}
        except (OSError, ValueError, KeyError, TypeError):  # the first session, in practice
            earlier = {"started": now, "seconds": 0.0, "sessions": 0}
        self._info = earlier | {
            "updated": now,
            "sessions": earlier["sessions"] + 1,
            "machine": describe_machine(),
        }
        self._seconds_before = earlier["seconds"]
        self._start = time.monotonic()
        self._written = -float("inf")

    def log(self, record: dict[str, Any], step: int) -> None:
        if time.monotonic() - self._written > INFO_INTERVAL_S:
            self._write()

    def close(self, exit_code: int) -> None:
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        self._info["updated"] = _now()
        self._info["seconds"] = round(self._seconds_before + self._written - self._start, 1)
        self._info["memory"] = {f"{k}_peak_bytes": v for k, v in peak_memory().items()}
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._info, indent=2))
        os.replace(temporary, self._path)


def _is_taken(path: pathlib.Path, number: int) -> bool:
    return os.path.lexists(path.with_name(f"{path.name}.{number}"))


def _to_dict(config: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    if isinstance(config, DictConfig):
        return dict(OmegaConf.to_container(config, resolve=True))  # pyright: ignore
    return dict(config)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
