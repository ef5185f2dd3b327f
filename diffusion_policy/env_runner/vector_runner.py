"""The simulated runner: everything that is the same for all tasks."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import create_empty_array

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.media import VideoFile
from diffusion_policy.common.shape_meta import check_observations, parse_shape_meta
from diffusion_policy.common.waiting import Patience
from diffusion_policy.env_runner.base_runner import BaseRunner
from diffusion_policy.env_runner.episodes import Episode, EpisodeResult
from diffusion_policy.env_runner.policy_callers import (
    EpisodeNoiseCaller,
    FixedBatchCaller,
    Observations,
    PolicyCaller,
    WholeBatchCaller,
    takes_generator,
)
from diffusion_policy.env_runner.rollout import Rollout
from diffusion_policy.gym_util.async_vector_env import WORKER_TIMEOUT_S, AsyncVectorEnv
from diffusion_policy.gym_util.multistep_wrapper import MultiStepWrapper
from diffusion_policy.gym_util.sync_vector_env import SyncVectorEnv
from diffusion_policy.gym_util.vector_env import VectorEnv
from diffusion_policy.gym_util.video_recording_wrapper import VideoRecorder, VideoRecordingWrapper

if TYPE_CHECKING:
    from diffusion_policy.env_runner.base_runner import Policy

logger = logging.getLogger(__name__)

NOISES = ("episode", "batch")


def wrap_env(
    env: gym.Env,
    *,
    n_obs_steps: int,
    n_action_steps: int,
    max_steps: int,
    fps: float,
    crf: int,
    steps_per_render: int = 1,
) -> MultiStepWrapper:
    """The stack every simulated environment runs in: chunks of actions around a video recorder."""
    recorder = VideoRecorder.create_h264(fps=fps, crf=crf, thread_type="FRAME", thread_count=1)
    filmed = VideoRecordingWrapper(env, recorder, steps_per_render=steps_per_render)
    return MultiStepWrapper(filmed, n_obs_steps, n_action_steps, max_episode_steps=max_steps)


class VectorRunner(BaseRunner):
    """Plays seeded episodes in parallel environments; see :class:`BaseRunner`.

    A task states its environment, how observations reach the policy (:meth:`observe`) and actions
    the environment (:meth:`to_env_action`), and its metrics (:meth:`score`, :meth:`metrics`).

    The worker processes are started by the first :meth:`run`, so that a training starts at once,
    and kept for the next one. In between they block on a pipe and use no processor time. A rollout
    that fails closes them, the next one begins with new ones.

    With ``noise="episode"`` the policy's noise comes from a generator of each episode
    (:meth:`Episode.noise_generator`), episodes that are over leave the batch, and a free
    environment takes the next episode at once. The outcome does not depend on ``n_workers``, and
    not even on ``n_envs`` once ``policy_batch_size`` pins the shape of the policy's batches
    (without it, matrix products may round differently for another batch size).

    ``noise="batch"`` is how published scores were made: the global generator, all environments in
    every call, rounds of ``n_envs`` episodes, the last one padded with episode 0.

    Args:
        output_dir: See :class:`BaseRunner`.
        env_fn: Builds one environment, wrapped by :func:`wrap_env`; runs in worker processes.
        episodes: What to play.
        max_steps: Environment steps per episode, for the progress bar.
        tqdm_interval_sec: Seconds between its updates.
        n_envs: Environments in parallel; default: one per episode.
        n_workers: Processes that they share; default: one per core; 0: none, all in this process.
        noise: ``episode`` or ``batch``.
        policy_batch_size: Rows of every call of the policy; default: as many as episodes play.
        dummy_env_fn: See :class:`AsyncVectorEnv`.
        worker_timeout_s: Seconds after which a worker process that does not answer fails the run;
            None: it may take for ever.
    """

    label = "Runner"  # in the progress bar

    def __init__(
        self,
        output_dir: str,
        env_fn: Callable[[], MultiStepWrapper],
        episodes: Sequence[Episode],
        max_steps: int,
        tqdm_interval_sec: float = 5.0,
        n_envs: int | None = None,
        n_workers: int | None = None,
        noise: str = "episode",
        policy_batch_size: int | None = None,
        dummy_env_fn: Callable[[], gym.Env] | None = None,
        worker_timeout_s: float | None = WORKER_TIMEOUT_S,
    ):
        super().__init__(output_dir)
        _check_options(n_envs, n_workers, noise, policy_batch_size)
        Patience.from_option("worker_timeout_s", worker_timeout_s)
        self.episodes = list(episodes)
        self.env_fns = [env_fn] * (len(self.episodes) if n_envs is None else n_envs)
        self.dummy_env_fn = dummy_env_fn
        self.max_steps = max_steps
        self.tqdm_interval_sec = tqdm_interval_sec
        self.n_workers = n_workers
        self.noise = noise
        self.policy_batch_size = policy_batch_size
        self.worker_timeout_s = worker_timeout_s
        self.env: VectorEnv | None = None  # while workers are up
        self._warned = False

    # The three lists that people's scripts know runners by.

    @property
    def env_seeds(self) -> list[int]:
        """Seed of each episode, training episodes first."""
        return [e.seed for e in self.episodes]

    @property
    def env_prefixs(self) -> list[str]:
        """``train/`` or ``test/`` for each episode (the spelling is part of the interface)."""
        return [e.prefix for e in self.episodes]

    @property
    def env_init_fn_dills(self) -> list[bytes]:
        """Pickled function that starts each episode in an environment."""
        return [e.init_fn_dill for e in self.episodes]

    # ------------------------------------------------------------------ what a task states

    @abstractmethod
    def observe(self, obs: Any) -> Observations:
        """The policy's observations (N, To, ...) out of N stacked ones of the environments."""

    def to_env_action(self, action: np.ndarray) -> np.ndarray:
        """The environments' actions (N, k, ...) out of the policy's (N, Ta, Da)."""
        return action

    def score(self, result: EpisodeResult) -> float:
        """What ``mean_score`` is the mean of."""
        return result.max_reward

    def metrics(self, results: Sequence[EpisodeResult]) -> dict[str, float | VideoFile]:
        """Everything to log: scores and videos of all episodes, and the mean score per prefix."""
        log: dict[str, float | VideoFile] = {}
        scores: dict[str, list[float]] = {}
        for episode, result in zip(self.episodes, results, strict=True):
            scores.setdefault(episode.prefix, []).append(self.score(result))
            log[f"{episode.prefix}sim_max_reward_{episode.seed}"] = result.max_reward
            if result.video_path is not None:
                log[f"{episode.prefix}sim_video_{episode.seed}"] = VideoFile(result.video_path)
        for prefix, values in scores.items():
            log[f"{prefix}mean_score"] = float(np.mean(values))
        return log

    # ------------------------------------------------------------------ running

    def run(self, policy: Policy) -> dict[str, float | VideoFile]:
        """Play all episodes; see :meth:`BaseRunner.run`.

        Raises:
            ConfigError: The policy expects other observations.
            EnvWorkerError: An environment raised, or returned a reward or an observation that is
                not finite; or its process died, or did not answer in time.
            DiffusionPolicyError: The policy returned an action that is not finite.
        """
        if not self.episodes:
            return {}
        with _numpy_generator_kept():
            try:
                env = self._open()
                self._check_observations(policy, env)
                results = self._play(policy, env)
            except BaseException:
                self.close()
                raise
        return self.metrics(results)

    def _open(self) -> VectorEnv:
        if self.env is None:
            if self.n_workers == 0:
                self.env = SyncVectorEnv(self.env_fns, copy=False)
            else:
                self.env = AsyncVectorEnv(
                    self.env_fns,
                    self.dummy_env_fn,
                    copy=False,
                    n_workers=self.n_workers,
                    worker_timeout_s=self.worker_timeout_s,
                )
        return self.env

    def close(self) -> None:
        """Stop the worker processes; the next run starts new ones."""
        if self.env is not None:
            self.env.close()
            self.env = None

    def _play(self, policy: Policy, env: VectorEnv) -> list[EpisodeResult]:
        episodes = self.episodes
        whole_batch = self._is_whole_batch(policy)
        if whole_batch:
            padding = replace(episodes[0], video_stem=None)
            episodes = episodes + [padding] * (-len(episodes) % env.num_envs)
        with self._progress() as on_step:
            rollout = Rollout(
                env,
                episodes,
                self._caller(policy, episodes, whole_batch),
                self.to_env_action,
                refill=not whole_batch,
                on_step=on_step,
            )
            return rollout.play()[: len(self.episodes)]

    def _is_whole_batch(self, policy: Policy) -> bool:
        if self.noise == "batch":
            return True
        if takes_generator(policy):
            return False
        if not self._warned:
            logger.warning(
                "%s.predict_action takes no `generator`: its noise comes from the global "
                "generator, so scores depend on n_envs",
                type(policy).__name__,
            )
            self._warned = True
        return True

    def _caller(
        self, policy: Policy, episodes: Sequence[Episode], whole_batch: bool
    ) -> PolicyCaller:
        if whole_batch:
            return WholeBatchCaller(policy, self.observe, episodes)
        if self.policy_batch_size is None:
            return EpisodeNoiseCaller(policy, self.observe, episodes)
        return FixedBatchCaller(policy, self.observe, episodes, size=self.policy_batch_size)

    def _check_observations(self, policy: Policy, env: VectorEnv) -> None:
        """Compares what the policy says it expects with what the environments observe."""
        sample = self.observe(create_empty_array(env.single_observation_space, n=1))
        shape_meta = getattr(policy, "shape_meta", None)
        if shape_meta is not None:
            check_observations(
                parse_shape_meta(shape_meta),
                sample,
                n_leading=2,
                holder=f"the environment of {type(self).__name__} observes",
                remedy="evaluate on the task that the policy was trained for, or train with a "
                "shape_meta that fits this one",
            )
        elif (obs_dim := getattr(policy, "obs_dim", None)) is not None:
            self._check_obs_dim(obs_dim, sample)

    def _check_obs_dim(self, expected: int, sample: Observations) -> None:
        if "obs" not in sample:
            raise ConfigError(
                f"the policy expects one vector 'obs' of obs_dim={expected}, but the environment "
                f"of {type(self).__name__} observes {', '.join(sample)}: evaluate on the task that "
                "the policy was trained for"
            )
        found = sample["obs"].shape[-1]
        if found != expected:
            raise ConfigError(
                f"the policy expects obs_dim={expected}, but the environment of "
                f"{type(self).__name__} observes {found} values per step: set "
                f"task.obs_dim={found} and train with it, or evaluate on the task that the policy "
                "was trained for"
            )

    @contextmanager
    def _progress(self) -> Iterator[Callable[[dict[int, int], dict[int, EpisodeResult]], None]]:
        """A bar over all environment steps, with the number of episodes and their score so far."""
        from diffusion_policy.common.progress_bar import ProgressBar

        n, most = len(self.episodes), self.max_steps
        with ProgressBar(
            total=n * most,
            desc=f"Eval {self.label} 0/{n}",
            unit="step",
            leave=False,
            mininterval=self.tqdm_interval_sec,
        ) as bar:

            def on_step(steps: dict[int, int], results: dict[int, EpisodeResult]) -> None:
                # Episodes from n on are padding.
                ended = [result for i, result in results.items() if i < n]
                running = sum(min(k, most) for i, k in steps.items() if i < n)
                bar.set_description(f"Eval {self.label} {len(ended)}/{n}", refresh=False)
                if ended:
                    mean = float(np.mean([self.score(result) for result in ended]))
                    bar.set_postfix(score=f"{mean:.3f}", refresh=False)
                bar.update(len(ended) * most + running - bar.n)

            yield on_step


@contextmanager
def _numpy_generator_kept() -> Iterator[None]:
    """Puts numpy's global generator back to where it was.

    Environments that live in this process may draw from it, and how often depends on when they
    were built; the training that is being evaluated must not.
    """
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)


def _check_options(
    n_envs: int | None, n_workers: int | None, noise: str, policy_batch_size: int | None
) -> None:
    if n_envs is not None and n_envs < 1:
        raise ConfigError(f"n_envs is {n_envs}, expected at least 1, or null for one per episode")
    if n_workers is not None and n_workers < 0:
        raise ConfigError(f"n_workers is {n_workers}, expected 0 (none) or more, or null")
    if noise not in NOISES:
        raise ConfigError(f"noise is {noise!r}, expected one of {NOISES}")
    if policy_batch_size is not None and policy_batch_size < 1:
        raise ConfigError(f"policy_batch_size is {policy_batch_size}, expected at least 1, or null")
    if policy_batch_size is not None and noise == "batch":
        raise ConfigError(
            f"policy_batch_size is {policy_batch_size} with noise='batch', which always passes all "
            f"n_envs environments: remove one of the two"
        )
