"""The small encoder is small, and sees where things are from its first step on."""

import pytest
import torch
from torch import nn

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.vision.spatial_softmax_cnn import SpatialSoftmaxCNN


def squares(n, size=24):
    """White images with a dark square, and where its centre is, (x, y) in [-1, 1]."""
    images, places = torch.ones(n, 3, size, size), torch.rand(n, 2)
    for image, (x, y) in zip(images, (places * (size - 6)).long().tolist(), strict=True):
        image[:, y : y + 6, x : x + 6] = -1
    return images, 2 * places - 1


def multiplications(net, images):
    total = 0

    def count(conv, _, output):
        nonlocal total
        total += output[0].numel() * conv.weight[0].numel()

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    net(images)
    return total


def test_features_are_two_coordinates_per_keypoint_for_any_image_size():
    net = SpatialSoftmaxCNN(channels=(8, 16), num_keypoints=5)
    for size in [(24, 24), (17, 30)]:
        features = net(torch.randn(2, 3, *size))
        assert features.shape == (2, 10)
        assert features.abs().max() <= 1


def test_it_is_cheap():
    with torch.device("meta"):
        net = SpatialSoftmaxCNN()
        assert net(torch.zeros(7, 3, 96, 96)).shape == (7, 64)
        assert multiplications(net, torch.zeros(1, 3, 84, 84)) < 30e6
    assert sum(p.numel() for p in net.parameters()) < 65_000


def test_keypoints_move_with_the_image_before_any_training():
    torch.manual_seed(0)
    images, _ = squares(16)
    with torch.no_grad():
        features = SpatialSoftmaxCNN()(images)
    assert features.std(dim=0).mean() > 0.15


def test_it_learns_where_a_square_is_within_some_steps():
    torch.manual_seed(0)
    images, places = squares(64)
    net = SpatialSoftmaxCNN(channels=(8, 8, 8), num_keypoints=8)
    model = nn.Sequential(net, nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss = (model(images) - places).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * places.var()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("channels", [(), (32, 12)])
def test_channels_that_cannot_be_grouped_are_named(channels):
    with pytest.raises(ConfigError, match=r"channels of SpatialSoftmaxCNN are \[.*multiples of 8"):
        SpatialSoftmaxCNN(channels=channels)
