"""Diffusion Policy with the transformer on low-dimensional observations: the common loop, and an
optimizer of its own.
"""

import inspect

import torch

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.workspace.command_line import run_as_script
from diffusion_policy.workspace.train_workspace import TrainWorkspace


class TrainDiffusionTransformerLowdimWorkspace(TrainWorkspace):
    """An optimizer that lets only matrices decay, a moving average, the denoising loss."""

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The policy's own; ``cfg.optimizer`` holds its options."""
        options = self.cfg.optimizer
        signature = inspect.signature(self.model.get_optimizer)
        if set(options) != set(signature.parameters):
            raise ConfigError(
                f"optimizer holds {', '.join(options)}; the optimizer of a transformer has exactly "
                f"the options {', '.join(signature.parameters)}"
            )
        return self.model.get_optimizer(**options)


if __name__ == "__main__":
    run_as_script(__file__)
