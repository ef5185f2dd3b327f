"""Diffusion Policy with the U-Net on images: the common loop, and an encoder that can be frozen."""

from typing import Any

from diffusion_policy.workspace.command_line import run_as_script
from diffusion_policy.workspace.train_workspace import TrainWorkspace


class TrainDiffusionUnetImageWorkspace(TrainWorkspace):
    """One optimizer over encoder and U-Net, a moving average of both, the denoising loss.

    With ``training.freeze_encoder`` the weights of the encoder stay as they are, and it works as
    in evaluation (no dropout, no random crops, stored BatchNorm statistics).
    """

    def train_epoch(self) -> dict[str, Any]:
        if self.cfg.training.get("freeze_encoder", False):
            # Every epoch: without a moving average, evaluation ends with all of the model in
            # training mode.
            self.model.obs_encoder.eval()
            self.model.obs_encoder.requires_grad_(False)
        return super().train_epoch()


if __name__ == "__main__":
    run_as_script(__file__)
