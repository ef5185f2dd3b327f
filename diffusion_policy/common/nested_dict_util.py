"""Functions over the leaves of nested dicts, as observations and data stores have them."""

import functools
from collections.abc import Callable
from typing import Any


def nested_dict_map(f: Callable[[Any], Any], x: Any) -> Any:
    """Apply ``f`` to every leaf; dicts are rebuilt, anything else is a leaf."""
    if isinstance(x, dict):
        return {key: nested_dict_map(f, value) for key, value in x.items()}
    return f(x)


def nested_dict_reduce(f: Callable[[Any, Any], Any], x: Any) -> Any:
    """Reduce the values of every dict with ``f``, innermost first; a leaf is returned as it is."""
    if isinstance(x, dict):
        return functools.reduce(f, (nested_dict_reduce(f, value) for value in x.values()))
    return x


def nested_dict_check(f: Callable[[Any], bool], x: Any) -> bool:
    """Whether the predicate ``f`` holds for every leaf (true for a dict without leaves)."""
    if isinstance(x, dict):
        return all(nested_dict_check(f, value) for value in x.values())
    return bool(f(x))
