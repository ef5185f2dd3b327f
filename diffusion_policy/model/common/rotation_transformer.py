"""Conversions between representations of rotations.

The conventions are those of pytorch3d: quaternions are real-first (w, x, y, z); the 6-d
representation (Zhou et al. 2019, "On the Continuity of Rotation Representations in Neural
Networks") is the first two *rows* of the matrix; Euler angles are intrinsic, "XYZ" = R_x(e0)
R_y(e1) R_z(e2).
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_policy.common.errors import ConfigError


class RotationTransformer:
    """Converts rotations from one representation to another, and back; always by way of the matrix.

    Args:
        from_rep: one of ``valid_reps``.
        to_rep: another one.
        from_convention: for ``euler_angles``: three of the letters XYZ, for example "XYZ".
        to_convention: likewise.
    """

    valid_reps = ["axis_angle", "euler_angles", "quaternion", "rotation_6d", "matrix"]

    def __init__(
        self,
        from_rep: str = "axis_angle",
        to_rep: str = "rotation_6d",
        from_convention: str | None = None,
        to_convention: str | None = None,
    ):
        if from_rep == to_rep:
            raise ConfigError(
                f"There is nothing to convert: from_rep and to_rep are both {from_rep!r}."
            )
        matrix_to_source, source_to_matrix = _functions("from", from_rep, from_convention)
        matrix_to_target, target_to_matrix = _functions("to", to_rep, to_convention)
        self.forward_funcs = [source_to_matrix, matrix_to_target]
        self.inverse_funcs = [target_to_matrix, matrix_to_source]

    def forward(self, x: Any) -> Any:
        """``from_rep`` to ``to_rep``, (..., d) to (..., d'); numpy in, numpy out."""
        return _apply(x, self.forward_funcs)

    def inverse(self, x: Any) -> Any:
        """``to_rep`` to ``from_rep``."""
        return _apply(x, self.inverse_funcs)


def _apply(x: Any, functions: list[Callable[[Tensor], Tensor]]) -> Any:
    y = x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    for function in functions:
        y = function(y)
    return y if isinstance(x, Tensor) else y.numpy()


def _functions(side: str, rep: str, convention: str | None) -> tuple[Callable, Callable]:
    """(matrix to rep, rep to matrix)"""
    if rep not in RotationTransformer.valid_reps:
        raise ConfigError(
            f"{side}_rep is {rep!r}; it can be one of {RotationTransformer.valid_reps}."
        )
    if rep == "euler_angles":
        axes = _checked_convention(side, convention)
        return (
            partial(matrix_to_euler_angles, convention=axes),
            partial(euler_angles_to_matrix, convention=axes),
        )
    return {
        "axis_angle": (_matrix_to_axis_angle, _axis_angle_to_matrix),
        "quaternion": (matrix_to_quaternion, quaternion_to_matrix),
        "rotation_6d": (matrix_to_rotation_6d, rotation_6d_to_matrix),
        "matrix": (_identity, _identity),
    }[rep]


def _checked_convention(side: str, convention: str | None) -> str:
    letters = convention or ""
    repeated = any(a == b for a, b in pairwise(letters))
    if len(letters) != 3 or not set(letters) <= set("XYZ") or repeated:
        raise ConfigError(
            f"{side}_rep is euler_angles, so {side}_convention must name three axes, no axis twice "
            f"in a row, for example 'XYZ'; it is {convention!r}."
        )
    return letters


def _identity(x: Tensor) -> Tensor:
    return x


def quaternion_to_matrix(quaternions: Tensor) -> Tensor:
    """(..., 4) to (..., 3, 3); quaternions need not be of unit length."""
    w, x, y, z = quaternions.unbind(-1)
    s = 2 / quaternions.square().sum(-1)
    rows = (
        *(1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)),
        *(s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)),
        *(s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)),
    )
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """(..., 3, 3) to (..., 4), by the largest component (Shepperd); the sign is arbitrary."""
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = matrix.flatten(-2).unbind(-1)
    squares = torch.stack(
        (1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22), dim=-1
    )
    doubled = squares.clamp(min=0).sqrt()  # 2 |w|, 2 |x|, 2 |y|, 2 |z|
    ww, xx, yy, zz = doubled.square().unbind(-1)
    candidates = torch.stack(  # row i: the quaternion times 2 * doubled[i]
        (
            torch.stack((ww, m21 - m12, m02 - m20, m10 - m01), dim=-1),
            torch.stack((m21 - m12, xx, m10 + m01, m02 + m20), dim=-1),
            torch.stack((m02 - m20, m10 + m01, yy, m12 + m21), dim=-1),
            torch.stack((m10 - m01, m20 + m02, m21 + m12, zz), dim=-1),
        ),
        dim=-2,
    )
    candidates = candidates / (2 * doubled[..., None].clamp(min=0.1))
    best = doubled.argmax(dim=-1)[..., None, None].expand(*doubled.shape[:-1], 1, 4)
    return candidates.gather(-2, best).squeeze(-2)


