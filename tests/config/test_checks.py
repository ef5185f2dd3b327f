import pytest
from omegaconf import OmegaConf

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.config.checks import (
    check_config,
    check_crops,
    check_horizon,
    check_num_processes,
    check_scheduler,
    check_training_options,
    check_transformer,
)

P = "diffusion_policy.policy."
UNET_LOWDIM = P + "diffusion_unet_lowdim_policy.DiffusionUnetLowdimPolicy"


def config(policy=UNET_LOWDIM, steps=(16, 2, 8), latency=0, down_dims=None, nested=False, **extra):
    """The part of a resolved configuration that the check reads."""
    horizon, n_obs, n_action = steps
    section = {"_target_": policy, "n_action_steps": n_action + latency, **extra}
    if down_dims is not None:
        section.update({"model": {"down_dims": down_dims}} if nested else {"down_dims": down_dims})
    return OmegaConf.create(
        {
            "horizon": horizon,
            "n_obs_steps": n_obs,
            "n_action_steps": n_action,
            "n_latency_steps": latency,
            "policy": section,
        }
    )


def unet_lowdim(steps=(16, 2, 8), oa_step_convention=True, **kwargs):
    kwargs = {"down_dims": [256, 512, 1024], "nested": True, **kwargs}
    return config(UNET_LOWDIM, steps, oa_step_convention=oa_step_convention, **kwargs)


def without(cfg, *keys):
    for key in keys:
        parent, _, name = key.rpartition(".")
        del (OmegaConf.select(cfg, parent) if parent else cfg)[name]
    return cfg


BIG, SMALL = [512, 1024, 2048], [256, 512, 1024]
HYBRID = P + "diffusion_unet_hybrid_image_policy.DiffusionUnetHybridImagePolicy"
IMAGE = P + "diffusion_unet_image_policy.DiffusionUnetImagePolicy"
VIDEO = P + "diffusion_unet_video_policy.DiffusionUnetVideoPolicy"
T_LOWDIM = P + "diffusion_transformer_lowdim_policy.DiffusionTransformerLowdimPolicy"
T_HYBRID = P + "diffusion_transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy"
BET = P + "bet_lowdim_policy.BETLowdimPolicy"
IBC_LOWDIM = P + "ibc_dfo_lowdim_policy.IbcDfoLowdimPolicy"
IBC_HYBRID = P + "ibc_dfo_hybrid_image_policy.IbcDfoHybridImagePolicy"
RM_LOWDIM = P + "robomimic_lowdim_policy.RobomimicLowdimPolicy"
RM_IMAGE = P + "robomimic_image_policy.RobomimicImagePolicy"

SHIPPED = {
    "unet_lowdim": unet_lowdim(),
    "unet_ddim_lowdim": unet_lowdim(),
    "transformer_lowdim": config(T_LOWDIM, (5, 3, 1)),
    "transformer_lowdim_pusht": config(T_LOWDIM, (16, 2, 8)),
    "transformer_lowdim_kitchen": config(T_LOWDIM, (16, 4, 8)),
    "unet_hybrid": config(HYBRID, down_dims=BIG),
    "unet_ddim_hybrid": config(HYBRID, down_dims=SMALL),
    "unet_real_hybrid": config(HYBRID, down_dims=SMALL),
    "transformer_hybrid": config(T_HYBRID, (10, 2, 8)),
    "transformer_real_hybrid": config(T_HYBRID, (16, 2, 8)),
    "unet_image": config(IMAGE, down_dims=BIG),
    "unet_image_pretrained": config(IMAGE, down_dims=BIG),
    "unet_real_image": config(IMAGE, down_dims=BIG),
    "unet_real_pretrained": config(IMAGE, down_dims=BIG),
    "unet_video": without(config(VIDEO, (16, 4, 8), down_dims=BIG), "n_latency_steps"),
    "bet_lowdim": config(BET, (3, 3, 1)),
    "ibc_lowdim": config(IBC_LOWDIM, (2, 2, 1)),
    "ibc_hybrid": config(IBC_HYBRID, (2, 2, 1)),
    # Its policy returns n_action_steps, without the latency of 1: with it, nothing would fit.
    "ibc_real_hybrid": OmegaConf.merge(config(IBC_HYBRID, (2, 2, 1)), {"n_latency_steps": 1}),
    "robomimic_lowdim": without(config(RM_LOWDIM, (10, 1, 1)), "policy.n_action_steps"),
    "robomimic_image": without(config(RM_IMAGE, (10, 1, 1)), "policy.n_action_steps"),
    "robomimic_real_image": without(config(RM_IMAGE, (10, 1, 1), 1), "policy.n_action_steps"),
}


def test_the_table_holds_all_shipped_methods():
    assert len(SHIPPED) == 22


@pytest.mark.parametrize("name", SHIPPED)
def test_no_shipped_configuration_is_refused(name):
    check_horizon(SHIPPED[name])


