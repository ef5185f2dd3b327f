"""Every process that we start dies, is stopped, or runs in circles, at every moment.

Within a bound there is an error that names it, and nothing is left running or in shared memory.
"""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import cloudpickle
import gymnasium as gym
import numpy as np
import psutil
import pytest
import sweeps
from attack import fates
from attack.fates import DEADLY, ENDLESS, FATES, SIGNALS, Family
from gymnasium import spaces
from omegaconf import OmegaConf

from diffusion_policy.common.errors import EnvWorkerError
from diffusion_policy.gym_util import worker_process
from diffusion_policy.gym_util.async_vector_env import AsyncVectorEnv

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the promise is for Linux")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import them
cloudpickle.register_pickle_by_value(fates)

TESTS = pathlib.Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"}
PHASES = ("start", "reset", "step", "call")
# Longer than what an idle worker needs on a loaded machine, shorter than the patience of a person
LIMIT_S = 2.0


class Fated(gym.Env):
    """Meets its fate in a phase of its life."""

    observation_space = action_space = spaces.Box(-9, 9, (1,), np.float32)

    def __init__(self, phase, fate):
        self.phase, self.fate = phase, fate
        self.come_to("start")

    def come_to(self, phase):
        if phase == self.phase:
            fates.meet(self.fate)

    def reset(self, *, seed=None, options=None):
        self.come_to("reset")
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.come_to("step")
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def arrive(self):
        self.come_to("call")

    def close(self):
        self.come_to("close")


def live(phase, fate, limit_s):
    """The life of a vector environment of which one meets its fate."""
    env_fns = [lambda: Fated(None, None), lambda: Fated(phase, fate)]
    known = {"observation_space": Fated.observation_space, "action_space": Fated.action_space}
    env = AsyncVectorEnv(env_fns, n_workers=2, worker_timeout_s=limit_s, **known)
    try:
        env.reset()
        env.step([[0], [0]])
        env.call("arrive")
    finally:
        env.close()


def test_workers_of_environments(attack, monkeypatch):
    monkeypatch.setattr(worker_process, "CLOSE_SECONDS", 0.3)
    AsyncVectorEnv([lambda: Fated(None, None)], n_workers=1).close()  # the server is running
    n, failures = 0, []
    for phase, fate in attack.some_of((p, f) for p in (*PHASES, "close") for f in FATES):
        n += 1
        began, text = time.monotonic(), ""
        try:
            live(phase, fate, LIMIT_S)
        except EnvWorkerError as error:
            text = str(error)
        expected = "died during" if fate in DEADLY else "did not answer"
        if phase == "close":
            expected = ""  # nobody waits for a result
        if not re.match(
            "the worker process of environments 1 .*" * bool(expected) + expected, text
        ):
            failures.append(f"{fate} in {phase}: {text!r}")
        if time.monotonic() - began > LIMIT_S + 30:
            failures.append(f"{fate} in {phase}: it took {time.monotonic() - began:.0f} s")
        left = [p for p in psutil.Process().children() if "env-worker" in " ".join(p.cmdline())]
        if left:
            failures.append(f"{fate} in {phase}: left {left}")
    attack.record("a worker of environments meets its fate in a phase", n, failures)


# What is started as a program of its own, so that it can be killed. It says when its time has come.
PARENT = """
import sys
sys.path.insert(0, "{tests}")
from attack.test_process_deaths import live
import threading
threading.Timer(float(sys.argv[3]), print, ["now"], {{"flush": True}}).start()
live(sys.argv[1] or None, sys.argv[2], None)
print("now", flush=True)
"""
POOL = """
import sys, threading
sys.path.insert(0, "{tests}")
from attack.fates import meet
from diffusion_policy.scripts.worker_pool import map_in_processes
threading.Timer(float(sys.argv[3]), print, ["now"], {{"flush": True}}).start()
if __name__ == "__main__":
    list(map_in_processes(meet, [sys.argv[2], "sleep"], 2))
"""


