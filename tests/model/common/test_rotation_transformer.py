import itertools

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.common.rotation_transformer import RotationTransformer

MATRICES = Rotation.random(60, random_state=0).as_matrix()
CONVENTIONS = ["".join(c) for c in itertools.product("XYZ", repeat=3) if c[0] != c[1] != c[2]]


def assert_close(actual, expected, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def positive(quaternions):
    return quaternions * np.sign(quaternions[..., :1])


def test_the_conventions_are_those_of_the_reference(golden):
    reference = np.load(golden / "h_rotation_convention.npz")
    matrix = reference["matrix"]
    for name, rep, convention in [
        ("axis_angle", "axis_angle", None),
        ("quaternion_wxyz", "quaternion", None),
        ("rotation_6d", "rotation_6d", None),
        ("euler_XYZ_intrinsic", "euler_angles", "XYZ"),
        ("euler_ZYX_intrinsic", "euler_angles", "ZYX"),
    ]:
        transformer = RotationTransformer(rep, "matrix", from_convention=convention)
        assert_close(transformer.forward(reference[name]), matrix)
        back = transformer.inverse(matrix)
        if rep == "axis_angle":  # angles up to 2 pi: compare the rotation
            assert_close(Rotation.from_rotvec(back).as_matrix(), matrix)
        elif rep == "quaternion":
            assert_close(positive(back), positive(reference[name]))
        else:
            assert_close(back, reference[name])


def test_the_six_numbers_are_the_first_two_rows():
    six = RotationTransformer("matrix", "rotation_6d").forward(MATRICES)
    assert_close(six, MATRICES[:, :2].reshape(-1, 6))


def test_six_numbers_of_a_network_are_orthogonalised():
    six = np.random.default_rng(0).normal(size=(50, 6))
    matrix = RotationTransformer("rotation_6d", "matrix").forward(six)
    assert_close(matrix @ matrix.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (50, 3, 3)))
    assert_close(np.linalg.det(matrix), 1)


def test_quaternions_are_real_first_and_may_be_unnormalised():
    to_matrix = RotationTransformer("quaternion", "matrix")
    wxyz = np.roll(Rotation.from_matrix(MATRICES).as_quat(), 1, axis=-1)
    assert_close(to_matrix.forward(wxyz), MATRICES)
    assert_close(to_matrix.forward(3 * wxyz), MATRICES)


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, -2, 0.5)])
@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-5, 0.5, np.pi - 1e-6, np.pi])
def test_axis_angle_survives_small_and_half_turns(axis, angle):
    axis = np.array(axis) / np.linalg.norm(axis)
    transformer = RotationTransformer("axis_angle", "rotation_6d")
    vector = angle * axis
    six = transformer.forward(vector)
    expected = Rotation.from_rotvec(vector).as_matrix()
    assert_close(six, expected[:2].ravel(), atol=1e-9)
    assert_close(Rotation.from_rotvec(transformer.inverse(six)).as_matrix(), expected)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_all_twelve_euler_conventions_agree_with_scipy(convention):
    transformer = RotationTransformer("matrix", "euler_angles", to_convention=convention)
    angles = transformer.forward(MATRICES)
    assert_close(angles, Rotation.from_matrix(MATRICES).as_euler(convention))
    assert_close(transformer.inverse(angles), MATRICES)


def test_euler_to_euler_takes_both_conventions():
    transformer = RotationTransformer("euler_angles", "quaternion", from_convention="ZYX")
    angles = Rotation.from_matrix(MATRICES).as_euler("ZYX")
    wxyz = np.roll(Rotation.from_matrix(MATRICES).as_quat(), 1, axis=-1)
    assert_close(positive(transformer.forward(angles)), positive(wxyz))


def test_numpy_gives_numpy_and_torch_gives_torch_with_gradient():
    transformer = RotationTransformer("axis_angle", "rotation_6d")
    array = transformer.forward(np.zeros((4, 5, 3), np.float32))
    assert isinstance(array, np.ndarray)
    assert array.shape == (4, 5, 6)
    assert array.dtype == np.float32
    x = torch.zeros(4, 5, 3, requires_grad=True)
    y = transformer.forward(x)
    y.sum().backward()
    assert y.shape == (4, 5, 6)
    assert torch.isfinite(x.grad).all(), "also at the identity, where the angle is 0"


def test_the_functions_of_a_transformer_can_be_inspected():
    transformer = RotationTransformer()
    assert len(transformer.forward_funcs) == 2
    assert len(transformer.inverse_funcs) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"from_rep": "matrix", "to_rep": "matrix"}, "nothing to convert"),
        ({"from_rep": "rpy"}, "from_rep is 'rpy'"),
        ({"to_rep": "euler_angles"}, "to_convention must name three axes"),
        ({"from_rep": "euler_angles", "from_convention": "XXY"}, "'XXY'"),
        ({"from_rep": "euler_angles", "from_convention": "xyz"}, "'xyz'"),
    ],
)
def test_impossible_conversions_are_refused(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        RotationTransformer(**arguments)