@pytest.mark.parametrize("key", ["horizon", "n_obs_steps", "n_action_steps"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "8", True])
def test_a_length_that_is_no_positive_whole_number_is_refused(key, value):
    cfg = unet_lowdim()
    cfg[key] = value
    with pytest.raises(ConfigError, match=f"{key} is .*at least 1"):
        check_horizon(cfg)


def test_no_latency_is_fine_and_negative_latency_is_refused():
    check_horizon(unet_lowdim(latency=0))
    cfg = unet_lowdim()
    cfg.n_latency_steps = -1
    with pytest.raises(ConfigError, match="n_latency_steps is -1"):
        check_horizon(cfg)


def test_more_observations_than_horizon_are_refused():
    with pytest.raises(ConfigError, match="n_obs_steps is 9 but horizon is 8"):
        check_horizon(unet_lowdim((8, 9, 1)))


@pytest.mark.parametrize(
    ("cfg", "fits"),
    [
        (unet_lowdim((16, 2, 15)), True),
        (unet_lowdim((16, 2, 16)), False),
        (unet_lowdim((16, 2, 14), latency=1), True),
        (unet_lowdim((16, 2, 15), latency=1), False),
        # Without the observation-action convention the window starts one step later.
        (unet_lowdim((16, 2, 14), oa_step_convention=False), True),
        (unet_lowdim((16, 2, 15), oa_step_convention=False), False),
        (without(unet_lowdim((16, 2, 15)), "policy.oa_step_convention"), False),
        # Every other policy starts at n_obs_steps - 1.
        (config(HYBRID, (16, 2, 15), down_dims=SMALL), True),
        (config(T_LOWDIM, (5, 3, 4)), False),
        # But the video policy, which skips the newest observation unless told otherwise.
        (config(VIDEO, (16, 4, 12), down_dims=SMALL), True),
        (config(VIDEO, (16, 4, 13), down_dims=SMALL), False),
        (config(VIDEO, (16, 4, 13), down_dims=SMALL, oa_step_convention=True), True),
        (without(config(RM_LOWDIM, (10, 1, 10), 1), "policy.n_action_steps"), False),
    ],
)
def test_actions_must_lie_within_the_horizon(cfg, fits):
    if fits:
        check_horizon(cfg)
    else:
        with pytest.raises(ConfigError, match=r"n_obs_steps.* must be at most horizon = "):
            check_horizon(cfg)


def test_the_message_spells_the_sum_out():
    with pytest.raises(ConfigError) as error:
        check_horizon(unet_lowdim((16, 2, 15), latency=3))
    assert "n_obs_steps - 1 + n_action_steps + n_latency_steps = 1 + 18 = 19" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("nested", [True, False])
def test_the_unet_needs_a_horizon_that_it_can_halve(nested):
    check_horizon(config(HYBRID, (12, 2, 8), down_dims=SMALL, nested=nested))
    with pytest.raises(ConfigError, match=r"horizon is 10.*2\^2 = 4; set horizon to 8 or 12"):
        check_horizon(config(HYBRID, (10, 2, 8), down_dims=SMALL, nested=nested))
    check_horizon(config(HYBRID, (10, 2, 8), down_dims=[64, 128], nested=nested))
    check_horizon(config(HYBRID, (15, 2, 8), down_dims=[64], nested=nested))


def test_the_unet_of_actions_only_needs_actions_that_it_can_halve():
    check_horizon(unet_lowdim((10, 2, 8), pred_action_steps_only=True))
    with pytest.raises(ConfigError, match=r"n_action_steps is 6.*set n_action_steps to 4 or 8"):
        check_horizon(unet_lowdim((16, 2, 6), pred_action_steps_only=True))
    with pytest.raises(ConfigError, match=r"n_action_steps is 3.*set n_action_steps to 4,"):
        check_horizon(unet_lowdim((16, 2, 3), pred_action_steps_only=True))


def test_a_configuration_without_windows_is_left_alone():
    check_horizon(OmegaConf.create({"policy": {"down_dims": [1, 2, 3]}}))


# ---- crops ---------------------------------------------------------------------------------------

CAMERAS = {"front": [3, 84, 84], "wrist": [3, 60, 84]}


def crops(inside_encoder=False, cameras=("front",), **options):
    obs = {key: {"shape": CAMERAS[key], "type": "rgb"} for key in cameras}
    obs["pos"] = {"shape": [3]}
    section = {"shape_meta": {"obs": obs, "action": {"shape": [2]}}, **options}
    return OmegaConf.create({"policy": {"obs_encoder": section} if inside_encoder else section})


@pytest.mark.parametrize(
    "cfg",
    [
        crops(crop_shape=[76, 83]),
        crops(crop_shape=None),
        crops(),
        crops(True, crop_shape=[76, 76], resize_shape=None),
        crops(True, crop_shape=[224, 224], resize_shape=[256, 256], random_crop=False),
        crops(True, crop_shape=[84, 84], random_crop=False),
        crops(True, ("front", "wrist"), crop_shape={"front": [76, 76], "wrist": [56, 76]}),
        crops(True, ("front", "wrist"), crop_shape={"front": [76, 76], "wrist": None}),
        OmegaConf.create({"horizon": 16}),
        OmegaConf.create({"policy": {"obs_dim": 20}}),
    ],
)
def test_crops_that_fit_are_fine(cfg):
    check_crops(cfg)


