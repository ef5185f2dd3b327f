"""The hybrid policies' encoder: keys, numbers, order of features and draws of robomimic's."""

import copy
import importlib.util
import sys

import pytest
import torch
from image_tasks import make_shape_meta, pusht
from reference_weights import fill, wave
from torch import nn

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.torchvision_util import import_torchvision
from diffusion_policy.model.vision.robomimic_obs_encoder import RobomimicObsEncoder

PUSHT = pusht(96)
SMALL = make_shape_meta(pos=(2,), cam=(3, 40, 36), other_cam=(3, 40, 36), grip=(1,))


def observations(shape_meta, batch=3):
    return {key: torch.randn(batch, *o["shape"]) for key, o in shape_meta["obs"].items()}


@pytest.fixture(scope="module")
def small():
    """Two cameras, 32x32 crops of 40x36 images, centre crops in evaluation; in evaluation mode."""
    torch.manual_seed(0)
    return RobomimicObsEncoder(SMALL, (32, 32), group_norm=True, fixed_crop_in_eval=True).eval()


def on_meta(*args, **kwargs):
    with torch.device("meta"):
        return RobomimicObsEncoder(*args, **kwargs)


def test_features_keep_the_order_of_the_configuration(small):
    obs = observations(SMALL)
    with torch.no_grad():
        features = small(obs)
        cameras = [small.obs_nets[k](obs[k][..., 4:36, 2:34]).relu() for k in ("cam", "other_cam")]
    expected = torch.cat([obs["pos"], *cameras, obs["grip"]], dim=-1)
    assert torch.allclose(features, expected, atol=1e-6)
    assert small.output_shape() == [features.shape[1]] == [2 + 64 + 64 + 1]


def test_further_observations_are_ignored(small):
    obs = observations(SMALL)
    with torch.no_grad():
        assert torch.equal(small(obs | {"depth": torch.zeros(9)}), small(obs))


@pytest.mark.parametrize("fixed_crop_in_eval", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_random_draws_are_rows_columns_and_noise_of_each_camera_in_turn(
    small, training, fixed_crop_in_eval
):
    encoder = copy.deepcopy(small)
    if not fixed_crop_in_eval:
        encoder.obs_randomizers = on_meta(SMALL, (32, 32)).obs_randomizers
    encoder.train(training)
    obs, corners = observations(SMALL), []
    torch.manual_seed(5)
    with torch.no_grad():
        features = encoder(obs)
    after = torch.rand(1)
    torch.manual_seed(5)
    for _ in range(2):
        if training or not fixed_crop_in_eval:
            corners.append([(torch.rand(3) * 8).long(), (torch.rand(3) * 4).long()])
        if training:
            torch.randn(3, 32, 2)
    assert torch.equal(after, torch.rand(1))
    if corners:
        rows, columns = corners[1]
        crops = [
            image[:, row : row + 32, column : column + 32]
            for image, row, column in zip(obs["other_cam"], rows, columns, strict=True)
        ]
        with torch.no_grad():
            expected = small.obs_nets["other_cam"](torch.stack(crops)).relu()
        assert torch.allclose(features[:, 66:130], expected, atol=1e-5)


def test_numbers_of_the_original_encoder():
    encoder = RobomimicObsEncoder(PUSHT, (84, 84), group_norm=True, fixed_crop_in_eval=True)
    fill(encoder).eval()
    obs = {"image": wave(2, 3, 96, 96), "agent_pos": wave(2, 2, phase=0.5)}
    with torch.no_grad():
        features = encoder(obs)
    found = torch.stack([features.mean(), features.std(), *features[0, :4], *features[0, -4:]])
    expected = [0.05526391, 0.13648576, 0.0889987, 0.0363359, 0, 0]
    expected += [0.1034493, 0.0821731, 0.4794255, 0.7173561]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-5)
    assert ((features != 0).sum(1) == 38).all()

    torch.manual_seed(0)
    with torch.no_grad():
        features = encoder.train()(obs)
    found = torch.stack([features.mean(), features.std(), *features[0, :4]])
    expected = [0.05526393, 0.13648577, 0.0889999, 0.0363365, 0, 0]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-5)
    assert torch.allclose(torch.rand(1), torch.tensor(0.1742671))


def test_state_dict_holds_backbone_and_pool_under_two_names():
    state = on_meta(PUSHT, (84, 84), group_norm=True).state_dict(keep_vars=True)
    assert len(state) == 132
    aliases = {"backbone.": "nets.0.", "pool.": "nets.1."}
    for name, alias in aliases.items():
        first = {k: v for k, v in state.items() if k.startswith(f"obs_nets.image.{name}")}
        assert first
        for key, value in first.items():
            assert state[key.replace(f"image.{name}", f"image.{alias}", 1)] is value
    assert {"obs_nets.image.nets.3.weight", "obs_nets.image.nets.3.bias"} <= set(state)


