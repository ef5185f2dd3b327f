"""Networks that see a clip as a whole."""

import pytest
import torch
from torch import nn

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.ibc.global_avgpool import GlobalAvgpool
from diffusion_policy.model.obs_encoder.video_core import VideoCore, VideoResNet


def n_parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_the_depth_is_the_number_of_layers_with_weights(depth):
    with torch.device("meta"):
        net = VideoResNet(model_depth=depth)
    main_path = [
        module
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv3d) and "shortcut" not in name
    ]
    assert len(main_path) == depth - 1  # the classifier, which is not there, is the last


@pytest.mark.parametrize(("depth", "features"), [(18, 512), (50, 2048)])
@pytest.mark.parametrize(("frames", "left"), [(1, 1), (4, 1), (16, 2)])
def test_a_clip_becomes_feature_maps(depth, features, frames, left):
    with torch.device("meta"):
        maps = VideoResNet(model_depth=depth)(torch.zeros(2, 3, frames, 64, 96))
    assert maps.shape == (2, features, left, 2, 3)


def test_its_size_is_that_of_the_published_3d_resnet():
    """33.2 million in Hara et al. 2018, with a 7x7x7 stem and a classifier of 400 classes."""
    with torch.device("meta"):
        net = VideoResNet(model_depth=18)
    stem_difference = 64 * 3 * (7 - 3) * 7 * 7
    assert n_parameters(net) + stem_difference + 513 * 400 == pytest.approx(33.2e6, rel=0.01)


def test_normalisation_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    net = VideoResNet(model_depth=18, norm_groups=4, input_channel=1).train()
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
    groups = {m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {4}
    clips = torch.randn(2, 1, 2, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(clips)[:1], net(clips[:1]), rtol=1e-3, atol=1e-4)


def test_the_core_takes_frames_before_channels_and_pools():
    seen = []

    class Backbone(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x * 2

    frames = torch.randn(2, 4, 3, 5, 6)  # B, T, C, H, W
    features = VideoCore(Backbone(), GlobalAvgpool(dim=[2, 3, 4]))(frames)
    assert torch.equal(seen[0][:, :, 1], frames[:, 1])
    torch.testing.assert_close(features, 2 * frames.mean((1, 3, 4)))


def test_the_order_of_the_frames_matters():
    torch.manual_seed(0)
    core = VideoCore(VideoResNet(model_depth=18), GlobalAvgpool(dim=[2, 3, 4])).eval()
    clip = torch.randn(1, 3, 3, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(core(clip), core(clip.flip(1)), atol=1e-3)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"model_depth": 101}, r"model_depth is 101; choose one of \[18, 34, 50\]"),
        ({"norm_groups": 6}, r"norm_groups is 6.*divisor of 64"),
    ],
)
def test_an_impossible_network_is_one_sentence(kwargs, sentence):
    with pytest.raises(ConfigError, match=sentence):
        VideoResNet(**kwargs)
