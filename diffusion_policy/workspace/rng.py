"""The state of every global random number generator, in plain Python values.

Plain values, because they travel in a checkpoint: no array or tensor type of today must stand
between a future reader, or the original implementation, and the file.
"""

import random
from typing import Any

import numpy as np
import torch


def get_rng_state() -> dict[str, Any]:
    """State of the generators of torch (CPU and every CUDA device), numpy and Python."""
    numpy_state = np.random.get_state(legacy=False)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": _to_bytes(torch.get_rng_state()),
        "cuda": [_to_bytes(state) for state in cuda],
        "numpy": _plain(numpy_state),
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restores what :func:`get_rng_state` returned; CUDA devices as far as there are that many."""
    torch.set_rng_state(_from_bytes(state["torch"]))
    if torch.cuda.is_available():
        for device, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(_from_bytes(cuda_state), device)
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _to_bytes(state: torch.Tensor) -> bytes:
    return state.numpy().tobytes()


def _from_bytes(state: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)
