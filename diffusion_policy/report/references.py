"""The references (``${...}``) of a configuration, resolved as far as a page may show them.

A configuration comes from somebody else, and a page goes to somebody else. So a reference to
another key is followed, arithmetic is done, and nothing else: no resolver reads the environment, a
file, the time, or Hydra. And a few lines that stand for a billion values cost no more than others.
"""

from dataclasses import dataclass
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.config.resolvers import safe_eval

# The largest published configuration has 150 references, of 5,000 characters together.
MAX_FORMULA = 500  # characters
MAX_FORMULAS = 50_000  # characters, all together
MAX_TEXT = 1_000  # characters of a result
MAX_VALUES = 5_000  # in a result, and in all of them together
MAX_DEPTH = 30  # references that lead to references, and values within values


class UnresolvedError(Exception):
    """What a reference means cannot be known, or must not be told, here."""


class _MissingError(UnresolvedError):
    """There is no such key."""


@dataclass(frozen=True)
class _Section:
    """A mapping or list, resolved: cheap to have even where it stands for many values."""

    value: dict[str, Any] | list[Any]
    n_values: int
    depth: int

    def __str__(self) -> str:
        raise UnresolvedError  # within a text: would be written out


class References:
    """Resolves the references of one configuration.

    Args:
        tree: Mappings with texts as keys, lists, plain values; as read from YAML.
    """

    def __init__(self, tree: dict[str, Any]):
        self._tree = tree
        self._known: dict[tuple[str, ...], Any] = {}  # values, or the type of the failure
        self._n_characters = 0
        self._n_values = 0
        self._depth = 0

    def resolve(self, path: tuple[str, ...]) -> Any:
        """The value at a path, with everything in it resolved.

        Raises:
            UnresolvedError: A part of it is not, see the top of this module.
        """
        value = self._value(path)
        self._n_values += value.n_values if isinstance(value, _Section) else 1
        if self._n_values > MAX_VALUES:
            raise UnresolvedError
        return _plain(value)

    def _value(self, path: tuple[str, ...]) -> Any:
        if path not in self._known:
            self._known[path] = UnresolvedError  # also what a reference to itself finds
            self._depth += 1
            try:
                if self._depth > MAX_DEPTH:
                    raise UnresolvedError
                self._known[path] = self._compute(path)
            except _MissingError:
                self._known[path] = _MissingError
            except (UnresolvedError, OmegaConfBaseException, ConfigError, RecursionError):
                pass
            finally:
                self._depth -= 1
        value = self._known[path]
        if value is UnresolvedError or value is _MissingError:
            raise value
        return value

    def _compute(self, path: tuple[str, ...]) -> Any:
        raw, is_resolved = self._look_up(path)
        if is_resolved:
            return _measured(raw)
        if isinstance(raw, dict):
            parts = {key: self._value((*path, key)) for key in raw}
            return _section({key: _plain(part) for key, part in parts.items()}, [*parts.values()])
        if isinstance(raw, list):
            items = [self._value((*path, str(i))) for i in range(len(raw))]
            return _section([_plain(item) for item in items], items)
        if isinstance(raw, str) and "${" in raw:
            return self._evaluate(raw, path)
        return raw

    def _look_up(self, path: tuple[str, ...]) -> tuple[Any, bool]:
        """What stands at a path, and whether a reference on the way to it was followed: what it has
        is resolved.
        """
        node, is_resolved = self._tree, False
        for i, key in enumerate(path):
            if isinstance(node, str) and "${" in node and not is_resolved:
                node, is_resolved = _plain(self._value(path[:i])), True
            try:
                node = node[int(key)] if isinstance(node, list) else node[key]  # type: ignore
            except (KeyError, IndexError, TypeError, ValueError) as e:
                raise _MissingError from e
        return node, is_resolved

    def _evaluate(self, formula: str, path: tuple[str, ...]) -> Any:
        from omegaconf.grammar_parser import parse
        from omegaconf.grammar_visitor import GrammarVisitor

        self._n_characters += len(formula)
        if len(formula) > MAX_FORMULA or self._n_characters > MAX_FORMULAS:
            raise UnresolvedError
        visitor = GrammarVisitor(
            node_interpolation_callback=lambda key, _: self._follow(key, path),
            resolver_interpolation_callback=lambda name, args, args_str: self._call(
                name, args, path
            ),
            memo=None,
        )
        value = visitor.visit(parse(formula))
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise UnresolvedError
        return value

    def _follow(self, key: str, path: tuple[str, ...]) -> Any:
        """``a.b`` from the top, ``.b`` beside the reference, ``..b`` above that."""
        from omegaconf._utils import split_key

        name = key.lstrip(".")
        n_dots = len(key) - len(name)
        above = path[:-n_dots] if n_dots else ()
        return self._value((*above, *split_key(name))) if name else self._value(above)

    def _call(self, name: str, args: tuple[Any, ...], path: tuple[str, ...]) -> Any:
        match name, args:
            case "eval", [str(expression)]:
                return safe_eval(expression)
            case "eval", [int() | float() as number]:  # ${eval:${horizon}}
                return number
            case "oc.select", [str(key), *defaults] if len(defaults) <= 1:
                return self._select(key, [*defaults, None][0], path)
        raise UnresolvedError

    def _select(self, key: str, default: Any, path: tuple[str, ...]) -> Any:
        try:
            return self._follow(key, path)
        except _MissingError:
            if isinstance(default, str | int | float | None):
                return default
            raise


def _plain(part: Any) -> Any:
    return part.value if isinstance(part, _Section) else part


def _section(value: Any, parts: list[Any]) -> _Section:
    """A section of these parts, if it is of a reasonable size."""
    sections = [part for part in parts if isinstance(part, _Section)]
    n_values = sum(part.n_values for part in sections) + len(parts) - len(sections)
    depth = 1 + max((part.depth for part in sections), default=0)
    if n_values > MAX_VALUES or depth > MAX_DEPTH:
        raise UnresolvedError
    return _Section(value, n_values, depth)


def _measured(value: Any) -> Any:
    """A part of a section again as one."""
    if not isinstance(value, dict | list):
        return value
    items = value.values() if isinstance(value, dict) else value
    return _section(value, [_measured(item) for item in items])
