"""BatchNorm becomes GroupNorm everywhere, also where a module has two names."""

import pytest
import torch
from torch import nn

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.vision.group_norm import replace_batch_norm


def test_every_batch_norm_becomes_a_group_norm_of_16_channels_per_group():
    net = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Sequential(nn.BatchNorm2d(64), nn.BatchNorm2d(32)))
    net.add_module("alias", net[1])
    assert replace_batch_norm(net) is net
    assert [(m.num_groups, m.num_channels) for m in net[1]] == [(4, 64), (2, 32)]
    assert net.alias is net[1]
    assert not any("running" in key for key in net.state_dict())
    assert isinstance(replace_batch_norm(nn.BatchNorm2d(16)), nn.GroupNorm)


def test_the_replacement_normalises_groups_of_one_image():
    norm = replace_batch_norm(nn.BatchNorm2d(32))
    groups = norm(torch.randn(2, 32, 5, 5) * 7 + 3).reshape(2, 2, -1)
    assert torch.allclose(groups.mean(-1), torch.zeros(2, 2), atol=1e-5)
    assert torch.allclose(groups.std(-1, correction=0), torch.ones(2, 2), atol=1e-3)


def test_a_number_of_channels_without_whole_groups_is_named():
    with pytest.raises(ConfigError, match="a BatchNorm of 24 channels; use multiples of 16"):
        replace_batch_norm(nn.Sequential(nn.BatchNorm2d(24)))
