"""What workspaces and ``eval.py`` know about a runner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from diffusion_policy.common.media import VideoFile

if TYPE_CHECKING:
    from diffusion_policy.policy.base_image_policy import BaseImagePolicy
    from diffusion_policy.policy.base_lowdim_policy import BaseLowdimPolicy

    Policy = BaseLowdimPolicy | BaseImagePolicy


class BaseRunner(ABC):
    """Evaluates a policy on a task.

    Args:
        output_dir: Folder of the run; videos go to ``media/`` in it.
    """

    def __init__(self, output_dir: str):
        self.output_dir = str(output_dir)

    @abstractmethod
    def run(self, policy: Policy) -> dict[str, float | VideoFile]:
        """Evaluate ``policy``, which the caller has put on its device and in evaluation mode.

        Returns:
            Metrics and videos by name; ``test/mean_score`` is the one checkpoints are ranked by.
        """

    def close(self) -> None:  # noqa: B027 - not every runner holds something
        """Free what the runner holds (worker processes); it may be run again afterwards."""
