"""Workers that die, hang or are orphaned: always one clear error, never a hang."""

import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver

import cloudpickle
import psutil
import pytest
from troubled_env import KNOWN_SPACES, Trouble, workers_left

from diffusion_policy.common.errors import ConfigError, EnvWorkerError
from diffusion_policy.gym_util import worker_process
from diffusion_policy.gym_util.async_vector_env import AsyncVectorEnv

cloudpickle.register_pickle_by_value(sys.modules[__name__])
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def env():
    env = AsyncVectorEnv([Trouble] * 4, n_workers=2)
    env.reset()
    yield env
    env.close()


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (1, r"was killed by signal 9 \(SIGKILL\)"),
        (2, "ended with exit code 7"),
        (3, "ended with exit code 3"),
        (5, r"was killed by signal 9 \(SIGKILL\)"),
    ],
)
def test_a_worker_that_dies_in_a_step_is_reported_with_its_exit_code(env, action, reason):
    with pytest.raises(
        EnvWorkerError, match=rf"environments 2, 3 \(pid \d+\) died during step: it {reason}"
    ):
        env.step([[0], [0], [0], [action]])
    assert not workers_left()  # the healthy worker was stopped as well
    with pytest.raises(ConfigError, match="was closed"):
        env.step([[0]] * 4)


def test_a_dead_worker_is_reported_while_another_one_hangs(env, monkeypatch):
    monkeypatch.setattr(worker_process, "CLOSE_SECONDS", 0.2)
    with pytest.raises(EnvWorkerError, match=r"environments 2, 3 .*SIGKILL"):
        env.step([[4], [0], [0], [1]])
    assert not workers_left()


def test_a_worker_that_died_between_two_steps_is_reported(env):
    victim = env.call("pid")[1]
    os.kill(victim, signal.SIGKILL)
    while psutil.pid_exists(victim):
        time.sleep(0.01)
    with pytest.raises(EnvWorkerError, match=r"environments 0, 1 .*died during call: .*SIGKILL"):
        env.call("pid")


def test_a_worker_that_dies_at_its_start_is_reported():
    def die():
        os._exit(5)

    with pytest.raises(EnvWorkerError, match=r"died during its start: it ended with exit code 5"):
        AsyncVectorEnv([Trouble, die], n_workers=2)
    assert not workers_left()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (os.abort, r"was killed by signal 6 \(SIGABRT\)"),
        (lambda: os._exit(5), "ended with exit code 5"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), r"was killed by signal 11 \(SIGSEGV\)"),
        (lambda: ctypes.string_at(0), r"was killed by signal 11 \(SIGSEGV\)"),
    ],
)
@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_constructor_that_ends_its_process_takes_no_other_one_down(how, reason, n_workers):
    AsyncVectorEnv([Trouble], n_workers=1).close()  # the server that forks workers is running
    server = forkserver._forkserver._forkserver_pid

    with pytest.raises(EnvWorkerError, match=f"environment 0 .*died during its creation.*{reason}"):
        AsyncVectorEnv([how, Trouble], n_workers=n_workers)
    with pytest.raises(EnvWorkerError, match=f"environments 1 .*died during its start.*{reason}"):
        AsyncVectorEnv([Trouble, how], n_workers=2)
    assert not workers_left()
    env = AsyncVectorEnv([Trouble], n_workers=1)
    env.close()
    assert forkserver._forkserver._forkserver_pid == server


@pytest.mark.parametrize("known", [{}, KNOWN_SPACES])
def test_a_constructor_that_raises_is_a_sentence_with_the_traceback_of_the_worker(known):
    def connect():
        raise OSError("no simulator at port 7")

    with pytest.raises(EnvWorkerError) as caught:
        AsyncVectorEnv([connect], **known)
    first, second, *frames = str(caught.value).splitlines()
    assert first == "environment 0 raised OSError during its creation: no simulator at port 7"
    assert second == "Its traceback:"
    assert any("in connect" in line for line in frames)
    assert str(caught.value).count("no simulator at port 7") == 2  # and in the line of code


