"""Workers that are stopped or run in circles: a warning, then an error that names them."""

import os
import re
import signal
import threading
import time
from multiprocessing import forkserver

import numpy as np
import pytest
from child_processes import wait_until_gone
from troubled_env import KNOWN_SPACES, Trouble, workers_left

from diffusion_policy.common.errors import ConfigError, EnvWorkerError
from diffusion_policy.common.waiting import Patience
from diffusion_policy.gym_util import worker_process
from diffusion_policy.gym_util.async_vector_env import AsyncVectorEnv

STOPPED = r", which is stopped; `kill -CONT \d+` lets it go on"
LIMIT_S = 1.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(worker_process, "CLOSE_SECONDS", 0.2)


@pytest.fixture
def env():
    """Of little patience, once it has started: that takes its time on a loaded machine."""
    env = AsyncVectorEnv([Trouble] * 4, n_workers=2, **KNOWN_SPACES)
    env.reset()
    env._patience = Patience.from_option("limit", LIMIT_S)
    for worker in env._workers:
        worker_process._limit_transfers(worker.connection, LIMIT_S)
    yield env
    env.close()


@pytest.mark.parametrize(("action", "state"), [(4, ""), (6, STOPPED), (7, "")])
def test_one_that_does_not_answer_is_waited_for_so_long(env, action, state, caplog):
    name = rf"the worker process of environments 2, 3 \(pid \d+{state}\)"
    with pytest.raises(
        EnvWorkerError, match=rf"^{name} did not answer step within 1\.0 s; .*worker_timeout_s"
    ):
        env.step([[0], [0], [action], [0]])
    assert re.match(f"waiting for {name}: it has yet to answer step, after", caplog.messages[0])
    assert not workers_left()
    with pytest.raises(ConfigError, match="was closed"):
        env.reset()


def test_several_are_named(env):
    with pytest.raises(EnvWorkerError, match=r"environments 0, 1 \(.*\) and .* environments 2, 3"):
        env.step([[4], [0], [6], [0]])
    assert not workers_left()


def test_one_that_goes_on_in_time_is_only_talked_about(env, caplog):
    env._patience = Patience(limit_s=600, say_s=0.1)
    worker = env.call("pid")[0]
    os.kill(worker, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (worker, signal.SIGCONT)).start()
    env.step([[0]] * 4)
    assert "waiting for the worker process of environments 0, 1" in caplog.text


def test_a_message_that_a_stopped_one_does_not_read(env):
    os.kill(env.call("pid")[0], signal.SIGSTOP)
    with pytest.raises(
        EnvWorkerError, match=rf"environments 0, 1 \(pid \d+{STOPPED}\) stopped in the middle of"
    ):
        env.call("take", bytearray(20_000_000))
    assert not workers_left()


def test_one_that_stops_in_the_middle_of_its_answer(env):
    worker = env._workers[0]
    worker.send(("call", [(0, ("answer_at_length", (), {}))]), "call")
    assert worker.connection.poll(60)  # the pipe is full, the rest follows when it is read
    os.kill(worker.process.pid, signal.SIGSTOP)
    with pytest.raises(EnvWorkerError, match=rf"{STOPPED}\) stopped in the middle of call"):
        worker.receive("call")


def test_closing_does_not_wait_for_one_that_is_stopped(env):
    for pid in env.call("pid"):
        os.kill(pid, signal.SIGSTOP)
    env.close()
    assert not workers_left()


@pytest.mark.parametrize("context", ["forkserver", "spawn"])
def test_a_constructor_without_end_has_a_limit_too(context):
    def build():
        time.sleep(1000)

    AsyncVectorEnv([Trouble], n_workers=1, context=context).close()
    with pytest.raises(EnvWorkerError, match=r"environments 0 .* did not answer its start within"):
        AsyncVectorEnv([build], **KNOWN_SPACES, context=context, worker_timeout_s=LIMIT_S)
    with pytest.raises(EnvWorkerError, match=r"environment 0 .* did not answer its creation"):
        AsyncVectorEnv([build], context=context, worker_timeout_s=LIMIT_S)
    assert not workers_left()


def test_a_stopped_server_of_workers_is_named_and_costs_running_workers_nothing(env):
    server = forkserver._forkserver._forkserver_pid
    os.kill(server, signal.SIGSTOP)
    try:
        env.step([[0]] * 4)
        with pytest.raises(
            EnvWorkerError, match=rf"server that forks .*\(pid {server}{STOPPED}\) did not start"
        ):
            AsyncVectorEnv([Trouble], **KNOWN_SPACES, worker_timeout_s=LIMIT_S)
        env.step([[0]] * 4)
        env.close()
    finally:
        os.kill(server, signal.SIGCONT)
    AsyncVectorEnv([Trouble], n_workers=1).close()
    assert not workers_left()


def test_a_dead_server_of_workers_costs_running_workers_nothing(env):
    pids = env.call("pid")
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    for _ in range(20):
        obs, *_ = env.step([[0]] * 4)
        time.sleep(0.01)
    np.testing.assert_array_equal(obs, np.zeros((4, 1), np.float32))
    another = AsyncVectorEnv([Trouble], n_workers=1)
    another.reset()
    another.close()
    with pytest.raises(EnvWorkerError, match=r"environments 2, 3 .*did not answer step"):
        env.step([[0], [0], [0], [4]])
    wait_until_gone(*pids)
