"""A vector environment in this process: for tests, debuggers and single cores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gymnasium import spaces

from diffusion_policy.gym_util.env_group import EnvFn, EnvGroup, spaces_of
from diffusion_policy.gym_util.vector_env import VectorEnv


class SyncVectorEnv(VectorEnv):
    """See :class:`VectorEnv`."""

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
        copy: bool = True,
    ):
        super().__init__(
            env_fns,
            bytearray,
            lambda: spaces_of(env_fns[0], "environment 0"),
            observation_space=observation_space,
            action_space=action_space,
            copy=copy,
        )
        self._group = EnvGroup(
            env_fns, range(self.num_envs), self._observations, self.single_action_space
        )

    def _run(self, command: str, requests: list[tuple[int, tuple]]) -> list[Any]:
        return self._group.run(command, requests)

    def close(self) -> None:
        """Close all environments."""
        self.closed = True
        if hasattr(self, "_group"):
            self._group.close()