def start(tmp_path, program, *words):
    script = tmp_path / "script.py"
    script.write_text(program.format(tests=TESTS))
    return subprocess.Popen(
        [sys.executable, str(script), *words],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(("what", "program"), [("environments", PARENT), ("a pool", POOL)])
def test_the_parent_is_killed(attack, tmp_path, what, program):
    cases = [(phase, fate) for phase in (*PHASES, "close") for fate in ENDLESS]
    if program == POOL:
        cases = [("", fate) for fate in ENDLESS]
    n, failures = 0, []
    for phase, fate in attack.some_of([*cases, *cases]):
        n += 1
        # from the first moment of its imports to the moment when all are where they stay
        process = start(tmp_path, program, phase, fate, f"{attack.rng.uniform(0, 4):.3f}")
        assert process.stdout is not None
        process.stdout.readline()
        if left := Family(process.pid).kill_parent():
            failures.append(f"{fate} in {phase}: {left}")
        process.wait()
    attack.record(f"the parent of workers of {what} is killed", n, failures)


@pytest.mark.parametrize("server", ["SIGKILL", "SIGSTOP"])
def test_the_server_that_forks_workers(attack, tmp_path, server):
    n, failures = 0, []
    for fate in attack.some_of(ENDLESS):
        n += 1
        process = start(tmp_path, PARENT, "step", fate, "60")
        deadline = time.monotonic() + 60
        while len(workers := _workers(process)) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        family = Family(process.pid)
        for worker in workers:
            if len(worker.children()) == 2:
                worker.send_signal(SIGNALS[server])
        time.sleep(0.5)
        if left := family.kill_parent():
            failures.append(f"{server} to the server, {fate} to the worker: {left}")
        process.wait()
    attack.record(f"{server} to the server of workers, then their parent is killed", n, failures)


def _workers(process) -> list[psutil.Process]:
    """The server and the workers that it has forked."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        return [p for p in family if "forkserver" in " ".join(p.cmdline())]
    return []


@pytest.mark.parametrize("victim", ["fake_train.py", "multirun_metrics.py"])
def test_a_sweep(attack, tmp_path, victim):
    n, failures = 0, []
    cases = [(fate, is_killed) for fate in SIGNALS for is_killed in (False, True)]
    for fate, is_killed in attack.some_of(cases):
        n += 1
        folder = sweeps.write_fake_sweep(tmp_path / f"sweep_{n}", 1, n_epochs=30)
        words = ["--backend=process", "--num_cpus=0.5", "--run_timeout_s=3", "--max_retries=1"]
        process = sweeps.resume(folder, *words)
        sweeps.wait_for(lambda folder=folder: sweeps.n_epochs(folder / "train_0"), process)
        family = Family(process.pid)
        for member in family.members:
            if any(victim in word for word in member.cmdline()):
                member.send_signal(SIGNALS[fate])
        if is_killed:
            left = family.kill_parent()
            process.communicate()
        elif victim == "fake_train.py":
            output, _ = process.communicate(timeout=120)
            left = family.left()
            if process.returncode or "train_0 failed (killed" not in output:
                failures.append(f"{fate} to {victim}: {output[-1000:]}")
        else:
            process.send_signal(signal.SIGINT)  # a stopped monitor keeps it waiting, until ...
            time.sleep(2)  # two signals that nobody has heard yet are one
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=120)
            left = family.left()
        if left:
            failures.append(f"{fate} to {victim}, the sweep {is_killed=}: {left}")
    attack.record(f"{victim} of a sweep meets its fate", n, failures)


def test_processes_of_a_run(attack, tmp_path, tiny_config):
    """Long: torch waits half a minute for a process that does not hear SIGTERM."""
    if not attack.is_long:
        pytest.skip("make attack; the short form is tests/workspace/test_processes.py")
    cfg = tiny_config("training.num_epochs=2000", "training.tqdm_interval_sec=0")
    OmegaConf.save(cfg, tmp_path / "published.yaml")
    n, failures = 0, []
    cases = [(fate, i, k) for fate in SIGNALS for i in (0, 1) for k in (False, True)]
    for fate, index, is_killed in attack.some_of(cases):
        n += 1
        run_dir = tmp_path / f"run_{n}"
        words = [f"--config-dir={tmp_path}", "--config-name=published.yaml"]
        words += [f"hydra.run.dir={run_dir}", "training.num_processes=2"]
        process = sweeps.start(*words, "training.process_timeout_s=5", script="train.py")
        sweeps.wait_for(lambda run_dir=run_dir: sweeps.n_epochs(run_dir) > 5, process)
        time.sleep(attack.rng.uniform(0, 1))
        family = Family(process.pid)
        ranks = [m for m in family.members if "diffusion_policy.workspace.rank" in m.cmdline()]
        [victim] = [rank for rank in ranks if rank.environ()["RANK"] == str(index)]
        victim.send_signal(SIGNALS[fate])
        if is_killed:
            left = family.kill_parent()
            process.communicate()
        else:
            output, _ = process.communicate(timeout=180)
            left = family.left()
            if not process.returncode or f"rror: process {index} of" not in output:
                failures.append(f"{fate} to process {index}: {output[-1000:]}")
        if left:
            failures.append(f"{fate} to process {index}, launcher {is_killed=}: {left}")
    attack.record("a process of a run meets its fate", n, failures)
