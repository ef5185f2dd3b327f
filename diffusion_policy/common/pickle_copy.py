"""Copies what a restricted unpickler made: known types only, of a reasonable size.

Values of a pickle can contain one another any number of times, so a small file can stand for a
value of any size, and its configuration nodes can claim any parent. A copy shares nothing, and
configurations in it are built anew, from plain containers.
"""

import collections
import importlib
from collections.abc import Callable
from typing import Any

from diffusion_policy.common.pickle_calls import (
    SCALARS,
    TYPES,
    TYPING,
    Call,
    ForbiddenPickleError,
)

# A large published checkpoint has 10,000 values, at 12 levels.
MAX_VALUES = 500_000
MAX_DEPTH = 100


class NodeType:
    """The stand-in for a class of OmegaConf, by its full name."""

    def __init__(self, name: str):
        self.name = name


class Node:
    """An instance of such a class: the state that the file gives it, and nothing that acts."""

    def __init__(self, name: str):
        self.name = name
        self.state: dict = {}

    def is_a(self, kind: str) -> bool:
        return self.name.endswith(f".{kind}")


class Copy:
    """Copies what was unpickled, of known types only and of a reasonable size."""

    def __init__(self) -> None:
        self.n_values = 0
        self.depth = 0

    def of(self, value: Any) -> Any:
        return self._visit(value, self._of_container)

    def _visit(self, value: Any, copy: Callable[[Any], Any]) -> Any:
        """Scalars as they are, and of anything else a copy; within the bounds."""
        self.n_values += 1
        if self.n_values > MAX_VALUES:
            raise ForbiddenPickleError(f"more than {MAX_VALUES:,} values")
        if type(value) in SCALARS:
            return value
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ForbiddenPickleError(f"values nested deeper than {MAX_DEPTH} levels")
        copied = copy(value)
        self.depth -= 1
        return copied

    def _of_container(self, value: Any) -> Any:
        kind = type(value)
        if kind is list:
            return [self.of(item) for item in value]
        if kind is tuple:
            return tuple([self.of(item) for item in value])
        if kind is dict:
            return {key: self.of(item) for key, item in value.items()}
        if kind is collections.OrderedDict:
            copy = collections.OrderedDict((key, self.of(item)) for key, item in value.items())
            if hasattr(value, "_metadata"):
                copy._metadata = self.of(value._metadata)  # type: ignore[attr-defined]
            return copy
        if kind is collections.defaultdict:
            items = {key: self.of(item) for key, item in value.items()}
            return collections.defaultdict(value.default_factory, items)
        if kind is Node:
            return self._configuration(value)
        if kind is Call and value.value is not None:
            return value.value
        if _is_leaf(value):
            return value
        raise ForbiddenPickleError(f"the value {describe(value)}")

    def _configuration(self, node: Node) -> Any:
        from omegaconf import OmegaConf

        plain = self._plain(node)
        if not isinstance(plain, dict | list):
            return plain
        metadata = node.state.get("_metadata")
        flags = metadata.state.get("flags") if isinstance(metadata, Node) else None
        is_struct = isinstance(flags, dict) and flags.get("struct") is True
        config = OmegaConf.create(plain)
        OmegaConf.set_struct(config, True if is_struct else None)
        return config

    def _plain(self, value: Any) -> Any:
        """A node of a configuration as dicts, lists and scalars."""
        return self._visit(value, self._plain_node)

    def _plain_node(self, node: Any) -> Any:
        if not isinstance(node, Node):
            raise ForbiddenPickleError(f"a configuration with the value {describe(node)}")
        content = node.state.get("_content")
        if node.is_a("DictConfig") and isinstance(content, dict):
            return {key: self._plain(item) for key, item in content.items()}
        if node.is_a("ListConfig") and isinstance(content, list):
            return [self._plain(item) for item in content]
        # A container may also be None, missing or an interpolation, as a scalar may.
        is_container = node.is_a("DictConfig") or node.is_a("ListConfig")
        value = content if is_container else node.state.get("_val")
        if node.is_a("Metadata") or node.is_a("ContainerMetadata") or type(value) not in SCALARS:
            raise ForbiddenPickleError(f"a {node.name} with the value {describe(value)}")
        return value


def _is_leaf(value: Any) -> bool:
    """Whether a value is of a known type without parts."""
    if isinstance(value, type):
        return value in TYPES.values() or value is type(None)
    if type(value) in (bytearray, complex, set, frozenset, slice):
        return True
    home = type(value).__module__.partition(".")[0]
    if home == "numpy":
        np = importlib.import_module("numpy")
        return type(value) is np.ndarray or isinstance(value, np.generic | np.dtype)
    if home == "torch":
        torch = importlib.import_module("torch")
        known = (torch.Tensor, torch.nn.Parameter, torch.Size, torch.device, torch.dtype)
        return type(value) in known
    return any(value is kind for kind in TYPING.values())


def describe(value: object) -> str:
    """A value as a refusal names it."""
    if isinstance(value, Call | Node | NodeType):
        return f"`{value.name}`"
    what: Any = value if isinstance(value, type) else type(value)
    return f"`{what.__module__}.{what.__name__}`"
