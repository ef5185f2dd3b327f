"""The published settings of robomimic's baselines, and what happens without robomimic."""

import sys

import pytest
from robomimic_stand_in import needs_robomimic

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.robomimic_config_util import (
    get_robomimic_config,
    import_robomimic,
    make_algo,
    set_observations,
)
from diffusion_policy.common.shape_meta import ShapeMeta


@pytest.fixture
def no_robomimic(monkeypatch):
    """As on a machine where it was never installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "robomimic"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "robomimic", None)


def test_without_robomimic_one_sentence_says_how_to_install_it(no_robomimic):
    for call in (get_robomimic_config, lambda: import_robomimic("algo")):
        with pytest.raises(ConfigError) as caught:
            call()
        message = str(caught.value)
        assert message.startswith("the LSTM-GMM baseline needs robomimic, which cannot be imported")
        assert message.endswith("pip install 'diffusion_policy[sim]'")


def test_algorithms_that_need_more_than_observations_and_actions_are_refused(no_robomimic):
    with pytest.raises(ConfigError, match="algo_name is 'bcq'; expected one of bc, bc_rnn"):
        get_robomimic_config("bcq")


@needs_robomimic
@pytest.mark.parametrize(("kind", "hidden"), [("low_dim", 400), ("image", 1000)])
def test_the_lstm_is_the_published_one(kind, hidden):
    algo = get_robomimic_config("bc_rnn", kind, "lift", "mh").algo
    assert algo.rnn.to_dict() == {
        "enabled": True,
        "horizon": 10,
        "hidden_dim": hidden,
        "rnn_type": "LSTM",
        "num_layers": 2,
        "open_loop": False,
        "kwargs": {"bidirectional": False},
    }
    assert tuple(algo.actor_layer_dims) == ()
    assert_published_mixture_and_optimizer(algo)


@needs_robomimic
def test_without_an_lstm_there_are_two_hidden_layers():
    algo = get_robomimic_config("bc", "low_dim", "can", "paired").algo
    assert not algo.rnn.enabled
    assert tuple(algo.actor_layer_dims) == (1024, 1024)
    assert_published_mixture_and_optimizer(algo)


def assert_published_mixture_and_optimizer(algo):
    mixture = algo.gmm.to_dict()
    assert mixture.pop("std_activation") == "softplus"
    assert mixture == {"enabled": True, "num_modes": 5, "min_std": 1e-4, "low_noise_eval": True}
    optimizer = algo.optim_params.policy.to_dict()
    assert optimizer["optimizer_type"] == "adam"
    assert optimizer["learning_rate"]["initial"] == 1e-4
    assert optimizer["learning_rate"]["epoch_schedule"] == []
    assert optimizer["regularization"]["L2"] == 0


@needs_robomimic
def test_the_image_encoder_is_the_published_one():
    rgb = get_robomimic_config("bc_rnn", "image").observation.encoder.rgb
    assert rgb.core_class == "VisualCore"
    core = rgb.core_kwargs.to_dict()
    assert core["feature_dimension"] == 64
    assert core["backbone_class"] == "ResNet18Conv"
    assert core["backbone_kwargs"] == {"pretrained": False, "input_coord_conv": False}
    assert core["pool_class"] == "SpatialSoftmax"
    pool = core["pool_kwargs"]
    assert pool.pop("output_variance", False) is False
    assert pool == {"num_kp": 32, "learnable_temperature": False, "temperature": 1, "noise_std": 0}
    assert rgb.obs_randomizer_class == "CropRandomizer"
    crop = {"crop_height": 76, "crop_width": 76, "num_crops": 1, "pos_enc": False}
    assert rgb.obs_randomizer_kwargs.to_dict() == crop


@needs_robomimic
@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (
            ("low_dim", "push", "ph"),
            r"policy\.task_name='push' .*expected one of lift, can, square",
        ),
        (("low_dim", "tool_hang", "mh"), r"policy\.dataset_type='mh' .*expected one of ph$"),
        (("raw", "lift", "ph"), r"policy\.obs_type='raw' .*expected one of low_dim, image$"),
    ],
)
def test_data_sets_without_published_settings_are_named_with_what_there_is(names, complaint):
    with pytest.raises(ConfigError, match=complaint):
        get_robomimic_config("bc_rnn", *names)


SHAPES = ShapeMeta(
    rgb={"cam": (3, 40, 36)}, low_dim={"pos": (2,)}, action=(2,), keys=("pos", "cam")
)


@needs_robomimic
def test_a_configuration_observes_what_it_is_told_to():
    config = get_robomimic_config("bc_rnn", "image")
    set_observations(config, SHAPES, crop_shape=(32, 30))
    expected = {"low_dim": ["pos"], "rgb": ["cam"], "depth": [], "scan": []}
    assert config.observation.modalities.obs.to_dict() == expected
    randomizer = config.observation.encoder.rgb
    assert randomizer.obs_randomizer_class == "CropRandomizer"
    crop = randomizer.obs_randomizer_kwargs
    assert (crop.crop_height, crop.crop_width) == (32, 30)

    set_observations(config, SHAPES, crop_shape=None)
    assert randomizer.obs_randomizer_class is None


@needs_robomimic
def test_an_algorithm_is_built_silently_whatever_was_built_before(capsys, recwarn):
    config = get_robomimic_config("bc_rnn", "low_dim")
    other = ShapeMeta({}, {"cam": (5,)}, (2,), ("cam",))  # here the same name is a vector
    set_observations(config, other, crop_shape=None)
    make_algo(config, other)
    image_config = get_robomimic_config("bc_rnn", "image")
    set_observations(image_config, SHAPES, crop_shape=None)
    algo = make_algo(image_config, SHAPES)
    assert list(algo.obs_shapes) == ["pos", "cam"]
    assert algo.nets["policy"].nets["encoder"].nets["obs"].output_shape() == [2 + 64]
    assert capsys.readouterr().out == ""
    assert not recwarn.list
