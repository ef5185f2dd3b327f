"""Small stand-ins that configurations in tests can name; `tests` is on the path (conftest.py)."""

import torch

from diffusion_policy.env_runner.base_lowdim_runner import BaseLowdimRunner


class ToyRunner(BaseLowdimRunner):
    """Scores a policy by its actions on fixed observations, in an instant, without environments."""

    def __init__(self, output_dir: str, **_options_of_real_runners):
        super().__init__(output_dir)
        self.obs = torch.linspace(0, 500, 2 * 20).reshape(1, 2, 20)

    def run(self, policy) -> dict[str, float]:
        generator = [torch.Generator().manual_seed(0)]
        action = policy.predict_action({"obs": self.obs.to(policy.device)}, generator=generator)
        return {"test/mean_score": action["action"].mean().item() / 512}


class NotARunner:
    def __init__(self, output_dir: str, **_options_of_real_runners):
        pass
