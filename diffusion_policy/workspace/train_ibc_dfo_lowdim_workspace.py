"""Implicit behaviour cloning on low-dimensional observations: the common loop, and an action error
that costs less.
"""

from typing import Any

import torch
import torch.nn.functional as F

from diffusion_policy.common.pytorch_util import dict_apply
from diffusion_policy.workspace.command_line import run_as_script
from diffusion_policy.workspace.train_workspace import TrainWorkspace


class TrainIbcDfoLowdimWorkspace(TrainWorkspace):
    """One optimizer over the whole policy, no moving average, the loss of the policy."""

    def action_error(self, policy: Any, batch: dict[str, Any]) -> torch.Tensor:
        """Mean squared error of the executed actions, the only ones that the policy predicts.

        Of at most ``training.sample_max_batch`` windows: each costs thousands of evaluations.
        """
        batch = dict_apply(batch, lambda x: x[: self.cfg.training.sample_max_batch])
        obs = batch["obs"]
        predicted = policy.predict_action(obs if isinstance(obs, dict) else {"obs": obs})["action"]
        start = self.cfg.n_obs_steps - 1
        return F.mse_loss(predicted, batch["action"][:, start : start + predicted.shape[1]])


if __name__ == "__main__":
    run_as_script(__file__)
