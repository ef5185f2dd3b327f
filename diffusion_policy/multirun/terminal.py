"""What the command lines of sweeps share: their messages, and saying how they were called."""

import contextlib
import logging
import sys
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    import click


class _AboveBars(logging.Handler):
    """Writes to stderr without tearing progress bars apart."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


@contextlib.contextmanager
def messages_to_stderr() -> Iterator[None]:
    """Shows what this package logs, with the time of day."""
    logger, handler = logging.getLogger("diffusion_policy"), _AboveBars()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def given_words(context: "click.Context", leave_out: Collection[str]) -> list[str]:
    """The options that were given on the command line, as words of another one.

    Args:
        context: Of the command.
        leave_out: Names of parameters that are not to be repeated.
    """
    from click.core import ParameterSource

    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        is_given = context.get_parameter_source(name) == ParameterSource.COMMANDLINE
        if not is_given or name in leave_out:
            continue
        option, value = max(parameter.opts, key=len), context.params[name]
        if value is True:
            words.append(option)
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [word for value in values for word in (option, str(value))]
    return words
