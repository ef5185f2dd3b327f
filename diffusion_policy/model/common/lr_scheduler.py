"""Learning-rate schedules, by the names that the configs use.

The formulas are those of ``diffusers.optimization``; they are repeated here because a schedule is
part of a published result, while the helper functions of a library come and go. In all schedules
with warm-up the first step has learning rate 0.
"""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from diffusion_policy.common.errors import ConfigError

Factor = Callable[[int], float]


def get_scheduler(
    name: str,
    optimizer: Optimizer,
    num_warmup_steps: int | None = None,
    num_training_steps: int | None = None,
    last_epoch: int = -1,
    **kwargs,
) -> LambdaLR:
    """A schedule that multiplies the optimizer's learning rate by a factor of the step number.

    Args:
        name: ``linear``, ``cosine``, ``cosine_with_restarts``, ``polynomial``, ``constant`` or
            ``constant_with_warmup``.
        optimizer: whose learning rates are scheduled.
        num_warmup_steps: steps of the linear rise from 0; needed by all but ``constant``.
        num_training_steps: where the decay ends; needed by all but the constant ones.
        last_epoch: index of the last step done, to resume (the optimizer's groups then need
            ``initial_lr``).
        **kwargs: ``num_cycles`` (cosine, default 0.5: half a wave; restarts, default 1); ``lr_end``
            (default 1e-7) and ``power`` (default 1) of the polynomial.

    Raises:
        ConfigError: an unknown name, or a step count that is needed and missing (also a
            ``ValueError``).
    """
    if name not in _SCHEDULES:
        raise ConfigError(
            f"The learning-rate schedule is {name!r}; it can be one of {sorted(_SCHEDULES)}."
        )
    make, *needed = _SCHEDULES[name]
    counts = {"num_warmup_steps": num_warmup_steps, "num_training_steps": num_training_steps}
    for count in needed:
        if counts[count] is None:
            raise ConfigError(f"The learning-rate schedule {name!r} needs {count}; it is not set.")
    if name == "polynomial":
        kwargs = {"lr_start": optimizer.defaults["lr"], **kwargs}
    factor = make(*(counts[count] for count in needed), **kwargs)
    return LambdaLR(optimizer, factor, last_epoch)


def _constant() -> Factor:
    return lambda step: 1.0


def _constant_with_warmup(warmup: int) -> Factor:
    return lambda step: min(1.0, step / max(1.0, warmup))


def _after_warmup(warmup: int, decay: Factor) -> Factor:
    return lambda step: step / max(1, warmup) if step < warmup else decay(step)


def _progress(step: int, warmup: int, total: int) -> float:
    """0 at the end of the warm-up, 1 at the last step, and on beyond it."""
    return (step - warmup) / max(1, total - warmup)


def _linear(warmup: int, total: int) -> Factor:
    return _after_warmup(warmup, lambda step: max(0.0, (total - step) / max(1, total - warmup)))


def _cosine(warmup: int, total: int, num_cycles: float = 0.5) -> Factor:
    def decay(step: int) -> float:
        angle = math.pi * 2.0 * num_cycles * _progress(step, warmup, total)
        return max(0.0, 0.5 * (1.0 + math.cos(angle)))

    return _after_warmup(warmup, decay)


def _cosine_with_restarts(warmup: int, total: int, num_cycles: int = 1) -> Factor:
    def decay(step: int) -> float:
        progress = _progress(step, warmup, total)
        if progress >= 1.0:
            return 0.0
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (num_cycles * progress % 1.0))))

    return _after_warmup(warmup, decay)


def _polynomial(
    warmup: int, total: int, lr_start: float, lr_end: float = 1e-7, power: float = 1.0
) -> Factor:
    if not lr_start > lr_end:
        raise ConfigError(
            f"A polynomial schedule decays, but lr_end={lr_end} is not below lr={lr_start}."
        )

    def decay(step: int) -> float:
        remaining = 1.0 - min(1.0, _progress(step, warmup, total))
        return ((lr_start - lr_end) * remaining**power + lr_end) / lr_start

    return _after_warmup(warmup, decay)


# name: (factory, the step counts it takes)
_SCHEDULES = {
    "constant": (_constant,),
    "constant_with_warmup": (_constant_with_warmup, "num_warmup_steps"),
    "linear": (_linear, "num_warmup_steps", "num_training_steps"),
    "cosine": (_cosine, "num_warmup_steps", "num_training_steps"),
    "cosine_with_restarts": (_cosine_with_restarts, "num_warmup_steps", "num_training_steps"),
    "polynomial": (_polynomial, "num_warmup_steps", "num_training_steps"),
}
