"""The half of a Behavior Transformer that predicts latents of actions from observations."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_policy.common.draws import Generators

# Bins (B, T, 1) int64 or probabilities (B, T, V), alone or with the offsets (B, T, A) from a bin.
Latents = Tensor | tuple[Tensor, Tensor]


class AbstractLatentGenerator(ABC, nn.Module):
    """Models the latents of actions, given observations."""

    @abstractmethod
    def get_latent_and_loss(
        self, obs_rep: Tensor, target_latents: Latents, return_loss_components: bool = False
    ) -> tuple[Any, ...]:
        """What is predicted for encoded observations (B, T, O), and the loss of the true latents.

        Returns:
            (prediction, loss); with ``return_loss_components`` also the scalars that the loss
            consists of, by name.
        """

    @abstractmethod
    def generate_latents(self, obs_rep: Tensor, generator: Generators = None) -> Latents:
        """Draws latents for encoded observations (B, T, O)."""

    def get_optimizer(
        self, weight_decay: float, learning_rate: float, betas: Sequence[float]
    ) -> torch.optim.Optimizer:
        """Adam over all parameters, unless a generator knows better."""
        beta1, beta2 = betas
        return torch.optim.Adam(
            self.parameters(), lr=learning_rate, weight_decay=weight_decay, betas=(beta1, beta2)
        )


class LatentGeneratorDataParallel(nn.DataParallel):
    """A ``DataParallel`` with the methods of the generator inside."""

    module: AbstractLatentGenerator

    def get_latent_and_loss(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return self.module.get_latent_and_loss(*args, **kwargs)

    def generate_latents(self, *args: Any, **kwargs: Any) -> Latents:
        return self.module.generate_latents(*args, **kwargs)

    def get_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        return self.module.get_optimizer(*args, **kwargs)
