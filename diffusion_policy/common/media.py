"""Media that a rollout leaves behind, as plain values a logger can handle in its own way."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VideoFile:
    """A finished video file.

    Args:
        path: Where it lies.
    """

    path: str
