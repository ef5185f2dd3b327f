"""The rollout: every episode is played once, in as many environments as there are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffusion_policy.env_runner.episodes import Episode, EpisodeResult
from diffusion_policy.env_runner.policy_callers import PolicyCaller, require_finite
from diffusion_policy.gym_util.vector_env import VectorEnv


@dataclass
class Rollout:
    """Plays episodes.

    Args:
        env: Vector environment of the stack made by :func:`wrap_env`.
        episodes: What to play.
        caller: Asks the policy.
        to_env_action: Turns the policy's actions (N, Ta, Da) into the environments'.
        refill: An environment takes the next episode as soon as it is free; else all of them start
            together, as in the original.
        on_step: Called after each step with the environment steps taken by each episode that plays,
            and the results so far, both by episode.
    """

    env: VectorEnv
    episodes: Sequence[Episode]
    caller: PolicyCaller
    to_env_action: Callable[[np.ndarray], np.ndarray]
    refill: bool
    on_step: Callable[[dict[int, int], dict[int, EpisodeResult]], None]

    def play(self) -> list[EpisodeResult]:
        """Play all episodes; results in their order."""
        waiting = deque(range(len(self.episodes)))
        results: dict[int, EpisodeResult] = {}
        self._obs: Any = None
        self._steps = [0] * self.env.num_envs
        playing: dict[int, int] = {}  # environment -> episode, by environment
        while waiting or playing:
            if waiting and (self.refill or not playing):
                playing = self._start(playing, waiting)
            ended = self._step(playing)
            results |= {playing.pop(slot): result for slot, result in ended.items()}
            self.on_step({e: self._steps[slot] for slot, e in playing.items()}, results)
        return [results[i] for i in range(len(self.episodes))]

    def _start(self, playing: dict[int, int], waiting: deque[int]) -> dict[int, int]:
        """Give waiting episodes to free environments."""
        if not playing:
            self.caller.policy.reset()
        free = [slot for slot in range(self.env.num_envs) if slot not in playing]
        started = {slot: waiting.popleft() for slot in free[: len(waiting)]}
        if not started:
            return playing
        slots = list(started)
        episodes = [self.episodes[i] for i in started.values()]
        self.env.call_each("run_dill_function", [(e.init_fn_dill,) for e in episodes], active=slots)
        self._obs, _ = self.env.reset(seed=[e.seed for e in episodes], active=slots)
        for slot in slots:
            self._steps[slot] = 0
        return dict(sorted((playing | started).items()))

    def _step(self, playing: dict[int, int]) -> dict[int, EpisodeResult]:
        """One policy call and one step of the environments that play; results of ended episodes."""
        slots = list(playing)
        actions = self.caller(self._obs, playing)
        names = [self.episodes[i].name for i in playing.values()]
        require_finite(actions, names, [self._steps[slot] for slot in slots])
        actions = self.to_env_action(actions)
        self._obs, _, terminated, truncated, infos = self.env.step(actions, active=slots)
        for slot in slots:
            self._steps[slot] += actions.shape[1]
        ended = [slot for slot in slots if terminated[slot] or truncated[slot]]
        return self._collect(ended, infos) if ended else {}

    def _collect(self, slots: list[int], infos: Sequence[dict]) -> dict[int, EpisodeResult]:
        videos = self.env.render(active=slots)  # also finishes the files
        rewards = self.env.call("get_attr", "reward", active=slots)
        return {
            slot: EpisodeResult(r, video, infos[slot])
            for slot, r, video in zip(slots, rewards, videos, strict=True)
        }