def test_a_long_text_of_an_exception_is_told_once_and_shortened(env):
    class Verbose(Trouble):
        def step(self, action):
            try:
                raise KeyError("b" * 10_000_000)
            except KeyError as error:
                raise ValueError("a" * 10_000_000) from error

    env = AsyncVectorEnv([Verbose], n_workers=1)
    env.reset()
    with pytest.raises(EnvWorkerError) as caught:
        env.step([[0]])
    text = str(caught.value)
    assert text.startswith("environment 0 raised ValueError during step: aaa")
    assert text.count("a" * 1000) == 4
    assert "[... 9,996,000 characters left out ...]" in text
    assert "Traceback" in text
    assert len(text) < 20_000


def test_a_result_that_cannot_be_sent_is_reported(env):
    with pytest.raises(EnvWorkerError, match="cannot be sent to the main process"):
        env.call("unsendable")


def test_close_ends_workers_that_hang(monkeypatch):
    class Stuck(Trouble):
        def close(self):
            time.sleep(1000)

    monkeypatch.setattr(worker_process, "CLOSE_SECONDS", 0.2)
    env = AsyncVectorEnv([Stuck] * 2, n_workers=2, **KNOWN_SPACES)
    env.close()
    assert not workers_left()


def test_an_exception_while_closing_ends_the_worker_all_the_same():
    class Sulky(Trouble):
        def close(self):
            raise RuntimeError("no")

    env = AsyncVectorEnv([Sulky], **KNOWN_SPACES)
    env.close()
    assert not workers_left()


# ---------------------------------------------------------------------- scripts of their own

SCRIPT = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if the tests run in background
import gymnasium as gym, numpy as np
from gymnasium import spaces
import heavy_module
from diffusion_policy.gym_util.async_vector_env import AsyncVectorEnv

class Slow(gym.Env):
    observation_space = action_space = spaces.Box(-9, 9, (1,), np.float32)
    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}
    def step(self, action):
        time.sleep(float(action[0]))
        return np.zeros(1, np.float32), 0.0, False, False, {}
    def look(self):
        return os.getpid(), "heavy_module" in sys.modules

env = AsyncVectorEnv([Slow, Slow], n_workers=2)
env.reset()
looks = env.call("look")
child = 0
if "--child" in sys.argv:  # like a data loader worker, it inherits our ends of all pipes
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
print(child, *[pid for pid, _ in looks], flush=True)
assert not any(heavy for _, heavy in looks), "the main script was imported by a worker"
try:
    env.step([[float(sys.argv[1])]] * 2)
except KeyboardInterrupt:
    env.close()
    print("closed", flush=True)
"""


def start_script(tmp_path, *args):
    (tmp_path / "heavy_module.py").touch()
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), *args],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    line = process.stdout.readline()
    if not line:
        pytest.fail(process.communicate()[1])
    child, *workers = map(int, line.split())
    assert all(psutil.pid_exists(pid) for pid in workers)
    return process, child, workers


def wait_until_gone(pids, seconds=20):
    deadline = time.monotonic() + seconds
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still running: {pids}"
        time.sleep(0.02)


@pytest.mark.parametrize("args", [("0.3",), ("0.3", "--child")])
def test_workers_end_when_their_parent_is_killed(tmp_path, args):
    process, child, workers = start_script(tmp_path, *args)
    try:
        process.kill()
        process.wait()
        wait_until_gone(workers)
    finally:
        if child:
            os.kill(child, signal.SIGKILL)


def test_ctrl_c_closes_in_order_and_without_noise_from_the_workers(tmp_path):
    process, _, workers = start_script(tmp_path, "2.0")
    time.sleep(0.3)  # into the step
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everyone gets it
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "closed" in out
    assert err == ""
    wait_until_gone(workers)
