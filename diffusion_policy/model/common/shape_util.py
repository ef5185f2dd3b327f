"""Questions about a network's shapes and whereabouts."""

from collections.abc import Sequence

import torch
from torch import nn


def get_module_device(m: nn.Module) -> torch.device:
    """Device of the first parameter; the CPU if there is none."""
    return next((parameter.device for parameter in m.parameters()), torch.device("cpu"))


@torch.no_grad()
def get_output_shape(input_shape: Sequence[int], net: nn.Module) -> tuple[int, ...]:
    """Shape of ``net``'s output for one input of ``input_shape``; both without the batch."""
    output = net(torch.zeros(1, *input_shape, device=get_module_device(net)))
    return tuple(output.shape[1:])
