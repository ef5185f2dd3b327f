"""The order of features, cameras and random draws is fixed; each option does what it says."""

import copy

import pytest
import torch
from omegaconf import OmegaConf
from reference_weights import fill, wave
from torch import nn

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.vision.crop_randomizer import sample_random_image_crops
from diffusion_policy.model.vision.model_getter import get_resnet
from diffusion_policy.model.vision.multi_image_obs_encoder import MultiImageObsEncoder


def meta(**cameras):
    """shape_meta with the given cameras (sizes), the vectors "pos" (2) and "arm" (3)."""
    obs = {"pos": {"shape": [2]}}
    obs |= {key: {"shape": [3, *size], "type": "rgb"} for key, size in cameras.items()}
    return {"obs": obs | {"arm": {"shape": [3], "type": "low_dim"}}, "action": {"shape": [2]}}


TWO = meta(wrist=(12, 12), front=(12, 12))


def tiny_net():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def observations(shape_meta, batch=4):
    return {key: torch.rand(batch, *o["shape"]) for key, o in shape_meta["obs"].items()}


def encoder(shape_meta=TWO, rgb_model=None, **options):
    return MultiImageObsEncoder(shape_meta, rgb_model or tiny_net(), **options)


def test_features_are_images_then_vectors_each_in_alphabetical_order():
    enc, obs = encoder().eval(), observations(TWO)
    nn.init.ones_(enc.key_model_map["wrist"][0].bias)
    features = enc(obs)
    expected = [enc.key_model_map[key](obs[key]) for key in ("front", "wrist")]
    assert torch.equal(features, torch.cat([*expected, obs["arm"], obs["pos"]], dim=-1))
    assert enc.output_shape() == features.shape[1:] == (16 + 16 + 3 + 2,)


def test_every_camera_gets_its_own_copy_of_the_network():
    net = tiny_net()
    enc = encoder(rgb_model=net)
    wrist, front = enc.key_model_map["wrist"], enc.key_model_map["front"]
    assert torch.equal(wrist[0].weight, front[0].weight)
    assert len({id(m[0].weight) for m in (net, wrist, front)}) == 3
    # cameras in the order of shape_meta: that of the optimizer's parameters
    assert list(enc.key_model_map) == ["wrist", "front"]


def test_options_may_differ_per_camera_also_in_configuration_containers():
    shape_meta = meta(wrist=(12, 12), front=(20, 20))
    models = {"wrist": tiny_net(), "front": tiny_net()}
    options = {
        "resize_shape": {"wrist": None, "front": [14, 16]},
        "crop_shape": {"wrist": [8, 8], "front": [10, 12]},
    }
    enc = MultiImageObsEncoder(
        OmegaConf.create(shape_meta), rgb_model=models, **OmegaConf.create(options)
    )
    assert enc.key_model_map["front"] is models["front"]
    shapes = {
        k: t(torch.zeros(1, 3, *s)).shape[2:]
        for k, t, s in (
            ("wrist", enc.key_transform_map["wrist"], (12, 12)),
            ("front", enc.key_transform_map["front"], (20, 20)),
        )
    }
    assert shapes == {"wrist": (8, 8), "front": (10, 12)}
    assert enc(observations(shape_meta)).shape == (4, 37)


def test_networks_in_a_configuration_container_are_found_too():
    models = OmegaConf.create(
        {"wrist": tiny_net(), "front": tiny_net()}, flags={"allow_objects": True}
    )
    assert encoder(rgb_model=models)(observations(TWO)).shape == (4, 37)


def test_a_shared_network_sees_all_cameras_as_one_batch():
    net = tiny_net()
    enc, obs = encoder(rgb_model=net, share_rgb_model=True), observations(TWO)
    batches = []
    net.register_forward_hook(lambda _, args, __: batches.append(args[0]))
    features = enc(obs)
    assert list(enc.key_model_map) == ["rgb"]
    assert enc.key_model_map["rgb"] is net
    assert len(batches) == 1
    assert torch.equal(batches[0], torch.cat([obs["front"], obs["wrist"]]))
    # batch norm has seen both cameras: not the same as one after the other
    again = copy.deepcopy(net)(batches[0])
    assert torch.equal(features[:, :32], torch.cat([again[:4], again[4:]], dim=-1))


@pytest.mark.parametrize("share", [True, False])
def test_crops_are_drawn_camera_by_camera_in_alphabetical_order(share):
    enc, obs = encoder(crop_shape=[8, 9], share_rgb_model=share), observations(TWO)
    seen = []
    for transform in (enc.key_transform_map["front"], enc.key_transform_map["wrist"]):
        transform.register_forward_hook(lambda _, __, output: seen.append(output))
    torch.manual_seed(7)
    enc(obs)
    after = torch.rand(1)
    torch.manual_seed(7)
    for crops, key in zip(seen, ("front", "wrist"), strict=True):
        assert torch.equal(crops, sample_random_image_crops(obs[key], 8, 9, 1)[0][:, 0])
    assert torch.equal(after, torch.rand(1))


