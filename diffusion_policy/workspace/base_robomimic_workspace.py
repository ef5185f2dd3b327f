"""Training of robomimic's policies, which step an optimizer of their own."""

import contextlib
from typing import Any

import torch
import torch.nn.functional as F

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.pytorch_util import dict_apply
from diffusion_policy.model.common.lr_scheduler import get_scheduler
from diffusion_policy.workspace.train_workspace import TrainWorkspace


class BaseRobomimicWorkspace(TrainWorkspace):
    """No moving average, no schedule; one batch is one step of robomimic's optimizer.

    The optimizer is part of our checkpoints. Those of the original have none, and load as well.
    """

    def set_up_processes(self, stack: contextlib.ExitStack) -> None:
        super().set_up_processes(stack)
        options = ("num_processes", "mixed_precision", "max_grad_norm")
        given = [name for name in options if self.cfg.training.get(name)]
        if self.cfg.training.get("gradient_accumulate_every", 1) != 1:
            given.append("gradient_accumulate_every")
        if self.processes.count > 1 or given:
            names = ", ".join(f"training.{name}" for name in given) or "a launcher of processes"
            raise ConfigError(
                f"{names}: robomimic's policies step their own optimizer, in one process and in "
                "single precision; leave it away"
            )

    def make_optimizer(self) -> torch.optim.Optimizer:
        return self.model.get_optimizer()

    def make_lr_scheduler(
        self, n_batches: int, last_step: int
    ) -> torch.optim.lr_scheduler.LambdaLR:
        # Constant, so the position does not matter: a checkpoint of the original cannot tell it.
        return get_scheduler("constant", optimizer=self.optimizer)

    def learning_rate(self) -> dict[str, float]:
        return {}

    def train_step(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        info = self.model.train_on_batch(batch, self.epoch)
        return {"train_loss": info["losses"]["action_loss"]}

    def pending_gradients(self) -> dict[str, torch.Tensor]:
        return {}  # every batch is an update; what is left of it is cleared by the next one

    def validation_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """Negative log-likelihood in evaluation mode (robomimic then fixes the scale at 1e-4)."""
        info = self.model.train_on_batch(batch, self.epoch, validate=True)
        return info["losses"]["action_loss"]

    def action_error(self, policy: Any, batch: dict[str, Any]) -> torch.Tensor:
        """As :meth:`TrainWorkspace.action_error`; the policy sees the batch step by step, as it
        would see an episode.
        """
        obs, action = batch["obs"], batch["action"]
        obs = obs if isinstance(obs, dict) else {"obs": obs}
        policy.reset()
        predicted = [
            policy.predict_action(dict_apply(obs, lambda x, t=t: x[:, t : t + 1]))["action"]
            for t in range(action.shape[1])
        ]
        policy.reset()
        return F.mse_loss(torch.cat(predicted, dim=1), action)

    def is_due(self, every: str, epoch: int | None = None) -> bool:
        """The published state configuration has no ``sample_every``: no action error then."""
        return every in self.settings and super().is_due(every, epoch)
