"""Push-T from images."""

from __future__ import annotations

from typing import Any

from diffusion_policy.env_runner.base_image_runner import BaseImageRunner
from diffusion_policy.env_runner.policy_callers import Observations
from diffusion_policy.env_runner.pusht_runner import PushTRunner
from diffusion_policy.env_runner.vector_runner import wrap_env
from diffusion_policy.gym_util.multistep_wrapper import MultiStepWrapper

_CONTROL_FPS = 10  # environment steps per second


def make_env(env_kwargs: dict[str, Any], wrap_kwargs: dict[str, Any]) -> MultiStepWrapper:
    """A Push-T environment in the runners' stack; its images are uint8 on the way to the policy."""
    from diffusion_policy.env.pusht.pusht_image_env import PushTImageEnv

    return wrap_env(PushTImageEnv(**env_kwargs, image_dtype="uint8"), **wrap_kwargs)


class PushTImageRunner(PushTRunner, BaseImageRunner):
    """Shows the policy ``image`` (N, To, 3, S, S), uint8, and ``agent_pos`` (N, To, 2), px.

    Args:
        output_dir, n_train ... test_start_seed, max_steps, n_obs_steps, n_action_steps, crf,
            past_action: See :class:`PushTRunner`.
        legacy_test: Start placement of published evaluations, see :class:`PushTEnv`.
        fps: Of the videos; below 10, steps are left out so that they play in real time.
        render_size: Side of the images, px.
        tqdm_interval_sec, n_envs, options: See :class:`VectorRunner`.
    """

    label = "PushtImageRunner"

    def __init__(
        self,
        output_dir: str,
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
        fps: float = 10,
        crf: int = 22,
        render_size: int = 96,
        past_action: bool = False,
        tqdm_interval_sec: float = 5.0,
        n_envs: int | None = None,
        **options: Any,
    ):
        super().__init__(
            output_dir,
            make_env,
            {"legacy": legacy_test, "render_size": render_size},
            n_train=n_train,
            n_train_vis=n_train_vis,
            train_start_seed=train_start_seed,
            n_test=n_test,
            n_test_vis=n_test_vis,
            test_start_seed=test_start_seed,
            max_steps=max_steps,
            n_obs_steps=n_obs_steps,
            n_action_steps=n_action_steps,
            fps=fps,
            crf=crf,
            steps_per_render=max(int(_CONTROL_FPS // fps), 1),
            past_action=past_action,
            tqdm_interval_sec=tqdm_interval_sec,
            n_envs=n_envs,
            **options,
        )

    def observe(self, obs: Observations) -> Observations:
        """The environments' observations as they are."""
        return obs
