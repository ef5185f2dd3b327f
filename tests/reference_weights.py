"""Weights and inputs that can be made anywhere: numbers of the original were computed with them."""

import math
import zlib

import torch


def wave(*shape, phase=0.0):
    """IN of the specification: sin(0.3 i + phase)."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.3 * i + phase).float().view(shape)


@torch.no_grad()
def fill(module):
    """FILL of the specification: every parameter is a sine whose phase depends on its name."""
    for name, parameter in module.named_parameters():
        phase = zlib.crc32(name.encode()) % 1000 / 100
        i = torch.arange(parameter.numel(), dtype=torch.float64)
        parameter.copy_((0.1 * torch.sin(0.7 * i + phase)).view_as(parameter))
    return module


def statistics(x):
    """What the specification states of a tensor: mean, deviation and the first four numbers."""
    return [x.mean().item(), x.std().item(), *x.flatten()[:4].tolist()]


def draw_by_recipe(shapes, seed):
    """Random weights of the larger reference cases (golden README, fill_recipe_seed).

    Args:
        shapes: state-dict key to shape, of the whole policy: they share one generator.

    Returns:
        State-dict key to tensor, sorted; neither normalizers nor masks.
    """
    g = torch.Generator().manual_seed(seed)
    weights = {}
    for key, shape in sorted(shapes.items()):
        name = key.rpartition(".")[2]
        if key.startswith("normalizer.") or name in ("mask", "memory_mask"):
            continue
        if math.prod(shape) == 0 or name == "num_batches_tracked":
            weights[key] = torch.zeros(shape)
            continue
        r = torch.randn(shape, generator=g)
        if name == "running_var":
            r = r.abs() + 0.5
        elif r.ndim >= 2:
            r = r / math.prod(r.shape[1:]) ** 0.5
        else:
            r = 1 + 0.1 * r if name.endswith("weight") else 0.1 * r
        weights[key] = r
    return weights


@torch.no_grad()
def overwrite(module, weights):
    """Some of a module's weights, in place: of two names of one tensor, the last one counts."""
    state = module.state_dict()
    for key, value in weights.items():
        state[key].copy_(value)
    return module


def fill_by_recipe(module, seed):
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    return overwrite(module, draw_by_recipe(shapes, seed))


def layout(module):
    """Shape and type of every entry of a state dict, as the stock state dicts list them."""
    return {
        key: [list(value.shape), str(value.dtype).removeprefix("torch.")]
        for key, value in module.state_dict().items()
    }
