"""Low-dimensional data in memory, cut into windows: what all state data sets have in common."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_policy.common.errors import ConfigError, DataError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.common.sampler import SequenceSampler, downsample_mask, get_val_mask
from diffusion_policy.dataset.base_dataset import BaseLowdimDataset
from diffusion_policy.model.common.normalizer import LinearNormalizer


class LowdimWindowDataset(BaseLowdimDataset):
    """Windows of ``{'obs': (horizon, Do), 'action': (horizon, Da)}``, float32.

    **The validation set is everything that is not trained on.** With ``max_train_episodes`` it is
    therefore larger than ``val_ratio`` says: the published Push-T settings train on 90 of 206
    episodes and validate on the other 116, not on 4. Kept, because published validation losses are
    computed so.

    Args:
        obs: observations of all steps, ``(N, Do)``.
        action: actions of all steps, ``(N, Da)``.
        episode_ends: exclusive end of every episode, i64 ``(n_episodes,)``.
        name: where the data come from, for messages.
        horizon: steps of a window.
        pad_before: steps a window may start before its episode (the first step is repeated).
        pad_after: steps it may end behind its episode (the last step is repeated).
        seed: of the choice of episodes.
        val_ratio: share of episodes that are not trained on.
        max_train_episodes: train on no more than these many episodes.

    Raises:
        ConfigError: when no window fits into any training episode.
    """

    in_memory = True

    def __init__(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        episode_ends: np.ndarray,
        *,
        name: str,
        horizon: int,
        pad_before: int,
        pad_after: int,
        seed: int,
        val_ratio: float,
        max_train_episodes: int | None,
    ):
        arrays = {"obs": obs, "action": action}
        self._windows = ReplayBuffer(
            {
                "data": {k: np.ascontiguousarray(v, np.float32) for k, v in arrays.items()},
                "meta": {"episode_ends": episode_ends},
            }
        )
        val_mask = get_val_mask(self._windows.n_episodes, val_ratio, seed)
        self.horizon, self.pad_before, self.pad_after = horizon, pad_before, pad_after
        self._use(downsample_mask(~val_mask, max_train_episodes, seed))
        if len(self) == 0:
            lengths = self._windows.episode_lengths[self.train_mask]
            raise ConfigError(
                f"horizon={horizon} with pad_before={pad_before} and pad_after={pad_after} leaves "
                f"no window: the longest of the {len(lengths)} training episodes of {name} has "
                f"{max(lengths, default=0)} steps; choose a shorter horizon"
            )

    def _use(self, train_mask: np.ndarray) -> None:
        self.train_mask = train_mask
        self.sampler = SequenceSampler(
            self._windows,
            sequence_length=self.horizon,
            pad_before=self.pad_before,
            pad_after=self.pad_after,
            episode_mask=train_mask,
        )

    def get_validation_dataset(self) -> "LowdimWindowDataset":
        """The episodes that are not trained on; shares the arrays."""
        held_out = copy.copy(self)
        held_out._use(~self.train_mask)
        return held_out

    def get_normalizer(self, mode: str = "limits", **kwargs: Any) -> LinearNormalizer:
        """Normalizer of ``obs`` and ``action``, fitted to all episodes."""
        normalizer = LinearNormalizer()
        normalizer.fit(dict(self._windows.items()), last_n_dims=1, mode=mode, **kwargs)
        return normalizer

    def get_all_actions(self) -> Tensor:
        """The actions of all steps, ``(N, Da)``."""
        return torch.tensor(self._windows["action"])

    def __len__(self) -> int:
        return len(self.sampler)

    def __getitem__(self, idx: int) -> dict[str, Tensor]:
        """One window; a copy, so that changing it does not change the data."""
        window = self.sampler.sample_sequence(idx)
        return {key: torch.from_numpy(value.copy()) for key, value in window.items()}

    def get_batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Several windows in one gather, ``{'obs': (B, horizon, Do), 'action': ...}``."""
        windows = self.sampler.sample_sequences(indices)
        return {key: torch.from_numpy(value) for key, value in windows.items()}


def check_demonstrations(buffer: ReplayBuffer, name: str) -> None:
    """Check that a buffer in memory can be learned from.

    Raises:
        DataError: when it holds no episode, or NaN or infinity (naming the first such value).
    """
    if buffer.n_episodes == 0:
        raise DataError(f"{name} holds no episode; record some, or get the data set again")
    for key, array in buffer.items():
        finite = np.isfinite(np.asarray(array)).reshape(buffer.n_steps, -1).all(axis=1)
        if finite.all():
            continue
        step = int(np.argmin(finite))
        episode = int(np.searchsorted(buffer.episode_ends[:], step, side="right"))
        start = buffer.get_episode_slice(episode).start
        raise DataError(
            f"{name}: {key!r} is not finite at step {step - start} of episode {episode} (row "
            f"{step}), and in {np.sum(~finite)} rows in all; repair the data or leave those "
            f"episodes out"
        )
