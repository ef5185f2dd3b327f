"""Weights and inputs that can be made anywhere: numbers of the original were computed with them."""

import math
import zlib

import torch


@torch.no_grad()
def fill(module):
    """FILL of the specification: every parameter is a sine whose phase depends on its name."""
    for name, parameter in module.named_parameters():
        phase = zlib.crc32(name.encode()) % 1000 / 100
        i = torch.arange(parameter.numel(), dtype=torch.float64)
        parameter.copy_((0.1 * torch.sin(0.7 * i + phase)).view_as(parameter))
    return module


def wave(*shape, phase=0.0):
    """IN of the specification: sin(0.3 i + phase)."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.3 * i + phase).float().view(shape)


@torch.no_grad()
def fill_by_recipe(module, seed):
    """Random weights of the larger reference cases (golden README, fill_recipe_seed)."""
    g = torch.Generator().manual_seed(seed)
    for key, value in sorted(module.state_dict().items()):
        is_mask = key.rpartition(".")[2] in ("mask", "memory_mask")
        if key.startswith("normalizer.") or value.numel() == 0 or is_mask:
            continue
        if not value.is_floating_point():
            value.zero_()
            continue
        r = torch.randn(value.shape, generator=g)
        if key.endswith("running_var"):
            r = r.abs() + 0.5
        elif r.ndim >= 2:
            r = r / math.prod(r.shape[1:]) ** 0.5
        else:
            r = 1 + 0.1 * r if key.endswith("weight") else 0.1 * r
        value.copy_(r)  # in place: of two names of one tensor, the last one counts
    return module
