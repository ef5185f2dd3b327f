"""Turn the ``device`` option into a device that is present."""

import logging
from typing import TYPE_CHECKING

from diffusion_policy.common.errors import DeviceError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def resolve_device(name: str | None = None) -> "torch.device":
    """The device to compute on.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1``, ``mps`` ...; None or ``auto`` takes the best one
            present. Published configs say ``cuda:0`` whatever the machine, so on a machine without
            any GPU ``cuda`` and ``cuda:0`` fall back to the best device with a warning; every other
            absent device is an error.

    Raises:
        DeviceError: the named device is not on this machine.
    """
    import torch

    present = present_devices()
    if name is None or name == "auto":
        return torch.device(present[0])
    if name in present or (name == "cuda" and "cuda:0" in present):
        return torch.device(name)
    if name in ("cuda", "cuda:0"):
        log.warning(
            "device %s is not present, computing on %s (set training.device=%s, or --device for "
            "eval.py, to choose)",
            *(name, present[0], present[0]),
        )
        return torch.device(present[0])
    raise DeviceError(
        f"device {name!r} is not on this machine; choose one of {', '.join(present)}, or auto for "
        f"the best of them"
    )


def present_devices() -> list[str]:
    """Names of the devices on this machine, the fastest kind first."""
    import torch

    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [f"cuda:{i}" for i in range(n_gpus)]
    return [*gpus, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
