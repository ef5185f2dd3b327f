"""What both vector environments are, apart from where their environments run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.gym_util.env_group import EnvFn
from diffusion_policy.gym_util.observation_buffer import Allocate, ObservationBuffer

_OWN_METHODS = ("reset", "step", "seed", "close")


class VectorEnv(ABC):
    """Several environments with equal spaces, stepped together; nothing is reset automatically.

    All methods take ``active``, a boolean mask or a list of indices, and touch those environments
    only (default: all). Arguments given per environment, and results of ``call``, ``call_each`` and
    ``render``, have one entry per active environment in ascending order. ``reset`` and ``step``
    return the state of *all* environments: those that are not active keep their last values.

    Args:
        env_fns: Build one environment each, of gymnasium or of gym 0.21 style.
        allocate: Memory for the observations.
        find_spaces: Builds an environment to ask it for its spaces, the observations' first.
        observation_space, action_space: Of one environment, if known: then none is built to ask.
        copy: Return copies of the observations, not views of memory that the next step overwrites.
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        allocate: Allocate,
        find_spaces: Callable[[], tuple[spaces.Space, spaces.Space]],
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
        copy: bool = True,
    ):
        if len(env_fns) == 0:
            raise ConfigError("a vector environment was given no env_fns, expected at least one")
        self.num_envs = len(env_fns)
        self.copy = copy
        self.closed = False
        if observation_space is None or action_space is None:
            found = find_spaces()
            observation_space = found[0] if observation_space is None else observation_space
            action_space = found[1] if action_space is None else action_space
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, self.num_envs)
        self.action_space = batch_space(action_space, self.num_envs)

        self._observations = ObservationBuffer(observation_space, self.num_envs, allocate)
        self._seeds: list[int | None] = [None] * self.num_envs
        self._rewards = np.zeros(self.num_envs)
        self._terminated = np.zeros(self.num_envs, dtype=bool)
        self._truncated = np.zeros(self.num_envs, dtype=bool)
        self._infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]

    @abstractmethod
    def _run(self, command: str, requests: list[tuple[int, tuple]]) -> list[Any]:
        """:meth:`EnvGroup.run`, wherever the environments live."""

    @abstractmethod
    def close(self) -> None:
        """Close all environments; may be called at any time, and twice."""

    def __del__(self):
        if not getattr(self, "closed", True):
            self.close()

    # ------------------------------------------------------------------ the environments

    def seed(self, seeds: int | Sequence[int | None] | None = None) -> None:
        """Seed the next ``reset`` of each environment.

        Args:
            seeds: One per environment; an int ``s`` means ``s + i`` for environment ``i``; None
                means unseeded.
        """
        self._seeds = self._spread(seeds, list(range(self.num_envs)))

    def reset(
        self,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
        active: Any = None,
    ) -> tuple[Any, tuple[dict[str, Any], ...]]:
        """Start new episodes.

        Args:
            seed: As for :meth:`seed`, which it overrides.
            options: Handed to each environment.
            active: See the class.

        Returns:
            Observations (num_envs, ...) nested like the space, and one info per environment.
        """
        rows = self._rows(active)
        seeds = [self._seeds[i] for i in rows] if seed is None else self._spread(seed, rows)
        infos = self._run("reset", [(i, (s, options)) for i, s in zip(rows, seeds, strict=True)])
        for i, info in zip(rows, infos, strict=True):
            self._seeds[i] = None
            self._infos[i] = info
        self._rewards[rows] = 0
        self._terminated[rows] = self._truncated[rows] = False
        return self._observations.read(self.copy), tuple(self._infos)

    def step(self, actions: Any, active: Any = None):
        """Step the active environments.

        Args:
            actions: One per active environment.
            active: See the class.

        Returns:
            Observations (num_envs, ...), rewards, terminations, truncations (num_envs,), and one
            info per environment.
        """
        rows = self._rows(active)
        self._check_length("actions", actions, rows)
        results = self._run("step", [(i, (a,)) for i, a in zip(rows, actions, strict=True)])
        for i, (reward, terminated, truncated, info) in zip(rows, results, strict=True):
            self._rewards[i] = reward
            self._terminated[i] = terminated
            self._truncated[i] = truncated
            self._infos[i] = info
        return (
            self._observations.read(self.copy),
            self._rewards.copy(),
            self._terminated.copy(),
            self._truncated.copy(),
            tuple(self._infos),
        )

    def call(self, name: str, *args: Any, active: Any = None, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of each environment or of what it wraps, or read an attribute."""
        _refuse_own(name)
        rows = self._rows(active)
        return tuple(self._run("call", [(i, (name, args, kwargs)) for i in rows]))

    def call_each(
        self,
        name: str,
        args_list: Sequence[tuple] | None = None,
        kwargs_list: Sequence[dict] | None = None,
        active: Any = None,
    ) -> tuple[Any, ...]:
        """:meth:`call` with arguments of its own for each environment."""
        _refuse_own(name)
        rows = self._rows(active)
        args_list = [()] * len(rows) if args_list is None else args_list
        kwargs_list = [{}] * len(rows) if kwargs_list is None else kwargs_list
        self._check_length("args_list", args_list, rows)
        self._check_length("kwargs_list", kwargs_list, rows)
        calls = zip(rows, args_list, kwargs_list, strict=True)
        return tuple(self._run("call", [(i, (name, a, k)) for i, a, k in calls]))

    def render(self, *args: Any, active: Any = None, **kwargs: Any) -> tuple[Any, ...]:
        """``call("render", ...)``."""
        return self.call("render", *args, active=active, **kwargs)

    def set_attr(self, name: str, values: Any, active: Any = None) -> None:
        """Set an attribute: one value for all, or a list or tuple with one for each."""
        rows = self._rows(active)
        if not isinstance(values, list | tuple):
            values = [values] * len(rows)
        self._check_length("values", values, rows)
        self._run("set_attr", [(i, (name, v)) for i, v in zip(rows, values, strict=True)])

    # ------------------------------------------------------------------ arguments

    def _rows(self, active: Any) -> list[int]:
        if self.closed:
            raise ConfigError("this vector environment was closed, make a new one")
        if active is None:
            return list(range(self.num_envs))
        mask = np.asarray(active)
        if mask.dtype != bool:
            indices = mask.astype(int).reshape(-1)
            mask = np.zeros(self.num_envs, dtype=bool)
            mask[indices] = True
        if mask.shape != (self.num_envs,):
            raise ConfigError(
                f"the mask of active environments has shape {mask.shape}, expected "
                f"({self.num_envs},)"
            )
        return np.flatnonzero(mask).tolist()

    def _spread(self, seeds: Any, rows: list[int]) -> list[int | None]:
        if seeds is None:
            return [None] * len(rows)
        if isinstance(seeds, int | np.integer):
            return [int(seeds) + i for i in rows]
        self._check_length("seeds", seeds, rows)
        return [None if s is None else int(s) for s in seeds]

    @staticmethod
    def _check_length(name: str, values: Any, rows: list[int]) -> None:
        if len(values) != len(rows):
            raise ConfigError(
                f"{name} has {len(values)} entries for {len(rows)} active environments, expected "
                "one each"
            )


def _refuse_own(name: str) -> None:
    if name in _OWN_METHODS:
        raise ConfigError(f"call({name!r}) is not allowed, use the vector environment's {name}()")
