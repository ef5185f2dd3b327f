"""Overrides as Hydra reads them: written, recognized, and put in their place.

Hydra reads an override by a grammar of its own, in which ``=``, blanks, quotes, brackets and commas
mean something, and letters outside of ASCII nothing at all. A command line that is printed is then
quoted once more, for the shell, by ``shlex.join``.
"""

import os
import re
import shlex
from collections.abc import Sequence

from diffusion_policy.common.errors import ConfigError


def override(key: str, value: str | int) -> str:
    """``key=value`` such that Hydra reads exactly this value, and as this type.

    Args:
        key: Dotted, with its ``+`` or ``++`` if it needs one.
        value: Any text, a path for example, or a number or bool.

    Raises:
        ConfigError: No configuration can hold this text as it is.
    """
    if not isinstance(value, str):
        return f"{key}={value}"
    _check_can_be_held(key, value)
    from hydra.core.override_parser.types import Quote, QuotedString

    if _is_read_as_it_stands(value):
        return f"{key}={value}"
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def _check_can_be_held(key: str, value: str) -> None:
    # OmegaConf can escape a reference, but resolving the configuration, which every run does, takes
    # the escape away and leaves a reference.
    reason = ""
    if "${" in value:
        reason = "has ${ in it, which begins a reference to another key"
    elif value == "???":
        reason = "means that a value is missing"
    elif not _is_text(value):
        reason = "has bytes that are no text"
    if reason:
        raise ConfigError(
            f"{key.lstrip('+')} cannot be {value!r}: in a configuration this {reason}; choose "
            "another name"
        )


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # in a path Python has lone surrogates for what is no UTF-8
        return False
    return True


def _is_read_as_it_stands(value: str) -> bool:
    """Whether Hydra, without quotes, reads this text and not a number, a list, a choice ..."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        read = OverridesParser.create().parse_override(f"key={value}").value()
    except HydraException:
        return False
    return isinstance(read, str) and read == value


def check_current_folder() -> None:
    """Checks that Hydra can write the current folder, from which relative paths count, into a
    configuration.

    Raises:
        ConfigError: It cannot.
    """
    try:
        here = os.getcwd()
    except FileNotFoundError:
        raise ConfigError("the current folder does not exist any more; go to another one") from None
    if "${" in here:
        raise ConfigError(
            f"the current folder is {here}, and Hydra reads ${{ in it as the beginning of a "
            "reference; go to another one"
        )


def check_overrides(arguments: Sequence[str]) -> None:
    """Checks the overrides that people wrote into a command line.

    Args:
        arguments: Of a command line of Hydra's; those that are no overrides do not count.

    Raises:
        ConfigError: Hydra cannot read one; the sentence says how to write it.
    """
    for argument in arguments:
        parts = re.fullmatch(r"([+\w.@/]+)=(.*)", argument, re.DOTALL)
        if parts is not None:
            _check_override(argument, *parts.groups())


def _check_override(argument: str, key: str, value: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if r"\${" in value:
        _check_can_be_held(key, value.replace(r"\${", "${"))
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException as error:
        quoted = shlex.quote(override(key, value))
        raise ConfigError(
            f"Hydra cannot read the override {argument}; if its value is a text, write {quoted}"
        ) from error


def is_override_of(key: str, argument: str) -> bool:
    """Whether an argument of a command line gives, adds or deletes this key."""
    return re.match(rf"(\+{{0,2}}{re.escape(key)}=|~{re.escape(key)}(=|$))", argument) is not None


def with_overrides(arguments: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The arguments of a command line of Hydra's with further overrides.

    All overrides have to stand together there, so they are put before the first one.
    """
    where = _first_override(arguments)
    return [*arguments[:where], *overrides, *arguments[where:]]


def _first_override(arguments: Sequence[str]) -> int:
    from hydra._internal.utils import get_args_parser

    # What follows one of these is its value, also where it looks like an override: --config-dir a=b
    takes_value = {
        option
        for action in get_args_parser()._actions
        if action.nargs is None
        for option in action.option_strings
    }
    for i, argument in enumerate(arguments):
        is_value = i > 0 and arguments[i - 1] in takes_value
        is_option = argument.startswith("-")
        if not (is_value or is_option) and ("=" in argument or argument.startswith("~")):
            return i
    return len(arguments)
