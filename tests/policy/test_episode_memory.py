"""Memories that stay with an episode, wherever it stands in a batch."""

import pytest
import torch
from generators import seeded

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.policy.episode_memory import EpisodeMemory

CPU = torch.device("cpu")
INITIAL = (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))


def state(value):
    """LSTM states of as many rows as there are values, told apart by them."""
    h = torch.tensor(value, dtype=torch.float32)[None, :, None].expand(2, -1, 4)
    return h, -h


def rows(memory, generator, n):
    """What the rows remember."""
    h, c = memory.recall(generator, tuple(part[:, :n] for part in INITIAL))
    assert torch.equal(c, -h)
    assert h.shape == (2, n, 4)
    return h[0, :, 0].tolist()


def test_a_state_follows_its_episode_to_other_rows_and_batches():
    memory = EpisodeMemory(10)
    a, b, c = seeded(0, 0, 0)  # equal seeds, and yet different episodes
    assert rows(memory, [a, b], 2) == [0, 0]
    memory.keep([a, b], state([1, 2]))
    assert rows(memory, [c, b, a], 3) == [0, 2, 1]
    memory.keep([b], state([3]))
    assert rows(memory, [a, b], 2) == [1, 3]


def test_each_episode_counts_its_own_calls_until_its_state_starts_anew():
    memory = EpisodeMemory(3)
    a, b = seeded(0, 1)
    memory.keep([a], state([1]))
    memory.keep([a, b], state([2, 2]))
    assert rows(memory, [a, b], 2) == [2, 2]
    memory.keep([a, b], state([3, 3]))
    assert rows(memory, [a, b], 2) == [0, 3]
    memory.keep([a, b], state([4, 4]))
    assert rows(memory, [a, b], 2) == [4, 0]


@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_without_a_generator_per_row_all_rows_are_one_group_of_episodes(generator):
    memory = EpisodeMemory(10)
    memory.keep(generator, state([1, 2, 3]))
    assert rows(memory, generator, 3) == [1, 2, 3]
    with pytest.raises(
        ConfigError, match=r"batch of 3 episodes is followed by one of 2; call reset"
    ):
        rows(memory, generator, 2)
    memory.forget()
    assert rows(memory, generator, 2) == [0, 0]


def test_a_group_that_starts_anew_may_have_another_size():
    memory = EpisodeMemory(1)
    memory.keep(None, state([1, 2, 3]))
    assert rows(memory, None, 2) == [0, 0]


def test_the_state_of_an_episode_goes_with_its_generator():
    memory = EpisodeMemory(10)
    generators = seeded(0, 1)
    memory.keep(generators, state([1, 2]))
    del generators[1]
    assert len(memory._kept) == 1
