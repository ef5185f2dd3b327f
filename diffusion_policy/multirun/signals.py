"""Ctrl-C and SIGTERM as numbers that a loop looks at."""

import contextlib
import signal
import time
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
POLL_S = 0.05


class StopSignals:
    """What :func:`stop_signals` counts.

    Attributes:
        count: signals that have arrived so far.
    """

    def __init__(self):
        self.count = 0

    def wait(self, seconds: float) -> None:
        """Returns after so many seconds, or soon after a first signal has arrived.

        Looks again and again: the locks of an event or a condition may be held by this very thread
        when a signal interrupts it.
        """
        deadline = time.monotonic() + seconds
        while self.count == 0 and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, POLL_S))


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
        stop.count += 1
        if stop.count >= n_counted:
            restore()

    for number in SIGNALS:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        restore()
