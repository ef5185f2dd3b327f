"""Runs of a sweep that write nothing any more: one that is stopped, or runs in circles."""

import os
import pathlib
import time
from collections.abc import Callable, Iterable

from diffusion_policy.common.errors import ProcessTimeoutError
from diffusion_policy.common.waiting import Patience, Waiting

TIMEOUT_S = 24 * 3600.0  # rollouts of many slow environments write nothing for hours
SAY_S = 3600.0
LOOK_EVERY_S = 5.0
_FOLDERS = (".", "checkpoints", "media")


def patience_with_runs(timeout_s: float) -> Patience:
    """What ``--run_timeout_s`` says; 0: no limit."""
    return Patience(timeout_s or None, min(SAY_S, timeout_s / 2) if timeout_s else SAY_S)


class Silences:
    """Watches the folders of the runs.

    Args:
        run_dir: The folder of a run, by its name.
        describe: Where a run is, and in what state, by its name.
        patience: With a run that writes nothing.
    """

    def __init__(
        self,
        run_dir: Callable[[str], pathlib.Path],
        describe: Callable[[str], str],
        patience: Patience,
    ):
        self._run_dir = run_dir
        self._describe = describe
        self._patience = patience
        self._waits: dict[str, tuple[Waiting, object]] = {}
        self._next = 0.0

    def look(self, running: Iterable[str]) -> dict[str, str]:
        """Says which runs are silent, when it is time.

        Args:
            running: All that run.

        Returns:
            Those that have been silent for too long, and a sentence about each.
        """
        if time.monotonic() < self._next:
            return {}
        self._next = time.monotonic() + min(LOOK_EVERY_S, self._patience.say_s / 2)
        self._waits = {
            task: self._waits.get(task) or (self._new_wait(task), None) for task in running
        }
        too_long = {}
        for task, (waiting, last) in self._waits.items():
            found = _traces(self._run_dir(task))
            self._waits[task] = waiting, found
            if found != last:
                waiting.restart()
                continue
            try:
                waiting.tick()
            except ProcessTimeoutError as error:
                too_long[task] = str(error)
        for task in too_long:
            del self._waits[task]
        return too_long

    def _new_wait(self, task: str) -> Waiting:
        def whom() -> str:
            return f"{task} ({self._describe(task)})"

        remedy = "it is killed; if it needs longer, pass more seconds to --run_timeout_s, or 0"
        return Waiting(self._patience, whom, f"write anything to {self._run_dir(task)}", remedy)


def _traces(run_dir: pathlib.Path) -> list[tuple[str, int, int]]:
    """What changes when a run writes: name, size and time of all files where runs write."""
    found = []
    for folder in _FOLDERS:
        try:
            with os.scandir(run_dir / folder) as entries:
                for entry in entries:
                    stat = entry.stat(follow_symlinks=False)
                    found.append((entry.path, stat.st_size, stat.st_mtime_ns))
        except FileNotFoundError:  # not made yet, or removed meanwhile
            continue
    return sorted(found)
