"""Compose a configuration as ``train.py`` would, without running a job of Hydra."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from diffusion_policy.common.errors import ConfigError

CONFIG_DIR = Path(__file__).parent


def compose(
    config_name: str,
    config_dir: str | Path | None,
    overrides: Sequence[str],
    with_hydra: bool = False,
) -> DictConfig:
    """A configuration, its interpolations as they are written.

    Args:
        config_name: a shipped configuration, or a file in ``config_dir``.
        config_dir: searched before the shipped ones. None: only those.
        overrides: as on the command line of ``train.py``.
        with_hydra: with the node ``hydra``, as it is before a job runs.

    Raises:
        ConfigError: there is none of that name, or an override does not fit it.
    """
    import hydra
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.utils import setup_globals
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    search_path = create_config_search_path(str(CONFIG_DIR))
    if config_dir is not None:
        before_schemas = SearchPathQuery(provider="schema")
        search_path.prepend("command-line", f"file://{Path(config_dir).absolute()}", before_schemas)
    setup_globals()  # ${now:}
    try:
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base=None):
            # As hydra.main with --config-dir: what is shipped is found first.
            GlobalHydra.instance().clear()
            Hydra.create_main_hydra2("train", search_path)
            return hydra.compose(
                config_name, overrides=list(overrides), return_hydra_config=with_hydra
            )
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(" ".join(str(error).split())) from error
