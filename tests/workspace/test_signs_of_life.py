"""Processes of a run know whether those that they wait for live."""

import re
import threading

import pytest

from diffusion_policy.common.errors import ConfigError, ProcessTimeoutError
from diffusion_policy.common.waiting import Patience
from diffusion_policy.workspace import signs_of_life
from diffusion_policy.workspace.signs_of_life import SignsOfLife, patience_of


class Store:
    """What torch.distributed.Store does, among threads."""

    def __init__(self):
        self.values = {}

    def set(self, key, value):
        self.values[key] = value.encode()

    def check(self, keys):
        return all(key in self.values for key in keys)

    def get(self, key):
        return self.values[key]


@pytest.fixture
def start():
    """start(index, patience): signs of life of one of two processes, and its errors."""
    store, running = Store(), []

    def start(index, patience=None):
        given_up: list[ProcessTimeoutError] = []
        happened = threading.Event()

        def give_up(error):
            given_up.append(error)
            happened.set()

        signs = SignsOfLife(store, index, 2, patience or Patience(None), give_up)
        running.append(signs.__enter__())
        signs.happened = happened
        signs.given_up = given_up
        return signs

    yield start
    for signs in running:
        signs.__exit__(None, None, None)


def error_of(signs):
    assert signs.happened.wait(60)
    return str(signs.given_up[0])


def test_one_that_never_came_is_named(start, caplog):
    one = start(1, Patience(1.0, 0.4))
    assert error_of(one).startswith("process 0 of the run did not give a sign of life within 1.0 s")
    assert "training.process_timeout_s" in error_of(one)
    assert "waiting for process 0 of the run: it has yet to give a sign" in caplog.text


def test_one_that_falls_silent_is_named_with_what_it_did(start):
    zero = start(0)
    zero.now("training epoch 3")
    one = start(1, Patience(3.0, 1.0))
    assert not one.happened.wait(5), "it was not silent"
    zero.__exit__(None, None, None)
    text = error_of(one)
    assert text.startswith("process 0 of the run (training epoch 3; pid ")
    assert "did not give a sign of life within 3.0 s" in text


def test_one_that_lives_but_does_not_come_is_late(start, caplog):
    zero, one = start(0), start(1, Patience(2.0, 0.5))
    assert not one.happened.wait(4), "nobody was waited for"
    one.meet()
    assert "did not come as far as this process within 2.0 s" in error_of(one)
    assert not zero.given_up, "the one that is waited for does not wait"


def test_one_that_evaluates_may_take_as_long_as_it_lives(start, caplog, monkeypatch):
    monkeypatch.setattr(signs_of_life, "_PATIENCE_WITH_LONG", 1)
    zero, one = start(0), start(1, Patience(3.0, 1.5))
    with zero.doing("evaluating", takes_long=True):
        one.meet()
        assert not one.happened.wait(5)
    # but it is said, by and by
    assert re.search(
        r"waiting for process 0 of the run \(evaluating; pid \d+\): it has yet to come as far as "
        r"this process, after \d\.\d s$",
        caplog.text,
        re.MULTILINE,
    )
    one.meet()
    assert "process 0 of the run (starting; pid" in error_of(one)


def test_progress_is_no_delay(start):
    zero, one = start(0), start(1, Patience(2.0, 1.0))
    one.meet()
    one.meet()
    for _ in range(10):
        assert not one.happened.wait(0.5)
        one.meet()
        zero.meet()


def test_the_patience_can_change(start):
    one = start(1)
    one.be_patient(Patience(1.0, 0.4))
    assert "process 0" in error_of(one)


def test_what_the_configuration_says():
    assert patience_of({}).limit_s == 3600
    assert patience_of({"process_timeout_s": None}).limit_s is None
    with pytest.raises(ConfigError, match=r"training\.process_timeout_s is -1"):
        patience_of({"process_timeout_s": -1})


def test_a_store_that_is_gone_with_the_launcher_ends_the_thread(start):
    one = start(1)

    def gone(*_):
        raise RuntimeError("Connection reset by peer")

    one._store.set = gone
    one._thread.join(60)
    assert not one._thread.is_alive()
    assert not one.given_up
