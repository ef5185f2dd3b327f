"""Small stand-ins that configurations in tests can name; `tests` is on the path (conftest.py)."""

import torch

from diffusion_policy.dataset.pusht_dataset import PushTLowdimDataset
from diffusion_policy.env_runner.base_image_runner import BaseImageRunner
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


class StoredDataset(PushTLowdimDataset):
    """Counts as one that is read from the disk, item by item: loaders give it their workers."""

    in_memory = False


class ToyImageRunner(BaseImageRunner):
    """The same for a policy that sees images."""

    def __init__(self, output_dir: str, **_options_of_real_runners):
        super().__init__(output_dir)
        rows = torch.arange(96, dtype=torch.uint8)
        self.obs = {
            "image": rows.expand(1, 2, 3, 96, 96).clone(),
            "agent_pos": torch.tensor([[[250.0, 100.0], [255.0, 110.0]]]),
        }

    def run(self, policy) -> dict[str, float]:
        obs = {key: value.to(policy.device) for key, value in self.obs.items()}
        generator = [torch.Generator().manual_seed(0)]
        action = policy.predict_action(obs, generator=generator)
        return {"test/mean_score": action["action"].mean().item() / 512}
