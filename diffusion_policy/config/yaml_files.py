"""Reading YAML that other people wrote, in a bounded time.

Ten lines of YAML can stand for a billion values: a list of ten times the list of ten times ... (an
*alias bomb*). PyYAML shares such values, but OmegaConf copies each of them. Its loader is bounded
here, once, so Hydra's reading of configurations is bounded as well.
"""

import pathlib
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from diffusion_policy.common.errors import ConfigError, DataError
from diffusion_policy.common.regular_files import open_regular

# The largest published configuration has 700 values, at 9 levels.
MAX_NODES = 20_000
MAX_DEPTH = 60
MAX_BYTES = 1_000_000
MAX_DIGITS = 400  # a number of base 60 (1:59:59...) takes quadratic time


class YamlBombError(ConfigError):
    """A YAML document that is small on the disk and huge in memory."""


class BoundedLoader(get_yaml_loader()):  # type: ignore[misc]
    """OmegaConf's loader (plain values only), for documents of a reasonable size."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        self._depth = 0
        self._n_nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        self._n_nodes += 1
        if self._depth > MAX_DEPTH:
            raise YamlBombError(f"YAML is nested deeper than {MAX_DEPTH} levels")
        if self._n_nodes > MAX_NODES:  # before reading on for a minute
            raise _too_many_values()
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if node.tag in _NUMBERS and len(value) > MAX_DIGITS:
            raise YamlBombError(f"YAML has a number of more than {MAX_DIGITS} digits")
        return value


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def _too_many_values() -> YamlBombError:
    return YamlBombError(f"YAML has, with its aliases written out, more than {MAX_NODES:,} values")


def _count(node: yaml.Node, known: dict[int, int | None]) -> int:
    """How many values a node stands for when every alias is written out."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    found = known.get(id(node), 0)
    if found is None:
        raise YamlBombError("YAML has an alias that contains itself")
    if found:
        return found
    known[id(node)] = None  # being counted
    total = 1
    for item in node.value:
        for part in item if isinstance(item, tuple) else (item,):
            total += _count(part, known)
    if total > MAX_NODES:
        raise _too_many_values()
    known[id(node)] = total
    return total


# What PyYAML raises where a value does not fit its tag, !!int "" for example.
_OF_PYYAML = (
    *(ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError),
)


def bound_omegaconf() -> None:
    """Makes every reading of YAML through OmegaConf a bounded one."""
    import omegaconf._utils

    omegaconf._utils.get_yaml_loader = lambda: BoundedLoader


def read_yaml(path: str | pathlib.Path) -> Any:
    """The plain content of a YAML file: dicts, lists, strings, numbers, booleans, None.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is a bomb.
    """
    try:
        with open_regular(path) as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; check the path") from error
    except DataError as error:  # a pipe, a device
        raise ConfigError(str(error)) from error
    return parse_yaml(text, path)


def parse_yaml(text: bytes, path: str | pathlib.Path) -> Any:
    """As :func:`read_yaml`, of a text that has been read from ``path``."""
    try:
        if len(text) > MAX_BYTES:
            raise YamlBombError(f"YAML is larger than {MAX_BYTES / 1e6:.0f} MB")
        return yaml.load(text.decode(), Loader=BoundedLoader)
    except YamlBombError as error:
        raise ConfigError(f"{path} is not read: its {error}; no configuration needs that") from None
    except (yaml.YAMLError, *_OF_PYYAML) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not readable YAML ({reason}); mend or remove it") from error


def load_yaml(path: str | pathlib.Path) -> DictConfig:
    """A YAML file as a configuration. Interpolations stay as they are written.

    Raises:
        ConfigError: as :func:`read_yaml`, or the file holds something else than a mapping.
    """
    try:
        return OmegaConf.create(_check_mapping(read_yaml(path), path))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path} is not a configuration: {reason}") from error


def parse_mapping(text: bytes, path: str | pathlib.Path) -> dict[Any, Any]:
    """As :func:`load_yaml`, of a text that has been read from ``path``, as plain values.

    Raises:
        ConfigError: as :func:`load_yaml`.
    """
    return _check_mapping(parse_yaml(text, path), path)


def _check_mapping(content: Any, path: str | pathlib.Path) -> dict[Any, Any]:
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"{path} holds {found}, but a configuration is a mapping of keys")
    return content
