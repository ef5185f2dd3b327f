"""What the server that forks worker processes (multiprocessing's ``forkserver``) loads, and nobody
else: numpy, gymnasium and what workers need, so that they start fast and small.

The server ends by itself when nobody needs it any more; loading this has it killed with the process
that started it as well, in case that it is stopped.
"""

import contextlib
import os
from multiprocessing.connection import Connection

from diffusion_policy.common.orphans import die_with
from diffusion_policy.gym_util import env_worker

__all__ = ["env_worker"]


# The number that the end of a lifeline has in that process. multiprocessing passes on none of our
# descriptors, so it is opened there.
if number := os.environ.pop("DIFFUSION_POLICY_SERVER_LIFELINE", None):
    with contextlib.suppress(OSError):  # a system that hides processes from each other
        die_with(Connection(os.open(f"/proc/{os.getppid()}/fd/{number}", os.O_RDONLY)))
