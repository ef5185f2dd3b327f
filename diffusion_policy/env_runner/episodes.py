"""What is played: episodes, how each of them starts, and what is left of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from diffusion_policy.gym_util.multistep_wrapper import MultiStepWrapper

    InitFn = Callable[[MultiStepWrapper], None]


@dataclass(frozen=True)
class Episode:
    """One episode of an evaluation.

    Args:
        prefix: ``train/`` or ``test/``: the first part of its metrics' names.
        seed: Of the environment, and of the policy's noise.
        video_stem: Path of the video up to its random part; None films nothing.
        prepare: Called with the environment (its MultiStepWrapper) before the reset, where it
            lives; for what a seed cannot say, such as a recorded start state.
    """

    prefix: str
    seed: int
    video_stem: str | None = None
    prepare: InitFn | None = None

    @property
    def init_fn_dill(self) -> bytes:
        """What :meth:`MultiStepWrapper.run_dill_function` runs before the reset."""
        import dill

        init_fn = partial(start_episode, video_stem=self.video_stem, prepare=self.prepare)
        return dill.dumps(init_fn)

    @property
    def name(self) -> str:
        """For messages, such as ``test/100003``."""
        return f"{self.prefix}{self.seed}"

    def noise_generator(self) -> torch.Generator:
        """A generator on the CPU of this episode's own.

        Its seed is the first 8 bytes of SHA-256 of the name: train and test episodes with equal
        seeds do not share a stream, nor does an episode share one with ``torch.manual_seed(seed)``.
        """
        import torch

        digest = hashlib.sha256(self.name.encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


@dataclass
class EpisodeResult:
    """What an episode leaves behind.

    Args:
        rewards: One per environment step.
        video_path: Finished video, None if none was asked for.
        info: Of the last policy step: the last n_obs_steps values of each key.
    """

    rewards: list[float]
    video_path: str | None = None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def max_reward(self) -> float:
        """The largest reward of the episode."""
        return float(max(self.rewards))


def make_episodes(
    prefix: str, n: int, n_vis: int, start_seed: int, output_dir: str
) -> list[Episode]:
    """``n`` episodes with consecutive seeds; the first ``n_vis`` are filmed into ``media/``."""
    stem = os.path.join(output_dir, "media", prefix.strip("/"))
    return [
        Episode(prefix, seed, f"{stem}_{seed}" if i < n_vis else None)
        for i, seed in enumerate(range(start_seed, start_seed + n))
    ]


def start_episode(env: MultiStepWrapper, video_stem: str | None, prepare: InitFn | None) -> None:
    """Runs where the environment lives, before its reset: choose the video, then prepare."""
    import secrets  # not a seeded generator: names must differ between the rollouts of a training

    recording: Any = env.env
    recording.video_recoder.stop()
    recording.file_path = f"{video_stem}_{secrets.token_hex(4)}.mp4" if video_stem else None
    if prepare is not None:
        prepare(env)
