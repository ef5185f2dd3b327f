"""A data set in numbers, and what is wrong with it."""

import math
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffusion_policy.inspect.layout import (
    Finding,
    Layout,
    find_other_damage,
    opened,
    stored_bytes,
)
from diffusion_policy.inspect.scan import KeySummary, Progress, scan_key

N_BINS = 10


@dataclass
class Summary:
    """What an inspection found.

    ``ends`` are the episode ends up to the first impossible one; ``n_stored_episodes`` and
    ``n_stored_steps`` are what the store says it holds.
    """

    path: pathlib.Path
    format: str
    n_bytes: int
    ends: np.ndarray
    n_stored_episodes: int
    n_stored_steps: int
    keys: list[KeySummary]
    findings: list[Finding]

    @property
    def lengths(self) -> np.ndarray:
        """Number of steps of every episode."""
        return np.diff(self.ends, prepend=0)

    @property
    def n_steps(self) -> int:
        """Number of steps of all episodes."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def damages(self) -> list[Finding]:
        """What makes the data set unfit for training."""
        return [f for f in self.findings if f.level == "damage"]

    @property
    def warnings(self) -> list[Finding]:
        """What is worth a look."""
        return [f for f in self.findings if f.level == "warning"]

    @property
    def lost_keys(self) -> list[str]:
        """The arrays of which no episode is whole."""
        keys = {f.key for f in self.damages if f.key is not None}
        return sorted(key for key in keys if len(self.ends) and not self._is_whole(key).any())

    @property
    def intact_episodes(self) -> np.ndarray:
        """The numbers of the episodes that are whole in all arrays but :attr:`lost_keys`, i64."""
        whole = self._is_whole(None)
        for key in {f.key for f in self.damages if f.key is not None} - set(self.lost_keys):
            whole &= self._is_whole(key)
        return np.flatnonzero(whole)

    @property
    def n_intact_episodes(self) -> int:
        """How many those are."""
        return len(self.intact_episodes)

    def _is_whole(self, key: str | None) -> np.ndarray:
        """Which episodes an array holds without damage; None: what all arrays have in common."""
        whole = np.ones(len(self.ends), bool)
        starts = self.ends - self.lengths
        for finding in self.damages:
            for rows in finding.lost if finding.key == key else ():
                whole &= (self.ends <= rows.start) | (starts >= rows.stop)
        return whole

    @property
    def verdict(self) -> str:
        """One line."""
        if self.damages:
            n, total, lost = len(self.intact_episodes), self.n_stored_episodes, self.lost_keys
            but = f", but for {', '.join(map(repr, lost))}" if lost else ""
            return f"damaged: {n} of {total} episodes are whole{but}"
        n = len(self.warnings)
        return "no damage" + (f", {n} warning{'s' if n > 1 else ''}" if n else ", no warning")

    def place_of(self, finding: Finding) -> tuple[int, int] | None:
        """The episode and the step where a finding begins, if it is in one."""
        if finding.row is None or finding.row >= self.n_steps:
            return None
        episode = int(np.searchsorted(self.ends, finding.row, side="right"))
        return episode, finding.row - int(self.ends[episode] - self.lengths[episode])


def summarize(
    path: str | pathlib.Path, start: Callable[[int], Progress] = lambda total: lambda n: None
) -> Summary:
    """Read a whole data set, a zarr directory or zip, and check it.

    Args:
        path: where it is.
        start: called once with the number of bytes that will be decoded; returns what is called
            with every part of them.

    Raises:
        DataError: when there is no replay buffer, or its episode ends are not readable.
    """
    path = pathlib.Path(path)
    with opened(path) as layout:
        sizes = stored_bytes(path)
        arrays = {key: array for key, array in layout.arrays.items() if array.ndim}
        progress = start(
            sum(
                min(a.shape[0], layout.n_steps) * math.prod(a.shape[1:]) * a.dtype.itemsize
                for a in arrays.values()
            )
        )
        keys, findings = [], list(layout.findings)
        for key, array in arrays.items():
            n_bytes = sum(n for name, n in sizes.items() if name.startswith(f"data/{key}/"))
            summary, found = scan_key(key, array, layout.ends, n_bytes, progress)
            keys.append(summary)
            findings += found
        findings += find_other_damage(layout)
        findings.sort(key=lambda f: f.level)  # damage first
        return Summary(
            path=path,
            format=_describe_format(layout),
            n_bytes=sum(sizes.values()),
            ends=layout.ends,
            n_stored_episodes=layout.n_stored_episodes,
            n_stored_steps=max((a.shape[0] for a in arrays.values()), default=0),
            keys=keys,
            findings=findings,
        )


def _describe_format(layout: Layout) -> str:
    kind = "zip" if layout.is_zip else "directory"
    return f"zarr format {layout.root.metadata.zarr_format}, {kind}"


def length_histogram(lengths: np.ndarray) -> list[tuple[int, int, int]]:
    """``(shortest, longest, number of episodes)`` of up to ten equally wide bins."""
    if len(lengths) == 0:
        return []
    low, high = int(lengths.min()), int(lengths.max())
    width = math.ceil((high - low + 1) / N_BINS)
    starts = range(low, high + 1, width)
    counts = np.bincount((lengths - low) // width, minlength=len(starts))
    return [(s, min(s + width - 1, high), int(n)) for s, n in zip(starts, counts, strict=True)]
