"""Environments that live in one process and are run one after the other."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from diffusion_policy.common.errors import (
    ConfigError,
    DiffusionPolicyError,
    EnvWorkerError,
    message_of,
    shorten,
)
from diffusion_policy.gym_util.gym021_adapter import as_gymnasium
from diffusion_policy.gym_util.observation_buffer import ObservationBuffer

logger = logging.getLogger(__name__)

EnvFn = Callable[[], Any]

_MOST_OF_A_TRACEBACK = 12_000  # characters


def spaces_of(env_fn: EnvFn, name: str) -> tuple[spaces.Space, spaces.Space]:
    """The observation space and the action space of an environment, which is built to ask.

    Raises:
        EnvWorkerError: The builder raised; the message says so of ``name``.
    """
    try:
        env = as_gymnasium(env_fn())
        found = env.observation_space, env.action_space
        env.close()
        return found
    except Exception as error:
        raise _failure(name, "its creation", error) from error


class EnvGroup:
    """What a worker process does, free of processes: build environments, run commands on them.

    Args:
        env_fns: Build one environment each, gymnasium or gym 0.21 style.
        rows: Their indices in the vector environment, which are also their rows in
            ``observations``.
        observations: Where observations go.
        action_space: What every environment's action space has to be.

    Raises:
        EnvWorkerError: A builder raised, or an environment's spaces differ from the others'.
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        rows: Sequence[int],
        observations: ObservationBuffer,
        action_space: spaces.Space,
    ):
        self._observations = observations
        self._action_space = action_space
        self._envs: dict[int, gym.Env] = {}
        for row, env_fn in zip(rows, env_fns, strict=True):
            try:
                self._envs[row] = as_gymnasium(env_fn())
                self._check_spaces(self._envs[row])
            except Exception as error:
                self.close()
                raise _failure(f"environment {row}", "its creation", error) from error

    def _check_spaces(self, env: gym.Env) -> None:
        for name, expected in [
            ("observation", self._observations.space),
            ("action", self._action_space),
        ]:
            found = getattr(env, f"{name}_space")
            if found != expected:
                raise ConfigError(
                    f"its {name} space is {found}, expected {expected}: all environments of a "
                    "vector environment need equal spaces"
                )

    def run(self, command: str, requests: Sequence[tuple[int, tuple]]) -> list[Any]:
        """Run one command (a public method below) on some environments.

        Args:
            command: ``reset``, ``step``, ``call`` or ``set_attr``.
            requests: (row, arguments) of each environment concerned.

        Returns:
            One result per request.

        Raises:
            EnvWorkerError: An environment raised; the message holds its index and traceback.
        """
        method = getattr(self, command)
        results = []
        for row, args in requests:
            try:
                results.append(method(row, *args))
            except Exception as error:
                raise _failure(f"environment {row}", command, error) from error
        return results

    def reset(self, row: int, seed: int | None, options: dict | None) -> dict[str, Any]:
        """Reset; returns the info."""
        obs, info = self._envs[row].reset(seed=seed, options=options)
        self._observations.write(row, obs)
        return info

    def step(self, row: int, action: Any) -> tuple[float, bool, bool, dict[str, Any]]:
        """Step; returns reward, terminated, truncated, info."""
        obs, reward, terminated, truncated, info = self._envs[row].step(action)
        self._observations.write(row, obs)
        return float(reward), bool(terminated), bool(truncated), info

    def call(self, row: int, name: str, args: tuple, kwargs: dict) -> Any:
        """Call a method, or read an attribute, of the environment or of what it wraps."""
        attribute = self._envs[row].get_wrapper_attr(name)
        return attribute(*args, **kwargs) if callable(attribute) else attribute

    def set_attr(self, row: int, name: str, value: Any) -> None:
        """Set an attribute of the environment or of what it wraps."""
        self._envs[row].set_wrapper_attr(name, value)

    def close(self) -> None:
        """Close all environments; what they raise is logged, it is too late to mend."""
        for row, env in self._envs.items():
            try:
                env.close()
            except Exception:
                logger.warning("environment %d raised while closing", row, exc_info=True)
        self._envs = {}


def _failure(name: str, doing: str, error: Exception) -> EnvWorkerError:
    happened = f"{name} raised {type(error).__name__} during {doing}: {message_of(error)}"
    if isinstance(error, DiffusionPolicyError):  # a sentence of ours, for the person at the screen
        return EnvWorkerError(happened)
    return EnvWorkerError(f"{happened}\nIts traceback:\n{_frames(error)}")


def _frames(error: Exception) -> str:
    """The traceback without its last words, which the sentence above it says."""
    parts = traceback.format_exception(error)
    last_words = traceback.format_exception_only(error)
    if parts[-len(last_words) :] == last_words:  # not so of an ExceptionGroup
        parts = parts[: -len(last_words)]
    return shorten("".join(map(shorten, parts)).rstrip(), _MOST_OF_A_TRACEBACK)
