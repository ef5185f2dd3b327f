"""Diffusion Policy with the U-Net on clips: the common loop, with a cadence in steps.

Its published configuration counts training steps, not epochs, and leaves out what its own loop did
not have. The common loop evaluates between epochs, so here

* ``training.eval_every``: rollouts and checkpoints after the epoch in which so many more steps are
  complete; ``training.eval_first``: after the first epoch, too;
* ``training.val_every``: in the same way, the validation loss and the action error;
* :data:`DEFAULTS` completes the configuration.
"""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_policy.workspace.command_line import run_as_script
from diffusion_policy.workspace.train_workspace import TrainWorkspace

DEFAULTS = {
    "val_dataloader": {
        "batch_size": "${dataloader.batch_size}",
        "num_workers": "${dataloader.num_workers}",
        "shuffle": False,
        "pin_memory": "${dataloader.pin_memory}",
    },
    "training": {"debug": False, "resume": True, "max_train_steps": None, "max_val_steps": None},
}

# What the common loop asks for, and the key that says after how many steps.
STEPS_BETWEEN = {
    "rollout_every": "eval_every",
    "checkpoint_every": "eval_every",
    "val_every": "val_every",
    "sample_every": "val_every",
}


class TrainDiffusionUnetVideoWorkspace(TrainWorkspace):
    """One optimizer over the networks of the clips and the U-Net, the denoising loss."""

    def __init__(self, cfg: DictConfig, output_dir: str | None = None):
        cfg = OmegaConf.merge(DEFAULTS, cfg)  # pyright: ignore[reportAssignmentType]
        OmegaConf.resolve(cfg)
        super().__init__(cfg, output_dir)

    def is_due(self, every: str, epoch: int | None = None) -> bool:
        """Whether the epoch completes another so many steps."""
        if self.settings.debug:
            return True
        epoch = self.epoch if epoch is None else epoch
        every = STEPS_BETWEEN[every]
        if epoch == 0 and every == "eval_every" and self.settings.eval_first:
            return True
        n_steps = self.settings[every]
        per_epoch = self.batches_per_epoch
        return (epoch + 1) * per_epoch // n_steps > epoch * per_epoch // n_steps

    def evaluate_epoch(self) -> dict[str, Any]:
        log = super().evaluate_epoch()
        if "test/mean_score" in log:
            log["test_score"] = log["test/mean_score"]  # its checkpoints are ranked by this name
        return log


if __name__ == "__main__":
    run_as_script(__file__)
