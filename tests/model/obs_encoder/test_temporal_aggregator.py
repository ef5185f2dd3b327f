"""One vector from a sequence of low-dimensional observations."""

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.obs_encoder.temporal_aggregator import (
    ResidualConv1dBlock,
    TemporalAggregator,
)


@pytest.mark.parametrize(
    ("mults", "n_steps", "expected"),
    [([1, 1], 4, 9 * 2), ([1, 1], 1, 9), ([2], 4, 18 * 4), ([1, 2, 3], 5, 27 * 2)],
)
def test_every_level_but_the_last_halves_the_sequence(mults, n_steps, expected):
    net = TemporalAggregator(9, n_steps, OmegaConf.create(mults), n_groups=1)
    assert net.output_dim == expected
    assert net(torch.randn(3, n_steps, 9)).shape == (3, expected)


def test_the_published_settings_compose_levels_and_blocks():
    net = TemporalAggregator(9, 4, (1, 1), n_blocks_per_level=2, kernel_size=5, n_groups=3)
    blocks = [m for m in net.modules() if isinstance(m, ResidualConv1dBlock)]
    assert len(blocks) == 4
    assert all(block.blocks[0].block[1].num_groups == 3 for block in blocks)
    assert all(block.blocks[0].block[0].kernel_size == (5,) for block in blocks)


def test_where_the_robot_is_passes_the_normalisation():
    """GroupNorm takes a constant away; the residual connection keeps it."""
    torch.manual_seed(0)
    net = TemporalAggregator(4, 4, n_groups=1)
    with torch.no_grad():
        still = [net(torch.full((1, 4, 4), value)) for value in (0.1, 0.9)]
    assert (still[0] - still[1]).abs().max() > 0.1


def test_every_step_of_the_sequence_reaches_the_features():
    net = TemporalAggregator(4, 4, n_groups=1)
    obs = torch.randn(1, 4, 4, requires_grad=True)
    net(obs).sum().backward()
    assert (obs.grad.abs().sum((0, 2)) > 0).all()


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"n_groups": 8}, r"ta_n_groups is 8.*\[9, 9\] channels.*1 always works"),
        ({"channel_mults": [], "n_groups": 1}, r"channel_mults"),
        ({"kernel_size": 4, "n_groups": 1}, r"ta_kernel_size is 4.*odd"),
    ],
)
def test_impossible_settings_are_one_sentence(kwargs, sentence):
    with pytest.raises(ConfigError, match=sentence):
        TemporalAggregator(9, 4, **kwargs)
