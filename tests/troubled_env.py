"""An environment that does what its actions say, trouble of every kind."""

import ctypes
import multiprocessing
import os
import signal
import sys
import time

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium import spaces

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it


class Trouble(gym.Env):
    """Does what the action says."""

    observation_space = action_space = spaces.Box(-9, 9, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        if action[0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if action[0] == 2:
            os._exit(7)
        if action[0] == 3:
            sys.exit(3)
        if action[0] == 4:
            time.sleep(1000)
        if action[0] == 6:
            os.kill(os.getpid(), signal.SIGSTOP)
        if action[0] == 7:
            ctypes.PyDLL(None).sleep(1000)  # C code that keeps the interpreter
        if action[0] == 5 and os.fork() > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        elif action[0] == 5:  # like a simulator server, it outlives the worker and holds its pipe
            time.sleep(5)
            os._exit(0)
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def pid(self):
        return os.getpid()

    def unsendable(self):
        return lambda: None

    def take(self, what):
        return len(what)

    def answer_at_length(self):
        return bytearray(20_000_000)


# With these no environment is built to be asked.
KNOWN_SPACES = {
    "observation_space": Trouble.observation_space,
    "action_space": Trouble.action_space,
}


def workers_left():
    return [p for p in multiprocessing.active_children() if p.name.startswith("env-worker")]