def test_without_random_crop_the_image_is_whole_unless_its_centre_is_asked_for():
    obs = observations(TWO)
    whole, lost, kept = (
        fill(encoder(**options)).eval()
        for options in (
            {},
            {"crop_shape": [6, 6], "random_crop": False},
            {"crop_shape": [6, 6], "random_crop": False, "keep_center_crop": True},
        )
    )
    centre = {key: o[..., 3:9, 3:9] if o.ndim == 4 else o for key, o in obs.items()}
    small = fill(encoder(meta(wrist=(6, 6), front=(6, 6)))).eval()
    assert torch.equal(lost(obs), whole(obs))
    assert torch.equal(kept(obs), small(centre))


def test_the_probe_for_the_output_shape_leaves_no_trace():
    enc = encoder(crop_shape=[8, 8])
    enc.key_model_map["front"].eval()  # somebody froze this one
    modes = [module.training for module in enc.modules()]
    state, rng = copy.deepcopy(enc.state_dict()), torch.get_rng_state()
    assert enc.output_shape() == (37,)
    assert torch.equal(torch.get_rng_state(), rng)
    assert [module.training for module in enc.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in enc.state_dict().items())


def test_group_norm_replaces_batch_norm_but_not_in_a_shared_network():
    def norms(**options):
        modules = encoder(use_group_norm=True, **options).modules()
        return {type(m) for m in modules if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)}

    assert norms() == {nn.GroupNorm}
    assert norms(share_rgb_model=True) == {nn.BatchNorm2d}


def test_colours_are_normalised_after_the_crop():
    enc = encoder(crop_shape=[8, 8], imagenet_norm=True).eval()
    images = torch.rand(1, 3, 12, 12)
    expected = images[..., 2:10, 2:10] - torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    expected = expected / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    assert torch.allclose(enc.key_transform_map["front"](images), expected, atol=1e-6)


def test_state_dict_keys_are_those_of_published_checkpoints():
    keys = list(encoder(meta(cam=(12, 12)), crop_shape=[8, 8], imagenet_norm=True).state_dict())
    assert keys[0] == "_dummy_variable"
    assert all(key.startswith("key_model_map.cam.") for key in keys[1:])


def test_numbers_of_the_original_encoder_of_the_push_t_configuration():
    shape_meta = {
        "obs": {"image": {"shape": [3, 96, 96], "type": "rgb"}, "agent_pos": {"shape": [2]}},
        "action": {"shape": [2]},
    }
    enc = MultiImageObsEncoder(
        shape_meta,
        get_resnet("resnet18"),
        crop_shape=[76, 76],
        use_group_norm=True,
        imagenet_norm=True,
    )
    obs = {"image": wave(2, 3, 96, 96), "agent_pos": wave(2, 2, phase=0.5)}
    with torch.no_grad():
        features = fill(enc).eval()(obs)
    assert features.shape == (2, 514)
    found = torch.stack([features.mean(), features.std(), *features[0, :4]])
    expected = [0.09833666, 0.08843462, 0.1619794, 0.1357495, 0.0858453, 0.1035004]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_shape": [12, 8]}, r"a crop of \[12, 8\] .* camera 'wrist'"),
        ({"crop_shape": {"wrist": [8, 8]}}, r"crop_shape has no entry for camera 'front'"),
        ({"rgb_model": {"front": tiny_net()}}, r"rgb_model has no entry for camera 'wrist'"),
        ({"rgb_model": {"front": tiny_net()}, "share_rgb_model": True}, r"give a single network"),
        (
            {"resize_shape": {"wrist": None, "front": [9, 9]}, "share_rgb_model": True},
            r"of one size, .* wrist: \[3, 12, 12\], front: \[3, 9, 9\]; give all",
        ),
        (
            {"shape_meta": meta(), "share_rgb_model": True},
            r"share_rgb_model is true, but shape_meta.obs has no observation of rgb",
        ),
    ],
)
def test_options_that_do_not_fit_together_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        encoder(**options)


def test_a_missing_camera_is_named_when_encoding():
    obs = observations(TWO)
    del obs["wrist"]
    with pytest.raises(ConfigError, match="has the camera 'wrist', but the encoder"):
        encoder()(obs)


def test_vectors_alone_can_be_encoded():
    enc = encoder(meta())
    assert enc.output_shape() == (5,)
    obs = observations(meta())
    assert torch.equal(enc(obs), torch.cat([obs["arm"], obs["pos"]], dim=-1))
