"""The configuration of a run as a flat table, and what differs between several."""

import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffusion_policy.common.errors import ConfigError, DataError
from diffusion_policy.common.regular_files import read_regular
from diffusion_policy.config.yaml_files import MAX_BYTES, parse_mapping
from diffusion_policy.report.references import References, UnresolvedError

# What says who and where a run is and not what it does: the seed, names, folders, the device.
NOISE = re.compile(
    r"(hydra|logging|multi_run)(\..*)?"
    r"|training\.(seed|device|resume)"
    r"|task\.env_runner\.test_start_seed"
)
ABSENT = "–"


@dataclass
class RunConfig:
    """Settings by dotted key; lists are one setting.

    Attributes:
        text: As it is on disk; None if the run has no configuration.
        values: Resolved as far as that is possible and nobody's secret, see :mod:`.references`.
        formulas: The interpolation, as it was written, of those settings that have one.
    """

    text: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    formulas: dict[str, str] = field(default_factory=dict)

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)


def read_config(path: pathlib.Path, folder: pathlib.Path) -> RunConfig:
    """Reads a ``config.yaml``, as composed (with interpolations) or resolved.

    Args:
        path: The file.
        folder: Of the run, or sweep, that it has to lie in.

    Raises:
        DataError: If it is not a YAML mapping.
    """
    text = read_regular(path, MAX_BYTES, within=folder)
    if not text.strip():  # being written, or lost by a crash
        return RunConfig()
    try:
        tree = parse_mapping(text, path)
    except ConfigError as e:
        raise DataError(str(e)) from e
    tree = _with_texts_as_keys(tree)
    references = References(tree)
    config = RunConfig(text.decode())
    for keys, value in _leaves(tree):
        name = ".".join(keys)
        formula = json.dumps(value, default=str)
        if "${" not in formula:
            config.values[name] = value
            continue
        for below, resolved in _leaves(_resolve(references, keys, value)):
            config.values[".".join((name, *below))] = resolved
            config.formulas[".".join((name, *below))] = formula
    return config


def differing_keys(configs: Sequence[RunConfig]) -> list[str]:
    """The settings in which configurations differ, without :data:`NOISE`.

    A setting that follows from another by the same formula everywhere is left out: the other one is
    the difference.
    """
    keys = dict.fromkeys(key for config in configs for key in config.values)
    return [key for key in keys if not NOISE.fullmatch(key) and _differs(key, configs)]


def format_value(config: RunConfig, key: str) -> str:
    """A setting as YAML would have it, on one line."""
    if key not in config.values:
        return ABSENT
    value = config.values[key]
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _differs(key: str, configs: Sequence[RunConfig]) -> bool:
    first, *others = configs
    formula = first.formulas.get(key)
    if formula is not None and all(other.formulas.get(key) == formula for other in others):
        return False
    value = format_value(first, key)  # true is not 1, and NaN is itself
    return any(format_value(other, key) != value for other in others)


def _leaves(tree: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, (*above, str(key)))
    else:
        yield above, tree


def _with_texts_as_keys(tree: Any) -> Any:
    """YAML has numbers as keys, too; references name them by their texts."""
    if isinstance(tree, dict):
        return {str(key): _with_texts_as_keys(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_with_texts_as_keys(value) for value in tree]
    return tree


def _resolve(references: References, keys: tuple[str, ...], raw: Any) -> Any:
    """What a setting means, or itself where that cannot be known, or told, here."""
    try:
        return references.resolve(keys)
    except UnresolvedError:
        return raw
