"""Arithmetic that a configuration must satisfy, checked when it is read, not an hour into a run."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_policy.common.errors import ConfigError


def check_horizon(cfg: DictConfig) -> None:
    """Checks that observations, actions and the U-Net fit into the horizon.

    The rules, with T = horizon, To = n_obs_steps and Ta = the number of actions that the policy
    returns (n_action_steps, plus n_latency_steps where the configuration says so):

    1. all lengths are whole numbers of at least 1 (n_latency_steps: 0);
    2. To <= T: the observed steps are the first ones of the window;
    3. start + Ta <= T: the actions are taken from the predicted window at start = To - 1, the step
       of the newest observation (start = To for a lowdim U-Net policy with ``oa_step_convention:
       False``);
    4. a U-Net halves its input once per level but the last, so its length (T, or Ta with
       ``pred_action_steps_only``) is a multiple of 2^(len(down_dims) - 1).

    Args:
        cfg: a whole, resolved configuration; rules about keys that it does not have are skipped.

    Raises:
        ConfigError: a rule is broken; the message spells it out with the numbers found.
    """
    horizon = _length(cfg, "horizon")
    n_obs = _length(cfg, "n_obs_steps")
    n_latency = _length(cfg, "n_latency_steps", at_least=0) or 0
    n_action = _length(cfg, "n_action_steps")
    if horizon is None or n_obs is None or n_action is None:
        return  # not a configuration of windows
    n_returned = _length(cfg, "policy.n_action_steps") or n_action + n_latency
    if n_obs > horizon:
        raise ConfigError(
            f"n_obs_steps is {n_obs} but horizon is {horizon}: the observed steps lie within the "
            f"horizon; raise horizon to at least {n_obs} or lower n_obs_steps"
        )
    _check_actions_fit(cfg, horizon, n_obs, n_returned)
    _check_unet_length(cfg, horizon, n_returned)


def _check_actions_fit(cfg: DictConfig, horizon: int, n_obs: int, n_returned: int) -> None:
    starts_after = _is_lowdim_unet(cfg) and not OmegaConf.select(cfg, "policy.oa_step_convention")
    start, name = (n_obs, "n_obs_steps") if starts_after else (n_obs - 1, "n_obs_steps - 1")
    if start + n_returned > horizon:
        raise ConfigError(
            f"the actions do not fit into the horizon: {name} + n_action_steps + n_latency_steps = "
            f"{start} + {n_returned} = {start + n_returned} must be at most horizon = {horizon}; "
            f"raise horizon or lower one of the others"
        )


def _check_unet_length(cfg: DictConfig, horizon: int, n_returned: int) -> None:
    down_dims = _first(cfg, "policy.model.down_dims", "policy.down_dims")
    if down_dims is None:
        return
    only_actions = bool(OmegaConf.select(cfg, "policy.pred_action_steps_only"))
    name, length = ("n_action_steps", n_returned) if only_actions else ("horizon", horizon)
    halvings = len(down_dims) - 1
    multiple = 2**halvings
    if length % multiple != 0:
        below = length - length % multiple
        nearest = f"{below} or {below + multiple}" if below else f"{multiple}"
        raise ConfigError(
            f"{name} is {length}, but a U-Net with down_dims {list(down_dims)} halves its input "
            f"{halvings} times and needs a multiple of 2^{halvings} = {multiple}; set {name} to "
            f"{nearest}, or change the number of down_dims"
        )


def _is_lowdim_unet(cfg: DictConfig) -> bool:
    target = str(OmegaConf.select(cfg, "policy._target_", default=""))
    return target.rpartition(".")[2] == "DiffusionUnetLowdimPolicy"


def _length(cfg: DictConfig, key: str, at_least: int = 1) -> int | None:
    """The number of steps under a key, None where there is no such key."""
    value = OmegaConf.select(cfg, key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ConfigError(f"{key} is {value!r}; set it to a whole number of at least {at_least}")
    return value


def _first(cfg: DictConfig, *keys: str) -> Any:
    """The first of these keys that has a value."""
    return next((v for v in (OmegaConf.select(cfg, key) for key in keys) if v is not None), None)
