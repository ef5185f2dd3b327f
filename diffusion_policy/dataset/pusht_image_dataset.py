"""Push-T from images: a camera above the table and the position of the agent."""

import pathlib
import shlex

import numpy as np

from diffusion_policy.common.errors import DataError
from diffusion_policy.config.override import override
from diffusion_policy.dataset.image_arrays import load_demonstrations, stored_keys
from diffusion_policy.dataset.image_window_dataset import ImageWindowDataset
from diffusion_policy.dataset.pusht_dataset import EMBEDDED, agent_positions, find_pusht_data


class PushTImageDataset(ImageWindowDataset):
    """Windows of ``obs`` = ``image`` (3, 96, 96) and ``agent_pos`` (2), and ``action`` (2).

    ``image`` is RGB, uint8 (see :class:`ImageWindowDataset` on why); ``agent_pos`` the agent's x, y
    and ``action`` its target x, y, float32, in px. Images are read from ``img`` (N, H, W, 3),
    stored as uint8 or as the whole numbers 0..255 in another type: the published ones are float32.

    Args:
        zarr_path: a ``.zarr`` directory or a ``.zarr.zip``; relative to the working directory, or
            inside a package (``package://...``, see :func:`resolve_data_path`).
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
        DataError: when the data are missing, damaged, without episodes, without images, or hold
            something else than expected.
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
        embedded = f"draw images of the embedded ones with {drawing_instructions(EMBEDDED)}"
        path = find_pusht_data(zarr_path, embedded)
        keys = stored_keys(path)
        if "img" not in keys and "state" in keys:
            raise DataError(
                f"{path} holds states but no images ('img'); draw them with "
                f"{drawing_instructions(zarr_path)}"
            )
        buffer = load_demonstrations(
            path, ["state", "action"], {"img": ("height", "width", 3)}, allow_missing_chunks
        )
        self.replay_buffer = buffer
        super().__init__(
            {"image": np.asarray(buffer["img"])},
            {"agent_pos": agent_positions(buffer, "state", path)},
            np.asarray(buffer["action"]),
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


def rendered_path(zarr_path: str | pathlib.Path) -> pathlib.Path:
    """Where ``render_pusht_images`` puts a copy of demonstrations with images."""
    name = pathlib.Path(zarr_path).name.removesuffix(".zip").removesuffix(".zarr")
    return pathlib.Path("data/pusht") / f"{name}_with_images.zarr.zip"


def drawing_instructions(zarr_path: str | pathlib.Path) -> str:
    """How to get images of demonstrations that have states, to follow 'draw them with'."""
    draw = ["python", "-m", "diffusion_policy.scripts.render_pusht_images", "-i", str(zarr_path)]
    use = override("task.dataset.zarr_path", str(rendered_path(zarr_path)))
    return f"`{shlex.join(draw)}` and train with {shlex.quote(use)}"
