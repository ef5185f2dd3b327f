"""Waiting for other processes: what is said, when it ends, and what does not count."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from diffusion_policy.common import waiting
from diffusion_policy.common.errors import ConfigError, EnvWorkerError, ProcessTimeoutError
from diffusion_policy.common.waiting import (
    Patience,
    Waiting,
    call_with_patience,
    describe_process,
    wait_until,
)


def make(limit_s=None, say_s=60.0, **more):
    return Waiting(Patience(limit_s, say_s), lambda: "the robot", "answer", "ask it again", **more)


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds) lets time go by."""
    now = [100.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    return advance


def test_what_is_there_is_returned_at_once(clock):
    assert wait_until(lambda seconds: ["answer"], make(limit_s=1)) == ["answer"]


def test_it_is_said_who_is_waited_for_and_more_and_more_rarely(clock, caplog):
    awaited = make(limit_s=1000)
    said = []
    for second in range(1, 500):
        clock(1)
        awaited.tick()
        if len(caplog.messages) > len(said):
            said.append(second)
    assert said == [60, 120, 240, 480]
    assert caplog.messages[0] == (
        "waiting for the robot: it has yet to answer, after 60 s (the limit is 17 min)"
    )
    assert caplog.records[0].levelno == logging.WARNING


def test_the_limit_ends_the_wait_with_the_name_and_the_remedy(clock):
    awaited = make(limit_s=300, error=EnvWorkerError)

    def look(seconds):
        assert 0 <= seconds <= waiting.LOOK_S
        clock(max(seconds, 0.5))

    with pytest.raises(
        EnvWorkerError, match=r"^the robot did not answer within 5 min; ask it again$"
    ):
        wait_until(look, awaited)


def test_without_a_limit_it_goes_on(clock, caplog):
    awaited = make()
    for _ in range(1000):
        clock(5)
        awaited.tick()
    assert "limit" not in caplog.text


def test_a_sign_of_life_begins_the_wait_anew(clock):
    awaited = make(limit_s=10)
    for _ in range(20):
        clock(4)
        awaited.tick()
        awaited.restart()


def test_time_in_which_this_process_was_stopped_does_not_count(clock):
    awaited = make(limit_s=100)
    clock(10_000)  # Ctrl-Z, and fg
    awaited.tick()
    assert awaited.seconds < 100


def test_a_short_limit_is_kept_in_real_time():
    began = time.monotonic()
    with pytest.raises(ProcessTimeoutError):
        wait_until(lambda seconds: time.sleep(seconds), make(limit_s=0.05))
    assert time.monotonic() - began >= 0.05


def test_calls_that_know_no_limit():
    assert call_with_patience(lambda: 3, make()) == 3
    with pytest.raises(OSError, match="gone"):
        call_with_patience(raise_gone, make())
    never = threading.Event()
    with pytest.raises(ProcessTimeoutError, match="the robot did not answer"):
        call_with_patience(never.wait, make(limit_s=0.05))
    never.set()


def raise_gone():
    raise OSError("gone")


@pytest.mark.parametrize("value", [0, -1, "soon", True, float("nan")])
def test_an_option_that_is_no_time_is_one_sentence(value):
    with pytest.raises(ConfigError, match=r"^x_timeout_s is .*; set it to seconds, more than 0"):
        Patience.from_option("x_timeout_s", value)


def test_options():
    assert Patience.from_option("x", None).limit_s is None
    assert Patience.from_option("x", 5) == Patience(5.0, 2.5)
    assert Patience.from_option("x", 7200) == Patience(7200.0, 60.0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_state_of_a_process():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    try:
        assert describe_process(process.pid) == f"pid {process.pid}"
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        assert f"pid {process.pid}, which is stopped; `kill -CONT" in describe_process(process.pid)
    finally:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert describe_process(process.pid) == f"pid {process.pid}, which has ended"
    process.wait()
    assert describe_process(process.pid) == f"pid {process.pid}"