def axis_angle_to_quaternion(axis_angle: Tensor) -> Tensor:
    """(..., 3), axis times angle in rad, to (..., 4)."""
    angle = axis_angle.norm(dim=-1, keepdim=True)
    return torch.cat((torch.cos(angle / 2), axis_angle * _sin_half_over(angle)), dim=-1)


def quaternion_to_axis_angle(quaternions: Tensor) -> Tensor:
    """(..., 4) to (..., 3), axis times angle in rad; the angle can reach 2 pi."""
    w, xyz = quaternions[..., :1], quaternions[..., 1:]
    angle = 2 * torch.atan2(xyz.norm(dim=-1, keepdim=True), w)
    return xyz / _sin_half_over(angle)


def _sin_half_over(angle: Tensor) -> Tensor:
    """sin(angle / 2) / angle, by its Taylor series near 0."""
    small = angle.abs() < 1e-6
    safe = torch.where(small, 1.0, angle)
    return torch.where(small, 0.5 - angle.square() / 48, torch.sin(safe / 2) / safe)


def _axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    return quaternion_to_matrix(axis_angle_to_quaternion(axis_angle))


def _matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    return quaternion_to_axis_angle(matrix_to_quaternion(matrix))


def matrix_to_rotation_6d(matrix: Tensor) -> Tensor:
    """(..., 3, 3) to (..., 6): the first two rows."""
    return matrix[..., :2, :].flatten(-2)


def rotation_6d_to_matrix(d6: Tensor) -> Tensor:
    """(..., 6) to (..., 3, 3), by Gram-Schmidt (Zhou et al. 2019, section B)."""
    a1, a2 = d6[..., :3], d6[..., 3:]
    b1 = F.normalize(a1, dim=-1)
    b2 = F.normalize(a2 - (b1 * a2).sum(-1, keepdim=True) * b1, dim=-1)
    return torch.stack((b1, b2, torch.linalg.cross(b1, b2)), dim=-2)


def euler_angles_to_matrix(angles: Tensor, convention: str) -> Tensor:
    """(..., 3), rad, to (..., 3, 3): the product of three rotations, first letter leftmost."""
    first, second, third = (
        _axis_rotation("XYZ".index(letter), angles[..., i]) for i, letter in enumerate(convention)
    )
    return first @ second @ third


def _axis_rotation(axis: int, angle: Tensor) -> Tensor:
    unit = torch.zeros(3, dtype=angle.dtype, device=angle.device)
    unit[axis] = 1
    return _axis_angle_to_matrix(angle[..., None] * unit)


def matrix_to_euler_angles(matrix: Tensor, convention: str) -> Tensor:
    """(..., 3, 3) to (..., 3), rad. At gimbal lock the first and third angle are not unique."""
    i, j, k = ("XYZ".index(letter) for letter in convention)
    if i == k:
        return _proper_euler_angles(matrix, i, j)
    sign = 1 if (j - i) % 3 == 1 else -1  # parity of the permutation (i, j, k)
    first = torch.atan2(-sign * matrix[..., j, k], matrix[..., k, k])
    second = torch.asin((sign * matrix[..., i, k]).clamp(-1, 1))
    third = torch.atan2(-sign * matrix[..., i, j], matrix[..., i, i])
    return torch.stack((first, second, third), dim=-1)


def _proper_euler_angles(matrix: Tensor, i: int, j: int) -> Tensor:
    """Angles of R_i(a) R_j(b) R_i(c)."""
    m = 3 - i - j
    sign = 1 if (j - i) % 3 == 1 else -1
    first = torch.atan2(matrix[..., j, i], -sign * matrix[..., m, i])
    second = torch.acos(matrix[..., i, i].clamp(-1, 1))
    third = torch.atan2(matrix[..., i, j], sign * matrix[..., i, m])
    return torch.stack((first, second, third), dim=-1)
