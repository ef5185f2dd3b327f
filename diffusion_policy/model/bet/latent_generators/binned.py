"""Bins and offsets as latents: what all networks of a Behavior Transformer share.

A network gives, per step, the logits of the V bins and, for every bin, an offset of A values.
Training makes the true bin likely and *its* offset right; drawing a latent picks a bin and takes
its offset (Shafiullah et al. 2022, sections 3.2 and 3.3).
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_policy.common.draws import Draws, Generators
from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.bet.latent_generators.latent_generator import (
    AbstractLatentGenerator,
    Latents,
)
from diffusion_policy.model.bet.libraries.loss_fn import FocalLoss, soft_cross_entropy


class BinnedLatentGenerator(AbstractLatentGenerator):
    """Losses and sampling on top of ``model``, which a subclass makes.

    Args:
        vocab_size: V, number of bins.
        action_dim: A.
        predict_offsets: latents are (bin, offset).
        offset_loss_scale: weight of the offset's squared error next to the focal loss of the bin.
        focal_loss_gamma: of the focal loss; 0 is cross-entropy.
    """

    model: Any

    def __init__(
        self,
        vocab_size: int,
        action_dim: int,
        predict_offsets: bool,
        offset_loss_scale: float,
        focal_loss_gamma: float,
    ):
        super().__init__()
        self.vocab_size = vocab_size
        self.action_dim = action_dim
        self.predict_offsets = predict_offsets
        self.offset_loss_scale = offset_loss_scale
        self.focal_loss_gamma = focal_loss_gamma

    @property
    def output_dim(self) -> int:
        """Values that the network gives per step: V, or V + V A with offsets."""
        return self.vocab_size * (1 + self.action_dim if self.predict_offsets else 1)

    @abstractmethod
    def network(self, obs_rep: Tensor) -> Tensor:
        """(B, T, output_dim) for encoded observations (B, T, O)."""

    def _predict(self, obs_rep: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, V), and offsets (B, T, V, A) if there are any."""
        output = self.network(obs_rep)
        if not self.predict_offsets:
            return output, None
        logits, offsets = output.tensor_split((self.vocab_size,), dim=-1)
        return logits, offsets.unflatten(-1, (self.vocab_size, self.action_dim))

    # ---- training --------------------------------------------------------------------------------

    def get_latent_and_loss(
        self, obs_rep: Tensor, target_latents: Latents, return_loss_components: bool = False
    ) -> tuple[Any, ...]:
        """Predictions and losses.

        Args:
            obs_rep: (B, T, O) encoded observations.
            target_latents: bins (B, T, 1), or without offsets also probabilities (B, T, V); with
                ``predict_offsets`` a tuple of bins and offsets (B, T, A).

        Returns:
            Logits (T, B, V), with ``predict_offsets`` a tuple of them and offsets (T, B, V, A);
            the loss; if asked for, its components ``offset`` (where there is one), ``class`` and
            ``total``.
        """
        logits, offsets = self._predict(obs_rep)
        prediction: Latents = logits.transpose(0, 1)
        if offsets is None:
            losses = {"class": self._class_loss(logits, target_latents)}
        else:
            prediction = prediction, offsets.transpose(0, 1)
            bins, true_offsets = target_latents
            error = F.mse_loss(offsets_of(bins, offsets), true_offsets)
            losses = {"offset": self.offset_loss_scale * error}
            losses["class"] = self._class_loss(logits, bins)
        losses["total"] = torch.stack(list(losses.values())).sum()
        result = (prediction, losses["total"])
        return (*result, losses) if return_loss_components else result

    def _class_loss(self, logits: Tensor, target: Any) -> Tensor:
        logits = logits.flatten(0, -2)
        if target.shape[-1] == self.vocab_size > 1:
            return soft_cross_entropy(logits, target.flatten(0, -2))
        return FocalLoss(gamma=self.focal_loss_gamma)(logits, target.flatten())

    def get_optimizer(
        self, weight_decay: float, learning_rate: float, betas: Sequence[float]
    ) -> torch.optim.Optimizer:
        """The optimizer that the network asks for."""
        return self.model.configure_optimizers(
            learning_rate=learning_rate, weight_decay=weight_decay, betas=betas
        )

    # ---- sampling --------------------------------------------------------------------------------

    def generate_latents(self, obs_rep: Tensor, generator: Generators = None) -> Latents:
        """Draws a bin per step, each for itself: bins (B, T, 1), with ``predict_offsets`` a tuple
        of them and their offsets (B, T, A).
        """
        logits, offsets = self._predict(obs_rep)
        draws = Draws(generator, len(logits), logits.device)
        bins = draws.choice(logits.softmax(dim=-1), 1)
        return bins if offsets is None else (bins, offsets_of(bins, offsets))


def offsets_of(bins: Tensor, offsets: Tensor) -> Tensor:
    """(B, T, A), from bins (B, T, 1) and the offsets of all bins (B, T, V, A).

    Raises:
        ConfigError: these are not numbers of bins.
    """
    if bins.is_floating_point():
        raise ConfigError(
            f"the target latents are {bins.dtype} of shape {tuple(bins.shape)}, but with "
            "predict_offsets=True they are numbers of bins (B, T, 1): probabilities of bins have "
            "no offset; set predict_offsets=False"
        )
    return offsets.take_along_dim(bins.unsqueeze(-1), dim=-2).squeeze(-2)
