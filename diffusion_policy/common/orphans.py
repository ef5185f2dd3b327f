"""A child process that ends when its parent does, however that happens."""

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int, death_signal: int = signal.SIGKILL) -> None:
    """Makes the kernel send this process a signal when its parent dies, by SIGKILL for example.

    A training whose launcher is gone would otherwise go on, unseen, in a folder where the next one
    starts. Only Linux can do this; elsewhere nothing happens.

    Args:
        parent: process id of the parent, as the parent knows it: it may be dead already.
        death_signal: what this process gets.
    """
    if sys.platform != "linux":
        return
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os.kill(os.getpid(), death_signal)
