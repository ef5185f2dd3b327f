"""Tests that need a GPU."""

import contextlib

import pytest
import torch

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


@contextlib.contextmanager
def no_waiting():
    """CUDA itself reports everything inside that waits for the device as an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
