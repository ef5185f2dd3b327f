"""What a recurrent policy remembers of the episodes in the rows of its batches.

During an evaluation, episodes end and others begin, so that an episode moves from row to row and
the batch shrinks and grows. An outcome that depends on an episode alone needs a memory that moves
along with it. It is tied to the episode's generator: see ``generator`` of
:meth:`BasePolicy.predict_action`.
"""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from diffusion_policy.common.draws import Generators
from diffusion_policy.common.errors import ConfigError

# Of a recurrent network, each (layers, B, H); an LSTM has two.
State = tuple[Tensor, ...]


class EpisodeMemory:
    """The recurrent states of the episodes that a policy plays.

    An episode is known by its generator: as long as the same object comes with a row, that row
    continues the episode. With one generator (or none) for all rows, they are one group of episodes
    that stay in their rows. Nobody has to say that an episode is over: its state goes with its
    generator.

    Args:
        horizon: an episode's state starts anew every so many calls.
    """

    def __init__(self, horizon: int):
        self.horizon = horizon
        self._kept: WeakKeyDictionary[torch.Generator, tuple[int, State]] = WeakKeyDictionary()

    def forget(self) -> None:
        """The next call of every episode is its first."""
        self._kept.clear()

    def recall(self, generator: Generators, initial: State) -> State:
        """The states that the rows are in.

        Args:
            initial: of a whole batch.

        Raises:
            ConfigError: a group of episodes has another size than in its last call.
        """
        episodes = _episodes(generator)
        states = _split(initial, len(episodes))
        for i, episode in enumerate(episodes):
            calls, state = self._kept.get(episode, (0, states[i]))
            if calls % self.horizon == 0:
                continue
            if state[0].shape != states[i][0].shape:
                raise ConfigError(
                    f"a batch of {state[0].shape[1]} episodes is followed by one of "
                    f"{states[i][0].shape[1]}; call reset() of the policy before other episodes, "
                    "or give each episode a generator of its own"
                )
            states[i] = state
        return tuple(torch.cat(parts, dim=1) for parts in zip(*states, strict=True))

    def keep(self, generator: Generators, state: State) -> None:
        """Remembers the states that the rows are in after a call."""
        episodes = _episodes(generator)
        for episode, row in zip(episodes, _split(state, len(episodes)), strict=True):
            calls, _ = self._kept.get(episode, (0, row))
            self._kept[episode] = (calls + 1, row)


def _episodes(generator: Generators) -> list[torch.Generator]:
    if isinstance(generator, list):
        return generator
    return [torch.default_generator if generator is None else generator]


def _split(state: State, n: int) -> list[State]:
    """(layers, B, H) states as n of (layers, B / n, H)."""
    return list(zip(*(part.chunk(n, dim=1) for part in state), strict=True))
