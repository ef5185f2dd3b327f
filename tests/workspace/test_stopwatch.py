import time

import pytest

from diffusion_policy.workspace import stopwatch
from diffusion_policy.workspace.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds) lets time pass."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert stopwatch.time is time

    def advance(seconds):
        now[0] += seconds

    return advance


def test_time_counts_for_the_innermost_part(clock):
    watch = Stopwatch()
    clock(1)  # for nothing
    with watch.measure("step"):
        clock(2)
        with watch.measure("data_wait"):
            clock(4)
        clock(8)
    assert watch.lap() == {"time/step": 10.0, "time/data_wait": 4.0}
    assert watch.lap() == {}


def test_waiting_for_items(clock):
    def items():
        for i in range(3):
            clock(2)
            yield i
        clock(1)

    watch = Stopwatch()
    with watch.measure("step"):
        for _ in watch.waiting("data_wait", items()):
            clock(5)
    assert watch.lap() == {"time/step": 15.0, "time/data_wait": 7.0}


def test_an_interrupted_part_counts_until_then(clock):
    watch = Stopwatch()

    def interrupted():
        with watch.measure("rollout"):
            clock(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    clock(5)
    assert watch.lap() == {"time/rollout": 3.0}
