"""Diffusion Policy with the U-Net on low-dimensional observations: nothing differs from the common
loop.
"""

from diffusion_policy.workspace.command_line import run_as_script
from diffusion_policy.workspace.train_workspace import TrainWorkspace


class TrainDiffusionUnetLowdimWorkspace(TrainWorkspace):
    """One optimizer over the whole policy, a moving average of it, the denoising loss."""


if __name__ == "__main__":
    run_as_script(__file__)
