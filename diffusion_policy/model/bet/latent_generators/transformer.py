"""The transformer of Diffusion Policy in the place of the GPT."""

from typing import Any

from torch import Tensor

from diffusion_policy.model.bet.latent_generators.binned import BinnedLatentGenerator
from diffusion_policy.model.diffusion.transformer_for_diffusion import TransformerForDiffusion


class Transformer(BinnedLatentGenerator):
    """Predicts bins and offsets; the diffusion step, which the network asks for, is always 0.

    Args:
        input_dim: O, values per step.
        num_bins: V.
        action_dim: A.
        horizon: steps of the longest sequence.
        focal_loss_gamma, offset_loss_scale: see :class:`BinnedLatentGenerator`.
        kwargs: of :class:`TransformerForDiffusion`.
    """

    def __init__(
        self,
        input_dim: int,
        num_bins: int,
        action_dim: int,
        horizon: int,
        focal_loss_gamma: float,
        offset_loss_scale: float,
        **kwargs: Any,
    ):
        super().__init__(
            vocab_size=num_bins,
            action_dim=action_dim,
            predict_offsets=True,
            offset_loss_scale=offset_loss_scale,
            focal_loss_gamma=focal_loss_gamma,
        )
        self.model = TransformerForDiffusion(
            input_dim=input_dim, output_dim=self.output_dim, horizon=horizon, **kwargs
        )

    def network(self, obs_rep: Tensor) -> Tensor:
        return self.model(obs_rep, timestep=0)
