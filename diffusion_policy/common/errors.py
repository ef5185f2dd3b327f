"""Errors whose message is meant for the person at the keyboard.

Every message is one sentence that says what was found where, what was expected, and what to do. The
command lines (``train.py``, ``eval.py`` ...) print the message of a :class:`DiffusionPolicyError`
without a traceback and exit with a non-zero code; anything else is a bug and keeps its traceback.
"""


class DiffusionPolicyError(Exception):
    """Base class of all errors that a user can mend without reading our code."""


class ConfigError(DiffusionPolicyError, ValueError):
    """A configuration value that cannot work: impossible horizon, wrong ``obs_dim``, unknown
    option.
    """


class DataError(DiffusionPolicyError, ValueError):
    """A data set that is missing, damaged, or does not hold what the configuration says."""


class CheckpointError(DiffusionPolicyError, RuntimeError):
    """A checkpoint that cannot be read, cannot be trusted, or cannot be written."""


class DeviceError(DiffusionPolicyError, RuntimeError):
    """A requested device (GPU, camera, robot) that is not present."""


class EnvWorkerError(DiffusionPolicyError, RuntimeError):
    """An environment worker process that raised or died during a rollout."""


class NonFiniteLossError(DiffusionPolicyError, FloatingPointError):
    """A training loss that became NaN or infinite."""
