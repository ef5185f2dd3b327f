"""Waiting for another process: who is waited for is said after a while, and there is a limit.

A process that is stopped, or that runs in circles, never answers. Whoever waits for it says so in
the log, again and again, and gives up in the end with an error that names it.

Only time in which the waiting process itself runs is counted: Ctrl-Z and ``fg`` an hour later do
not make everybody late.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from diffusion_policy.common.durations import describe_duration
from diffusion_policy.common.errors import (
    ConfigError,
    DiffusionPolicyError,
    ProcessTimeoutError,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Nobody looks longer than this without looking at the clock.
LOOK_S = 1.0
# A longer step of the clock means that this process was itself stopped.
_LONGEST_STEP_S = 5.0
_STATES = {b"T": "stopped", b"t": "stopped", b"Z": "ended", b"X": "ended"}  # proc(5)


@dataclass(frozen=True)
class Patience:
    """How long another process is waited for.

    Args:
        limit_s: seconds after which waiting fails; None: it never does.
        say_s: seconds after which a warning says who is waited for; then after twice as long, and
            so on.
    """

    limit_s: float | None = 3600.0
    say_s: float = 60.0

    @classmethod
    def from_option(cls, name: str, limit_s: Any) -> "Patience":
        """Of an option that a user gave; something is said before a limit is over.

        Raises:
            ConfigError: it is neither a number above 0 nor None.
        """
        if limit_s is None:
            return cls(None)
        if isinstance(limit_s, bool) or not isinstance(limit_s, int | float) or not limit_s > 0:
            raise ConfigError(
                f"{name} is {limit_s!r}; set it to seconds, more than 0, or to null for no limit"
            )
        return cls(float(limit_s), min(cls.say_s, limit_s / 2))


class Waiting:
    """The clock of one wait.

    Args:
        patience: how long.
        whom: names the process that is waited for, and what it is doing; called when needed.
        to: what it is expected to do: ``answer step``.
        remedy: what the user can do when the limit is over.
        error: the type of that error.
    """

    def __init__(
        self,
        patience: Patience,
        whom: Callable[[], str],
        to: str,
        remedy: str,
        error: type[DiffusionPolicyError] = ProcessTimeoutError,
    ):
        self._patience = patience
        self._whom, self._to, self._remedy = whom, to, remedy
        self._error = error
        self.restart()

    def restart(self) -> None:
        """There was a sign of life: the wait begins anew."""
        self.seconds = 0.0
        self._last = time.monotonic()
        self._say_at = self._patience.say_s

    @property
    def look_s(self) -> float:
        """How long the next look may take."""
        ends = [self._say_at, self._patience.limit_s or self._say_at]
        return max(0.0, min(LOOK_S, min(ends) - self.seconds))

    def tick(self) -> None:
        """Called after every look that found nothing: says who is waited for, when it is time.

        Raises:
            DiffusionPolicyError: the limit is over; of the type that was asked for.
        """
        now = time.monotonic()
        self.seconds += min(now - self._last, _LONGEST_STEP_S)
        self._last = now
        limit = self._patience.limit_s
        if limit is not None and self.seconds >= limit:
            raise self._error(
                f"{self._whom()} did not {self._to} within {describe_duration(limit)}; "
                f"{self._remedy}"
            )
        if self.seconds >= self._say_at:
            self._say_at = 2 * self.seconds
            logger.warning(
                "waiting for %s: it has yet to %s, after %s%s",
                self._whom(),
                self._to,
                describe_duration(self.seconds),
                "" if limit is None else f" (the limit is {describe_duration(limit)})",
            )


def wait_until(look: Callable[[float], T], waiting: Waiting) -> T:
    """Waits for another process.

    Args:
        look: looks for up to so many seconds; returns something true when the wait is over.
        waiting: the clock.

    Returns:
        What ``look`` returned.

    Raises:
        DiffusionPolicyError: the limit is over; see :class:`Waiting`.
    """
    while not (result := look(waiting.look_s)):
        waiting.tick()
    return result


def call_with_patience(function: Callable[[], T], waiting: Waiting) -> T:
    """Calls what waits for another process in a way that knows no limit.

    Args:
        function: is called in a thread of its own, which is left behind when the limit is over.
        waiting: the clock.

    Raises:
        DiffusionPolicyError: the limit is over; see :class:`Waiting`.
    """
    outcome: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            outcome.append((True, function()))
        except BaseException as error:
            outcome.append((False, error))

    thread = threading.Thread(target=run, name=f"waits for: {waiting._to}", daemon=True)
    thread.start()

    def look(seconds: float) -> bool:
        thread.join(seconds)
        return not thread.is_alive()

    wait_until(look, waiting)
    [(succeeded, result)] = outcome
    if not succeeded:
        raise result
    return result


def describe_process(pid: int | None) -> str:
    """``pid 123``, and where the kernel tells, that it is stopped or has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # the name of the program, in parentheses, may hold anything
            state = _STATES.get(file.read().rpartition(b")")[2].split()[0])
    except (OSError, IndexError):  # it is gone, or this is not Linux
        state = None
    if state == "stopped":
        return f"pid {pid}, which is stopped; `kill -CONT {pid}` lets it go on"
    if state == "ended":
        return f"pid {pid}, which has ended"
    return f"pid {pid}"


def describe_holder(lock_file: str) -> str:
    """Which process of this machine holds a file's lock (``flock``), as :func:`describe_process`
    says it.
    """
    try:
        inode = f":{os.stat(lock_file).st_ino}"
        with open("/proc/locks") as file:
            rows = [line.split() for line in file]
        [pid, *_] = [row[4] for row in rows if row[1] == "FLOCK" and row[5].endswith(inode)]
    except (OSError, ValueError, IndexError):  # it is free again, or this is not Linux
        return f"which holds {lock_file}"
    return describe_process(int(pid))