@pytest.mark.parametrize(
    ("cfg", "sentence"),
    [
        (
            crops(crop_shape=[76, 96]),
            r"policy\.crop_shape is \[76, 96\], but images 'front' are \[84, 84\].*shape_meta",
        ),
        (crops(crop_shape=[84, 84]), r"smaller"),  # a random crop needs somewhere to move
        (crops(cameras=("front", "wrist"), crop_shape=[76, 76]), r"'wrist' are \[60, 84\]"),
        (
            crops(True, crop_shape=[76, 76], resize_shape=[64, 64]),
            r"policy\.obs_encoder\.crop_shape.*\[64, 64\].*policy\.obs_encoder\.resize_shape",
        ),
        (crops(True, crop_shape=[85, 84], random_crop=False), r"\[85, 84\]"),
        (
            crops(True, ("front", "wrist"), crop_shape={"front": [76, 76], "wrist": [76, 76]}),
            r"'wrist'",
        ),
    ],
)
def test_a_crop_that_is_not_smaller_than_the_image_is_refused(cfg, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        check_config(cfg)
    assert "\n" not in str(error.value)


def transformer(**changes):
    """The part of a transformer's resolved configuration that the check reads."""
    model = {"n_layer": 8, "horizon": 16, "n_obs_steps": 2}
    model |= {"input_dim": 2, "output_dim": 2, "cond_dim": 20}
    policy = {"horizon": 16, "n_obs_steps": 2, "n_action_steps": 8, "obs_as_cond": True}
    policy |= {"obs_dim": 20, "action_dim": 2}
    cfg = OmegaConf.create({"policy": {**policy, "model": model}})
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    return cfg


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"policy__model__horizon": 20},
        {"policy__pred_action_steps_only": True, "policy__model__horizon": 8},
        {
            "policy__obs_as_cond": False,
            "policy__model__cond_dim": 0,
            "policy__model__input_dim": 22,
            "policy__model__output_dim": 22,
        },
        {"policy__model__n_obs_steps": None},
    ],
)
def test_a_transformer_that_fits_is_fine(changes):
    check_transformer(transformer(**changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"policy__horizon": 32}, "policy.model.horizon is 16, but the policy passes horizon=32"),
        (
            {"policy__pred_action_steps_only": True, "policy__model__horizon": 4},
            "policy.model.horizon is 4, but the policy passes n_action_steps=8",
        ),
        ({"policy__n_obs_steps": 3}, "set policy.model.n_obs_steps=3"),
        ({"policy__model__cond_dim": 16}, "policy.model.cond_dim is 16.* it must be 20"),
        ({"policy__obs_as_cond": False}, "policy.model.input_dim is 2.* it must be 22"),
        ({"policy__model__output_dim": 3}, "policy.model.output_dim is 3.* it must be 2"),
    ],
)
def test_a_transformer_that_does_not_fit_is_refused(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_transformer(transformer(**changes))


# ---- options that published configurations do not have -------------------------------------------


def test_training_options_are_optional():
    cfg = OmegaConf.create({"training": {"seed": 1}})
    check_training_options(cfg)
    assert check_num_processes(cfg) is None


@pytest.mark.parametrize("precision", ["bf16", "no", False, None])
@pytest.mark.parametrize("norm", [None, 1, 0.5])
def test_training_options_that_work(precision, norm):
    training = {"mixed_precision": precision, "max_grad_norm": norm, "num_processes": 2}
    cfg = OmegaConf.create({"training": training})
    check_training_options(cfg)
    assert check_num_processes(cfg) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mixed_precision", "fp16"),
        ("mixed_precision", True),
        ("max_grad_norm", 0),
        ("max_grad_norm", "large"),
        ("max_grad_norm", True),
    ],
)
def test_training_options_that_cannot_be(key, value):
    with pytest.raises(ConfigError, match=f"training.{key} is {value!r}"):
        check_config(OmegaConf.create({"training": {key: value}}))


@pytest.mark.parametrize("n", [0, -1, 1.5, True])
def test_numbers_of_processes_that_cannot_be(n):
    with pytest.raises(ConfigError, match=r"training.num_processes is .*whole number"):
        check_num_processes(OmegaConf.create({"training": {"num_processes": n}}))


@pytest.mark.parametrize("steps", [0, -1, 2**31, 100_001, 1.5, True, "x"])
def test_numbers_of_noise_levels_that_cannot_be(steps):
    # a scheduler of 2**31 levels would fill a list of as many numbers, one by one
    cfg = OmegaConf.create({"policy": {"noise_scheduler": {"num_train_timesteps": steps}}})
    with pytest.raises(ConfigError, match=r"policy\.noise_scheduler\.num_train_timesteps is"):
        check_scheduler(cfg)
    cfg.policy.noise_scheduler.num_train_timesteps = 1000
    check_scheduler(cfg)
