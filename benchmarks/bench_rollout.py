"""Rollouts of 56 Push-T environments: our grouped workers against one process per environment.

    python benchmarks/bench_rollout.py

The policy is replaced by random actions around the T, so that only environments and their
communication are measured. Every form plays the same 300 steps in every environment from start-up
to close; none of them finishes an episode early, which would only help the grouped form (it leaves
finished environments alone). The forms take turns; the table shows medians. CPU seconds, of all
processes together, tell the forms apart on a busy machine too, where many processes get more of it
than few and wall times mislead.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import psutil

from diffusion_policy.env_runner.pusht_keypoints_runner import make_env
from diffusion_policy.gym_util.async_vector_env import AsyncVectorEnv, usable_cores
from diffusion_policy.gym_util.sync_vector_env import SyncVectorEnv

N_ENVS, N_ACTION_STEPS, MAX_STEPS, ROUNDS = 56, 8, 300, 3
WRAP = {
    "n_obs_steps": 2,
    "n_action_steps": N_ACTION_STEPS,
    "max_steps": MAX_STEPS,
    "fps": 10,
    "crf": 22,
}
ENV_FNS = [partial(make_env, {"legacy": True}, WRAP)] * N_ENVS


def gymnasium_vector_env() -> gym.vector.AsyncVectorEnv:
    """The library's own: one forked process and one message per environment, as in gym 0.21."""
    mode = gym.vector.AutoresetMode.DISABLED
    return gym.vector.AsyncVectorEnv(ENV_FNS, shared_memory=True, autoreset_mode=mode)


FORMS: dict[str, Callable[[], Any]] = {
    f"grouped: {usable_cores()} workers (default)": partial(AsyncVectorEnv, ENV_FNS),
    f"{N_ENVS} workers, one per environment": partial(AsyncVectorEnv, ENV_FNS, n_workers=N_ENVS),
    "gymnasium.vector.AsyncVectorEnv": gymnasium_vector_env,
    "no workers (SyncVectorEnv)": partial(SyncVectorEnv, ENV_FNS),
}


def cpu_seconds() -> float:
    """Processor time used so far by this process and its living children."""
    me = psutil.Process()
    times = [p.cpu_times() for p in (me, *me.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def measure(make: Callable[[], Any]) -> tuple[float, float, float, float]:
    """Start-up, one step of all environments, the whole evaluation, and its processor time (s)."""
    rng = np.random.RandomState(0)
    cpu, begin = cpu_seconds(), time.perf_counter()
    env = make()
    obs, _ = env.reset(seed=100_000)
    started = time.perf_counter()
    finished = False
    n_ticks = -(-MAX_STEPS // N_ACTION_STEPS)
    for _ in range(n_ticks):
        block = obs[:, -1, :18].reshape(N_ENVS, 9, 2).mean(axis=1)
        noise = rng.uniform(-60, 60, (N_ENVS, N_ACTION_STEPS, 2))
        obs, _, _, truncated, _ = env.step(block[:, None] + noise)
        finished = bool(truncated.all())
    stepped = time.perf_counter()
    assert finished, "an episode ended early: the forms did not do the same work"
    cpu = cpu_seconds() - cpu
    env.close()
    end = time.perf_counter()
    return started - begin, (stepped - started) / n_ticks, end - begin, cpu


def main() -> None:
    """Measure all forms and print the table."""
    measure(FORMS["no workers (SyncVectorEnv)"])  # imports
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in FORMS}
    for _ in range(ROUNDS):
        for name, make in FORMS.items():
            times[name].append(measure(make))
    medians = {n: [statistics.median(c) for c in zip(*t, strict=True)] for n, t in times.items()}

    ours = next(iter(medians.values()))
    print(f"{N_ENVS} Push-T environments, {MAX_STEPS} steps each, {usable_cores()} cores;")
    print("in brackets: how many times as long as the first row\n")
    print(f"{'':36}{'start-up':>16}{'per tick':>19}{'whole':>18}{'CPU':>18}")
    for name, (start, tick, whole, cpu) in medians.items():
        print(
            f"{name:36}"
            f"{start:8.2f} s ({start / ours[0]:4.1f}x)"
            f"{tick * 1e3:8.1f} ms ({tick / ours[1]:4.1f}x)"
            f"{whole:8.2f} s ({whole / ours[2]:4.1f}x)"
            f"{cpu:8.2f} s ({cpu / ours[3]:4.1f}x)"
        )


if __name__ == "__main__":
    main()
