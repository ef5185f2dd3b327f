"""The ways of asking a policy for the actions of the episodes that are being played.

A caller is made per rollout. It gets the observations of *all* environments and answers for those
that play.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_policy.common.errors import DiffusionPolicyError
from diffusion_policy.env_runner.episodes import Episode

if TYPE_CHECKING:
    import torch

    from diffusion_policy.env_runner.base_runner import Policy

Observations = dict[str, np.ndarray]


def takes_generator(policy: Policy) -> bool:
    """Whether ``predict_action`` can draw its noise from given generators."""
    return "generator" in inspect.signature(policy.predict_action).parameters


class PolicyCaller(ABC):
    """Base of the callers.

    Args:
        policy: On its device, in evaluation mode.
        observe: Turns observations of the environments, any number of rows, into the policy's.
        episodes: All episodes of the rollout.
    """

    def __init__(
        self, policy: Policy, observe: Callable[[Any], Observations], episodes: Sequence[Episode]
    ):
        self.policy = policy
        self.observe = observe
        self.episodes = episodes

    @abstractmethod
    def __call__(self, obs: Any, playing: Mapping[int, int]) -> np.ndarray:
        """Actions (len(playing), Ta, Da).

        Args:
            obs: Observations of all environments.
            playing: Index of the environment -> index of its episode, by environment.
        """

    def predict(
        self, obs: Observations, generators: list[torch.Generator] | None = None
    ) -> np.ndarray:
        """One call of the policy on a batch of observations."""
        import torch

        device = self.policy.device
        # Copies: the environments write into the same memory again, and a policy may keep what it
        # saw.
        tensors = {
            key: torch.from_numpy(np.array(value, order="C")).to(device)
            for key, value in obs.items()
        }
        extra = {} if generators is None else {"generator": generators}
        with torch.no_grad():
            action = self.policy.predict_action(tensors, **extra)["action"]
        return action.cpu().numpy()


class WholeBatchCaller(PolicyCaller):
    """Every environment is a row of every call, also when its episode is over.

    This is how the original draws its noise (from the global generator, for the whole batch), and
    what policies need that remember something per row.
    """

    def __call__(self, obs: Any, playing: Mapping[int, int]) -> np.ndarray:
        return self.predict(self.observe(obs))[list(playing)]


class EpisodeNoiseCaller(PolicyCaller):
    """Only environments that play are rows, and each row has the generator of its episode."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._generators: dict[int, torch.Generator] = {}

    def generator(self, episode: int) -> torch.Generator:
        """The noise stream of an episode, which goes on from call to call."""
        if episode not in self._generators:
            self._generators[episode] = self.episodes[episode].noise_generator()
        return self._generators[episode]

    def __call__(self, obs: Any, playing: Mapping[int, int]) -> np.ndarray:
        rows = take_rows(obs, list(playing))
        return self.predict(self.observe(rows), [self.generator(e) for e in playing.values()])


class FixedBatchCaller(EpisodeNoiseCaller):
    """Bit-identical actions for any number of environments.

    Matrix products may round differently for other batch sizes or row positions, and the episode
    then takes another course. So episode i is always row ``i % size`` of a batch of ``size`` rows;
    the rows of absent episodes are zero.
    """

    def __init__(self, *args: Any, size: int):
        super().__init__(*args)
        self.size = size

    def __call__(self, obs: Any, playing: Mapping[int, int]) -> np.ndarray:
        rows = self.observe(take_rows(obs, list(playing)))
        episodes = np.array(list(playing.values()))
        actions: dict[int, np.ndarray] = {}
        for group in np.unique(episodes // self.size):
            members = np.flatnonzero(episodes // self.size == group)
            places = episodes[members] % self.size
            batch = {k: self._padded(v[members], places) for k, v in rows.items()}
            predicted = self.predict(batch, self._group_generators(episodes[members]))
            actions.update(zip(members.tolist(), predicted[places], strict=True))
        return np.stack([actions[i] for i in range(len(episodes))])

    def _padded(self, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        batch = np.zeros((self.size, *rows.shape[1:]), rows.dtype)
        batch[places] = rows
        return batch

    def _group_generators(self, episodes: np.ndarray) -> list[torch.Generator]:
        import torch

        generators = [torch.Generator() for _ in range(self.size)]
        for episode in episodes.tolist():
            generators[episode % self.size] = self.generator(episode)
        return generators


def take_rows(obs: Any, rows: Sequence[int]) -> Any:
    """The given rows of batched observations, nested in dictionaries or not."""
    if isinstance(obs, Mapping):
        return {key: take_rows(value, rows) for key, value in obs.items()}
    return obs[rows]


def require_finite(actions: np.ndarray, names: Sequence[str], steps: Sequence[int]) -> None:
    """Stop at the first action that no environment should ever see.

    Args:
        actions: (N, Ta, Da).
        names: Of the episodes, by row.
        steps: Environment steps that they have taken, by row.

    Raises:
        DiffusionPolicyError: There is a NaN or an infinity.
    """
    bad = np.flatnonzero(~np.isfinite(actions).all(axis=(1, 2)))
    if len(bad):
        i = bad[0]
        raise DiffusionPolicyError(
            f"the policy returned a NaN or infinite action in episode {names[i]} at "
            f"environment step {steps[i]}: its weights or its normalizer are broken, evaluate an "
            "earlier checkpoint"
        )
