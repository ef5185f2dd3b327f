"""A method in full: a network that regresses the actions. Policy and workspace."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_policy.model.common.normalizer import LinearNormalizer
from diffusion_policy.policy.base_lowdim_policy import BaseLowdimPolicy
from diffusion_policy.policy.base_policy import Generators
from diffusion_policy.workspace.train_workspace import TrainWorkspace


class RegressionPolicy(BaseLowdimPolicy):
    """Maps n_obs_steps observations to ``horizon`` actions by one hidden layer."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        hidden_dim: int = 64,
    ):
        super().__init__()
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.n_obs_steps, self.n_action_steps = n_obs_steps, n_action_steps
        self.net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(n_obs_steps * obs_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, horizon * action_dim),
            nn.Unflatten(1, (horizon, action_dim)),
        )
        self.normalizer = LinearNormalizer()

    @torch.no_grad()
    def predict_action(
        self, obs_dict: dict[str, Tensor], generator: Generators = None
    ) -> dict[str, Tensor]:
        nobs = self.normalizer["obs"].normalize(obs_dict["obs"])
        naction = self.net(nobs[:, : self.n_obs_steps])
        action_pred = self.normalizer["action"].unnormalize(naction)
        start = self.n_obs_steps - 1  # the first action belongs to the newest observation
        action = action_pred[:, start : start + self.n_action_steps]
        return {"action": action, "action_pred": action_pred}

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        nbatch = self.normalizer.normalize(batch)
        return F.mse_loss(self.net(nbatch["obs"][:, : self.n_obs_steps]), nbatch["action"])


class TrainRegressionWorkspace(TrainWorkspace):
    """The common loop; and the norm of the weights in the log, to show where such things go."""

    def train_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        log = super().train_step(batch)
        norms = torch.stack([p.detach().norm() for p in self.model.net.parameters()])
        return log | {"weight_norm": norms.norm()}
