"""A task in full: a point in the unit square is to reach a goal. Environment, data, runner."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.dataset.window_dataset import LowdimWindowDataset
from diffusion_policy.env_runner.base_lowdim_runner import BaseLowdimRunner
from diffusion_policy.env_runner.episodes import make_episodes
from diffusion_policy.env_runner.vector_runner import VectorRunner, wrap_env


class ReachEnv(gym.Env):
    """Observes (x, y, goal x, goal y); the action is where to go, 0.1 per step at most."""

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"
    observation_space = gym.spaces.Box(0.0, 1.0, (4,), np.float32)
    action_space = gym.spaces.Box(0.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.position, self.goal = self.np_random.random((2, 2)).astype(np.float32)
        return self._observe(), {}

    def step(self, action: np.ndarray):
        step = np.clip(action - self.position, -0.1, 0.1)
        self.position = np.clip(self.position + step, 0, 1).astype(np.float32)
        reward = float(np.exp(-np.linalg.norm(self.goal - self.position) / 0.1))
        return self._observe(), reward, reward > 0.9, False, {}

    def render(self) -> np.ndarray:
        frame = np.full((64, 64, 3), 255, np.uint8)
        for point, color in ((self.goal, (0, 160, 0)), (self.position, (200, 0, 0))):
            x, y = (point * 60).astype(int)
            frame[y : y + 4, x : x + 4] = color
        return frame

    def _observe(self) -> np.ndarray:
        return np.concatenate([self.position, self.goal])


def record_demonstrations(path: str, n_episodes: int, n_steps: int = 12) -> None:
    """An expert that goes straight to the goal, written in the format of all our data."""
    buffer = ReplayBuffer.create_empty_numpy()
    env = ReachEnv()
    for seed in range(n_episodes):
        obs, _ = env.reset(seed=seed)
        episode: dict[str, list[np.ndarray]] = {"obs": [], "action": []}
        for _ in range(n_steps):
            episode["obs"].append(obs)
            episode["action"].append(env.goal)
            obs, *_ = env.step(env.goal)
        buffer.add_episode({key: np.stack(values) for key, values in episode.items()})
    buffer.save_to_path(path)


class ReachDataset(LowdimWindowDataset):
    """Windows of ``obs`` (4) and ``action`` (2)."""

    def __init__(self, zarr_path: str, **windows: Any):
        buffer = ReplayBuffer.copy_from_path(zarr_path, keys=["obs", "action"])
        ends = np.asarray(buffer.episode_ends)
        super().__init__(buffer["obs"], buffer["action"], ends, name=zarr_path, **windows)


def make_env(**wrap_kwargs: Any):
    return wrap_env(ReachEnv(), **wrap_kwargs)


class ReachRunner(VectorRunner, BaseLowdimRunner):
    """The score of an episode is its largest reward."""

    label = "Reach"

    def __init__(
        self,
        output_dir: str,
        n_obs_steps: int,
        n_action_steps: int,
        n_test: int = 20,
        n_test_vis: int = 2,
        test_start_seed: int = 100000,
        max_steps: int = 30,
        **options: Any,  # of VectorRunner: n_envs, n_workers, ...
    ):
        env_fn = partial(
            make_env,
            n_obs_steps=n_obs_steps,
            n_action_steps=n_action_steps,
            max_steps=max_steps,
            fps=10,
            crf=22,
        )
        episodes = make_episodes("test/", n_test, n_test_vis, test_start_seed, output_dir)
        super().__init__(output_dir, env_fn, episodes, max_steps, **options)

    def observe(self, obs: np.ndarray) -> dict[str, np.ndarray]:
        return {"obs": obs}
