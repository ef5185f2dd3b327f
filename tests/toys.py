"""Small stand-ins that configurations in tests can name; `tests` is on the path (conftest.py)."""

import torch

from diffusion_policy.env_runner.base_lowdim_runner import BaseLowdimRunner


class ToyRunner(BaseLowdimRunner):
    """Scores a policy by its actions on fixed observations, in an instant, without environments."""

    def __init__(self, output_dir: str, obs_dim: int = 20, n_obs_steps: int = 2):
        super().__init__(output_dir)
        self.obs = torch.linspace(0, 500, n_obs_steps * obs_dim).reshape(1, n_obs_steps, obs_dim)

    def run(self, policy) -> dict[str, float]:
        generator = [torch.Generator().manual_seed(0)]
        action = policy.predict_action({"obs": self.obs.to(policy.device)}, generator=generator)
        return {"test/mean_score": action["action"].mean().item() / 512}


class NotARunner:
    def __init__(self, output_dir: str):
        pass
