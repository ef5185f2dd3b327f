"""Random numbers for a batch whose rows may each have a generator of their own.

During an evaluation a row is an episode, and what becomes of it must not depend on which episodes
happen to be computed next to it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# One generator for the whole batch; one per row: a row's numbers then depend on its own only; or
# None, torch's global one.
Generators = torch.Generator | list[torch.Generator] | None


class Draws:
    """Draws for B rows, from one generator or from one per row.

    Numbers are drawn where the generators live, so that an episode sees the same ones on every
    device, and arrive on ``device``.
    """

    def __init__(self, generator: Generators, batch_size: int, device: torch.device):
        self.generators = generator if isinstance(generator, list) else [generator]
        self.rows_each = 1 if isinstance(generator, list) else batch_size
        first = self.generators[0]
        self.home = device if first is None else first.device
        self.device = device

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) from U(0, 1)."""
        return self._rows(torch.rand, shape)

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) from N(0, 1)."""
        return self._rows(torch.randn, shape)

    def _rows(self, function: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        shape = (self.rows_each, *shape)
        parts = [function(shape, generator=g, device=self.home) for g in self.generators]
        return torch.cat(parts).to(self.device)

    def choice(self, probabilities: Tensor, n: int) -> Tensor:
        """(B, ..., n) draws with replacement: indices into the last axis of (B, ..., N)."""
        # Moved at once: group by group, a device would be waited for B times.
        groups = probabilities.to(self.home).split(self.rows_each)
        parts = [
            torch.multinomial(group.flatten(0, -2), n, replacement=True, generator=g)
            for group, g in zip(groups, self.generators, strict=True)
        ]
        return torch.cat(parts).view(*probabilities.shape[:-1], n).to(self.device)
