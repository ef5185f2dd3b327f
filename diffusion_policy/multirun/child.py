"""Turns its own process into a command of a sweep: what has to happen between fork and exec.

    python -m diffusion_policy.multirun.child <process id of the parent> <command> <arguments ...>

A process of its own, since Python code between fork and exec can hang where the parent has threads,
as a worker of ray has.
"""

import os
import signal
import sys

from diffusion_policy.common.orphans import die_with_parent

NOT_STARTED = 127  # exit code, as of a shell that does not find a command


def main() -> None:
    parent, *command = sys.argv[1:]
    # Workers of ray block SIGINT, and what a shell starts in the background ignores it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    die_with_parent(int(parent))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"error: cannot run {command[0]}: {error.strerror}\n")
        sys.exit(NOT_STARTED)


if __name__ == "__main__":
    main()
