"""What a configuration file says to Hydra itself, checked before Hydra does it.

A file can hold a node ``hydra``: callbacks, launchers and log handlers there name classes that
Hydra builds, and ``env_set`` changes the environment of every process. On the command line this is
the user's word; in a file of ``--config-dir`` it is whoever wrote the file.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.config.compose import CONFIG_DIR, compose
from diffusion_policy.config.targets import current_policy

# Keys of the node that decide what runs. The others (directories, names, help) do not.
_ACTING = (
    *("callbacks", "env", "hydra_logging", "job_logging", "launcher", "searchpath", "sweeper"),
    *("job.env_copy", "job.env_set"),
)


def is_of_hydra(override: str) -> bool:
    """Whether an override is about Hydra itself."""
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


def check_config_files(
    config_name: str, config_dir: str | Path, overrides: Sequence[str], is_sweep: bool = False
) -> None:
    """Refuses files that tell Hydra to build or to set something; those of this project do not.

    Args:
        config_name, config_dir: of the command line.
        overrides: likewise; what they say about Hydra itself is not looked at.

    Raises:
        ConfigError: a file does, or the configuration cannot be composed.
    """
    if Path(config_dir).resolve() == CONFIG_DIR or current_policy().everything:
        return
    if not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir}: there is no such folder; check the path")
    of_hydra = _acting(compose("base/run", None, [], with_hydra=True))
    for choice in _choices(list(overrides), is_sweep):
        found = _acting(compose(config_name, config_dir, choice, with_hydra=True))
        for key in _ACTING:
            if found[key] != of_hydra[key]:
                raise ConfigError(
                    f"{config_name} in {config_dir}, or a file that it includes, sets hydra.{key}, "
                    "which can run code; say it on the command line instead, or repeat with "
                    "--trust-config if you know who wrote the files and let them run any code on "
                    "this machine"
                )


def _acting(cfg: DictConfig) -> dict[str, Any]:
    node = OmegaConf.to_container(cfg.hydra, resolve=False)
    tree = OmegaConf.create(node)
    return {key: OmegaConf.to_container(_holder(tree, key), resolve=False) for key in _ACTING}


def _holder(tree: Any, key: str) -> Any:
    """The value of a key in a container of its own, as a scalar cannot be converted."""
    for part in key.split("."):
        tree = tree._get_node(part)
    return OmegaConf.create({"value": tree})


def _choices(overrides: list[str], is_sweep: bool) -> Iterator[list[str]]:
    """Overrides without those of Hydra itself; of a sweep, so many that each value occurs."""
    others = [o for o in overrides if not is_of_hydra(o)]
    others += [o for o in overrides if o.lstrip("+~").startswith("hydra.searchpath=")]
    if not is_sweep:
        yield others
        return
    from hydra.core.override_parser.overrides_parser import OverridesParser

    values = []
    for override in OverridesParser.create().parse_overrides(others):
        if override.is_sweep_override():
            key = override.get_key_element()
            values.append([f"{key}={text}" for text in override.sweep_string_iterator()])
        else:
            values.append([override.input_line or ""])
    for i in range(max((len(v) for v in values), default=1)):
        yield [v[i % len(v)] for v in values]
