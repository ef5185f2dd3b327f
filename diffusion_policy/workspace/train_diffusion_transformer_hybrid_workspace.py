"""Diffusion Policy with the transformer on images, encoded as robomimic does: as on low-dimensional
observations.
"""

from diffusion_policy.workspace.command_line import run_as_script
from diffusion_policy.workspace.train_diffusion_transformer_lowdim_workspace import (
    TrainDiffusionTransformerLowdimWorkspace,
)


class TrainDiffusionTransformerHybridWorkspace(TrainDiffusionTransformerLowdimWorkspace):
    """The optimizer of the policy also covers its encoder, with a weight decay of its own."""


if __name__ == "__main__":
    run_as_script(__file__)
