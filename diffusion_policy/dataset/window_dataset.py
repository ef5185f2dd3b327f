"""Data in memory, cut into windows: what all data sets have in common."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.common.sampler import SequenceSampler, downsample_mask, get_val_mask
from diffusion_policy.dataset.base_dataset import BaseDataset, BaseLowdimDataset
from diffusion_policy.model.common.normalizer import LinearNormalizer


class WindowDataset(BaseDataset):
    """Windows of arrays over episodes, one at a time or a batch in one gather.

    **The validation set is everything that is not trained on.** With ``max_train_episodes`` it is
    therefore larger than ``val_ratio`` says: the published Push-T settings train on 90 of 206
    episodes and validate on the other 116, not on 4. Kept, because published validation losses are
    computed so.

    Args:
        arrays: ``(N, ...)`` per key, one row per step, in the type they are to have in a batch;
            ``action`` (N, Da) among them.
        episode_ends: exclusive end of every episode, i64 ``(n_episodes,)``.
        name: where the data come from, for messages.
        horizon: steps of a window.
        pad_before: steps a window may start before its episode (the first step is repeated).
        pad_after: steps it may end behind its episode (the last step is repeated).
        seed: of the choice of episodes.
        val_ratio: share of episodes that are not trained on.
        max_train_episodes: train on no more than these many episodes.
        first_steps: keys of which only so many first steps of a window are needed.

    Raises:
        ConfigError: when no window fits into any training episode.
    """

    in_memory = True

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        episode_ends: np.ndarray,
        *,
        name: str,
        horizon: int,
        pad_before: int,
        pad_after: int,
        seed: int,
        val_ratio: float,
        max_train_episodes: int | None,
        first_steps: Mapping[str, int] = {},
    ):
        self.name = name
        self._windows = ReplayBuffer(
            {"data": dict(arrays), "meta": {"episode_ends": np.asarray(episode_ends)}}
        )
        self.horizon, self.pad_before, self.pad_after = horizon, pad_before, pad_after
        self._n_steps = {key: first_steps.get(key, horizon) for key in arrays}
        val_mask = get_val_mask(self._windows.n_episodes, val_ratio, seed)
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
        keys_by_length: dict[int, list[str]] = {}
        for key, n_steps in self._n_steps.items():
            keys_by_length.setdefault(n_steps, []).append(key)
        self._readers = [beginnings(self.sampler, n, keys) for n, keys in keys_by_length.items()]

    def _as_item(self, windows: dict[str, Tensor]) -> dict[str, Any]:
        """The item or batch made of windows ``(..., T, ...)``."""
        return windows

    def get_validation_dataset(self) -> Self:
        """The episodes that are not trained on; shares the arrays."""
        held_out = copy.copy(self)
        held_out._use(~self.train_mask)
        return held_out

    def get_all_actions(self) -> Tensor:
        """The actions of all steps, ``(N, Da)``."""
        return torch.tensor(self._windows["action"])

    def __len__(self) -> int:
        return len(self.sampler)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """One window; a copy, so that changing it does not change the data."""
        windows = {k: a for reader in self._readers for k, a in reader.sample_sequence(idx).items()}
        return self._as_item({key: torch.from_numpy(a.copy()) for key, a in windows.items()})

    def get_batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """Several windows in one gather per array; every tensor gains a leading dimension B."""
        windows = {
            k: a for reader in self._readers for k, a in reader.sample_sequences(indices).items()
        }
        return self._as_item({key: torch.from_numpy(a) for key, a in windows.items()})


class LowdimWindowDataset(WindowDataset, BaseLowdimDataset):
    """Windows of ``{'obs': (horizon, Do), 'action': (horizon, Da)}``, float32.

    Args:
        obs: observations of all steps, ``(N, Do)``.
        action: actions of all steps, ``(N, Da)``.
        episode_ends: exclusive end of every episode, i64 ``(n_episodes,)``.
        **windows: see :class:`WindowDataset`.
    """

    def __init__(
        self, obs: np.ndarray, action: np.ndarray, episode_ends: np.ndarray, **windows: Any
    ):
        arrays = {"obs": as_float32(obs), "action": as_float32(action)}
        super().__init__(arrays, episode_ends, **windows)

    def get_normalizer(self, mode: str = "limits", **kwargs: Any) -> LinearNormalizer:
        """Normalizer of ``obs`` and ``action``, fitted to all episodes."""
        normalizer = LinearNormalizer()
        normalizer.fit(dict(self._windows.items()), last_n_dims=1, mode=mode, **kwargs)
        return normalizer


def as_float32(array: Any) -> np.ndarray:
    """The array in the type and layout that batches are gathered from."""
    return np.ascontiguousarray(array, np.float32)


def beginnings(sampler: SequenceSampler, n_steps: int, keys: Sequence[str]) -> SequenceSampler:
    """A sampler of the first ``n_steps`` steps of the same windows; it touches no others."""
    buffer_start, _, sample_start, sample_end = sampler.indices.T
    # where all n_steps lie before the episode, its first step is still needed: they repeat it
    start = np.minimum(sample_start, n_steps - 1)
    stop = np.minimum(sample_end, n_steps)
    shorter = copy.copy(sampler)
    shorter.keys, shorter.sequence_length = list(keys), n_steps
    shorter.indices = np.stack([buffer_start, buffer_start + stop - start, start, stop], axis=-1)
    return shorter
