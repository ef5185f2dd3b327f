"""Weights and inputs that can be made anywhere, for numbers of the original implementation."""

import math
import zlib

import torch


def fill(module):
    """Sets every parameter to 0.1 sin(0.7 i + phase of its name)."""
    for name, parameter in module.named_parameters():
        phase = (zlib.crc32(name.encode()) % 1000) / 100
        i = torch.arange(parameter.numel(), dtype=torch.float64)
        values = 0.1 * torch.sin(0.7 * i + phase)
        parameter.data.copy_(values.reshape(parameter.shape))
    return module


def wave(*shape, phase=0.0):
    """sin(0.3 i + phase)."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.3 * i + phase).float().reshape(shape)


def seeded_state_dict(shapes, seed):
    """The weights of the golden policies: drawn in the order of the sorted keys.

    Args:
        shapes: state-dict key to shape, of the whole policy.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key in sorted(shapes):
        shape = shapes[key]
        if key.startswith("normalizer."):
            continue
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros(shape, dtype=torch.int64)
            continue
        if math.prod(shape) == 0:
            state[key] = torch.zeros(shape)
            continue
        draw = torch.randn(shape, generator=generator)
        if key.endswith("running_var"):
            draw = draw.abs() + 0.5
        elif len(shape) >= 2:
            draw = draw / math.sqrt(math.prod(shape[1:]))
        elif key.endswith("weight"):
            draw = 1 + 0.1 * draw
        else:
            draw = 0.1 * draw
        state[key] = draw
    return state
