"""Push-T from key points."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusion_policy.env_runner.base_lowdim_runner import BaseLowdimRunner
from diffusion_policy.env_runner.policy_callers import Observations
from diffusion_policy.env_runner.pusht_runner import PushTRunner
from diffusion_policy.env_runner.vector_runner import wrap_env
from diffusion_policy.gym_util.multistep_wrapper import MultiStepWrapper


def make_env(env_kwargs: dict[str, Any], wrap_kwargs: dict[str, Any]) -> MultiStepWrapper:
    """A Push-T environment in the runners' stack."""
    from diffusion_policy.env.pusht.pusht_keypoints_env import PushTKeypointsEnv

    return wrap_env(PushTKeypointsEnv(**env_kwargs), **wrap_kwargs)


class PushTKeypointsRunner(PushTRunner, BaseLowdimRunner):
    """Shows the policy ``obs`` (N, To, Do), px, and which of them are visible, ``obs_mask``.

    Args:
        output_dir, n_train ... test_start_seed, max_steps, n_obs_steps, n_action_steps, fps, crf,
            past_action: See :class:`PushTRunner`.
        keypoint_visible_rate: Probability of a key point to be visible in an observation.
        legacy_test: Start placement of published evaluations, see :class:`PushTEnv`.
        n_latency_steps: Emulated latency: the policy sees observations this many steps old, and the
            first actions of its chunk come too late to be executed.
        agent_keypoints: Observe key points on the agent instead of its position.
        tqdm_interval_sec, n_envs, options: See :class:`VectorRunner`.
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
        **options: Any,
    ):
        env_kwargs = {
            "legacy": legacy_test,
            "keypoint_visible_rate": keypoint_visible_rate,
            "agent_keypoints": agent_keypoints,
        }
        super().__init__(
            output_dir,
            make_env,
            env_kwargs,
            n_train=n_train,
            n_train_vis=n_train_vis,
            train_start_seed=train_start_seed,
            n_test=n_test,
            n_test_vis=n_test_vis,
            test_start_seed=test_start_seed,
            max_steps=max_steps,
            n_obs_steps=n_obs_steps,
            n_action_steps=n_action_steps,
            n_latency_steps=n_latency_steps,
            fps=fps,
            crf=crf,
            past_action=past_action,
            tqdm_interval_sec=tqdm_interval_sec,
            n_envs=n_envs,
            **options,
        )

    def observe(self, obs: np.ndarray) -> Observations:
        """Values and visibility, of the oldest n_obs_steps observations."""
        seen = obs[:, : self.n_obs_steps]
        values, visible = np.split(seen, 2, axis=-1)
        return {"obs": values.astype(np.float32), "obs_mask": visible > 0.5}

    def to_env_action(self, action: np.ndarray) -> np.ndarray:
        """The actions that are not too late."""
        return action[:, self.n_latency_steps :]
