"""Global average pooling."""

from collections.abc import Sequence

from torch import Tensor, nn


class GlobalAvgpool(nn.Module):
    """The mean over some dimensions, which vanish.

    Args:
        dim: the dimensions; (2, 3, 4) makes (B, C) of a clip (B, C, T, H, W).
    """

    def __init__(self, dim: int | Sequence[int]):
        super().__init__()
        self.dim = (dim,) if isinstance(dim, int) else tuple(dim)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=self.dim)
