"""Images and low-dimensional observations in memory, cut into windows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.normalize_util import get_image_range_normalizer
from diffusion_policy.dataset.base_dataset import BaseImageDataset
from diffusion_policy.dataset.window_dataset import WindowDataset, as_float32
from diffusion_policy.model.common.normalizer import LinearNormalizer


class ImageWindowDataset(WindowDataset, BaseImageDataset):
    """Windows ``{'obs': {image: (To, C, H, W), low_dim: (To, D)}, 'action': (horizon, Da)}``.

    **Images are uint8**, in memory and in a batch: a quarter of the bytes to gather and to send.
    The policy makes floats of them on its device, ``image / 255``; in float32 that is the very
    number that the original data set computes for every sample. Everything else is float32.

    Images stay in memory as they are on disk, channel last, so those of a batch are a permuted
    view of what was gathered (torch calls the layout ``channels_last``; use ``reshape``, not
    ``view``).

    Args:
        images: uint8 ``(N, H, W, C)`` per key.
        low_dim: ``(N, D)`` per key.
        action: actions of all steps, ``(N, Da)``.
        episode_ends: exclusive end of every episode, i64 ``(n_episodes,)``.
        n_obs_steps: To, the first steps of a window whose observations are needed. None: all. A
            policy that conditions on ``n_obs_steps`` observations uses no others, so nothing but
            time and memory depends on it.
        **windows: see :class:`WindowDataset`.

    Raises:
        ConfigError: when no window fits into any training episode, or ``n_obs_steps`` into the
            horizon.
    """

    def __init__(
        self,
        images: Mapping[str, np.ndarray],
        low_dim: Mapping[str, np.ndarray],
        action: np.ndarray,
        episode_ends: np.ndarray,
        *,
        n_obs_steps: int | None = None,
        horizon: int,
        **windows: Any,
    ):
        if n_obs_steps is not None and not 1 <= n_obs_steps <= horizon:
            raise ConfigError(
                f"n_obs_steps={n_obs_steps} of the data set does not fit into horizon={horizon}; "
                f"choose 1 to {horizon}, or null for all steps"
            )
        self._images, self._low_dim = list(images), list(low_dim)
        observations = {**images, **{key: as_float32(array) for key, array in low_dim.items()}}
        super().__init__(
            {**observations, "action": as_float32(action)},
            episode_ends,
            horizon=horizon,
            first_steps=dict.fromkeys(observations, n_obs_steps or horizon),
            **windows,
        )

    def _as_item(self, windows: dict[str, Tensor]) -> dict[str, Any]:
        images = {key: windows[key].movedim(-1, -3) for key in self._images}
        return {
            "obs": images | {key: windows[key] for key in self._low_dim},
            "action": windows["action"],
        }

    def get_normalizer(self, mode: str = "limits", **kwargs: Any) -> LinearNormalizer:
        """Normalizer of images in [0, 1], and of the rest, fitted to all episodes."""
        normalizer = LinearNormalizer()
        fitted = {key: self._windows[key] for key in ("action", *self._low_dim)}
        normalizer.fit(fitted, last_n_dims=1, mode=mode, **kwargs)
        for key in self._images:
            normalizer[key] = get_image_range_normalizer()
        return normalizer
