"""Losses of a classifier whose classes are far from equally frequent."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_policy.common.errors import ConfigError

REDUCTIONS = ("mean", "sum", "none")


def soft_cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    """KL divergence of the predicted from the target distribution, mean over rows.

    Args:
        input: (N, C) logits.
        target: (N, C) probabilities.
    """
    return F.kl_div(F.log_softmax(input, dim=-1), target, reduction="batchmean")


class FocalLoss(nn.Module):
    """-alpha_y (1 - p_y)^gamma log p_y: confident predictions count less (Lin et al. 2017, eq. 5).

    Args:
        alpha: (C,) weights of the classes; None weighs all alike.
        gamma: 0 is cross-entropy.
        reduction: ``mean`` over all rows that are not ignored (0 where none is left; the weights
            do not enter the denominator), ``sum``, or ``none``: the rows that are not ignored.
        ignore_index: rows with this target are left out.

    Raises:
        ConfigError: an unknown reduction.
    """

    alpha: Tensor | None

    def __init__(
        self,
        alpha: Tensor | None = None,
        gamma: float = 0.0,
        reduction: str = "mean",
        ignore_index: int = -100,
    ):
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ConfigError(f"the reduction is {reduction!r}; it can be one of {REDUCTIONS}")
        self.register_buffer("alpha", alpha, persistent=False)
        self.gamma = gamma
        self.reduction = reduction
        self.ignore_index = ignore_index

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of logits (N, C) for classes (N,), or of (N, C, ...) for (N, ...)."""
        x, y = x.movedim(1, -1).reshape(-1, x.shape[1]), y.reshape(-1)
        keep = y != self.ignore_index
        y = torch.where(keep, y, 0)
        log_p = F.log_softmax(x, dim=-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)
        loss = -log_p * (1 - log_p.exp()) ** self.gamma
        if self.alpha is not None:
            loss = loss * self.alpha[y]
        if self.reduction == "none":
            return loss[keep]
        # Not loss[keep]: its size is only known after the device was waited for.
        total = torch.where(keep, loss, 0.0).sum()
        return total if self.reduction == "sum" else total / keep.sum().clamp(min=1)


def focal_loss(
    alpha: Sequence[float] | Tensor | None = None,
    gamma: float = 0.0,
    reduction: str = "mean",
    ignore_index: int = -100,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FocalLoss:
    """A :class:`FocalLoss` whose weights may be a plain sequence; they land on ``device``."""
    if alpha is not None:
        alpha = torch.as_tensor(alpha, device=device, dtype=dtype)
    return FocalLoss(alpha, gamma, reduction, ignore_index)
