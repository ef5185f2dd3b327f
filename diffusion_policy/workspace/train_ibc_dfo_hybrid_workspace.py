"""Implicit behaviour cloning on images: nothing differs from its training on vectors."""

from diffusion_policy.workspace.command_line import run_as_script
from diffusion_policy.workspace.train_ibc_dfo_lowdim_workspace import TrainIbcDfoLowdimWorkspace


class TrainIbcDfoHybridWorkspace(TrainIbcDfoLowdimWorkspace):
    """One optimizer over encoder and energy network, no moving average."""


if __name__ == "__main__":
    run_as_script(__file__)
