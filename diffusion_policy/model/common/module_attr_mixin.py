"""``device`` and ``dtype`` for modules that may have no parameter of their own."""

import torch
from torch import nn


class ModuleAttrMixin(nn.Module):
    """A module that knows where it lives.

    Registers one empty parameter, ``_dummy_variable``, before anything else. It is part of every
    published state dict and takes an index in every saved optimizer state, so it stays.
    """

    def __init__(self):
        super().__init__()
        self._dummy_variable = nn.Parameter(torch.empty(0, dtype=torch.float32))

    @property
    def device(self) -> torch.device:
        """Device of the first parameter."""
        return next(iter(self.parameters())).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first parameter."""
        return next(iter(self.parameters())).dtype
