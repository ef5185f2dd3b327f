"""A module whose state is a tree of tensors that only the checkpoint knows."""

from typing import Any

import torch
from torch import Tensor, nn


class DictOfTensorMixin(nn.Module):
    """Holds ``params_dict``, a tree of ``nn.ParameterDict`` that loading a state dict *rebuilds*.

    An ordinary module must have its parameters before ``load_state_dict``. This one takes whatever
    fields the checkpoint holds: an empty normalizer can load any normalizer. What it held before is
    forgotten, ``strict`` has no meaning for it, and the tensors keep the device and dtype they come
    with.
    """

    def __init__(self, params_dict: nn.ParameterDict | None = None):
        super().__init__()
        self.params_dict = nn.ParameterDict() if params_dict is None else params_dict

    @property
    def device(self) -> torch.device:
        """Device of the first tensor (``StopIteration`` while there is none)."""
        return next(iter(self.parameters())).device

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args, **kwargs
    ) -> None:
        root = prefix + "params_dict."
        params_dict = nn.ParameterDict()
        for key, value in state_dict.items():
            if key.startswith(root):
                _insert(params_dict, key[len(root) :].split("."), value)
        self.params_dict = params_dict.requires_grad_(False)


def _insert(tree: nn.ParameterDict, path: list[str], value: Tensor) -> None:
    *branches, leaf = path
    for name in branches:
        if name not in tree:
            tree[name] = nn.ParameterDict()
        tree = tree[name]  # pyright: ignore[reportAssignmentType]
    # A copy: the state dict may be the live one of another module.
    tree[leaf] = nn.Parameter(value.detach().clone(), requires_grad=False)
