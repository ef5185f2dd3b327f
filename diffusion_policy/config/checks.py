"""Arithmetic that a configuration must satisfy, checked when it is read, not an hour into a run."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.shape_meta import parse_shape_meta
from diffusion_policy.common.waiting import Patience

MAX_TIMESTEPS = 100_000


def check_config(cfg: DictConfig) -> None:
    """All checks; see there for what a configuration must satisfy.

    Raises:
        ConfigError: a rule is broken.
    """
    check_horizon(cfg)
    check_transformer(cfg)
    check_crops(cfg)
    check_scheduler(cfg)
    check_training_options(cfg)


def check_horizon(cfg: DictConfig) -> None:
    """Checks that observations, actions and the U-Net fit into the horizon.

    The rules, with T = horizon, To = n_obs_steps and Ta = the number of actions that the policy
    returns (n_action_steps, plus n_latency_steps where the configuration says so):

    1. all lengths are whole numbers of at least 1 (n_latency_steps: 0);
    2. To <= T: the observed steps are the first ones of the window;
    3. start + Ta <= T: the actions are taken from the predicted window at start = To - 1, the step
       of the newest observation (start = To for a lowdim U-Net or video policy without
       ``oa_step_convention: True``);
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


def check_num_processes(cfg: DictConfig) -> int | None:
    """``training.num_processes``; None where it is not given.

    Raises:
        ConfigError: it is not a whole number of at least 1.
    """
    return _length(cfg, "training.num_processes")


def check_training_options(cfg: DictConfig) -> None:
    """Checks the options of training that published configurations do not have.

    Raises:
        ConfigError: one has a value that it cannot have.
    """
    precision = OmegaConf.select(cfg, "training.mixed_precision")
    # YAML reads a bare "no" as False
    if precision not in (None, False, "no", "bf16"):
        raise ConfigError(
            f"training.mixed_precision is {precision!r}; it can be no or bf16 (fp16 would need the "
            "losses to be scaled)"
        )
    timeout_s = OmegaConf.select(cfg, "training.process_timeout_s")
    Patience.from_option("training.process_timeout_s", timeout_s)
    norm = OmegaConf.select(cfg, "training.max_grad_norm")
    if norm is not None and (
        isinstance(norm, bool) or not isinstance(norm, int | float) or norm <= 0
    ):
        raise ConfigError(
            f"training.max_grad_norm is {norm!r}; set it to a number above 0, or null"
        )


def check_scheduler(cfg: DictConfig) -> None:
    """Checks the number of noise levels, for each of which the scheduler computes its tables.

    Raises:
        ConfigError: it is not a whole number from 1 to :data:`MAX_TIMESTEPS`.
    """
    key = "policy.noise_scheduler.num_train_timesteps"
    steps = _length(cfg, key)
    if steps is not None and steps > MAX_TIMESTEPS:
        raise ConfigError(
            f"{key} is {steps}; set it to at most {MAX_TIMESTEPS} (the paper uses 100)"
        )


def check_transformer(cfg: DictConfig) -> None:
    """Checks that the sequences of a diffusion transformer are as long and wide as those it gets.

    Args:
        cfg: a whole, resolved configuration; one without ``policy.model.n_layer`` passes.

    Raises:
        ConfigError: a rule is broken.
    """
    policy = cfg.get("policy")
    model = OmegaConf.select(cfg, "policy.model")
    if not model or "n_layer" not in model or "obs_dim" not in policy:
        return
    only_actions = policy.get("pred_action_steps_only")
    name = "n_action_steps" if only_actions else "horizon"
    longest = {"horizon": (name, policy[name])}
    if model.get("n_obs_steps") is not None:  # its default is the horizon
        longest["n_obs_steps"] = ("n_obs_steps", policy.n_obs_steps)
    for key, (needed_by, needed) in longest.items():
        if model[key] < needed:
            raise ConfigError(
                f"policy.model.{key} is {model[key]}, but the policy passes {needed_by}={needed} "
                f"steps; set policy.model.{key}={needed}"
            )
    as_cond = policy.get("obs_as_cond")
    width = policy.action_dim if as_cond else policy.action_dim + policy.obs_dim
    expected = {"input_dim": width, "output_dim": width, "cond_dim": policy.obs_dim * bool(as_cond)}
    for key, value in expected.items():
        if model.get(key, 0) != value:
            raise ConfigError(
                f"policy.model.{key} is {model.get(key, 0)}, but with obs_as_cond={bool(as_cond)}, "
                f"obs_dim={policy.obs_dim} and action_dim={policy.action_dim} it must be {value}"
            )


def check_crops(cfg: DictConfig) -> None:
    """Checks that every crop is cut from a larger image.

    The crop of the policy, or of its encoder, is smaller in both directions than the images of
    ``shape_meta``, or than what they are resized to; with ``random_crop: False`` it may be as
    large. Crops and sizes can be given per camera.

    Args:
        cfg: a whole, resolved configuration; one without crops passes.

    Raises:
        ConfigError: a crop is not smaller; the message names the camera and both sizes.
    """
    encoder = OmegaConf.select(cfg, "policy.obs_encoder")
    section, path = (encoder, "policy.obs_encoder") if encoder else (cfg.get("policy"), "policy")
    if not section or not section.get("crop_shape") or "shape_meta" not in section:
        return
    margin = 1 if section.get("random_crop", True) else 0  # random crops need somewhere to move
    for key, shape in parse_shape_meta(section.shape_meta).rgb.items():
        crop = _of_camera(section.crop_shape, key)
        resized = _of_camera(section.get("resize_shape"), key)
        size = resized or list(shape[1:])
        origin = f"{path}.resize_shape" if resized else f"shape_meta.obs.{key}.shape"
        if crop and any(cut + margin > whole for cut, whole in zip(crop, size, strict=True)):
            raise ConfigError(
                f"{path}.crop_shape is {crop}, but images {key!r} are {size} (height, width; "
                f"{origin}) and a crop is smaller; lower it, or set it to null for no crop"
            )


def _of_camera(value: Any, key: str) -> list[int] | None:
    """A (height, width) that is the same for all cameras, or given for each."""
    value = value.get(key) if isinstance(value, Mapping | DictConfig) else value
    return None if value is None else list(value)


def _check_actions_fit(cfg: DictConfig, horizon: int, n_obs: int, n_returned: int) -> None:
    starts_after = _may_start_late(cfg) and not OmegaConf.select(cfg, "policy.oa_step_convention")
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


def _may_start_late(cfg: DictConfig) -> bool:
    """Whether the policy knows ``oa_step_convention``, which is False where it is not given."""
    target = str(OmegaConf.select(cfg, "policy._target_", default=""))
    return target.rpartition(".")[2] in ("DiffusionUnetLowdimPolicy", "DiffusionUnetVideoPolicy")


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
