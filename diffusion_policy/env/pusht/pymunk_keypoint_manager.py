"""Key points fixed to bodies: their table, their place in the world, their picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pymunk
    from skimage.transform import AffineTransform

    from diffusion_policy.env.pusht.pusht_env import PushTEnv

_WINDOW = 512
_TAB10 = np.array(  # matplotlib's color cycle
    [
        (31, 119, 180),
        (255, 127, 14),
        (44, 160, 44),
        (214, 39, 40),
        (148, 103, 189),
        (140, 86, 75),
        (227, 119, 194),
        (127, 127, 127),
        (188, 189, 34),
        (23, 190, 207),
    ],
    dtype=np.uint8,
)


def farthest_point_sampling(points: np.ndarray, n_points: int, init_idx: int) -> np.ndarray:
    """Choose points that are far from each other, starting with ``points[init_idx]``.

    Each further point is the one whose nearest chosen point is farthest away (Gonzalez 1985).

    Args:
        points: Shape (N, D).
        n_points: How many to choose.
        init_idx: Index of the first.

    Returns:
        Shape (n_points, D).
    """
    chosen = [init_idx]
    distances = np.linalg.norm(points - points[init_idx], axis=-1)
    for _ in range(n_points - 1):
        chosen.append(int(np.argmax(distances)))
        distances = np.minimum(distances, np.linalg.norm(points - points[chosen[-1]], axis=-1))
    return points[chosen]


class PymunkKeypointManager:
    """Key points given in the local frames of named bodies.

    Args:
        local_keypoint_map: Body name -> points of shape (N, 2), local frame, px.
        color_map: Body name -> RGB (uint8); default: matplotlib's tab10 in the order of the names.
    """

    def __init__(
        self,
        local_keypoint_map: Mapping[str, np.ndarray],
        color_map: Mapping[str, np.ndarray] | None = None,
    ):
        if color_map is None:
            color_map = {
                key: _TAB10[i % len(_TAB10)].copy() for i, key in enumerate(local_keypoint_map)
            }
        self.local_keypoint_map = dict(local_keypoint_map)
        self.color_map = dict(color_map)

    @property
    def kwargs(self) -> dict[str, Any]:
        """The constructor arguments that make an equal manager."""
        return {"local_keypoint_map": self.local_keypoint_map, "color_map": self.color_map}

    @classmethod
    def create_from_pusht_env(
        cls, env: PushTEnv, n_block_kps: int = 9, n_agent_kps: int = 3, seed: int = 0, **kwargs: Any
    ) -> PymunkKeypointManager:
        """Sample key points evenly over the pictures of block and agent.

        Pixels of each body, drawn alone, are thinned by farthest point sampling from a random first
        pixel and then jittered within their pixel.
        """
        rng = np.random.default_rng(seed)
        local_keypoint_map = {}
        for name, position, n_kps in (
            ("block", (256, 300), n_block_kps),
            ("agent", (256, 400), n_agent_kps),
        ):
            env.reset()
            body = getattr(env, name)
            body.angle = 0
            body.position = position
            local = cls.get_tf_img_obj(body).inverse(_pixels_of(body))
            first = int(rng.choice(len(local)))
            chosen = farthest_point_sampling(local, n_kps, first)
            local_keypoint_map[name] = chosen + rng.uniform(0, 1, size=chosen.shape)
        return cls(local_keypoint_map=local_keypoint_map, **kwargs)

    @staticmethod
    def get_tf_img(pose: Sequence[float]) -> AffineTransform:
        """Transform from the local frame of ``pose`` (x, y, angle) to image coordinates (px of
        512).
        """
        from skimage.transform import AffineTransform

        return AffineTransform(translation=tuple(pose[:2]), rotation=pose[2])

    @classmethod
    def get_tf_img_obj(cls, obj: pymunk.Body) -> AffineTransform:
        """:meth:`get_tf_img` of a body's pose."""
        return cls.get_tf_img((*obj.position, obj.angle))

    def get_keypoints_global(
        self, pose_map: Mapping[str, Any], is_obj: bool = False
    ) -> dict[str, np.ndarray]:
        """Key points in world coordinates.

        Args:
            pose_map: Body name -> pose (x, y, angle), or body if ``is_obj``.
            is_obj: Whether the map holds bodies.

        Returns:
            Body name -> shape (N, 2), px.
        """
        result = {}
        for key, pose in pose_map.items():
            x, y, angle = (*pose.position, pose.angle) if is_obj else pose
            c, s = np.cos(angle), np.sin(angle)
            rotation_t = np.array([[c, s], [-s, c]])
            result[key] = self.local_keypoint_map[key] @ rotation_t + (x, y)
        return result

    def draw_keypoints(
        self, img: np.ndarray, kps_map: Mapping[str, np.ndarray], radius: int = 1
    ) -> np.ndarray:
        """Draw world key points as filled dots onto ``img`` (in place; a square RGB frame of any
        size).
        """
        import cv2

        scale = np.array(img.shape[1::-1]) / _WINDOW
        for key, kps in kps_map.items():
            color = [int(channel) for channel in self.color_map[key]]
            for x, y in (kps * scale).astype(np.int32).tolist():
                cv2.circle(img, (x, y), radius=radius, color=color, thickness=-1)
        return img

    def draw_keypoints_pose(
        self, img: np.ndarray, pose_map: Mapping[str, Any], is_obj: bool = False, **kwargs: Any
    ) -> np.ndarray:
        """:meth:`draw_keypoints` at given poses."""
        return self.draw_keypoints(img, self.get_keypoints_global(pose_map, is_obj), **kwargs)


def _pixels_of(body: pymunk.Body) -> np.ndarray:
    """Pixel coordinates (x, y) that a body covers, row by row; shape (N, 2). Empties the rest of
    its space.
    """
    import pygame

    from diffusion_policy.common.pymunk_override import DrawOptions

    space = body.space
    assert space is not None
    space.remove(*(shape for shape in space.shapes if shape.body is not body))
    space.reindex_shapes_for_body(body)
    canvas = pygame.Surface((_WINDOW, _WINDOW))
    canvas.fill((255, 255, 255))
    space.debug_draw(DrawOptions(canvas))
    image = np.transpose(pygame.surfarray.pixels3d(canvas), (1, 0, 2))
    rows, columns = np.nonzero(np.any(image < 255, axis=-1))
    return np.stack([columns, rows], axis=-1).astype(np.float64)
