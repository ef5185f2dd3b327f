"""``status.json``: how far the runs of a sweep are, for people and for ``--resume``."""

import dataclasses
import datetime
import json
import logging
import pathlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from diffusion_policy.common.checkpoint_util import atomic_write
from diffusion_policy.common.errors import CheckpointError, ConfigError
from diffusion_policy.common.regular_files import read_regular

log = logging.getLogger(__name__)

STATUS_NAME = "status.json"
MAX_BYTES = 16 * 2**20


class State(StrEnum):
    """``interrupted``: ended by SIGINT, can be continued. A run that is to be tried again waits."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass
class TaskStatus:
    """How far one run is.

    Attributes:
        attempts: how often it has been started, earlier sessions included.
        exit_code: of the last attempt that ended; negative: the signal that killed it. None if
            there is none, or it went down with its machine.
        host: where the last attempt took place.
    """

    state: State = State.WAITING
    attempts: int = 0
    exit_code: int | None = None
    host: str | None = None


class SweepStatus:
    """The status of all runs, on disk whenever :meth:`change` returns.

    Args:
        folder: of the sweep. What is on disk is continued: runs that are not ``finished`` wait.
        backend: where the runs take place now.
        tasks: names of the runs.

    Raises:
        ConfigError: the file there is damaged.
    """

    def __init__(self, folder: pathlib.Path, backend: str, tasks: Iterable[str]):
        self._path = folder / STATUS_NAME
        self._backend = backend
        earlier = _read(self._path)
        self.tasks = {name: earlier.get(name, TaskStatus()) for name in tasks}
        for task in self.tasks.values():
            if task.state != State.FINISHED:
                task.state = State.WAITING

    def __getitem__(self, task: str) -> TaskStatus:
        return self.tasks[task]

    def change(self, task: str, **values) -> None:
        """Sets attributes of a :class:`TaskStatus`."""
        self.tasks[task] = dataclasses.replace(self.tasks[task], **values)
        self.write()

    def restart(self) -> None:
        """Lets all runs take place again, the finished ones too."""
        for task in self.tasks.values():
            task.state = State.WAITING

    def names(self, *states: State) -> list[str]:
        """The runs in one of these states."""
        return [name for name, task in self.tasks.items() if task.state in states]

    def write(self) -> None:
        """Brings the file up to date. A disk that refuses is reported; the runs go on."""
        content = {
            "updated": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "backend": self._backend,
            "tasks": {name: dataclasses.asdict(task) for name, task in self.tasks.items()},
        }
        text = json.dumps(content, indent=2).encode()
        try:
            atomic_write(self._path, lambda file: file.write(text))
        except CheckpointError as error:
            log.warning("%s", error)


def _read(path: pathlib.Path) -> dict[str, TaskStatus]:
    try:
        tasks = json.loads(read_regular(path, MAX_BYTES))["tasks"]
        return {name: _task_status(**task) for name, task in tasks.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not the status of a sweep ({error!r}); remove it, then every run is "
            "continued, finished ones too"
        ) from error


def _task_status(state: Any, attempts: Any, exit_code: Any, host: Any) -> TaskStatus:
    fits = isinstance(attempts, int) and isinstance(exit_code, int | None)
    if not fits or not isinstance(host, str | None):
        raise TypeError(f"attempts={attempts!r}, exit_code={exit_code!r}, host={host!r}")
    return TaskStatus(State(state), attempts, exit_code, host)
