"""Keypoints are where the feature map peaks."""

import torch

from diffusion_policy.model.vision.spatial_softmax import (
    SpatialSoftmax,
    expected_positions,
    pixel_positions,
)


def test_pixels_lie_between_minus_one_and_one_with_x_along_the_width():
    x, y = pixel_positions(2, 3)
    assert torch.equal(x, torch.tensor([[-1.0, 0, 1, -1, 0, 1]]))
    assert torch.equal(y, torch.tensor([[-1.0, -1, -1, 1, 1, 1]]))


def test_a_keypoint_is_the_position_of_the_peak():
    logits = torch.zeros(1, 2, 5, 9)
    logits[0, 0, 1, 6] = logits[0, 1, 4, 0] = 100
    points = expected_positions(logits, *pixel_positions(5, 9))
    assert torch.allclose(points, torch.tensor([[[0.5, -0.5], [-1.0, 1.0]]]))


def test_temperature_flattens_the_attention():
    logits = torch.zeros(1, 1, 1, 3)
    logits[..., 2] = 1
    hot, cold = (expected_positions(logits, *pixel_positions(1, 3), t)[0, 0, 0] for t in (10, 0.1))
    assert 0 < hot < 0.1
    assert cold > 0.99


def test_keypoints_of_features_go_through_the_convolution():
    pool = SpatialSoftmax((4, 3, 5), num_kp=2).eval()
    features = torch.randn(6, 4, 3, 5)
    logits = torch.einsum("kc,bchw->bkhw", pool.nets.weight[:, :, 0, 0], features)
    weights = torch.softmax(logits.flatten(2), -1)
    expected = torch.stack([(weights * pool.pos_x).sum(-1), (weights * pool.pos_y).sum(-1)], -1)
    assert torch.allclose(pool(features), expected, atol=1e-6)


def test_training_draws_the_noise_of_robomimic_and_does_not_add_it():
    pool = SpatialSoftmax((4, 3, 5), num_kp=2)
    features = torch.randn(6, 4, 3, 5)
    torch.manual_seed(0)
    trained, after = pool(features), torch.rand(1)
    torch.manual_seed(0)
    torch.randn(6, 2, 2)
    assert torch.equal(after, torch.rand(1))
    before = torch.get_rng_state()
    assert torch.equal(pool.eval()(features), trained)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_state_dict_is_that_of_robomimic():
    pool = SpatialSoftmax((512, 3, 3))
    assert {key: list(value.shape) for key, value in pool.state_dict().items()} == {
        "temperature": [1],
        "pos_x": [1, 9],
        "pos_y": [1, 9],
        "nets.weight": [32, 512, 1, 1],
        "nets.bias": [32],
    }
    assert [name for name, _ in pool.named_parameters()] == ["nets.weight", "nets.bias"]
