"""The embedding of the diffusion step (Vaswani et al. 2017, section 3.5)."""

import math

import torch
from torch import Tensor, nn

from diffusion_policy.common.errors import ConfigError


class SinusoidalPosEmb(nn.Module):
    """Position (B,) to (B, dim): sines of dim/2 geometric frequencies from 1 to 1/10000, then their
    cosines."""

    def __init__(self, dim: int):
        super().__init__()
        if dim < 4 or dim % 2:
            raise ConfigError(
                f"A sinusoidal embedding of {dim} dimensions was asked for; it needs an even "
                "number, at least 4 (diffusion_step_embed_dim of a U-Net, n_emb of a transformer)."
            )
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        half = self.dim // 2
        rate = math.log(10000) / (half - 1)
        frequencies = torch.exp(torch.arange(half, device=x.device) * -rate)
        angles = x[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1)
