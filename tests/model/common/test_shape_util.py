import torch
from torch import nn

from diffusion_policy.model.common.shape_util import get_module_device, get_output_shape


def test_output_shape_is_found_without_gradient_and_without_the_batch():
    seen = []

    class Net(nn.Module):
        def forward(self, x):
            seen.append(torch.is_grad_enabled())
            return x.flatten(1)[:, :5]

    assert get_output_shape((2, 3), Net()) == (5,)
    assert get_output_shape((3, 8, 8), nn.Conv2d(3, 4, 3)) == (4, 6, 6)
    assert seen == [False]


def test_the_device_of_a_module_without_parameters_is_the_cpu():
    assert get_module_device(nn.Identity()) == torch.device("cpu")
    assert get_module_device(nn.Linear(1, 1, device="meta")) == torch.device("meta")
