"""What machine this is, in words."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
import sys


def describe_machine() -> dict[str, str]:
    """Processor, memory, GPUs, system and the versions that decide a run's numbers."""
    import psutil

    machine = {
        "cpu": f"{_cpu_name()}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "gpu": _gpu_names(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
    }
    return {key: value for key, value in machine.items() if value}


def peak_memory() -> dict[str, int]:
    """The most that this process has taken so far, in bytes: of ``host`` memory and, if it computes
    on a GPU, of ``device`` memory.
    """
    import resource

    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_initialized():
        peak["device"] = torch.cuda.max_memory_reserved()
    return peak


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu_names() -> str:
    # Asking torch would initialise CUDA in a process that may still have to fork environments.
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return ", ".join(done.stdout.split("\n")[:-1])
    return ""
