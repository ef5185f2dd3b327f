"""Where the time of an epoch goes."""

import contextlib
import time
from collections.abc import Iterable, Iterator

PREFIX = "time/"  # of these records' keys

# The parts of an epoch that a training measures, and what people call them.
PARTS = {
    "step": "training steps",
    "data_wait": "waiting for data",
    "rollout": "rollouts",
    "validation": "validation",
    "sampling": "sampling check",
    "checkpoint": "checkpoints",
}


class Stopwatch:
    """Adds up the seconds spent on the named parts of an epoch.

    Parts may lie within each other; time counts for the innermost only.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Counts the time within this for ``part``."""
        self._count()
        self._running.append(part)
        try:
            yield
        finally:
            self._count()
            self._running.pop()

    def waiting(self, part: str, items: Iterable) -> Iterator:
        """The items; the time that it takes to get each counts for ``part``."""
        iterator = iter(items)
        while True:
            with self.measure(part):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def lap(self) -> dict[str, float]:
        """``time/<part>`` in seconds since the last call, and starts over."""
        self._count()
        lap = {f"{PREFIX}{part}": round(value, 4) for part, value in self.seconds.items()}
        self.seconds = {}
        return lap

    def _count(self) -> None:
        now = time.perf_counter()
        if self._running:
            part = self._running[-1]
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now
