"""Ctrl-C and SIGTERM as numbers that a loop looks at."""

import contextlib
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """What :func:`stop_signals` counts.

    Attributes:
        count: signals that have arrived so far.
    """

    def __init__(self):
        self.count = 0
        self._first = threading.Event()

    def wait(self, seconds: float) -> None:
        """Returns after so many seconds, or as soon as a first signal has arrived."""
        self._first.wait(seconds)

    def add(self) -> None:
        self.count += 1
        self._first.set()


@contextlib.contextmanager
def stop_signals(n_counted: int = 1) -> Iterator[StopSignals]:
    """Counts SIGINT and SIGTERM instead of dying of them.

    Only the main thread of a process can do this: signals arrive nowhere else.

    Args:
        n_counted: after so many signals further ones act as usual: they end the process.
    """
    stop = StopSignals()
    earlier = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in earlier.items():
            signal.signal(number, handler)

    def on_signal(number, frame) -> None:
        stop.add()
        if stop.count >= n_counted:
            restore()

    for number in SIGNALS:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        restore()
