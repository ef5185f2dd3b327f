"""Demonstrations as they are recorded: what makes them fit to learn from."""

import numpy as np

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.replay_buffer import ReplayBuffer


def describe_step(row: int, episode_ends: np.ndarray) -> str:
    """A row of the arrays as a person looks for it: ``'step 2 of episode 7 (row 812)'``."""
    episode = int(np.searchsorted(episode_ends, row, side="right"))
    start = episode_ends[episode - 1] if episode else 0
    return f"step {row - start} of episode {episode} (row {row})"


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
        place = describe_step(int(np.argmin(finite)), np.asarray(buffer.episode_ends))
        raise DataError(
            f"{name}: {key!r} is not finite at {place}, and in {np.sum(~finite)} rows in all; "
            f"repair the data or leave those episodes out"
        )
