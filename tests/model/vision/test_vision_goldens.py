"""Encoders of the original's image policies: keys, shapes, outputs."""

import json

import pytest
import torch
from image_tasks import pusht
from reference_weights import draw_by_recipe, layout, overwrite

from diffusion_policy.model.vision.model_getter import get_resnet
from diffusion_policy.model.vision.multi_image_obs_encoder import MultiImageObsEncoder
from diffusion_policy.model.vision.robomimic_obs_encoder import RobomimicObsEncoder

PUSHT = pusht(96)


def cameras(size, *names):
    obs = {name: {"shape": [3, *size], "type": "rgb"} for name in names}
    return {"obs": obs, "action": {"shape": [7]}}


LIFT = cameras((84, 84), "agentview_image", "robot0_eye_in_hand_image")
REAL = cameras((240, 320), "camera_1", "camera_3")
TRANSPORT = cameras(
    (84, 84),
    "shouldercamera0_image",
    "robot0_eye_in_hand_image",
    "shouldercamera1_image",
    "robot1_eye_in_hand_image",
)


@pytest.fixture(scope="module")
def policies(golden):
    cases = torch.load(golden / "e_policy_image.pt", weights_only=True)
    return {case["variant"]: case for case in cases}


@pytest.fixture(scope="module")
def stock(golden):
    return json.loads((golden / "e_stock_state_dicts.json").read_text())


def encoder_part(entries):
    prefix = "obs_encoder."
    return {k.removeprefix(prefix): v for k, v in entries.items() if k.startswith(prefix)}


@pytest.mark.parametrize(
    ("config", "shape_meta", "crop", "group_norm"),
    [
        ("train_diffusion_unet_hybrid_workspace", LIFT, (76, 76), True),
        ("train_diffusion_unet_hybrid_workspace+task=pusht_image", PUSHT, (76, 76), True),
        (
            "train_diffusion_unet_hybrid_workspace+task=transport_image_abs",
            TRANSPORT,
            (76, 76),
            True,
        ),
        ("train_diffusion_unet_real_hybrid_workspace", REAL, (216, 288), True),
        ("train_ibc_dfo_hybrid_workspace", PUSHT, (84, 84), True),
    ],
)
def test_keys_and_shapes_of_hybrid_encoders(stock, config, shape_meta, crop, group_norm):
    with torch.device("meta"):
        encoder = RobomimicObsEncoder(shape_meta, crop, group_norm)
    expected = encoder_part(stock[config]["state_dict"])
    assert layout(encoder) == expected
    assert list(encoder.state_dict()) == list(expected)  # the order of cameras, too


def test_keys_and_shapes_of_the_robomimic_baseline_with_batch_norm(stock):
    state = stock["train_robomimic_image_workspace+task=pusht_image"]["state_dict"]
    marker = "nets.policy.nets.encoder.nets.obs."
    expected = {k.partition(marker)[2]: v for k, v in state.items() if marker in k}
    with torch.device("meta"):
        assert layout(RobomimicObsEncoder(PUSHT, (76, 76))) == expected


@pytest.mark.parametrize(
    ("config", "shape_meta", "crop", "resize"),
    [
        ("train_diffusion_unet_image_workspace", LIFT, (76, 76), None),
        ("train_diffusion_unet_image_workspace+task=pusht_image", PUSHT, (76, 76), None),
        ("train_diffusion_unet_real_image_workspace", REAL, (216, 288), (240, 320)),
    ],
)
def test_keys_and_shapes_of_image_encoders(stock, config, shape_meta, crop, resize):
    with torch.device("meta"):
        encoder = MultiImageObsEncoder(
            shape_meta,
            get_resnet("resnet18"),
            resize,
            crop,
            use_group_norm=True,
            imagenet_norm=True,
        )
    expected = encoder_part(stock[config]["state_dict"])
    assert layout(encoder) == expected
    assert list(encoder.state_dict()) == list(expected)


@pytest.mark.parametrize(
    "variant",
    ["image0", "image1", "image2", "hybrid", "hybrid_nogn", "hybrid_nocrop", "ibc_hybrid"],
)
def test_outputs_equal_those_of_the_original(policies, variant):
    case = policies[variant]
    encoder = golden_encoder(case)
    weights = encoder_part(draw_by_recipe(case["state_dict_shapes"], case["fill_recipe_seed"]))
    assert weights.keys() == encoder.state_dict().keys()
    overwrite(encoder, weights)
    with torch.no_grad():
        features = encoder.eval()(golden_observations(case))
    assert torch.allclose(features, case["encoder_out_eval"], rtol=1e-4, atol=1e-5)


def golden_encoder(case):
    if "encoder_kw" in case:
        # These numbers were computed with a torchvision that antialiases by default.
        options = case["encoder_kw"] | {"resize_antialias": True}
        return MultiImageObsEncoder(case["shape_meta"], get_resnet("resnet18"), **options)
    options = case["policy_kw"]
    return RobomimicObsEncoder(
        case["shape_meta"],
        crop_shape=options["crop_shape"],
        group_norm=options.get("obs_encoder_group_norm", True),
        fixed_crop_in_eval=options.get("eval_fixed_crop", True),
    )


def golden_observations(case):
    """The first observation steps of the batch, normalised, (B * To, ...)."""
    n_obs_steps = case["policy_kw"]["n_obs_steps"]
    normalizer = case["normalizer_state"]
    obs = {}
    for key, value in case["batch"]["obs"].items():
        value = value[:, :n_obs_steps].flatten(0, 1)
        value = value / 255 if value.dtype == torch.uint8 else value
        scale, offset = (
            normalizer[f"normalizer.params_dict.{key}.{n}"] for n in ("scale", "offset")
        )
        obs[key] = value * scale + offset
    return obs
