import numpy as np
import pytest
import torch
from torch import nn

from diffusion_policy.common.pytorch_util import (
    dict_apply,
    dict_apply_reduce,
    dict_apply_split,
    optimizer_to,
    pad_remaining_dims,
    replace_submodules,
)


def is_batch_norm(module):
    return isinstance(module, nn.BatchNorm2d)


def group_norm(module):
    return nn.GroupNorm(2, module.num_features)


def test_dict_apply_maps_the_leaves_of_nested_dictionaries_only():
    x = {"a": 1, "b": {"c": 2}, "d": [3]}
    assert dict_apply(x, lambda v: v * 2) == {"a": 2, "b": {"c": 4}, "d": [3, 3]}
    assert x == {"a": 1, "b": {"c": 2}, "d": [3]}


def test_dict_apply_split_groups_by_part():
    parts = dict_apply_split({"a": 5, "b": 7}, lambda v: {"half": v / 2, "double": v * 2})
    assert parts == {"half": {"a": 2.5, "b": 3.5}, "double": {"a": 10, "b": 14}}


def test_dict_apply_reduce_collects_each_key():
    batch = dict_apply_reduce([{"a": np.ones(2)}, {"a": np.zeros(2)}], np.stack)
    assert batch["a"].tolist() == [[1, 1], [0, 0]]


def test_pad_remaining_dims_makes_a_tensor_broadcastable():
    assert pad_remaining_dims(torch.ones(2, 3), torch.ones(2, 3, 4, 5)).shape == (2, 3, 1, 1)
    assert pad_remaining_dims(torch.ones(2), torch.ones(2)).shape == (2,)
    with pytest.raises(ValueError, match=r"\(3,\) is not the beginning of shape \(2, 3\)"):
        pad_remaining_dims(torch.ones(3), torch.ones(2, 3))


def test_submodules_are_replaced_in_sequentials_attributes_and_nested():
    net = nn.ModuleDict({"stem": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))})
    net["head"] = nn.ModuleList([nn.BatchNorm2d(6)])
    assert replace_submodules(net, is_batch_norm, group_norm) is net
    assert isinstance(net["stem"][1], nn.GroupNorm)
    assert net["head"][0].num_channels == 6
    assert list(net["stem"](torch.ones(1, 3, 2, 2)).shape) == [1, 4, 2, 2]


def test_a_matching_root_is_replaced_as_a_whole():
    assert isinstance(
        replace_submodules(nn.BatchNorm2d(4), is_batch_norm, group_norm), nn.GroupNorm
    )


def test_a_module_registered_in_several_places_is_replaced_by_one():
    norm = nn.BatchNorm2d(4)
    net = nn.Sequential(norm, nn.Sequential(norm))
    net.alias = norm
    net.nothing = None
    net.register_module("empty", None)
    replace_submodules(net, is_batch_norm, group_norm)
    assert net[0] is net[1][0] is net.alias
    assert isinstance(net[0], nn.GroupNorm)


def test_a_replacement_that_matches_again_is_reported():
    with pytest.raises(ValueError, match=r"\['0'\]"):
        replace_submodules(
            nn.Sequential(nn.BatchNorm2d(4)), is_batch_norm, lambda m: nn.BatchNorm2d(4)
        )


def test_an_optimizer_moves_with_all_its_state():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    assert optimizer_to(optimizer, "meta") is optimizer
    state = optimizer.state[parameter]
    assert {name: value.device.type for name, value in state.items()} == {
        "step": "meta",
        "exp_avg": "meta",
        "exp_avg_sq": "meta",
    }
