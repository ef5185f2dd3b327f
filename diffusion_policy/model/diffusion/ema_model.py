"""Exponential moving average of a network's weights: the policy that is evaluated.

The warm-up of the decay is that of @crowsonkb (as in diffusers): with ``inv_gamma=1``,
``power=3/4`` it reaches 0.999 at 10 k steps and 0.9999 at 215.4 k steps; ``power=2/3`` is meant for
longer training (1 M steps).
"""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from diffusion_policy.common.errors import ConfigError

# One module of the model, and the same one of the average
_Pair = tuple[nn.Module, nn.Module]


class EMAModel:
    """Keeps ``averaged_model`` at the moving average of the model that is given to :meth:`step`.

    Args:
        model: becomes the average; this object itself, not a copy. Put into eval mode, gradients
            switched off.
        update_after_step: copy, do not average, during the first steps.
        inv_gamma: inverse multiplicative factor of the warm-up.
        power: exponent of the warm-up.
        min_value: smallest decay after the first steps.
        max_value: largest decay.
    """

    def __init__(
        self,
        model: nn.Module,
        update_after_step: int = 0,
        inv_gamma: float = 1.0,
        power: float = 2 / 3,
        min_value: float = 0.0,
        max_value: float = 0.9999,
    ):
        self.averaged_model = model.eval().requires_grad_(False)
        self.update_after_step = update_after_step
        self.inv_gamma = inv_gamma
        self.power = power
        self.min_value = min_value
        self.max_value = max_value
        self.decay = 0.0
        self.optimization_step = 0
        self._model: nn.Module | None = None
        self._pairs: list[_Pair] = []

    def get_decay(self, optimization_step: int) -> float:
        """Weight of the old average: ``1 - (1 + step / inv_gamma) ** -power``, within its limits.

        0 for the first two steps (more with ``update_after_step``): they copy the model.
        """
        step = max(0, optimization_step - self.update_after_step - 1)
        if step <= 0:
            return 0.0
        value = 1 - (1 + step / self.inv_gamma) ** -self.power
        return max(self.min_value, min(value, self.max_value))

    @torch.no_grad()
    def step(self, new_model: nn.Module) -> None:
        """Moves the average towards ``new_model``.

        Parameters of BatchNorm layers and frozen parameters are copied; buffers are left alone.
        Which parameters are frozen may change between steps; which *modules* there are may not, as
        long as it is the same model.

        Raises:
            ConfigError: ``new_model`` does not have the modules and parameters of the average.
        """
        if new_model is not self._model:
            # Walking both trees takes longer than the update itself on a GPU, so it is done once.
            self._pairs = _pair_modules(new_model, self.averaged_model)
            self._model = new_model
        averages, values, copies, sources = [], [], [], []
        for module, averaged in self._pairs:
            is_batch_norm = isinstance(module, _BatchNorm)
            for name, average in averaged._parameters.items():
                value = module._parameters[name]
                if value is None or average is None:
                    continue
                if is_batch_norm or not value.requires_grad:
                    copies.append(average)
                    sources.append(value)
                else:
                    averages.append(average)
                    values.append(value.to(average))  # itself, unless dtype or device differ
        self.decay = self.get_decay(self.optimization_step)
        if copies:
            torch._foreach_copy_(copies, sources)  # pyright: ignore[reportPrivateImportUsage]
        if averages:
            torch._foreach_lerp_(averages, values, 1 - self.decay)  # pyright: ignore[reportPrivateImportUsage]
        self.optimization_step += 1

    def state_dict(self) -> dict[str, Any]:
        """The counter and the decay; the weights belong to ``averaged_model``."""
        return {"optimization_step": self.optimization_step, "decay": self.decay}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where :meth:`state_dict` was taken."""
        self.optimization_step = state_dict["optimization_step"]
        self.decay = state_dict["decay"]


def _pair_modules(model: nn.Module, averaged_model: nn.Module) -> list[_Pair]:
    """The modules that own parameters, next to their counterparts."""
    mine, averaged = (
        {name: module for name, module in root.named_modules() if module._parameters}
        for root in (model, averaged_model)
    )

    def shapes(modules: dict[str, nn.Module]) -> dict[str, Any]:
        return {
            f"{name}.{key}": None if parameter is None else tuple(parameter.shape)
            for name, module in modules.items()
            for key, parameter in module._parameters.items()
        }

    different = shapes(mine).items() ^ shapes(averaged).items()
    if different:
        names = sorted({name for name, _ in different})
        raise ConfigError(
            f"The model does not have the architecture of its average: {names[0]} (and "
            f"{len(names) - 1} more) differ; build the average as a deep copy of the model."
        )
    return [(module, averaged[name]) for name, module in mine.items()]
