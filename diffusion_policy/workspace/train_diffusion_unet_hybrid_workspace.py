"""Diffusion Policy with the U-Net on images, encoded as robomimic does: nothing differs from the
common loop.
"""

from diffusion_policy.workspace.command_line import run_as_script
from diffusion_policy.workspace.train_workspace import TrainWorkspace


class TrainDiffusionUnetHybridWorkspace(TrainWorkspace):
    """One optimizer over encoder and U-Net, a moving average of both, the denoising loss."""


if __name__ == "__main__":
    run_as_script(__file__)
