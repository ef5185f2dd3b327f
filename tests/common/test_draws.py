"""Random numbers of rows with generators of their own."""

import pytest
import torch
from generators import seeded

from diffusion_policy.common.draws import Draws, PartOfBatch, draw_rows, get_generators

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


# ---- a training batch that several processes compute ---------------------------------------------


def compute(rows, n_rows, own_seed):
    """What a loss draws of a part of a batch: per row, per frame of two, and dropout."""
    torch.manual_seed(own_seed)
    own = get_generators(CPU)
    torch.manual_seed(0)
    part = PartOfBatch(rows.start, rows.stop, n_rows, own, CPU)
    with part.active():
        noise = draw_rows(lambda n: torch.randn(n, 3), len(rows))
        dropout = torch.rand(4)
        frames = draw_rows(lambda n: torch.rand(n, 2), 2 * len(rows))
    return noise, frames, dropout, torch.rand(1)


def test_parts_of_a_batch_get_the_numbers_of_the_whole():
    torch.manual_seed(0)
    noise, frames = (
        draw_rows(lambda n: torch.randn(n, 3), 5),
        draw_rows(lambda n: torch.rand(n, 2), 10),
    )
    after = torch.rand(1)
    first, second = compute(range(3), 5, own_seed=1), compute(range(3, 5), 5, own_seed=2)
    assert torch.equal(torch.cat([first[0], second[0]]), noise)
    assert torch.equal(torch.cat([first[1], second[1]]), frames)
    # what follows is that of one process, too
    assert torch.equal(first[3], after)
    assert torch.equal(second[3], after)


def test_parts_have_numbers_of_their_own_beside():
    own = [compute(range(3), 5, own_seed=seed)[2] for seed in (1, 2, 1)]
    assert not torch.equal(own[0], own[1])
    assert torch.equal(own[0], own[2])


def test_own_numbers_go_on_from_batch_to_batch():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    own = get_generators(CPU)
    drawn = []
    for _ in range(2):
        with PartOfBatch(0, 1, 2, own, CPU).active():
            drawn.append(torch.rand(1))
    assert torch.equal(torch.cat(drawn), expected)


def test_drawing_for_a_number_of_rows_that_does_not_fit_the_part():
    part = PartOfBatch(0, 2, 4, get_generators(CPU), CPU)
    with part.active(), pytest.raises(ValueError, match="3 rows are drawn for 2 items"):
        draw_rows(torch.randn, 3)
    assert draw_rows(torch.randn, 3).shape == (3,)  # the part is over
