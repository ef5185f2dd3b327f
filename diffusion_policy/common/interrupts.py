"""Ctrl-C, whenever it arrives: a word and exit code 130, never a traceback.

A program begins with :func:`end_at_once`, before its imports: there is nothing to put in order. Its
work is done within :func:`raise_once`, so that it can.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

EXIT_INTERRUPTED = 130
_AGAIN_S = 1.0  # one press reaches some processes twice: from the terminal and from a launcher
_LATER_S = 0.02
_LOST_S = 1.0
_FINALIZERS = ("weakref.py", "_weakrefset.py")

_has_been_said = False


def end_at_once(say: bool = True) -> None:
    """From now on SIGINT ends this process; where it is ignored, in the background, it stays so.

    It may be blocked until here, by who starts this process: before our first line, Python itself
    would print a traceback.

    Args:
        say: tell so; not where another process does.
    """
    global _has_been_said
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        _has_been_said = not say
        signal.signal(signal.SIGINT, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def tell(how_it_goes_on: str = "") -> None:
    """Says that the program was interrupted, unless that was said."""
    global _has_been_said
    if not _has_been_said:
        _has_been_said = True
        sys.stderr.write(f"\ninterrupted{how_it_goes_on}\n")


def _end(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(Exception):  # it may have been in the middle of a write
        tell()
        sys.stderr.flush()
    os._exit(EXIT_INTERRUPTED)


@contextlib.contextmanager
def raise_once() -> Iterator[None]:
    """Within this, SIGINT raises KeyboardInterrupt, and what that sets off is not interrupted
    again: a second one, a second later or more, ends the process at once.

    Python drops what is raised in a destructor, of a progress bar for example, and prints a
    traceback. There, KeyboardInterrupt is raised a moment later. Elsewhere an ``except:`` around an
    import may drop it: then it is raised once more.
    """
    here = threading.current_thread() is threading.main_thread()
    earlier = signal.getsignal(signal.SIGINT)
    if not here or earlier is signal.SIG_IGN or isinstance(earlier, _RaiseOnce):
        yield
        return
    handler = _RaiseOnce()
    alarm = signal.signal(signal.SIGALRM, handler)
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        if signal.getsignal(signal.SIGINT) is handler:
            signal.signal(signal.SIGINT, earlier)


class _RaiseOnce:
    """The handler of SIGINT; and of SIGALRM, by which it comes back later."""

    def __init__(self):
        self._first: float | None = None
        self._raised: KeyboardInterrupt | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self._first is not None:
            if now - self._first > _AGAIN_S:
                _end(number, frame)
            return
        self._first = self._first or now
        if _would_be_lost(frame):
            signal.setitimer(signal.ITIMER_REAL, _LATER_S)
        elif self._raised is None or not _is_on_its_way(self._raised):
            signal.setitimer(signal.ITIMER_REAL, _LOST_S)
            self._raised = KeyboardInterrupt()
            raise self._raised
        else:
            signal.setitimer(signal.ITIMER_REAL, _LOST_S)


def _is_on_its_way(error: BaseException) -> bool:
    """Whether something is done because of this exception: it is handled, or what is handled came
    of that.
    """
    handled = sys.exc_info()[1]
    while handled is not None:
        if handled is error:
            return True
        handled = handled.__context__
    return False


def _would_be_lost(frame: FrameType | None) -> bool:
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__del__" or code.co_filename.endswith(_FINALIZERS):
            return True
        frame = frame.f_back
    return False
