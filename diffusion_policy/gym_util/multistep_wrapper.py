"""Chunks of actions in, stacks of observations out: an environment as policies see it."""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from diffusion_policy.common.errors import ConfigError, NonFiniteEnvError
from diffusion_policy.gym_util.gym021_adapter import as_gymnasium

_AGGREGATES = {"max": np.max, "min": np.min, "mean": np.mean, "sum": np.sum}


def stack_repeated(x: np.ndarray, n: int) -> np.ndarray:
    """``n`` copies of ``x`` along a new leading axis."""
    return np.repeat(np.expand_dims(x, axis=0), n, axis=0)


def repeated_box(box_space: spaces.Box, n: int) -> spaces.Box:
    """A box with a leading axis of length ``n``."""
    return spaces.Box(
        low=stack_repeated(box_space.low, n),
        high=stack_repeated(box_space.high, n),
        dtype=box_space.dtype.type,
    )


def repeated_space(space: spaces.Space, n: int) -> spaces.Space:
    """``space`` with a leading axis of length ``n``; dictionaries per key, in their order.

    Raises:
        RuntimeError: Neither a Box nor a Dict.
    """
    if isinstance(space, spaces.Box):
        return repeated_box(space, n)
    if isinstance(space, spaces.Dict):
        return spaces.Dict(OrderedDict((k, repeated_space(s, n)) for k, s in space.spaces.items()))
    raise RuntimeError(
        f"a {type(space).__name__} space cannot be stacked, expected a Box or a Dict of them"
    )


def take_last_n(x: Iterable[Any], n: int) -> np.ndarray:
    """The last ``n`` items, or fewer if there are fewer; ``n = 0`` takes all.

    Items that make no rectangular array (dictionaries, ragged lists) become an object array.
    """
    items = list(x)[-n:]
    try:
        return np.array(items)
    except ValueError:  # ragged
        ragged = np.empty(len(items), dtype=object)
        ragged[:] = items
        return ragged


def dict_take_last_n(x: Mapping[str, Iterable[Any]], n: int) -> dict[str, np.ndarray]:
    """:func:`take_last_n` for each key."""
    return {key: take_last_n(value, n) for key, value in x.items()}


def aggregate(data: Sequence[float], method: str = "max") -> Any:
    """One number out of a sequence of rewards.

    Raises:
        NotImplementedError: ``method`` is not max, min, mean or sum.
    """
    if method not in _AGGREGATES:
        raise NotImplementedError(
            f"reward_agg_method is {method!r}, expected one of {sorted(_AGGREGATES)}"
        )
    return _AGGREGATES[method](data)


def stack_last_n_obs(all_obs: Iterable[np.ndarray], n_steps: int) -> np.ndarray:
    """The last ``n_steps`` observations, oldest first; the oldest one is repeated where there are
    too few.

    Returns:
        (n_steps, ...), in the dtype of the newest observation.
    """
    recent = list(all_obs)[-n_steps:]
    padded = [recent[0]] * (n_steps - len(recent)) + recent
    return np.stack(padded).astype(np.asarray(recent[-1]).dtype, copy=False)


