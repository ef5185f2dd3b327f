"""Random numbers of rows with generators of their own."""

import pytest
import torch
from generators import seeded

from diffusion_policy.common.draws import Draws

CPU = torch.device("cpu")
PROBABILITIES = torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(0))

KINDS = [
    lambda draws, rows: draws.uniform(2, 2),
    lambda draws, rows: draws.normal(4),
    lambda draws, rows: draws.choice(PROBABILITIES[rows], 3),
]


@pytest.mark.parametrize("draw", KINDS)
def test_each_row_is_drawn_by_its_own_generator(draw):
    together = draw(Draws(seeded(5, 6, 7), 3, CPU), [0, 1, 2])
    alone = [draw(Draws(seeded(5 + row), 1, CPU), [row]) for row in range(3)]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("draw", KINDS)
def test_one_generator_draws_the_whole_batch_as_the_global_one_would(draw):
    given = draw(Draws(*seeded(5), 3, CPU), [0, 1, 2])
    torch.manual_seed(5)
    assert torch.equal(draw(Draws(None, 3, CPU), [0, 1, 2]), given)


def test_choices_are_made_as_often_as_they_are_likely():
    probabilities = torch.tensor([[0.0, 0.25, 0.75]])
    chosen = Draws(*seeded(0), 1, CPU).choice(probabilities, 4000)
    assert chosen.shape == (1, 4000)
    frequency = chosen.flatten().bincount(minlength=3) / 4000
    torch.testing.assert_close(frequency, probabilities[0], atol=0.02, rtol=0)


def test_shapes_are_those_of_the_rows():
    draws = Draws(None, 4, CPU)
    assert draws.uniform(3, 2).shape == (4, 3, 2)
    assert draws.choice(torch.ones(4, 6, 5), 1).shape == (4, 6, 1)
