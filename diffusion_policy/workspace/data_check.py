"""Does the data set hold what the configuration says? Asked once, before the first step."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_policy.common.errors import ConfigError, DataError
from diffusion_policy.common.shape_meta import ShapeMeta, check_observations, parse_shape_meta

_PATH_KEYS = ("zarr_path", "dataset_path", "dataset_dir")
_REMEDY = "make shape_meta describe the data, or choose data that it describes"


def check_data(dataset: Any, cfg: DictConfig) -> None:
    """Compares the first item of the training data with ``shape_meta``, or where the configuration
    has none, with ``obs_dim`` and ``action_dim``.

    Raises:
        DataError: there is no item.
        ConfigError: a key is missing, a shape or width differs, or an image is neither uint8 nor
            floats in [0, 1].
    """
    name = _name(dataset, cfg)
    if len(dataset) == 0:
        raise DataError(f"{name} is empty: it holds no window to train on; get other data")
    item = dataset[0]
    if not {"obs", "action"} <= item.keys():
        raise ConfigError(f"items of {name} hold {', '.join(item)}; expected obs and action")
    shape_meta = cfg.get("shape_meta")
    if shape_meta is not None:
        _check_item(item, parse_shape_meta(shape_meta), f"items of {name} hold")
    else:
        _check_widths(item, cfg, f"items of {name} hold")


def _check_item(item: Mapping[str, Any], meta: ShapeMeta, holder: str) -> None:
    obs, action = item["obs"], item["action"]
    if not isinstance(obs, Mapping):
        raise ConfigError(
            f"shape_meta.obs has {', '.join(meta.keys)}, but {holder} one vector 'obs' per step: "
            f"{_REMEDY}"
        )
    check_observations(meta, obs, n_leading=1, holder=holder, remedy=_REMEDY)
    if (found := tuple(action.shape[1:])) != meta.action:
        raise ConfigError(
            f"shape_meta.action.shape is {list(meta.action)}, but {holder} 'action' of shape "
            f"{list(found)}: {_REMEDY}"
        )


def _check_widths(item: Mapping[str, Any], cfg: DictConfig, holder: str) -> None:
    for key in ("obs", "action"):
        expected = cfg.get(f"{key}_dim")
        if expected is None or isinstance(item[key], Mapping):
            continue
        if (found := item[key].shape[-1]) != expected:
            raise ConfigError(
                f"{holder} {key!r} of {found} values per step, but {key}_dim={expected}; set "
                f"task.{key}_dim={found}, or choose other data"
            )


def _name(dataset: Any, cfg: DictConfig) -> str:
    """For messages: the class, and the path if the configuration has one under a usual name."""
    options = OmegaConf.select(cfg, "task.dataset", default={})
    path = next((options[key] for key in _PATH_KEYS if options.get(key)), None)
    return type(dataset).__name__ + (f" ({path})" if path else "")