class MultiStepWrapper(gym.Wrapper):
    """Executes a chunk of actions per ``step`` and returns the last ``n_obs_steps`` observations.

    The returned reward is the aggregate of all rewards of the episode so far. Once the episode is
    over, ``step`` changes nothing and returns the same again.

    A reward or an observation that is NaN or infinite raises :class:`NonFiniteEnvError`: aggregates
    would hide it, and a policy would be blamed for the actions that follow from it.

    Args:
        env: A gymnasium environment, or one with the gym 0.21 interface; Box or Dict observations.
        n_obs_steps: Consecutive observations per stack.
        n_action_steps: Actions per chunk, in the action space; ``step`` takes any number.
        max_episode_steps: Environment steps after which the episode is truncated.
        reward_agg_method: max, min, mean or sum.
    """

    def __init__(
        self,
        env: Any,
        n_obs_steps: int,
        n_action_steps: int,
        max_episode_steps: int | None = None,
        reward_agg_method: str = "max",
    ):
        super().__init__(as_gymnasium(env))
        self.action_space = repeated_space(self.env.action_space, n_action_steps)
        self.observation_space = repeated_space(self.env.observation_space, n_obs_steps)
        self.max_episode_steps = max_episode_steps
        self.n_obs_steps = n_obs_steps
        self.n_action_steps = n_action_steps
        self.reward_agg_method = reward_agg_method
        self._seed: int | None = None  # of the running episode
        self._start([])

    def _start(self, observations: list[Any]) -> None:
        self.obs: deque[Any] = deque(observations, maxlen=self.n_obs_steps + 1)
        self.reward: list[Any] = []
        self.done: list[bool] = []
        self.terminated = self.truncated = False
        self.info: dict[str, deque[Any]] = defaultdict(lambda: deque(maxlen=self.n_obs_steps + 1))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode.

        Returns:
            The first observation, stacked (n_obs_steps, ...), and the environment's own info.
        """
        obs, info = self.env.reset(seed=seed, options=options)
        self._start([obs])
        self._seed = seed
        self._require_finite_obs(obs)
        return self._stacked_obs(), info

    def step(self, action: Any):
        """Execute ``action`` (k, Da) row by row, up to the end of the episode.

        Returns:
            Stacked observation, aggregate of all rewards, terminated, truncated, and for each info
            key the array of its last n_obs_steps values.
        """
        if not self.obs:
            raise RuntimeError("step was called before reset")
        for row in action:
            if self.terminated or self.truncated:
                break
            self._step_once(row)
        if not self.reward:
            raise ConfigError("step was given a chunk of no actions, expected at least one")
        reward = aggregate(self.reward, self.reward_agg_method)
        info = dict_take_last_n(self.info, self.n_obs_steps)
        return self._stacked_obs(), reward, self.terminated, self.truncated, info

    def _step_once(self, action: Any) -> None:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.obs.append(obs)
        self.reward.append(reward)
        if not math.isfinite(reward):
            raise self._not_finite(f"reward is {float(reward)}")
        self._require_finite_obs(obs)
        out_of_time = (
            self.max_episode_steps is not None and len(self.reward) >= self.max_episode_steps
        )
        self.terminated = bool(terminated)
        self.truncated = bool(truncated) or out_of_time
        self.done.append(self.terminated or self.truncated)
        for key, value in info.items():
            self.info[key].append(value)

    def _require_finite_obs(self, obs: Any) -> None:
        leaves = obs.items() if isinstance(obs, Mapping) else [("", obs)]
        for key, value in leaves:
            array = np.asarray(value)
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                bad = np.argwhere(~np.isfinite(array))[0]
                raise self._not_finite(f"observation {key}{bad.tolist()} is {array[tuple(bad)]}")

    def _not_finite(self, what: str) -> NonFiniteEnvError:
        seed = "without a seed" if self._seed is None else f"with seed {self._seed}"
        when = f"in step {len(self.reward)}" if self.reward else "after its reset"
        return NonFiniteEnvError(
            f"its {what} {when} of the episode {seed}: this comes from the environment, not from "
            "the policy's weights"
        )

    def _stacked_obs(self) -> Any:
        if isinstance(self.env.observation_space, spaces.Dict):
            return {
                key: stack_last_n_obs([obs[key] for obs in self.obs], self.n_obs_steps)
                for key in self.env.observation_space.spaces
            }
        return stack_last_n_obs(self.obs, self.n_obs_steps)

    # ------------------------------------------------------------------ called from other processes

    def get_attr(self, name: str) -> Any:
        """An attribute of this wrapper; ``"reward"`` is the list of all rewards of the episode."""
        return getattr(self, name)

    def get_rewards(self) -> list[Any]:
        """All rewards of the episode so far, one per environment step."""
        return self.reward

    def get_infos(self) -> dict[str, np.ndarray]:
        """The last n_obs_steps + 1 values of each info key."""
        return dict_take_last_n(self.info, self.n_obs_steps + 1)

    def run_dill_function(self, dill_fn: bytes) -> Any:
        """Unpickle a function, call it with this wrapper, return what it returns."""
        import dill

        return dill.loads(dill_fn)(self)
