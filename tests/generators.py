"""Random number generators of the rows of a batch."""

import torch


def seeded(*seeds):
    """One per seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]
