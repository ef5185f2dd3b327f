"""LSTM-GMM of robomimic on images: all of it is in the base class."""

from diffusion_policy.workspace.base_robomimic_workspace import BaseRobomimicWorkspace
from diffusion_policy.workspace.command_line import run_as_script


class TrainRobomimicImageWorkspace(BaseRobomimicWorkspace):
    """The optimizer of robomimic, no moving average, the likelihood of the actions."""


if __name__ == "__main__":
    run_as_script(__file__)
