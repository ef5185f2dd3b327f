"""Action auto-encoders: continuous actions as latents that a sequence model can predict."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class AbstractActionAE(ABC, nn.Module):
    """Base of auto-encoders that are trained by gradient descent.

    The k-means discretizer is not one of them: it is fitted at once, on all actions.
    """

    @abstractmethod
    def fit_model(self, input_dataloader: Any, eval_dataloader: Any, obs_encoding_net: Any) -> None:
        """Trains the auto-encoder on batches of observations and actions."""

    @abstractmethod
    def encode_into_latent(self, input_action: Tensor, input_rep: Tensor | None = None) -> Any:
        """Latents of actions (..., A), given the encoded observations (..., O)."""

    @abstractmethod
    def decode_actions(
        self, latent_action_batch: Any, input_rep_batch: Tensor | None = None
    ) -> Tensor:
        """Actions (..., A) of latents."""

    @property
    @abstractmethod
    def num_latents(self) -> int | float:
        """How many latents there are; infinite where they are continuous."""
