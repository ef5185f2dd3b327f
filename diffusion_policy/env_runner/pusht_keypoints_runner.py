"""Push-T from key points."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.env_runner.base_lowdim_runner import BaseLowdimRunner
from diffusion_policy.env_runner.episodes import make_episodes
from diffusion_policy.env_runner.policy_callers import Observations
from diffusion_policy.env_runner.vector_runner import VectorRunner, wrap_env
from diffusion_policy.gym_util.multistep_wrapper import MultiStepWrapper


def make_env(env_kwargs: dict[str, Any], wrap_kwargs: dict[str, Any]) -> MultiStepWrapper:
    """A Push-T environment in the runners' stack."""
    from diffusion_policy.env.pusht.pusht_keypoints_env import PushTKeypointsEnv

    return wrap_env(PushTKeypointsEnv(**env_kwargs), **wrap_kwargs)


class PushTKeypointsRunner(VectorRunner, BaseLowdimRunner):
    """Scores are the largest coverage reward of an episode, in [0, 1]; 1 is a solved episode.

    Args:
        output_dir: See :class:`BaseRunner`.
        keypoint_visible_rate: Probability of a key point to be visible in an observation.
        n_train, n_train_vis, train_start_seed: Number of episodes with seeds of the
            demonstrations, of videos of them, and their first seed.
        n_test, n_test_vis, test_start_seed: The same for unseen seeds; they make the score.
        legacy_test: Start placement of published evaluations, see :class:`PushTEnv`.
        max_steps: Environment steps per episode (10 per second).
        n_obs_steps: Observations that the policy sees.
        n_action_steps: Actions per chunk of the policy, without those lost to latency.
        n_latency_steps: Emulated latency: the policy sees observations this many steps old, and the
            first actions of its chunk come too late to be executed.
        fps, crf: Of the videos.
        agent_keypoints: Observe key points on the agent instead of its position.
        past_action: Has to be False: no policy takes past actions.
        tqdm_interval_sec, n_envs, n_workers, noise, policy_batch_size: See :class:`VectorRunner`.
    """

    label = "PushtKeypointsRunner"

    def __init__(
        self,
        output_dir: str,
        keypoint_visible_rate: float = 1.0,
        n_train: int = 10,
        n_train_vis: int = 3,
        train_start_seed: int = 0,
        n_test: int = 22,
        n_test_vis: int = 6,
        legacy_test: bool = False,
        test_start_seed: int = 10000,
        max_steps: int = 200,
        n_obs_steps: int = 8,
        n_action_steps: int = 8,
        n_latency_steps: int = 0,
        fps: float = 10,
        crf: int = 22,
        agent_keypoints: bool = False,
        past_action: bool = False,
        tqdm_interval_sec: float = 5.0,
        n_envs: int | None = None,
        n_workers: int | None = None,
        noise: str = "episode",
        policy_batch_size: int | None = None,
    ):
        if past_action:
            raise ConfigError(
                "past_action is True, but no policy takes past actions: set "
                "past_action_visible=False"
            )
        env_kwargs = {
            "legacy": legacy_test,
            "keypoint_visible_rate": keypoint_visible_rate,
            "agent_keypoints": agent_keypoints,
        }
        wrap_kwargs = {
            "n_obs_steps": n_obs_steps + n_latency_steps,
            "n_action_steps": n_action_steps,
            "max_steps": max_steps,
            "fps": fps,
            "crf": crf,
        }
        episodes = make_episodes("train/", n_train, n_train_vis, train_start_seed, output_dir)
        episodes += make_episodes("test/", n_test, n_test_vis, test_start_seed, output_dir)
        super().__init__(
            output_dir,
            partial(make_env, env_kwargs, wrap_kwargs),
            episodes,
            max_steps,
            tqdm_interval_sec=tqdm_interval_sec,
            n_envs=n_envs,
            n_workers=n_workers,
            noise=noise,
            policy_batch_size=policy_batch_size,
        )
        self.n_obs_steps = n_obs_steps
        self.n_action_steps = n_action_steps
        self.n_latency_steps = n_latency_steps
        self.past_action = past_action
        self.fps = fps
        self.crf = crf

    def observe(self, obs: np.ndarray) -> Observations:
        """Values and visibility, of the oldest n_obs_steps observations."""
        seen = obs[:, : self.n_obs_steps]
        values, visible = np.split(seen, 2, axis=-1)
        return {"obs": values.astype(np.float32), "obs_mask": visible > 0.5}

    def to_env_action(self, action: np.ndarray) -> np.ndarray:
        """The actions that are not too late."""
        return action[:, self.n_latency_steps :]
