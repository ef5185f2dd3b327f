"""Ctrl-C at bad moments: no traceback, nothing lost, exit code 130."""

import signal
import subprocess
import sys

import pytest

BEGINNING = """
import os, signal, sys, time, weakref
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if the tests run in background
from diffusion_policy.common import interrupts
from diffusion_policy.common.progress_bar import ProgressBar
from diffusion_policy.workspace.command_line import errors_as_sentences

def press():
    signal.raise_signal(signal.SIGINT)
"""


def run(code, *words):
    """(exit code, stderr, stdout) of a program."""
    done = subprocess.run(
        [sys.executable, "-c", BEGINNING + code, *words], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stderr, done.stdout


def test_in_a_destructor_it_is_not_lost():
    code, err, out = run(
        """
class Bar:
    def __del__(self):
        press()
        time.sleep(0.1)
        print("destroyed", flush=True)

with errors_as_sentences():
    bar = Bar()
    del bar
    time.sleep(30)
    print("went on")
"""
    )
    assert (code, err, out) == (130, "\ninterrupted\n", "destroyed\n")


def test_when_a_progress_bar_is_thrown_away():
    # as at the end of an epoch: what printed a traceback now and then, and went on training
    code, err, _ = run(
        """
class Bar(ProgressBar):
    def close(self):
        press()
        super().close()

with errors_as_sentences():
    Bar(total=1, file=open(os.devnull, "w"))
    time.sleep(30)
"""
    )
    assert (code, err) == (130, "\ninterrupted\n")


@pytest.mark.parametrize("where", ["_get_free_pos", "status_printer", "get_lock", "refresh"])
def test_while_a_progress_bar_is_made(where):
    code, err, _ = run(
        f"""
def interrupted(*args, **kwargs):
    press()

ProgressBar.{where} = staticmethod(interrupted)
with errors_as_sentences():
    ProgressBar(total=1)
"""
    )
    assert code == 130
    assert "Traceback" not in err
    assert "Exception ignored" not in err


def test_a_weak_reference_that_goes_away():
    code, err, _ = run(
        """
class Thing:
    pass

with errors_as_sentences():
    thing = Thing()
    finalizer = weakref.finalize(thing, press)
    del thing
    time.sleep(30)
"""
    )
    assert (code, err) == (130, "\ninterrupted\n")


def test_where_something_drops_all_exceptions():
    # as around imports of what may be missing
    code, err, _ = run(
        """
with errors_as_sentences():
    for _ in range(2):
        try:
            press() if _ == 0 else time.sleep(1.2)
        except:
            pass
    time.sleep(30)
"""
    )
    assert (code, err) == (130, "\ninterrupted\n")


def test_cleaning_up_may_take_its_time():
    code, err, out = run(
        """
import contextlib

@contextlib.contextmanager
def slow():
    try:
        yield
    finally:
        time.sleep(2.5)
        try:
            raise OSError
        except OSError:
            time.sleep(1.5)
        print("cleaned up", flush=True)

class Slow:
    def __enter__(self):
        pass
    def __exit__(self, *_):
        time.sleep(1.5)
        print("and this", flush=True)

with errors_as_sentences(), slow(), Slow():
    press()
"""
    )
    assert (code, err, out) == (130, "\ninterrupted\n", "and this\ncleaned up\n")


def test_a_second_one_at_once_does_not_interrupt_the_cleaning_up():
    code, err, out = run(
        """
with errors_as_sentences():
    try:
        press()
    finally:
        press()
        time.sleep(0.2)
        press()
        print("cleaned up", flush=True)
"""
    )
    assert (code, err, out) == (130, "\ninterrupted\n", "cleaned up\n")


def test_a_second_one_later_ends_it():
    code, err, out = run(
        """
interrupts._AGAIN_S = 0.1
with errors_as_sentences():
    try:
        press()
    finally:
        time.sleep(0.2)
        press()
        print("cleaned up")
"""
    )
    assert (code, err, out) == (130, "\ninterrupted\n", "")


def test_before_and_after_the_work():
    for say, expected in (("True", "\ninterrupted\n"), ("False", "")):
        code, err, out = run(
            f"""
interrupts.end_at_once(say={say})
with errors_as_sentences():
    print("done")
press()
print("alive")
"""
        )
        assert (code, err, out) == (130, expected, "done\n")


def test_where_it_is_ignored_it_stays_ignored():
    code, _, out = run(
        """
signal.signal(signal.SIGINT, signal.SIG_IGN)
interrupts.end_at_once()
with errors_as_sentences():
    press()
    print("went on")
"""
    )
    assert (code, out) == (0, "went on\n")


def test_what_was_there_is_there_again():
    from diffusion_policy.common import interrupts

    def mine(*_):
        pass

    earlier = signal.signal(signal.SIGINT, mine)
    try:
        with interrupts.raise_once(), interrupts.raise_once():
            assert signal.getsignal(signal.SIGINT) is not mine
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, earlier)
