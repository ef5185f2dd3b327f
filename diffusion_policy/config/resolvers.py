"""The ``${eval:...}`` resolver: arithmetic in configuration files, without running Python.

Config files and checkpoints come from other people, so an expression may compute with numbers,
compare, choose and name literals, and nothing else: no names, no calls, no attributes, no
subscripts.
"""

import ast
import operator
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.config.interpolations import check_growth, is_interpolated

# More than any configuration needs, little enough that no expression can eat time or memory.
_MAX_CHARACTERS = 1000
_MAX_BITS = 1024

_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type, Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
}
_COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_LITERALS = (bool, int, float, str, type(None))


def register_resolvers() -> None:
    """Makes ``${eval:...}`` known to OmegaConf; ``${now:...}`` is registered by hydra."""
    OmegaConf.register_new_resolver("eval", _resolve_eval, replace=True)


def resolve(cfg: DictConfig) -> None:
    """Replaces all interpolations in place, so that every ``${now:}`` agrees.

    Raises:
        ConfigError: an interpolation cannot be resolved, or becomes too large, or resolves to
            another interpolation.
    """
    plain(cfg)  # its errors know the key, those of OmegaConf.resolve don't
    OmegaConf.resolve(cfg)


def plain(node: Any) -> Any:
    """A configuration, or a dict or list with configurations in it, as resolved plain values.

    Raises:
        ConfigError: as :func:`resolve`; or there is a value that a file cannot have.
    """
    if isinstance(node, DictConfig | ListConfig):
        check_growth(node)
        try:
            tree = OmegaConf.to_container(node, resolve=True)
        except OmegaConfBaseException as error:
            wrapping = "ConfigError raised while resolving interpolation: "
            reason = str(error).splitlines()[0].removeprefix(wrapping)
            raise ConfigError(f"config key {error.full_key}: {reason}") from error
        return plain(tree)
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [plain(value) for value in node]
    if is_interpolated(node):
        raise ConfigError(
            f"a value of the configuration is {node[:80]!r} after its interpolations were "
            "resolved, and would be resolved a second time; write what is meant"
        )
    if not isinstance(node, bool | int | float | str | bytes | type(None)):
        raise ConfigError(
            f"the configuration has a value of type {type(node).__name__}, but a file can only "
            "hold dicts, lists, numbers, strings, true, false and null"
        )
    return node


def _resolve_eval(*arguments: Any) -> Any:
    if len(arguments) != 1:
        raise ConfigError(
            f"${{eval:...}} got {len(arguments)} arguments {arguments}: OmegaConf splits at "
            "commas, so put the expression in quotes"
        )
    [expression] = arguments
    # ${eval:${horizon}} arrives as the number that it is.
    return safe_eval(expression) if isinstance(expression, str) else expression


def safe_eval(expression: str) -> Any:
    """Evaluates arithmetic, comparisons, ``and or not``, ``a if c else b`` and literals.

    Args:
        expression: Python syntax, for example ``20*2 if True or False else None``.

    Returns:
        A number, string, bool, None, or a list, tuple or dict of them.

    Raises:
        ConfigError: the expression contains anything else, or cannot be computed.
    """
    if len(expression) > _MAX_CHARACTERS:
        start = expression[:60]
        raise ConfigError(f"expression {start!r}... is longer than {_MAX_CHARACTERS} characters")
    try:
        return _evaluate(ast.parse(expression.strip(), mode="eval").body)
    except _Refused as error:
        raise ConfigError(
            f"expression {expression!r} contains {error}; only numbers, strings, True, False, "
            "None, + - * / // % **, comparisons, and/or/not and if-else can be used"
        ) from None
    except Exception as error:  # syntax, division by zero, 1 < "a", nesting too deep, ...
        raise ConfigError(f"expression {expression!r} cannot be computed: {error}") from error


class _Refused(Exception):
    """What the expression contains although it must not."""


def _evaluate(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value) if isinstance(value, _LITERALS):
            return value
        case ast.Tuple(elts=items):
            return tuple(_evaluate(item) for item in items)
        case ast.List(elts=items):
            return [_evaluate(item) for item in items]
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_evaluate(k): _evaluate(v) for k, v in zip(keys, values, strict=True) if k}
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_evaluate(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _compute(op, _evaluate(left), _evaluate(right))
        case ast.BoolOp(op=op, values=values):
            return _choose(isinstance(op, ast.And), values)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            return _compare(_evaluate(left), ops, comparators)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _evaluate(body if _evaluate(test) else orelse)
    raise _Refused(f"`{ast.unparse(node)}` ({type(node).__name__})")


def _compute(op: ast.operator, left: Any, right: Any) -> Any:
    if isinstance(op, ast.Add) and isinstance(left, str) and isinstance(right, str):
        return left + right
    if not all(isinstance(value, int | float) for value in (left, right)):
        # Also keeps out "%d" % x and "a" * 10**9.
        raise TypeError(f"arithmetic needs two numbers, not {left!r} and {right!r}")
    if isinstance(op, ast.Pow) and isinstance(left, int) and left.bit_length() * right > _MAX_BITS:
        raise OverflowError(f"{left}**{right} is too large")
    result = _ARITHMETIC[type(op)](left, right)
    if isinstance(result, complex):  # (-8)**0.5
        raise ValueError(f"{left}**{right} is not a real number")
    if isinstance(result, int) and result.bit_length() > _MAX_BITS:
        raise OverflowError("the number becomes too large")
    return result


def _choose(is_and: bool, operands: list[ast.expr]) -> Any:
    """``and`` / ``or`` with Python's short circuit and result."""
    value = None
    for operand in operands:
        value = _evaluate(operand)
        if bool(value) != is_and:
            break
    return value


def _compare(left: Any, ops: list[ast.cmpop], comparators: list[ast.expr]) -> bool:
    """Chained comparisons, ``1 < x <= 3``."""
    for op, comparator in zip(ops, comparators, strict=True):
        right = _evaluate(comparator)
        if not _COMPARISONS[type(op)](left, right):
            return False
        left = right
    return True
