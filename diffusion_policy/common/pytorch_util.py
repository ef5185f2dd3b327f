"""Small helpers for nested dictionaries of tensors, modules and optimizers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def dict_apply(x: dict[str, Any], func: Callable[[Any], Any]) -> dict[str, Any]:
    """``func`` of every leaf of a nested dictionary, in a new dictionary of the same structure."""
    return {
        key: dict_apply(value, func) if isinstance(value, dict) else func(value)
        for key, value in x.items()
    }


def dict_apply_split(
    x: dict[str, Any], split_func: Callable[[Any], dict[Hashable, Any]]
) -> dict[Hashable, dict[str, Any]]:
    """Splits every value into named parts and groups by part: ``{part: {key: value of that
    part}}``."""
    results: dict[Hashable, dict[str, Any]] = defaultdict(dict)
    for key, value in x.items():
        for part, part_value in split_func(value).items():
            results[part][key] = part_value
    return results


def dict_apply_reduce(
    x: list[dict[str, Any]], reduce_func: Callable[[list[Any]], Any]
) -> dict[str, Any]:
    """``reduce_func`` of the list of values under each key of the first (flat) dictionary."""
    return {key: reduce_func([item[key] for item in x]) for key in x[0]}


def pad_remaining_dims(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """``x`` with dimensions of size 1 appended until it has as many as ``target``.

    Raises:
        ValueError: the shape of ``x`` is not the beginning of the shape of ``target``.
    """
    if x.shape != target.shape[: x.ndim]:
        raise ValueError(
            f"shape {tuple(x.shape)} is not the beginning of shape {tuple(target.shape)}"
        )
    return x.reshape(x.shape + (1,) * (target.ndim - x.ndim))


def replace_submodules(
    root_module: nn.Module,
    predicate: Callable[[nn.Module], bool],
    func: Callable[[nn.Module], nn.Module],
) -> nn.Module:
    """Replaces every submodule ``m`` with ``predicate(m)`` by ``func(m)``, in place.

    A module that is registered in several places is replaced in all of them, by one new module.

    Returns:
        The root module; ``func(root_module)`` if the root itself matches.

    Raises:
        ValueError: a replacement matches again.
    """
    if predicate(root_module):
        return func(root_module)
    replacements: dict[nn.Module, nn.Module] = {}
    for parent in list(root_module.modules()):
        for name, child in parent._modules.items():
            if child is None:
                continue
            if child not in replacements and predicate(child):
                replacements[child] = func(child)
            if child in replacements:
                setattr(parent, name, replacements[child])
    left = [name for name, module in root_module.named_modules() if predicate(module)]
    if left:
        raise ValueError(f"the replacement of these modules still matches the predicate: {left}")
    return root_module


def optimizer_to(
    optimizer: torch.optim.Optimizer, device: torch.device | str
) -> torch.optim.Optimizer:
    """Moves all state tensors of ``optimizer`` to ``device`` and returns it."""
    import torch

    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                state[name] = value.to(device)
    return optimizer
