"""Behavior Transformers: bins of actions first, once; then their prior, with clipped gradients."""

from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from diffusion_policy.config.resolvers import resolve
from diffusion_policy.model.common.lr_scheduler import get_scheduler
from diffusion_policy.model.common.normalizer import LinearNormalizer, SingleFieldLinearNormalizer
from diffusion_policy.workspace.command_line import run_as_script
from diffusion_policy.workspace.train_workspace import TrainWorkspace


class TrainBETLowdimWorkspace(TrainWorkspace):
    """One optimizer over the prior, at a constant learning rate, without a moving average."""

    policy: Any

    @property
    def model(self) -> Any:
        """The policy; published checkpoints call it ``policy``."""
        return self.policy

    @model.setter
    def model(self, policy: Any) -> None:
        self.policy = policy

    def run(self) -> None:
        resolve(self.cfg)
        super().run()

    def make_optimizer(self) -> torch.optim.Optimizer:
        return self.policy.get_optimizer(**self.cfg.optimizer)

    def make_lr_scheduler(self, n_batches: int, last_step: int) -> LambdaLR:
        """A constant rate, whatever the lr_* keys of published configurations say."""
        for group in self.optimizer.param_groups:
            # What a schedule that continues asks for; the original, without one, did not save it.
            group.setdefault("initial_lr", group["lr"])
        return get_scheduler("constant", optimizer=self.optimizer, last_epoch=last_step)

    def learning_rate(self) -> dict[str, float]:
        return {}  # nothing to log: it never changes

    def set_up_normalizer(self, dataset: Any) -> None:
        """Normalizer and bins.

        A policy out of a checkpoint keeps its bins: another fit would number them differently, and
        what the prior has learnt is their numbers.
        """
        fitted = self.cfg.training.enable_normalizer
        normalizer = dataset.get_normalizer() if fitted else identity_normalizer()
        self.policy.set_normalizer(normalizer)
        if not self.policy.action_ae.is_fitted:
            self.policy.fit_action_ae(normalizer["action"].normalize(dataset.get_all_actions()))
        self.policy.to(self.device)

    def losses(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        loss, components = self.policy.compute_loss(batch)
        parts = {f"train_loss_{k}": v for k, v in components.items() if k != "total"}
        return {"train_loss": loss, **parts}

    def clip_gradients(self) -> None:
        super().clip_gradients()
        torch.nn.utils.clip_grad_norm_(
            self.policy.state_prior.parameters(), self.cfg.training.grad_norm_clip
        )


def identity_normalizer() -> LinearNormalizer:
    """Leaves observations and actions in their raw units."""
    normalizer = LinearNormalizer()
    for field in ("action", "obs"):
        normalizer[field] = SingleFieldLinearNormalizer.create_identity()
    return normalizer


if __name__ == "__main__":
    run_as_script(__file__)