def test_parameters_are_counted_once_backbone_before_pool_before_linear_layer():
    encoder = on_meta(PUSHT, (84, 84), group_norm=True)
    assert sum(p.numel() for p in encoder.parameters()) == 11_197_088
    names = [name.removeprefix("obs_nets.image.") for name, _ in encoder.named_parameters()]
    assert names[0] == "backbone.nets.0.weight"
    assert names[-4:] == ["pool.nets.weight", "pool.nets.bias", "nets.3.weight", "nets.3.bias"]


def test_a_strict_load_takes_both_names_and_copies_keep_the_aliases(small):
    state = {key: value + 1 for key, value in small.state_dict().items()}
    again = copy.deepcopy(small)
    again.load_state_dict(state, strict=True)
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    core = again.obs_nets["cam"]
    assert core.nets[0] is core.backbone
    assert core.nets[1] is core.pool


@pytest.mark.parametrize(
    ("image", "crop", "positions"),
    [
        ((3, 84, 84), (76, 76), 9),
        ((3, 96, 96), (84, 84), 9),
        ((3, 240, 240), (216, 216), 49),
        ((3, 240, 320), (216, 288), 63),
        ((3, 96, 96), None, 9),
        ((4, 64, 33), None, 4),
    ],
)
def test_keypoint_grids_have_the_size_of_the_feature_map(image, crop, positions):
    encoder = on_meta(make_shape_meta(cam=image), crop)
    assert encoder.obs_nets["cam"].pool.pos_x.shape == (1, positions)
    with torch.device("meta"):
        assert encoder({"cam": torch.zeros(2, *image)}).shape == (2, 64)


def test_batch_norm_is_kept_unless_group_norm_is_asked_for():
    def norms(group_norm):
        modules = on_meta(PUSHT, group_norm=group_norm).modules()
        return [type(m) for m in modules if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]

    assert norms(False) == [nn.BatchNorm2d] * 20
    assert norms(True) == [nn.GroupNorm] * 20


def test_it_is_built_where_robomimic_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "robomimic", None)
    assert on_meta(PUSHT).output_shape() == [66]


@pytest.mark.parametrize("crop", [(96, 84), (84, 100)])
def test_a_crop_that_does_not_fit_is_named_with_its_camera(crop):
    with pytest.raises(ConfigError, match=r"does not fit into the \[96, 96\] .*camera 'image'"):
        on_meta(PUSHT, crop)


def test_observations_that_do_not_fit_are_named(small):
    obs = observations(SMALL)
    with pytest.raises(ConfigError, match=r"'cam' of shape \[3, 36, 40\]"):
        small(obs | {"cam": torch.zeros(3, 3, 36, 40)})
    del obs["other_cam"]
    with pytest.raises(ConfigError, match="has the camera 'other_cam', but the encoder"):
        small(obs)


@pytest.mark.skipif(
    importlib.util.find_spec("robomimic") is None,
    reason="robomimic is not installed (pip install robomimic==0.3.0)",
)
def test_it_equals_the_encoder_of_robomimic_weight_for_weight():
    theirs = _encoder_of_robomimic(SMALL, 32)
    ours = RobomimicObsEncoder(SMALL, (32, 32), fixed_crop_in_eval=True)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [
        n for n, p in theirs.named_parameters() if p.requires_grad
    ]
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)

    obs = observations(SMALL)
    for training in (True, False):  # training moves the running statistics of both
        results = []
        for encoder in (ours.train(training), theirs.train(training)):
            torch.manual_seed(1)
            with torch.no_grad():
                results.append((encoder(obs), torch.rand(1)))
        assert torch.allclose(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
        assert torch.equal(results[0][1], results[1][1])
    assert ours.output_shape() == theirs.output_shape()


def _encoder_of_robomimic(shape_meta, crop):
    """robomimic 0.3's own (its crops are the centre ones in evaluation)."""
    import_torchvision()
    from robomimic.models.obs_core import CropRandomizer
    from robomimic.models.obs_nets import ObservationEncoder

    encoder = ObservationEncoder(feature_activation=nn.ReLU)
    for key, entry in shape_meta["obs"].items():
        if entry["type"] == "low_dim":
            encoder.register_obs_key(name=key, shape=entry["shape"])
            continue
        encoder.register_obs_key(
            name=key,
            shape=entry["shape"],
            net_class="VisualCore",
            net_kwargs={
                "input_shape": entry["shape"],
                "feature_dimension": 64,
                "flatten": True,
                "backbone_class": "ResNet18Conv",
                "backbone_kwargs": {"pretrained": False, "input_coord_conv": False},
                "pool_class": "SpatialSoftmax",
                "pool_kwargs": {
                    "num_kp": 32,
                    "learnable_temperature": False,
                    "temperature": 1.0,
                    "noise_std": 0.0,
                    "output_variance": False,
                },
            },
            randomizer=CropRandomizer(entry["shape"], crop, crop, num_crops=1, pos_enc=False),
        )
    encoder.make()
    return encoder
