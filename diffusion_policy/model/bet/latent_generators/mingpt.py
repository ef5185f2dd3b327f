"""The network of the Behavior Transformer: a small GPT (Shafiullah et al. 2022, section 3.2)."""

from typing import Any

from torch import Tensor

from diffusion_policy.model.bet.latent_generators.binned import BinnedLatentGenerator
from diffusion_policy.model.bet.libraries.mingpt.model import GPT, GPTConfig


class MinGPT(BinnedLatentGenerator):
    """Predicts bins, and offsets, from the observations up to a step.

    Args:
        input_dim: O, values per step.
        n_layer, n_head, n_embd: size of the GPT.
        embd_pdrop, resid_pdrop, attn_pdrop: its dropout rates.
        block_size: steps of the longest sequence: the horizon.
        vocab_size: V, number of bins.
        latent_dim: kept as an attribute, without effect.
        action_dim: A.
        discrete_input: observations are tokens (B, T), not vectors.
        predict_offsets: predict an offset from every bin too.
        offset_loss_scale, focal_loss_gamma: see :class:`BinnedLatentGenerator`.
        kwargs: kept as attributes, without effect.
    """

    def __init__(
        self,
        input_dim: int,
        n_layer: int = 12,
        n_head: int = 12,
        n_embd: int = 768,
        embd_pdrop: float = 0.1,
        resid_pdrop: float = 0.1,
        attn_pdrop: float = 0.1,
        block_size: int = 128,
        vocab_size: int = 50257,
        latent_dim: int = 768,
        action_dim: int = 0,
        discrete_input: bool = False,
        predict_offsets: bool = False,
        offset_loss_scale: float = 1.0,
        focal_loss_gamma: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(
            vocab_size=vocab_size,
            action_dim=action_dim,
            predict_offsets=predict_offsets,
            offset_loss_scale=offset_loss_scale,
            focal_loss_gamma=focal_loss_gamma,
        )
        self.input_dim = input_dim
        self.block_size = block_size
        self.latent_dim = latent_dim
        for name, value in kwargs.items():
            setattr(self, name, value)
        self.model = GPT(
            GPTConfig(
                vocab_size=self.output_dim,
                block_size=block_size,
                input_size=input_dim,
                n_layer=n_layer,
                n_head=n_head,
                n_embd=n_embd,
                embd_pdrop=embd_pdrop,
                resid_pdrop=resid_pdrop,
                attn_pdrop=attn_pdrop,
                discrete_input=discrete_input,
            )
        )

    def network(self, obs_rep: Tensor) -> Tensor:
        return self.model(obs_rep)[0]
