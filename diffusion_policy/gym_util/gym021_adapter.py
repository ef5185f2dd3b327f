"""Environments of the gym 0.21 interface in our wrappers, and ours behind the gym 0.21 interface.

==========  ===============================  ======================================================
            gym 0.21                         gymnasium
==========  ===============================  ======================================================
``reset``   ``reset() -> obs``               ``reset(seed=, options=) -> obs, info``
``step``    obs, reward, done, info          obs, reward, terminated, truncated, info
seeding     ``seed(seed)``                   ``reset(seed=seed)``
``render``  ``render(mode)``                 ``render()`` in the ``render_mode`` it was made with
==========  ===============================  ======================================================

gym itself is not needed: everything goes by what an object can do, not by its class.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from diffusion_policy.common.errors import ConfigError

_TRUNCATED = "TimeLimit.truncated"  # how gym 0.21 tells a time limit from a real end
_METADATA_NAMES = {"render.modes": "render_modes", "video.frames_per_second": "render_fps"}


def as_gymnasium(env: Any) -> gym.Env:
    """``env`` as a gymnasium environment, wrapped if it speaks gym 0.21.

    What tells them apart: ``reset`` of a gymnasium environment takes a ``seed``.

    Raises:
        ConfigError: It is neither.
    """
    kind = type(env).__name__
    for name in ("reset", "step", "observation_space", "action_space"):
        if not hasattr(env, name):
            raise ConfigError(
                f"{kind} is not an environment: it has no `{name}`, expected a gymnasium.Env or an "
                f"object with the gym 0.21 interface"
            )
    if not _accepts(env.reset, "seed"):
        return Gym021ToGymnasium(env)
    if not isinstance(env, gym.Env):
        raise ConfigError(
            f"{kind}.reset takes a seed like gymnasium environments do, but {kind} is not a "
            f"gymnasium.Env: derive it from gymnasium.Env"
        )
    return env


def _accepts(function: Any, name: str) -> bool:
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def to_gymnasium_space(space: Any) -> spaces.Space:
    """The gymnasium twin of a gym 0.21 space, told by its class name; dictionary keys keep their
    order.

    Raises:
        ConfigError: A kind of space that has no twin here.
    """
    if isinstance(space, spaces.Space):
        return space
    match type(space).__name__:
        case "Box":
            return spaces.Box(space.low, space.high, dtype=space.dtype.type)
        case "Discrete":
            return spaces.Discrete(int(space.n))
        case "MultiBinary":
            return spaces.MultiBinary(space.n)
        case "MultiDiscrete":
            return spaces.MultiDiscrete(space.nvec)
        case "Tuple":
            return spaces.Tuple([to_gymnasium_space(s) for s in space.spaces])
        case "Dict":
            items = [(k, to_gymnasium_space(s)) for k, s in space.spaces.items()]
            return spaces.Dict(OrderedDict(items))
    raise ConfigError(
        f"{space!r} cannot be translated to gymnasium: expected a Box, Dict, Tuple, Discrete, "
        f"MultiBinary or MultiDiscrete space"
    )


class _Forwarding:
    """Unknown public attributes are those of the wrapped environment, as in gym 0.21's wrappers."""

    env: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "env":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.env, name)


class Gym021ToGymnasium(_Forwarding, gym.Env):
    """A gymnasium environment made of one with the gym 0.21 interface.

    Args:
        env: ``reset() -> obs``, ``step(action) -> (obs, reward, done, info)``, ``render(mode)``,
            and ``seed(seed)`` if it can be seeded.
        render_mode: The mode handed to ``env.render``.
    """

    def __init__(self, env: Any, render_mode: str = "rgb_array"):
        self.env = env
        self.render_mode = render_mode
        self.observation_space = to_gymnasium_space(env.observation_space)
        self.action_space = to_gymnasium_space(env.action_space)
        old = getattr(env, "metadata", None) or {}
        self.metadata = {_METADATA_NAMES.get(str(k), str(k)): v for k, v in old.items()}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Seed if asked to, and reset; gym 0.21 knows neither options nor an info here."""
        if options:
            raise ConfigError(
                f"reset options {sorted(options)} were given to {type(self.env).__name__}, but "
                f"environments of the gym 0.21 interface take none"
            )
        if seed is not None:
            if not hasattr(self.env, "seed"):
                raise ConfigError(
                    f"{type(self.env).__name__} was asked to reset with seed {seed}, but it has no "
                    f"`seed` method: add one"
                )
            self.env.seed(seed)
        return self.env.reset(), {}

    def step(self, action: Any):
        """``done`` is ``truncated`` if the info says so (time limit), else ``terminated``."""
        result = self.env.step(action)
        if len(result) != 4:
            raise ConfigError(
                f"{type(self.env).__name__}.step returned {len(result)} values, but its reset "
                "takes no seed, as in gym 0.21, where step returns 4 (obs, reward, done, info)"
            )
        obs, reward, done, info = result
        truncated = bool(done) and bool(info.get(_TRUNCATED, False))
        return obs, reward, bool(done) and not truncated, truncated, info

    def render(self) -> Any:
        """``env.render(render_mode)``."""
        return self.env.render(self.render_mode)

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """Set an attribute of the wrapped environment; returns whether it was set."""
        if force or hasattr(self.env, name):
            setattr(self.env, name, value)
            return True
        return False

    def close(self) -> None:
        """Close the wrapped environment, if it can be closed."""
        if hasattr(self.env, "close"):
            self.env.close()


class GymnasiumToGym021(_Forwarding):
    """The gym 0.21 interface of a gymnasium environment.

    ``seed`` is persistent: each later ``reset()`` starts the same episode again, until another seed
    is given. An environment with a ``seed`` method of its own (Push-T) is seeded through it and
    decides for itself.

    Args:
        env: A gymnasium environment; its ``render_mode`` is the one mode ``render`` can serve.
    """

    def __init__(self, env: gym.Env):
        self.env = env
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        new_to_old = {new: old for old, new in _METADATA_NAMES.items()}
        self.metadata = {new_to_old.get(k, k): v for k, v in env.metadata.items()}
        self._reset_seed: int | None = None

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Choose the episode that later resets start; None goes back to unseeded resets."""
        if self.env.has_wrapper_attr("seed"):
            self.env.get_wrapper_attr("seed")(seed)
        else:
            self._reset_seed = seed
        return [seed]

    def reset(self) -> Any:
        """Start an episode; returns the observation alone."""
        obs, _ = self.env.reset(seed=self._reset_seed)
        return obs

    def step(self, action: Any) -> tuple[Any, Any, bool, dict[str, Any]]:
        """Obs, reward, done, info; the info tells a truncation as gym 0.21's TimeLimit does."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        if truncated:
            info = {**info, _TRUNCATED: not terminated}
        return obs, reward, terminated or truncated, info

    def render(self, mode: str = "rgb_array") -> Any:
        """A frame, if the environment was made for this mode.

        Raises:
            ConfigError: It was made for another one.
        """
        if mode != self.env.render_mode:
            raise ConfigError(
                f"render(mode={mode!r}) was called, but the environment was made with "
                f"render_mode={self.env.render_mode!r}: make it with render_mode={mode!r}"
            )
        return self.env.render()

    def close(self) -> None:
        """Close the wrapped environment."""
        self.env.close()
