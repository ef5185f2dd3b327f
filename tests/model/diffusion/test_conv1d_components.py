import copy

import pytest
import torch
from torch import nn

from diffusion_policy.model.diffusion.conv1d_components import (
    Conv1dBlock,
    Downsample1d,
    ShortConv1d,
    Upsample1d,
)


def test_the_original_is_reproduced(golden):
    reference = torch.load(golden / "d_components.pt", weights_only=True)
    cases = [(Conv1dBlock(*case["args"]), case) for case in reference["conv1d_block"]]
    cases += [(Downsample1d(6), reference["down"]), (Upsample1d(6), reference["up"])]
    for module, case in cases:
        module.load_state_dict(case["sd"])
        torch.testing.assert_close(module(case["x"]), case["out"], rtol=1e-5, atol=1e-6)
        alone = torch.cat([module(x[None]) for x in case["x"]])
        torch.testing.assert_close(alone, case["out"], rtol=1e-5, atol=1e-6)


def gradients(module, x):
    x = x.clone().requires_grad_()
    module.zero_grad()
    y = module(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("batch", [1, 2, 40])
@pytest.mark.parametrize("length", [1, 2, 4, 5, 16])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(5, 1, 2), (3, 2, 1), (1, 1, 0), (3, 1, 1)]
)
def test_a_short_convolution_is_a_convolution(batch, length, kernel, stride, padding):
    torch.manual_seed(0)
    ours = ShortConv1d(6, 10, kernel, stride=stride, padding=padding)
    torchs = nn.Conv1d(6, 10, kernel, stride=stride, padding=padding)
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(batch, 6, length)
    for actual, expected in zip(gradients(ours, x), gradients(torchs, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_short_convolution_draws_the_initial_weights_of_a_convolution():
    torch.manual_seed(3)
    ours = ShortConv1d(4, 4, 3).weight
    torch.manual_seed(3)
    assert torch.equal(ours, nn.Conv1d(4, 4, 3).weight)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 4, 9])
def test_upsampling_is_a_transposed_convolution(batch, length):
    torch.manual_seed(0)
    ours = Upsample1d(6)
    x = torch.randn(batch, 6, length)
    twin = copy.deepcopy(ours.conv)
    for actual, expected in zip(gradients(ours, x), gradients(twin, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert ours(x).shape == (batch, 6, 2 * length)


def test_downsampling_halves_the_sequence():
    assert Downsample1d(6)(torch.randn(2, 6, 8)).shape == (2, 6, 4)
