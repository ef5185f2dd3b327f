import numpy as np
import pytest
import torch

from diffusion_policy.common import normalize_util as nu
from diffusion_policy.model.common.normalizer import SingleFieldLinearNormalizer
from diffusion_policy.model.common.rotation_transformer import RotationTransformer


class _Twice:
    """The stand-in of the reference for a rotation transformer."""

    def forward(self, x):
        return np.concatenate([x, x], axis=-1)


def stats(width, n=50):
    i = np.arange(n * width, dtype=np.float32).reshape(n, width)
    return nu.array_to_stats(np.sin(0.3 * i) * (1 + np.arange(width, dtype=np.float32)))


def test_the_original_is_reproduced(golden):
    reference = torch.load(golden / "a_normalize_util.pt", weights_only=True)
    stat, stat7, stat14 = (
        {name: value.numpy() for name, value in reference[key].items()}
        for key in ("stat", "stat7", "stat14")
    )
    for name, value in nu.array_to_stats(reference["arr"].numpy()).items():
        np.testing.assert_allclose(value, stat[name], rtol=1e-5, atol=1e-6)
    normalizers = {
        "range": nu.get_range_normalizer_from_stat(stat),
        "range_args": nu.get_range_normalizer_from_stat(
            stat, output_max=0.5, output_min=-2, range_eps=0.1
        ),
        "image": nu.get_image_range_normalizer(),
        "identity": nu.get_identity_normalizer_from_stat(stat),
        "abs_action": nu.robomimic_abs_action_normalizer_from_stat(stat7, _Twice()),
        "abs_only": nu.robomimic_abs_action_only_normalizer_from_stat(stat),
        "abs_dual": nu.robomimic_abs_action_only_dual_arm_normalizer_from_stat(stat14),
    }
    assert set(normalizers) == set(reference["states"])
    for name, state in reference["states"].items():
        torch.testing.assert_close(
            dict(normalizers[name].state_dict()), state, rtol=1e-5, atol=1e-6
        )


def test_stats_are_over_the_first_axis_with_population_std():
    stat = nu.array_to_stats(np.array([[0.0, 2.0], [2.0, 2.0]]))
    assert {name: value.tolist() for name, value in stat.items()} == {
        "min": [0, 2],
        "max": [2, 2],
        "mean": [1, 2],
        "std": [1, 0],
    }


def test_the_range_is_mapped_to_the_output_range_also_when_it_is_tiny():
    stat = {"min": np.float32([0, 5, 0]), "max": np.float32([10, 5, 1e-5])}
    normalizer = nu.get_range_normalizer_from_stat(stat)
    out = normalizer.normalize(np.stack((stat["min"], stat["max"])))
    torch.testing.assert_close(out, torch.tensor([[-1.0, 0, -1], [1, 0, 1]]))


def test_the_range_formula_is_that_of_the_fit():
    data = np.sin(np.arange(60.0, dtype=np.float32)).reshape(20, 3)
    data[:, 1] = 0.5
    fitted = SingleFieldLinearNormalizer.create_fit(data).params_dict
    from_stat = nu.get_range_normalizer_from_stat(nu.array_to_stats(data)).params_dict
    for name in ("scale", "offset"):
        torch.testing.assert_close(from_stat[name], fitted[name])


def test_images_go_from_zero_one_to_minus_one_one():
    normalizer = nu.get_image_range_normalizer()
    assert normalizer.normalize(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1, 0, 1]


def test_the_identity_remembers_its_statistics():
    stat = stats(4)
    normalizer = nu.get_identity_normalizer_from_stat(stat)
    x = torch.randn(3, 4)
    assert torch.equal(normalizer.normalize(x), x)
    np.testing.assert_array_equal(normalizer.get_input_stats()["max"], stat["max"])


def test_an_absolute_action_scales_positions_only():
    stat = stats(7)
    rotations = RotationTransformer("axis_angle", "rotation_6d")
    normalizer = nu.robomimic_abs_action_normalizer_from_stat(stat, rotations)
    scale = normalizer.params_dict["scale"]
    assert scale.shape == (3 + 6 + 1,)
    assert torch.equal(scale[3:], torch.ones(7))
    torch.testing.assert_close(scale[:3], torch.as_tensor(2 / (stat["max"] - stat["min"])[:3]))


def test_two_arms_are_scaled_separately():
    stat = stats(20)
    normalizer = nu.robomimic_abs_action_only_dual_arm_normalizer_from_stat(stat)
    scaled = normalizer.params_dict["scale"] != 1
    assert torch.nonzero(scaled)[:, 0].tolist() == [0, 1, 2, 10, 11, 12]
    out = normalizer.normalize(np.stack((stat["min"], stat["max"])))
    torch.testing.assert_close(out[:, 10:13], torch.tensor([[-1.0] * 3, [1.0] * 3]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_of_the_statistics_is_kept(dtype):
    stat = {name: value.astype(dtype) for name, value in stats(3).items()}
    normalizer = nu.get_range_normalizer_from_stat(stat)
    assert normalizer.params_dict["scale"].numpy().dtype == dtype
    assert not any(p.requires_grad for p in normalizer.parameters())
