"""What all Push-T runners have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.env_runner.episodes import make_episodes
from diffusion_policy.env_runner.vector_runner import VectorRunner
from diffusion_policy.gym_util.multistep_wrapper import MultiStepWrapper

# (arguments of the environment, arguments of wrap_env) -> a wrapped environment
MakeEnv = Callable[[dict[str, Any], dict[str, Any]], MultiStepWrapper]


class PushTRunner(VectorRunner):
    """Scores are the largest coverage reward of an episode, in [0, 1]; 1 is a solved episode.

    Args:
        output_dir: See :class:`BaseRunner`.
        make_env: Builds one environment, in a worker process: imports belong inside.
        env_kwargs: Arguments of the environment.
        n_train, n_train_vis, train_start_seed: Number of episodes with seeds of the
            demonstrations, of videos of them, and their first seed.
        n_test, n_test_vis, test_start_seed: The same for unseen seeds; they make the score.
        max_steps: Environment steps per episode (10 per second).
        n_obs_steps: Observations that the policy sees.
        n_action_steps: Actions per chunk of the policy, without those lost to latency.
        n_latency_steps: Observations per stack beyond those that the policy sees.
        fps, crf: Of the videos.
        steps_per_render: Environment steps per frame of the videos.
        past_action: Has to be False: no policy takes past actions.
        options: tqdm_interval_sec, n_envs, n_workers, noise, policy_batch_size, worker_timeout_s
            of :class:`VectorRunner`.
    """

    def __init__(
        self,
        output_dir: str,
        make_env: MakeEnv,
        env_kwargs: dict[str, Any],
        *,
        n_train: int,
        n_train_vis: int,
        train_start_seed: int,
        n_test: int,
        n_test_vis: int,
        test_start_seed: int,
        max_steps: int,
        n_obs_steps: int,
        n_action_steps: int,
        fps: float,
        crf: int,
        past_action: bool,
        n_latency_steps: int = 0,
        steps_per_render: int = 1,
        **options: Any,
    ):
        if past_action:
            raise ConfigError(
                "past_action is True, but no policy takes past actions: set "
                "past_action_visible=False"
            )
        wrap_kwargs = {
            "n_obs_steps": n_obs_steps + n_latency_steps,
            "n_action_steps": n_action_steps,
            "max_steps": max_steps,
            "fps": fps,
            "crf": crf,
            "steps_per_render": steps_per_render,
        }
        episodes = make_episodes("train/", n_train, n_train_vis, train_start_seed, output_dir)
        episodes += make_episodes("test/", n_test, n_test_vis, test_start_seed, output_dir)
        env_fn = partial(make_env, env_kwargs, wrap_kwargs)
        super().__init__(output_dir, env_fn, episodes, max_steps, **options)
        self.n_obs_steps = n_obs_steps
        self.n_action_steps = n_action_steps
        self.n_latency_steps = n_latency_steps
        self.past_action = past_action
        self.fps = fps
        self.crf = crf
