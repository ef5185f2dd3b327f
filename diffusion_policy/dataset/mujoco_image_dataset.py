"""A simulated arm seen by one camera: gripper pose and width, recorded with their targets."""

import pathlib

import numpy as np

from diffusion_policy.common.assets import resolve_data_path
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.dataset.image_arrays import load_demonstrations
from diffusion_policy.dataset.image_window_dataset import ImageWindowDataset

CAMERA = "robot_0_camera_images"
POSE = ("robot_0_tcp_xyz_wxyz", "robot_0_gripper_width")
TARGET = ("action_0_tcp_xyz_wxyz", "action_0_gripper_width")


class MujocoImageDataset(ImageWindowDataset):
    """Windows of ``obs`` = ``image`` (3, H, W) and ``agent_pos`` (8), and ``action`` (8).

    ``image`` is RGB, uint8 (see :class:`ImageWindowDataset` on why). ``agent_pos`` and ``action``
    are where the gripper is and where it is sent: x, y, z, a quaternion w, x, y, z, and the width.

    Args:
        zarr_path: a ``.zarr`` directory or a ``.zarr.zip`` with ``robot_0_camera_images``
            (N, 1, H, W, 3), ``robot_0_tcp_xyz_wxyz`` (N, 7), ``robot_0_gripper_width`` (N, 1) and
            the last two as ``action_0_...``.
        horizon: steps of a window.
        pad_before: steps a window may start before its episode.
        pad_after: steps it may end behind its episode.
        seed: of the choice of episodes.
        val_ratio: share of episodes that are not trained on.
        max_train_episodes: train on no more than these many episodes.
        n_obs_steps: give the observations of these many first steps of a window only. None: of all.
        allow_missing_chunks: take chunks that are not there for zeros: some programs do not write
            chunks that hold nothing else. Without this a missing chunk is damage.

    Raises:
        ConfigError: when no window fits into any training episode, or ``n_obs_steps`` into the
            horizon.
        DataError: when the data are missing, damaged, without episodes, or hold something else than
            expected.
    """

    def __init__(
        self,
        zarr_path: str | pathlib.Path,
        horizon: int = 1,
        pad_before: int = 0,
        pad_after: int = 0,
        seed: int = 42,
        val_ratio: float = 0.0,
        max_train_episodes: int | None = None,
        n_obs_steps: int | None = None,
        allow_missing_chunks: bool = False,
    ):
        path = resolve_data_path(zarr_path)
        buffer = load_demonstrations(
            path, [*POSE, *TARGET], {CAMERA: (1, "height", "width", 3)}, allow_missing_chunks
        )
        self.replay_buffer = buffer
        super().__init__(
            {"image": np.asarray(buffer[CAMERA])[:, 0]},
            {"agent_pos": _joined(buffer, POSE)},
            _joined(buffer, TARGET),
            np.asarray(buffer.episode_ends),
            n_obs_steps=n_obs_steps,
            name=str(path),
            horizon=horizon,
            pad_before=pad_before,
            pad_after=pad_after,
            seed=seed,
            val_ratio=val_ratio,
            max_train_episodes=max_train_episodes,
        )


def _joined(buffer: ReplayBuffer, keys: tuple[str, ...]) -> np.ndarray:
    return np.concatenate([np.asarray(buffer[key]) for key in keys], axis=-1)
