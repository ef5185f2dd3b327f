"""The records of an epoch's steps, read from the device in groups.

Reading a loss waits for the device to finish; doing it once per progress-bar update instead of once
per step keeps the device busy. The price is that a loss that is not finite is noticed a moment
later; no checkpoint is written in between.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from diffusion_policy.common.errors import NonFiniteLossError
from diffusion_policy.workspace.run_logger import RunLogger


class StepLog:
    """Collects step records whose tensor values are still on the device.

    Args:
        run_logger: receives every record, in order.
        last_checkpoint: returns the path of the last good checkpoint, for the error message.
        interval_sec: how often :meth:`flush_if_due` reads from the device.
    """

    def __init__(
        self, run_logger: RunLogger, last_checkpoint: Callable[[], str | None], interval_sec: float
    ):
        self._run_logger = run_logger
        self._last_checkpoint = last_checkpoint
        self._interval_sec = interval_sec
        self._last_flush = time.monotonic()
        self._pending: list[tuple[dict[str, Any], torch.Tensor, bool]] = []
        self._values: dict[str, list[float]] = {}

    def add(self, record: dict[str, Any], indices: torch.Tensor, write: bool) -> None:
        """Adds a step's record.

        Args:
            record: scalar tensors and numbers.
            indices: (B,) which items of the data set the batch was made of.
            write: whether the record is logged as a line of its own (an epoch's last one is not).
        """
        self._pending.append((record, indices, write))

    def flush_if_due(self) -> float | None:
        """Flushes when the interval has passed; returns the newest loss then, else None."""
        if time.monotonic() - self._last_flush < self._interval_sec:
            return None
        self.flush()
        return self._values["train_loss"][-1]

    def flush(self) -> None:
        """Reads all pending values with one synchronisation and logs them.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite; names step, batch and last good
                checkpoint.
        """
        pending, self._pending = self._pending, []
        self._last_flush = time.monotonic()
        if not pending:
            return
        keys = [key for key, value in pending[0][0].items() if isinstance(value, torch.Tensor)]
        columns = {key: torch.stack([record[key] for record, _, _ in pending]) for key in keys}
        table = torch.stack([columns[key].float() for key in keys]).cpu()
        for i, (record, indices, write) in enumerate(pending):
            values = {key: table[k, i].item() for k, key in enumerate(keys)}
            if not torch.isfinite(table[:, i]).all():
                raise self._not_finite(record | values, indices)
            for key, value in values.items():
                self._values.setdefault(key, []).append(value)
            if write:
                self._run_logger.log(record | values, step=record["global_step"])

    def means(self) -> dict[str, float]:
        """Mean over the epoch of every value that was read from the device."""
        return {key: sum(values) / len(values) for key, values in self._values.items()}

    def _not_finite(self, record: dict[str, Any], indices: torch.Tensor) -> NonFiniteLossError:
        shown = ", ".join(str(i) for i in indices[:8].tolist()) + (
            ", ..." if len(indices) > 8 else ""
        )
        checkpoint = self._last_checkpoint()
        return NonFiniteLossError(
            f"train_loss is {record['train_loss']} at step {record['global_step']} (epoch "
            f"{record['epoch']}, "
            f"data set items {shown}); look at these items and at the learning rate. "
            + (
                f"The last good checkpoint is {checkpoint}"
                if checkpoint
                else "No checkpoint was written yet"
            )
        )
