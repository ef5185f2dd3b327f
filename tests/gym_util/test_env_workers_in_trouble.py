"""Workers that die, hang or are orphaned: always one clear error, never a hang."""

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import cloudpickle
import gymnasium as gym
import numpy as np
import psutil
import pytest
from gymnasium import spaces

from diffusion_policy.common.errors import ConfigError, EnvWorkerError
from diffusion_policy.gym_util import async_vector_env
from diffusion_policy.gym_util.async_vector_env import AsyncVectorEnv

cloudpickle.register_pickle_by_value(sys.modules[__name__])
ROOT = pathlib.Path(__file__).resolve().parents[2]


class Trouble(gym.Env):
    """Does what the action says."""

    observation_space = action_space = spaces.Box(-9, 9, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        if action[0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if action[0] == 2:
            os._exit(7)
        if action[0] == 3:
            sys.exit(3)
        if action[0] == 4:
            time.sleep(1000)
        if action[0] == 5 and os.fork() > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        elif action[0] == 5:  # like a simulator server, it outlives the worker and holds its pipe
            time.sleep(5)
            os._exit(0)
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def pid(self):
        return os.getpid()

    def unsendable(self):
        return lambda: None


# With these no environment is built in this process.
KNOWN_SPACES = {
    "observation_space": Trouble.observation_space,
    "action_space": Trouble.action_space,
}


@pytest.fixture
def env():
    env = AsyncVectorEnv([Trouble] * 4, n_workers=2)
    env.reset()
    yield env
    env.close()


def workers_left():
    return [p for p in multiprocessing.active_children() if p.name.startswith("env-worker")]


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
    monkeypatch.setattr(async_vector_env, "_CLOSE_SECONDS", 0.2)
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


def test_a_result_that_cannot_be_sent_is_reported(env):
    with pytest.raises(EnvWorkerError, match="cannot be sent to the main process"):
        env.call("unsendable")


def test_close_ends_workers_that_hang(monkeypatch):
    class Stuck(Trouble):
        def close(self):
            time.sleep(1000)

    monkeypatch.setattr(async_vector_env, "_CLOSE_SECONDS", 0.2)
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
