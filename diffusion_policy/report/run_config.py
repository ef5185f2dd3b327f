"""The configuration of a run as a flat table, and what differs between several."""

import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffusion_policy.common.errors import DataError

# What says who and where a run is and not what it does: the seed, names, folders, the device.
NOISE = re.compile(
    r"(hydra|logging|multi_run)(\..*)?"
    r"|training\.(seed|device|resume)"
    r"|task\.env_runner\.test_start_seed"
)
# These mean something else, or something private, where a report is written.
_NOT_RESOLVED = re.compile(r"\$\{\s*(now|hydra|oc\.env)\s*:")
ABSENT = "–"


@dataclass
class RunConfig:
    """Settings by dotted key; lists are one setting.

    Attributes:
        text: As it is on disk; None if the run has no configuration.
        values: Resolved as far as possible.
        formulas: The interpolation, as it was written, of those settings that have one.
    """

    text: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    formulas: dict[str, str] = field(default_factory=dict)

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)


def read_config(path: pathlib.Path) -> RunConfig:
    """Reads a ``config.yaml``, as composed (with interpolations) or resolved.

    Raises:
        DataError: If it is not a YAML mapping.
    """
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from diffusion_policy.config.resolvers import register_resolvers

    register_resolvers()
    try:
        text = path.read_text()
        tree = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} is not valid YAML ({str(e).splitlines()[0]}); restore it.") from e
    if not isinstance(tree, DictConfig):
        raise DataError(f"{path} is not a configuration but a list; restore it.")
    config = RunConfig(text)
    for keys, value in _leaves(OmegaConf.to_container(tree)):
        name = ".".join(keys)
        formula = json.dumps(value, default=str)
        if "${" not in formula:
            config.values[name] = value
            continue
        for below, resolved in _leaves(_resolve(tree, keys, value)):
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


def _resolve(tree: Any, keys: tuple[str, ...], raw: Any) -> Any:
    """What an interpolation means, or itself where that cannot be known here."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if _NOT_RESOLVED.search(str(raw)):
        return raw
    try:
        for key in keys:
            tree = tree[key]
        return OmegaConf.to_container(tree, resolve=True) if OmegaConf.is_config(tree) else tree
    except (OmegaConfBaseException, KeyError, ValueError, TypeError):
        return raw
