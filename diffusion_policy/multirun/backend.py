"""Where the runs of a sweep take place: what :class:`.launch.Launcher` needs to know of it."""

import abc
import pathlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Attempt:
    """One start of one run. ``console`` is the file that its output is appended to."""

    task: str
    number: int
    command: list[str]
    console: pathlib.Path


@dataclass(frozen=True)
class Started:
    task: str
    host: str


@dataclass(frozen=True)
class Ended:
    """An attempt is over.

    Attributes:
        exit_code: of the command; negative: the signal that killed it. None: nobody knows, or it
            never began.
        reason: why nobody knows.
    """

    task: str
    exit_code: int | None
    reason: str = ""


class Backend(abc.ABC):
    """Runs attempts, as many at a time as there is room for.

    The contract of all methods: they are called by one thread, the one that made the backend.
    """

    name: str

    @abc.abstractmethod
    def submit(self, attempt: Attempt) -> None:
        """Starts an attempt as soon as there is room for it."""

    @abc.abstractmethod
    def poll(self, seconds: float) -> list[Started | Ended]:
        """What has happened since the last call; waits up to so many seconds for it."""

    @abc.abstractmethod
    def interrupt(self) -> None:
        """Sends SIGINT to everything that runs, and withdraws what does not: it has
        :class:`Ended`, too. Called once.
        """

    @abc.abstractmethod
    def end(self, task: str) -> None:
        """Kills one that runs; it has :class:`Ended` soon."""

    @abc.abstractmethod
    def describe(self, task: str) -> str:
        """Where one that runs is, as far as that is known, and whether it is stopped."""

    @abc.abstractmethod
    def kill(self) -> None:
        """Kills everything that runs, and withdraws what does not."""

    def close(self) -> None:
        """Gives back what the backend holds; kills what still runs."""
        self.kill()
