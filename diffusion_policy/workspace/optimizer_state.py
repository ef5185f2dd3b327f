"""What ``torch.optim`` does not check when it loads a state, and fails at steps later.

Its ``load_state_dict`` compares the number of parameters and takes everything else as it comes. A
moment of another shape, or a text in the place of a learning rate, then ends the next step with a
traceback.
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import torch


def check_optimizer(optimizer: torch.optim.Optimizer, before: Sequence[Mapping[str, Any]]) -> None:
    """Checks an optimizer whose state was loaded.

    Args:
        before: its parameter groups as they were made, before the state was loaded.

    Raises:
        ValueError: an option, or what is kept of a parameter, cannot be; the message names it.
    """
    for number, (group, made) in enumerate(zip(optimizer.param_groups, before, strict=True)):
        for key, value in made.items():
            if key != "params" and not _fits(group.get(key), value):
                raise ValueError(f"{key} of parameter group {number} is {group.get(key)!r:.80}")
        for i, parameter in enumerate(group["params"]):
            for key, value in optimizer.state.get(parameter, {}).items():
                if not _can_be_kept(value, parameter):
                    found = list(value.shape) if torch.is_tensor(value) else repr(value)[:80]
                    raise ValueError(f"{key} of parameter {i} of group {number} is {found}")


def _fits(value: Any, made: Any) -> bool:
    """Whether an option of a group is of the kind that the optimizer was made with."""
    if isinstance(made, bool) or made is None:
        return value is None or isinstance(value, bool)
    if isinstance(made, numbers.Real):
        return _is_number(value)
    if isinstance(made, Sequence) and not isinstance(made, str):
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        return is_list and len(value) == len(made) and all(map(_is_number, value))
    return type(value) is type(made)


def _is_number(value: Any) -> bool:
    """Whether a value is one that a computation in single or double precision can begin with."""
    if isinstance(value, bool) or not isinstance(value, int | float | numbers.Real):
        return False
    number: Any = value
    return -1e300 < number < 1e300


def _can_be_kept(value: Any, parameter: torch.Tensor) -> bool:
    """A count, or something about every element of the parameter."""
    if not torch.is_tensor(value):
        return value is None or _is_number(value)
    if value.numel() == 1 and value.dim() == 0:
        return value.is_floating_point() and math.isfinite(float(value)) and float(value) >= 0
    return value.shape == parameter.shape and value.is_floating_point()
