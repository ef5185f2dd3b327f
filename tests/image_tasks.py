"""Small tasks with images: what policies and encoders are made for and fed with."""

import torch

from diffusion_policy.common.normalize_util import get_image_range_normalizer
from diffusion_policy.model.common.normalizer import LinearNormalizer


def make_shape_meta(**obs):
    """Images of three numbers and vectors of one, in the given order; actions of two values."""
    entries = {
        key: {"shape": list(shape), "type": "rgb" if len(shape) == 3 else "low_dim"}
        for key, shape in obs.items()
    }
    return {"obs": entries, "action": {"shape": [2]}}


def pusht(size):
    """shape_meta of Push-T with square images."""
    return make_shape_meta(image=(3, size, size), agent_pos=(2,))


def pusht_normalizer():
    normalizer = LinearNormalizer()
    normalizer.fit({"agent_pos": torch.rand(50, 2) * 500, "action": torch.rand(50, 2) * 500})
    normalizer["image"] = get_image_range_normalizer()
    return normalizer


def pusht_observations(size, batch, steps, generator=None):
    """Frames as the data set and the environments deliver them: bytes."""
    shape = (batch, steps, 3, size, size)
    return {
        "image": torch.randint(0, 256, shape, generator=generator).to(torch.uint8),
        "agent_pos": torch.rand(batch, steps, 2, generator=generator) * 500,
    }
