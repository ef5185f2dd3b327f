"""Push-T from state: key points of the T and the position of the agent."""

import pathlib

import numpy as np

from diffusion_policy.common.assets import resolve_data_path
from diffusion_policy.common.errors import DataError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.dataset.demonstrations import check_demonstrations
from diffusion_policy.dataset.window_dataset import LowdimWindowDataset

EMBEDDED = "package://diffusion_policy/assets/pusht_demos.zarr.zip"


class PushTLowdimDataset(LowdimWindowDataset):
    """Windows of ``obs`` (20) and ``action`` (2), float32.

    ``obs`` is nine key points x, y and the agent's x, y; ``action`` the agent's target x, y; all in
    px.

    Args:
        zarr_path: a ``.zarr`` directory or a ``.zarr.zip``; relative to the working directory, or
            inside a package (``package://...``, see :func:`resolve_data_path`).
        horizon: steps of a window.
        pad_before: steps a window may start before its episode.
        pad_after: steps it may end behind its episode.
        obs_key: array of the key points, ``(N, 9, 2)``.
        state_key: array that begins with the agent's position, ``(N, 2 or more)``.
        action_key: array of the actions, ``(N, 2)``.
        seed: of the choice of episodes.
        val_ratio: share of episodes that are not trained on.
        max_train_episodes: train on no more than these many episodes.
        allow_missing_chunks: take chunks that are not there for zeros: some programs do not write
            chunks that hold nothing else. Without this a missing chunk is damage.

    Raises:
        ConfigError: when no window fits into any training episode.
        DataError: when the data are missing, damaged, without episodes, or not finite.
    """

    def __init__(
        self,
        zarr_path: str | pathlib.Path,
        horizon: int = 1,
        pad_before: int = 0,
        pad_after: int = 0,
        obs_key: str = "keypoint",
        state_key: str = "state",
        action_key: str = "action",
        seed: int = 42,
        val_ratio: float = 0.0,
        max_train_episodes: int | None = None,
        allow_missing_chunks: bool = False,
    ):
        embedded = f"train on the embedded ones with task.dataset.zarr_path={EMBEDDED}"
        path = find_pusht_data(zarr_path, embedded)
        buffer = ReplayBuffer.copy_from_path(
            path,
            keys=[obs_key, state_key, action_key],
            allow_missing_chunks=allow_missing_chunks,
        )
        check_demonstrations(buffer, str(path))
        self.replay_buffer = buffer
        keypoints = np.asarray(buffer[obs_key])
        agent_position = agent_positions(buffer, state_key, path)
        obs = np.concatenate([keypoints.reshape(len(keypoints), -1), agent_position], axis=-1)
        super().__init__(
            obs,
            np.asarray(buffer[action_key]),
            np.asarray(buffer.episode_ends),
            name=str(path),
            horizon=horizon,
            pad_before=pad_before,
            pad_after=pad_after,
            seed=seed,
            val_ratio=val_ratio,
            max_train_episodes=max_train_episodes,
        )


def find_pusht_data(zarr_path: str | pathlib.Path, embedded: str) -> pathlib.Path:
    """Resolve the path of Push-T data.

    Args:
        zarr_path: as in a configuration.
        embedded: what to do to train on the embedded demonstrations, for the message.

    Raises:
        DataError: when nothing is there, with the two ways to get some.
    """
    path = resolve_data_path(zarr_path)
    if not path.exists():
        raise DataError(
            f"there is no Push-T data at {path.absolute()}; download the published demonstrations "
            f"with `python -m diffusion_policy.scripts.download_data pusht`, or {embedded}"
        )
    return path


def agent_positions(buffer: ReplayBuffer, state_key: str, path: pathlib.Path) -> np.ndarray:
    """Where the agent is, x and y in px, ``(N, 2)``.

    Raises:
        DataError: when the states hold less than two numbers.
    """
    state = np.asarray(buffer[state_key])
    if state.ndim != 2 or state.shape[1] < 2:
        raise DataError(
            f"{path}: {state_key!r} has shape {state.shape}; (steps, 2 or more) was expected, "
            f"beginning with the agent's position"
        )
    return state[:, :2]
