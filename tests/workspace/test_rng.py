"""Random number generators, there and back."""

import random

import dill
import numpy as np
import torch

from diffusion_policy.common.safe_pickle import safe_loads
from diffusion_policy.workspace.rng import get_rng_state, set_rng_state


def draw():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), np.random.randn(), random.random()


def test_every_generator_continues_where_it_was():
    np.random.randn()  # leaves a second normal draw waiting: part of the state
    state = safe_loads(dill.dumps(get_rng_state()))  # as it travels in a checkpoint
    expected = draw()
    draw()
    set_rng_state(state)
    assert draw() == expected
