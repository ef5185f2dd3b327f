"""Helpers for nested dictionaries, lists and tuples of tensors and arrays.

The names are those of robomimic's ``tensor_utils``, which people import in their own encoders.
Every function takes one tensor or array, or any nesting of them, and returns the same nesting;
``None`` stays ``None``. Functions named ``..._single`` take one tensor.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Function = Callable[[Any], Any]


# ---- the recursion -----------------------------------------------------------------------------


def recursive_dict_list_tuple_apply(x: Any, type_func_dict: Mapping[type, Function]) -> Any:
    """Applies to every leaf the function that ``type_func_dict`` has for its type.

    Raises:
        NotImplementedError: a leaf of another type.
    """
    if isinstance(x, dict):
        return type(x)(
            (key, recursive_dict_list_tuple_apply(value, type_func_dict))
            for key, value in x.items()
        )
    if isinstance(x, list | tuple):
        return type(x)([recursive_dict_list_tuple_apply(value, type_func_dict) for value in x])
    for leaf_type, function in type_func_dict.items():
        if isinstance(x, leaf_type):
            return function(x)
    known = ", ".join(leaf_type.__name__ for leaf_type in type_func_dict)
    raise NotImplementedError(f"cannot handle {type(x).__name__}; expected one of {known}")


def _identity(x: Any) -> Any:
    return x


def map_tensor(x: Any, func: Function) -> Any:
    """``func`` of every tensor."""
    return recursive_dict_list_tuple_apply(x, {Tensor: func, type(None): _identity})


def map_ndarray(x: Any, func: Function) -> Any:
    """``func`` of every numpy array."""
    return recursive_dict_list_tuple_apply(x, {np.ndarray: func, type(None): _identity})


def map_tensor_ndarray(x: Any, tensor_func: Function, ndarray_func: Function) -> Any:
    """``tensor_func`` of every tensor and ``ndarray_func`` of every numpy array."""
    functions = {Tensor: tensor_func, np.ndarray: ndarray_func, type(None): _identity}
    return recursive_dict_list_tuple_apply(x, functions)


def _map_both(x: Any, func: Function) -> Any:
    return map_tensor_ndarray(x, func, func)


# ---- copies and conversions --------------------------------------------------------------------


def clone(x: Any) -> Any:
    """Copies."""
    return map_tensor_ndarray(x, torch.clone, np.copy)


def detach(x: Any) -> Any:
    """Tensors without their autograd history."""
    return map_tensor(x, torch.detach)


def contiguous(x: Any) -> Any:
    """Contiguous in memory."""
    return map_tensor_ndarray(x, Tensor.contiguous, np.ascontiguousarray)


def to_device(x: Any, device: torch.device | str) -> Any:
    """Tensors on ``device``; arrays are left alone."""
    return map_tensor_ndarray(x, lambda t: t.to(device), _identity)


def to_tensor(x: Any) -> Any:
    """Arrays as tensors that share their memory."""
    return map_tensor_ndarray(x, _identity, torch.from_numpy)


def to_numpy(x: Any) -> Any:
    """Tensors as arrays."""
    return map_tensor_ndarray(x, lambda t: t.detach().cpu().numpy(), _identity)


def to_list(x: Any) -> Any:
    """Tensors and arrays as nested lists of numbers."""
    return map_tensor_ndarray(x, lambda t: t.detach().cpu().tolist(), np.ndarray.tolist)


def to_float(x: Any) -> Any:
    """As float32."""
    return map_tensor_ndarray(x, Tensor.float, lambda a: a.astype(np.float32))


def to_uint8(x: Any) -> Any:
    """As uint8."""
    return map_tensor_ndarray(x, Tensor.byte, lambda a: a.astype(np.uint8))


def to_torch(x: Any, device: torch.device | str) -> Any:
    """As float32 tensors on ``device``."""
    return to_device(to_float(to_tensor(x)), device)


def to_one_hot_single(tensor: Tensor, num_class: int) -> Tensor:
    """Class indices (...) to float32 (..., num_class)."""
    one_hot = torch.zeros(*tensor.shape, num_class, device=tensor.device)
    return one_hot.scatter_(-1, tensor.long()[..., None], 1)


def to_one_hot(tensor: Any, num_class: int) -> Any:
    """:func:`to_one_hot_single` of every tensor."""
    return map_tensor(tensor, lambda t: to_one_hot_single(t, num_class))


# ---- axes --------------------------------------------------------------------------------------


def to_batch(x: Any) -> Any:
    """A new first axis of size 1."""
    return _map_both(x, lambda t: t[None])


def to_sequence(x: Any) -> Any:
    """A new second axis of size 1."""
    return _map_both(x, lambda t: t[:, None])


def index_at_time(x: Any, ind: int) -> Any:
    """Entry ``ind`` of the second axis."""
    return _map_both(x, lambda t: t[:, ind])


def unsqueeze(x: Any, dim: int) -> Any:
    """A new axis ``dim`` of size 1."""
    return map_tensor_ndarray(x, lambda t: t.unsqueeze(dim), lambda a: np.expand_dims(a, dim))


def flatten_single(x: Any, begin_axis: int = 1) -> Any:
    """Merges all axes from ``begin_axis`` on."""
    return x.reshape(*x.shape[:begin_axis], -1)


def flatten(x: Any, begin_axis: int = 1) -> Any:
    """:func:`flatten_single` of every leaf."""
    return _map_both(x, lambda t: flatten_single(t, begin_axis))


def reshape_dimensions_single(
    x: Any, begin_axis: int, end_axis: int, target_dims: Sequence[int]
) -> Any:
    """Replaces the axes ``begin_axis`` to ``end_axis``, inclusive, by ``target_dims``."""
    if not 0 <= begin_axis <= end_axis < x.ndim:
        raise ValueError(
            f"axes {begin_axis} to {end_axis} are not a range of shape {tuple(x.shape)}"
        )
    return x.reshape(*x.shape[:begin_axis], *target_dims, *x.shape[end_axis + 1 :])


def reshape_dimensions(x: Any, begin_axis: int, end_axis: int, target_dims: Sequence[int]) -> Any:
    """:func:`reshape_dimensions_single` of every leaf."""
    return _map_both(x, lambda t: reshape_dimensions_single(t, begin_axis, end_axis, target_dims))


def join_dimensions(x: Any, begin_axis: int, end_axis: int) -> Any:
    """Merges the axes ``begin_axis`` to ``end_axis``, inclusive, into one."""
    return reshape_dimensions(x, begin_axis, end_axis, [-1])


def expand_at_single(x: Tensor, size: int, dim: int) -> Tensor:
    """Expands axis ``dim``, of size 1, to ``size`` without a copy."""
    if x.shape[dim] != 1:
        raise ValueError(f"axis {dim} of shape {tuple(x.shape)} does not have size 1")
    sizes = [-1] * x.ndim
    sizes[dim] = size
    return x.expand(*sizes)


def expand_at(x: Any, size: int, dim: int) -> Any:
    """:func:`expand_at_single` of every tensor."""
    return map_tensor(x, lambda t: expand_at_single(t, size, dim))


def unsqueeze_expand_at(x: Any, size: int, dim: int) -> Any:
    """Inserts an axis ``dim`` and expands it to ``size`` without a copy."""
    return expand_at(unsqueeze(x, dim), size, dim)


def repeat_by_expand_at(x: Any, repeats: int, dim: int) -> Any:
    """Repeats every entry of axis ``dim``, next to itself."""
    return join_dimensions(unsqueeze_expand_at(x, repeats, dim + 1), dim, dim + 1)


def named_reduce_single(x: Tensor, reduction: str, dim: int) -> Tensor:
    """``sum``, ``max``, ``mean`` over axis ``dim``, or ``flatten`` from it on."""
    reductions: dict[str, Function] = {
        "sum": lambda t: t.sum(dim),
        "max": lambda t: t.amax(dim),
        "mean": lambda t: t.mean(dim),
        "flatten": lambda t: flatten_single(t, dim),
    }
    if reduction not in reductions:
        raise ValueError(f"unknown reduction {reduction!r}; expected one of {list(reductions)}")
    return reductions[reduction](x)


def named_reduce(x: Any, reduction: str, dim: int) -> Any:
    """:func:`named_reduce_single` of every tensor."""
    return map_tensor(x, lambda t: named_reduce_single(t, reduction, dim))


# ---- sequences ---------------------------------------------------------------------------------


def gather_along_dim_with_dim_single(
    x: Tensor, target_dim: int, source_dim: int, indices: Tensor
) -> Tensor:
    """For entry i of axis ``source_dim``, entry ``indices[i]`` of axis ``target_dim`` (which goes).

    (B, T, D), target 1, source 0, indices (B,) gives (B, D).
    """
    if indices.shape != (x.shape[source_dim],):
        raise ValueError(
            f"indices of shape {tuple(indices.shape)} do not fit axis {source_dim} of "
            f"{tuple(x.shape)}"
        )
    view = [1] * x.ndim
    view[source_dim] = -1
    shape = list(x.shape)
    shape[target_dim] = 1
    return x.gather(target_dim, indices.view(view).expand(shape)).squeeze(target_dim)


def gather_along_dim_with_dim(x: Any, target_dim: int, source_dim: int, indices: Tensor) -> Any:
    """:func:`gather_along_dim_with_dim_single` of every tensor."""
    return map_tensor(
        x, lambda t: gather_along_dim_with_dim_single(t, target_dim, source_dim, indices)
    )


def gather_sequence_single(seq: Tensor, indices: Tensor) -> Tensor:
    """Step ``indices[i]`` of sequence i: (B, T, ...) to (B, ...)."""
    return gather_along_dim_with_dim_single(seq, target_dim=1, source_dim=0, indices=indices)


def gather_sequence(seq: Any, indices: Tensor) -> Any:
    """:func:`gather_sequence_single` of every tensor."""
    return map_tensor(seq, lambda t: gather_sequence_single(t, indices))


def pad_sequence_single(
    seq: Any,
    padding: tuple[int, int],
    batched: bool = False,
    pad_same: bool = True,
    pad_values: float | None = None,
) -> Any:
    """Pads the time axis (0, or 1 if ``batched``) by ``padding`` = (before, after) steps.

    With copies of the first and last step, or with ``pad_values`` if ``pad_same`` is False.
    """
    if not pad_same and pad_values is None:
        raise ValueError("pad_same=False needs pad_values")
    axis = int(batched)
    last = seq.shape[axis] - 1
    steps = np.concatenate(([0] * padding[0], np.arange(last + 1), [last] * padding[1])).astype(
        np.int64
    )
    padded = seq[:, steps] if batched else seq[steps]
    if not pad_same:
        moved = padded.swapaxes(0, axis)  # a view: writing to it writes to padded
        moved[: padding[0]] = pad_values
        moved[padding[0] + last + 1 :] = pad_values
    return padded


def pad_sequence(
    seq: Any,
    padding: tuple[int, int],
    batched: bool = False,
    pad_same: bool = True,
    pad_values: float | None = None,
) -> Any:
    """:func:`pad_sequence_single` of every leaf."""
    return _map_both(seq, lambda t: pad_sequence_single(t, padding, batched, pad_same, pad_values))


def time_distributed(
    inputs: Any,
    op: Callable[..., Any],
    activation: Function | None = None,
    inputs_as_kwargs: bool = False,
    inputs_as_args: bool = False,
    **kwargs: Any,
) -> Any:
    """``op`` of every step: leaves (B, T, ...) go in as (B*T, ...) and come out as (B, T, ...)."""
    batch, time = flatten_nested_dict_list(inputs)[0][1].shape[:2]
    merged = join_dimensions(inputs, 0, 1)
    if inputs_as_kwargs:
        outputs = op(**merged, **kwargs)
    elif inputs_as_args:
        outputs = op(*merged, **kwargs)
    else:
        outputs = op(merged, **kwargs)
    if activation is not None:
        outputs = map_tensor(outputs, activation)
    return reshape_dimensions(outputs, 0, 0, (batch, time))


# ---- questions and containers ------------------------------------------------------------------


def assert_size_at_dim_single(x: Any, size: int, dim: int, msg: str) -> None:
    """Raises an AssertionError with ``msg`` unless axis ``dim`` has ``size`` entries."""
    if x.shape[dim] != size:
        raise AssertionError(msg)


def assert_size_at_dim(x: Any, size: int, dim: int, msg: str) -> None:
    """:func:`assert_size_at_dim_single` of every leaf."""
    _map_both(x, lambda t: assert_size_at_dim_single(t, size, dim, msg))


def get_shape(x: Any) -> Any:
    """The shapes of the leaves."""
    return _map_both(x, lambda t: tuple(t.shape))


def list_of_flat_dict_to_dict_of_list(list_of_dict: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """``[{k: v}, ...]`` to ``{k: [v, ...]}``; all dictionaries have the keys of the first."""
    return {key: [item[key] for item in list_of_dict] for key in list_of_dict[0]}


def flatten_nested_dict_list(
    d: Any, parent_key: str = "", sep: str = "_", item_key: str = ""
) -> list[tuple[str, Any]]:
    """The leaves with the path to each, joined by ``sep``; entries of lists are numbered."""
    name = f"{parent_key}{sep}{item_key}" if parent_key else item_key
    if isinstance(d, dict):
        children = d.items()
    elif isinstance(d, list | tuple):
        children = enumerate(d)
    else:
        return [(name, d)]
    return [
        leaf
        for key, value in children
        for leaf in flatten_nested_dict_list(value, name, sep, str(key))
    ]
