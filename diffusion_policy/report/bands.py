"""Curves of several seeds as one: their mean, and the range from the smallest to the largest."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffusion_policy.report.run_log import Series


@dataclass
class Band(Series):
    """A mean over seeds, and their range.

    Attributes:
        values: The mean at every step, over those seeds that have come so far.
        low: The smallest of them.
        high: The largest of them.
        counts: How many they are.
    """

    low: list[float]
    high: list[float]
    counts: list[int]

    @property
    def is_whole(self) -> np.ndarray:
        """Where the largest number of seeds is in the mean."""
        counts = np.asarray(self.counts)
        return counts == counts.max(initial=0)


def average(seeds: Sequence[Series]) -> Series:
    """Several seeds as a :class:`Band`, a single one as it is.

    At every step that one of them has a value, the others have that of the straight line between
    their neighbouring steps: seeds need not have been evaluated at the same steps. Before its first
    and after its last step a seed does not count.
    """
    seeds = [seed for seed in seeds if seed.steps]
    if len(seeds) <= 1:
        return seeds[0] if seeds else Series([], [])
    steps = np.unique(np.concatenate([seed.steps for seed in seeds]))
    values = np.array([_at(steps, seed) for seed in seeds])
    counts = np.count_nonzero(~np.isnan(values), axis=0)
    keep = counts > 0
    steps, values, counts = steps[keep], values[:, keep], counts[keep]
    return Band(
        steps.tolist(),
        np.nanmean(values, axis=0).tolist(),
        np.nanmin(values, axis=0).tolist(),
        np.nanmax(values, axis=0).tolist(),
        counts.tolist(),
    )


def _at(steps: np.ndarray, seed: Series) -> np.ndarray:
    return np.interp(steps, seed.steps, seed.values, left=np.nan, right=np.nan)
