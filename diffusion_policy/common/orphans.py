"""A child process that ends when its parent does, however that happens.

What a child of one's own (``fork`` and ``exec``) does is :func:`die_with_parent`. A process that
somebody else started for us, a server of multiprocessing for example, is given a
:class:`Lifeline`.
"""

import atexit
import fcntl
import os
import signal
import sys
import threading
import weakref
from multiprocessing.connection import Connection, Pipe, wait

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_F_SETSIG = 10  # linux/fcntl.h


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


class Lifeline:
    """Something that only this process holds, so that others notice its end.

    A pipe: the kernel closes our end of it when we die, of whatever. Processes that this one forks
    let go of it at once. The other process gets :attr:`theirs` and calls :func:`die_with`.

    Attributes:
        theirs: for one other process.
    """

    def __init__(self):
        self.theirs, self._ours = Pipe(duplex=False)
        _lifelines.add(self)

    def close(self) -> None:
        """The other process is to end now."""
        self._ours.close()
        self.theirs.close()


_lifelines: "weakref.WeakSet[Lifeline]" = weakref.WeakSet()


def _let_go() -> None:
    for lifeline in list(_lifelines):
        lifeline.close()


os.register_at_fork(after_in_child=_let_go)
# Before multiprocessing, which is loaded by now, waits at the exit for children that may be stopped
atexit.register(_let_go)


def die_with(lifeline: Connection) -> None:
    """Has this process killed when the holder of the lifeline ends.

    At once, whatever it is doing: a loop of C code that never gives the interpreter back, or
    nothing, stopped by SIGSTOP. The processes that it starts are killed as well: it becomes the
    leader of a process group of its own, which they belong to.

    Args:
        lifeline: :attr:`Lifeline.theirs`, as this process got it.
    """
    os.setpgid(0, 0)
    if sys.platform == "linux":
        # The kernel sends the signal; nothing of this process has to run. An open file of its own,
        # since whom to signal is a property of the file that all holders of a descriptor share.
        fd = os.open(f"/proc/self/fd/{lifeline.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpid())
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    else:  # as long as something lets this thread run
        threading.Thread(target=_die_when_ready, args=(lifeline,), daemon=True).start()
    if lifeline.poll():  # the holder ended before we began to listen
        _kill_group()


def _die_when_ready(lifeline: Connection) -> None:
    wait([lifeline])
    _kill_group()


def _kill_group() -> None:
    os.killpg(os.getpid(), signal.SIGKILL)
