"""What a run will cost: said when it starts, after some steps, and while it goes on."""

import datetime
import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig

from diffusion_policy.common.durations import describe_duration
from diffusion_policy.common.machine import peak_memory
from diffusion_policy.workspace.stopwatch import PARTS, PREFIX

logger = logging.getLogger(__name__)

# The option that says which epochs have a part; the other parts belong to all.
CADENCE = {
    "rollout": "rollout_every",
    "validation": "val_every",
    "sampling": "sample_every",
    "checkpoint": "checkpoint_every",
}
SAY_EVERY_S = 60.0
FIRST_STEPS, FIRST_SECONDS = 20, 5.0  # then a step has shown how long it takes


class Forecast:
    """Tells when a run will end, from what the epochs of this session took.

    Args:
        first_epoch, n_epochs: this session trains epochs ``first_epoch`` to ``n_epochs - 1``.
        n_batches: of an epoch.
        is_due: (option, epoch) -> whether what the option governs belongs to the epoch.
    """

    def __init__(
        self, first_epoch: int, n_epochs: int, n_batches: int, is_due: Callable[[str, int], bool]
    ):
        self.next_epoch = first_epoch
        self.n_epochs = n_epochs
        self.n_batches = n_batches
        self._is_due = is_due
        self._seconds: dict[str, list[float]] = {}
        self._told_steps = False
        self._last_said = time.monotonic()

    def after_steps(self, n_steps: int, seconds: dict[str, float]) -> None:
        """Says, once, how fast the training is.

        Args:
            n_steps: of the running epoch so far. seconds: what its parts took so far.
        """
        wait, step = seconds.get("data_wait", 0.0), seconds.get("step", 0.0)
        if self._told_steps or n_steps < FIRST_STEPS or wait + step < FIRST_SECONDS:
            return
        self._told_steps = True
        per_step = (wait + step) / n_steps
        remaining = per_step * (self.n_batches * (self.n_epochs - self.next_epoch) - n_steps)
        logger.info(
            "%.3g s per step, %.0f %% of it waiting for data; %s. Training alone ends about %s.",
            per_step,
            100 * wait / (wait + step),
            ", ".join(f"{k} memory at most {v / 1e9:.2f} GB" for k, v in peak_memory().items()),
            _moment(remaining),
        )

    def after_epoch(self, lap: dict[str, float]) -> str:
        """Takes in what an epoch took (see :meth:`.Stopwatch.lap`); returns when the run will end,
        and says so after the first one.
        """
        is_first = not self._seconds
        for part in PARTS:
            if (seconds := lap.get(PREFIX + part)) is not None:
                self._seconds.setdefault(part, []).append(seconds)
        self.next_epoch += 1
        end = _moment(self.remaining_seconds())
        if is_first and self.next_epoch < self.n_epochs:
            spent = ", ".join(
                f"{PARTS[part]} {describe_duration(values[0])}"
                for part, values in self._seconds.items()
                if values[0] >= 0.5
            )
            logger.info("The first epoch took %s; the run ends about %s.", spent or "a moment", end)
        return end

    def say_at_times(self, where: str, end: str) -> None:
        """Says where the run is, about once a minute."""
        if time.monotonic() - self._last_said > SAY_EVERY_S:
            self._last_said = time.monotonic()
            logger.info("%s; the run ends about %s.", where.capitalize(), end)

    def remaining_seconds(self) -> float:
        """For the epochs to come, at the mean pace so far."""
        epochs = range(self.next_epoch, self.n_epochs)
        seconds = 0.0
        for part, values in self._seconds.items():
            every = CADENCE.get(part)
            n_due = len(epochs) if every is None else sum(self._is_due(every, e) for e in epochs)
            seconds += n_due * sum(values) / len(values)
        return seconds


def describe_run(workspace: Any) -> str:
    """What a training is about to do and what memory it will need, in two sentences."""
    first, n_epochs = workspace.epoch, workspace.settings.num_epochs
    if first >= n_epochs:
        return f"All {n_epochs} epochs are done; a larger training.num_epochs trains on."
    n_batches, batch_size = workspace.batches_per_epoch, workspace.cfg.dataloader.get("batch_size")
    model = list(workspace.model.parameters())
    trained = [p for p in model if p.requires_grad]
    weights = _bytes(model)
    averages = weights if workspace.ema_model is not None else 0
    moments = _bytes(
        value
        for state in workspace.optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    )
    moments = moments or 2 * _bytes(trained)  # before its first step; Adam and its kin keep two
    gradients = _bytes(trained)
    needed = weights + averages + moments + gradients
    accumulates = workspace.cfg.training.get("gradient_accumulate_every", 1) > 1
    checkpoint = needed if accumulates else needed - gradients
    n_checkpoints = workspace.cfg.checkpoint.topk.k + bool(workspace.cfg.checkpoint.save_last_ckpt)
    return (
        f"Epochs {first} to {n_epochs - 1}, {n_batches:,} batches of {batch_size} each: "
        f"{n_batches * (n_epochs - first):,} steps. "
        f"{sum(p.numel() for p in model) / 1e6:.1f} M parameters: about {_size(needed)} of memory "
        f"on {workspace.device} for weights, gradients, optimizer and moving average, beside "
        f"activations, and {_size(checkpoint)} of disk for each of up to {n_checkpoints} "
        f"checkpoints."
    )


def warn_about_kills(cfg: DictConfig) -> None:
    """Says what a kill is going to cost, where that is more than the running epoch."""
    if cfg.checkpoint.save_last_ckpt:
        return
    k = cfg.checkpoint.topk.k
    if k > 0:
        logger.warning(
            "checkpoint.save_last_ckpt is False: after a kill, training continues from the newest "
            "of its best %d checkpoints and repeats the epochs since; the last epoch is not kept",
            k,
        )
    else:
        logger.warning(
            "checkpoint.save_last_ckpt is False and checkpoint.topk.k is 0: no checkpoint is "
            "written, so after a kill training begins anew, and nothing is left of it at its end"
        )


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def _moment(seconds: float) -> str:
    end = datetime.datetime.now() + datetime.timedelta(seconds=seconds)
    days = "" if end.date() == datetime.date.today() else f"{end:%a %d %b} "
    return f"{days}{end:%H:%M} (in {describe_duration(seconds)})"
