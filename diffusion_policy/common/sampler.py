"""Training windows over episodes.

A window is ``sequence_length`` steps of one episode. It may stick out of the episode by
``pad_before`` steps at the start and ``pad_after`` at the end; there the first or last step is
repeated, so a policy also learns what to do when it has just been reset, and to come to rest.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import zarr

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.replay_buffer import Array, ReplayBuffer


def create_indices(
    episode_ends: np.ndarray,
    sequence_length: int,
    episode_mask: np.ndarray,
    pad_before: int = 0,
    pad_after: int = 0,
    debug: bool = True,
) -> np.ndarray:
    """List every window of every episode that is not masked out.

    Args:
        episode_ends: exclusive end of every episode, ``(n_episodes,)``.
        sequence_length: steps of a window, S.
        episode_mask: which episodes to use, bool ``(n_episodes,)``.
        pad_before: steps a window may start before its episode; clipped to 0 .. S - 1.
        pad_after: steps it may end behind its episode; clipped likewise.
        debug: without effect; part of the published signature.

    Returns:
        i64 ``(n_windows, 4)``, by episode, then by start: ``buffer_start, buffer_end`` (the steps
        of the buffer inside the window) and ``sample_start, sample_end`` (their place in the
        window). ``(0, 4)`` where no window fits.

    Raises:
        ConfigError: when the window length is not positive or the mask has another length.
    """
    if sequence_length < 1:
        raise ConfigError(f"a window of {sequence_length} steps is impossible: use 1 or more")
    ends, mask = np.asarray(episode_ends, np.int64), np.asarray(episode_mask, bool)
    if mask.shape != ends.shape:
        raise ConfigError(f"the episode mask has shape {mask.shape} for {len(ends)} episodes")
    pad_before = min(max(pad_before, 0), sequence_length - 1)
    pad_after = min(max(pad_after, 0), sequence_length - 1)

    starts = np.concatenate([[0], ends[:-1]])[mask] if len(ends) else ends
    lengths = ends[mask] - starts
    # an episode of length L has windows starting at k = -pad_before .. L - S + pad_after
    n_windows = np.maximum(lengths - sequence_length + pad_after + pad_before + 1, 0)
    start = np.repeat(starts, n_windows)
    length = np.repeat(lengths, n_windows)
    first_of_episode = np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
    k = np.arange(len(start)) - first_of_episode - pad_before
    overhang = np.maximum(k + sequence_length - length, 0)
    return np.stack(
        [
            start + np.maximum(k, 0),
            start + k + sequence_length - overhang,
            np.maximum(-k, 0),
            sequence_length - overhang,
        ],
        axis=-1,
    ).astype(np.int64)


def get_val_mask(n_episodes: int, val_ratio: float, seed: int = 0) -> np.ndarray:
    """Choose the validation episodes; the published splits depend on this very draw.

    Returns:
        bool ``(n_episodes,)``: at least one episode and never all when ``val_ratio`` is positive.
    """
    mask = np.zeros(n_episodes, dtype=bool)
    if val_ratio <= 0:
        return mask
    n_val = min(max(1, round(n_episodes * val_ratio)), n_episodes - 1)
    mask[np.random.default_rng(seed).choice(n_episodes, size=n_val, replace=False)] = True
    return mask


def downsample_mask(mask: np.ndarray, max_n: int | None, seed: int = 0) -> np.ndarray:
    """Keep ``max_n`` of the True entries, drawn with ``seed`` (all, where there are no more)."""
    if max_n is None or np.sum(mask) <= max_n:
        return mask
    candidates = np.flatnonzero(mask)
    kept = np.random.default_rng(seed).choice(len(candidates), size=int(max_n), replace=False)
    result = np.zeros_like(mask)
    result[candidates[kept]] = True
    return result


class SequenceSampler:
    """Reads windows from a replay buffer, one (:meth:`sample_sequence`) or many at a time.

    Args:
        replay_buffer: where the steps are.
        sequence_length: steps of a window, S.
        pad_before: steps a window may start before its episode.
        pad_after: steps it may end behind its episode.
        keys: what to read. None: all keys of the buffer.
        key_first_k: for a key, how many of the buffer's steps in a window are needed. The others
            are not loaded and come as NaN (as zeros for integers). Saves time where only the first
            frames are used.
        episode_mask: which episodes to use, bool ``(n_episodes,)``. None: all.
    """

    def __init__(
        self,
        replay_buffer: ReplayBuffer,
        sequence_length: int,
        pad_before: int = 0,
        pad_after: int = 0,
        keys: Sequence[str] | None = None,
        key_first_k: Mapping[str, int] = {},
        episode_mask: np.ndarray | None = None,
    ):
        episode_ends = np.asarray(replay_buffer.episode_ends[:])
        if episode_mask is None:
            episode_mask = np.ones(episode_ends.shape, dtype=bool)
        self.indices = create_indices(
            episode_ends, sequence_length, episode_mask, pad_before, pad_after
        )
        self.keys = list(replay_buffer.keys() if keys is None else keys)  # OmegaConf lists are slow
        self.sequence_length = sequence_length
        self.replay_buffer = replay_buffer
        self.key_first_k = dict(key_first_k)

    def __len__(self) -> int:
        return len(self.indices)

    def sample_sequence(self, idx: int) -> dict[str, np.ndarray]:
        """Read one window.

        Where a window lies inside its episode and the buffer is in memory, the arrays are
        **views**: writing into them changes the buffer. :meth:`sample_sequences` always copies.

        Returns:
            ``{key: (S, ...)}``
        """
        buffer_start, buffer_end, sample_start, sample_end = self.indices[idx].tolist()
        result = {}
        for key in self.keys:
            part = self._load(key, buffer_start, buffer_end)
            if sample_start > 0 or sample_end < self.sequence_length:
                pad = [(sample_start, self.sequence_length - sample_end)] + [(0, 0)] * (
                    part.ndim - 1
                )
                part = np.pad(part, pad, mode="edge")
            result[key] = part
        return result

    def _load(self, key: str, start: int, stop: int) -> np.ndarray:
        array = self.replay_buffer[key]
        k = self.key_first_k.get(key, stop - start)
        if k >= stop - start:
            return np.asarray(array[start:stop])
        part = _blank((stop - start, *array.shape[1:]), array.dtype)
        part[:k] = array[start : start + k]
        return part

    def sample_sequences(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Read B windows in one gather: the stack of :meth:`sample_sequence` of each, as a copy.

        Returns:
            ``{key: (B, S, ...)}``
        """
        buffer_start, buffer_end, sample_start, _ = self.indices[np.asarray(indices, np.int64)].T
        position_BS = _clipped(
            self.sequence_length, sample_start[:, None], (buffer_end - buffer_start)[:, None]
        )
        rows_BS = position_BS + buffer_start[:, None]
        return {key: self._gather(key, rows_BS, position_BS) for key in self.keys}

    def _gather(self, key: str, rows_BS: np.ndarray, position_BS: np.ndarray) -> np.ndarray:
        array = self.replay_buffer[key]
        needed_BS = position_BS < self.key_first_k.get(key, self.sequence_length)
        if needed_BS.all():
            return _take(array, rows_BS)
        result = _blank((*rows_BS.shape, *array.shape[1:]), array.dtype)
        result[needed_BS] = _take(array, rows_BS[needed_BS])
        return result


def _clipped(sequence_length: int, sample_start, n_steps) -> np.ndarray:
    """Which of a slice's ``n_steps`` steps each row of the window shows.

    Padding is the clip: rows before the first and behind the last step repeat it.
    """
    return np.clip(np.arange(sequence_length) - sample_start, 0, n_steps - 1)


def _blank(shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
    """NaN where the type has one, else zeros."""
    return np.full(shape, np.nan if np.issubdtype(dtype, np.inexact) else 0, dtype=dtype)


def _take(array: Array, rows: np.ndarray) -> np.ndarray:
    """``array[rows]``; from zarr every row is decoded once, however many windows share it."""
    if not isinstance(array, zarr.Array):
        return np.take(array, rows, axis=0)  # a quarter of the time of array[rows]
    unique, inverse = np.unique(rows, return_inverse=True)
    return np.asarray(array.oindex[unique])[inverse.reshape(rows.shape)]
