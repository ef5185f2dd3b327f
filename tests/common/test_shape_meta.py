"""shape_meta: order, defaults, and one sentence for what cannot be."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.shape_meta import check_encodable, check_observations, parse_shape_meta

META = {
    "obs": {
        "agent_pos": {"shape": [2]},
        "image": {"shape": [3, 96, 96], "type": "rgb"},
        "force": {"shape": [6], "type": "low_dim"},
    },
    "action": {"shape": [2]},
}


@pytest.mark.parametrize("wrap", [dict, OmegaConf.create])
def test_the_order_of_the_configuration_is_kept(wrap):
    meta = parse_shape_meta(wrap(META))
    assert meta.rgb == {"image": (3, 96, 96)}
    assert meta.low_dim == {"agent_pos": (2,), "force": (6,)}
    assert list(meta.obs.items()) == [
        ("agent_pos", (2,)),
        ("image", (3, 96, 96)),
        ("force", (6,)),
    ]
    assert meta.action == (2,)
    assert parse_shape_meta(meta) is meta


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": {"x": {"shape": [2], "type": "audio"}}}, r"obs\.x\.type is 'audio'; expected one"),
        ({"obs": {"x": {"shape": [9, 9], "type": "rgb"}}}, r"an image needs \[channels, height"),
        ({"obs": {"x": {"shape": [0]}}}, r"obs\.x\.shape is \[0\]; expected a list of whole"),
        ({"obs": {"x": {}}}, r"obs\.x\.shape is None"),
        ({"action": {"shape": "2"}}, r"shape_meta\.action\.shape is 2"),
    ],
)
def test_impossible_entries_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_shape_meta(META | change)


def test_a_missing_part_is_named():
    with pytest.raises(ConfigError, match=r"has no 'action' \(it has \['obs'\]\)"):
        parse_shape_meta({"obs": {}})


# ---------------------------------------------------------------------- observations against it

SMALL = parse_shape_meta(
    {
        "obs": {"image": {"shape": [3, 8, 6], "type": "rgb"}, "pos": {"shape": [2]}},
        "action": {"shape": [2]},
    }
)


def observations(**changes):
    obs = {"image": np.zeros((5, 3, 8, 6), np.uint8), "pos": np.full((5, 2), 300.0, np.float32)}
    obs |= changes
    return {key: value for key, value in obs.items() if value is not None}


def check(obs):
    check_observations(SMALL, obs, n_leading=1, holder="items of X hold", remedy="mend it")


@pytest.mark.parametrize("wrap", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize(
    "image",
    [np.full((5, 3, 8, 6), 255, np.uint8), np.linspace(0, 1, 5 * 144).reshape(5, 3, 8, 6)],
)
def test_observations_that_fit_pass_as_arrays_and_tensors(wrap, image):
    obs = observations(image=image, something_else=np.zeros((5, 99), bool))
    check({key: wrap(value) for key, value in obs.items()})


def test_other_numbers_of_leading_dimensions_are_a_matter_of_saying_so():
    obs = {key: value[None] for key, value in observations().items()}
    check_observations(SMALL, obs, n_leading=2, holder="", remedy="")
    with pytest.raises(ConfigError):
        check(obs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image": None},
            "shape_meta.obs has the camera 'image', but items of X hold pos: mend it",
        ),
        (
            {"pos": None},
            "shape_meta.obs has the observation 'pos', but items of X hold image: ",
        ),
        (
            {"image": np.zeros((5, 3, 6, 8), np.uint8)},
            "shape_meta.obs.image.shape is [3, 8, 6], but items of X hold 'image' of shape "
            "[3, 6, 8]: mend it",
        ),
        (
            {"pos": np.zeros((5, 3))},
            "shape_meta.obs.pos.shape is [2], but items of X hold 'pos' of shape [3]: mend it",
        ),
        (
            {"image": np.zeros((5, 3, 8, 6), np.int64)},
            "items of X hold 'image' as int64, expected uint8, or floats in [0, 1]: convert the",
        ),
        (
            {"image": np.full((5, 3, 8, 6), 255, np.float32)},
            "items of X hold 'image' as float32 from 255 to 255, expected uint8, or floats in [0, ",
        ),
        (
            {"image": torch.linspace(-1, 1, 720).reshape(5, 3, 8, 6)},
            "items of X hold 'image' as float32 from -1 to 1, expected",
        ),
        (
            {"image": np.full((5, 3, 8, 6), np.nan)},
            "items of X hold 'image' as float64 from nan to nan, expected",
        ),
    ],
)
def test_each_observation_that_does_not_fit_has_its_sentence(changes, message):
    with pytest.raises(ConfigError) as error:
        check(observations(**changes))
    assert str(error.value).startswith(message)


def test_nothing_at_all_is_called_so():
    with pytest.raises(ConfigError, match="items of X hold nothing"):
        check({})


# ---------------------------------------------------------------------- what an encoder is given

CAMERA = parse_shape_meta(
    {
        "obs": {"cam": {"shape": [3, 8, 9], "type": "rgb"}, "pos": {"shape": [2]}},
        "action": {"shape": [2]},
    }
)
ENCODABLE = {"cam": torch.zeros(4, 3, 8, 9), "pos": torch.zeros(4, 2)}


def test_observations_as_announced_can_be_encoded_with_or_without_further_keys():
    check_encodable(CAMERA, ENCODABLE)
    check_encodable(CAMERA, ENCODABLE | {"depth": torch.zeros(4)})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cam": None}, r"has the camera 'cam', but the encoder was given pos: make shape_meta"),
        ({"pos": None}, r"has the observation 'pos', but"),
        ({"cam": torch.zeros(4, 3, 9, 8)}, r"\[3, 8, 9\], but .* 'cam' of shape \[3, 9, 8\]"),
        ({"cam": torch.zeros(4, 8, 9, 3)}, r"'cam' of shape \[8, 9, 3\]"),
        ({"cam": torch.zeros(3, 8, 9)}, r"'cam' of shape \[8, 9\]"),
        ({"pos": torch.zeros(4, 3)}, r"pos\.shape is \[2\], but .* 'pos' of shape \[3\]"),
        ({"cam": torch.zeros(4, 3, 8, 9).byte()}, r"'cam' as torch.uint8; .* divide by 255"),
    ],
)
def test_what_cannot_be_encoded_is_named(wrong, message):
    obs = {key: value for key, value in (ENCODABLE | wrong).items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        check_encodable(CAMERA, obs)
