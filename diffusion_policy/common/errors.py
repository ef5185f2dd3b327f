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


class ProcessTimeoutError(DiffusionPolicyError, TimeoutError):
    """Another process that was waited for, and did not do what it was to do in time."""


class ProcessDiedError(DiffusionPolicyError, RuntimeError):
    """Another process that this one needs, and that has ended."""


class EnvWorkerError(DiffusionPolicyError, RuntimeError):
    """An environment worker process that raised, died or did not answer during a rollout."""


class NonFiniteEnvError(DiffusionPolicyError, FloatingPointError):
    """An environment whose reward or observation became NaN or infinite."""


class NonFiniteLossError(DiffusionPolicyError, FloatingPointError):
    """A training loss that became NaN or infinite."""


def shorten(text: str, most: int = 4_000) -> str:
    """A text that somebody can read: head and tail, where it has more than ``most`` characters.

    For words that are not ours. An exception may hold the ten megabytes that displeased it.
    """
    if len(text) <= most:
        return text
    head, tail = text[: most * 3 // 4], text[-most // 4 :]
    return f"{head} [... {len(text) - len(head) - len(tail):,} characters left out ...] {tail}"


def message_of(error: BaseException) -> str:
    """What an exception says, shortened."""
    try:
        return shorten(str(error))
    except Exception as another:
        return f"<its text raised {type(another).__name__}>"
