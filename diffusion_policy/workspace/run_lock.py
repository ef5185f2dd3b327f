"""One process at a time trains in a run directory."""

import contextlib
import datetime
import json
import logging
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from diffusion_policy.common.errors import ConfigError

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
HOLDER_NAME = ".lock_holder.json"  # who it is; not in the lock file, which every attempt may empty
# A process that was just killed is gone in a moment; until then it looks like any other.
GRACE_S = 2.0
# What it started (workers that read data) shares its lock and takes longer, and so does news of a
# death on another machine.
PATIENCE_S = 60.0
_POLL_S = 0.2


class RunDirectoryInUse(ConfigError):
    """Another process trains in this run directory."""


@contextlib.contextmanager
def locked_run(run_dir: str | pathlib.Path, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Makes the folder and keeps other processes from training in it; the end of this process, of
    any kind, frees it.

    A process that lives on this machine is not waited for: what it is doing is another job. One
    that is gone, or of which this machine cannot tell, may still hold the lock for a while.

    Raises:
        RunDirectoryInUse: another process trains there, and ``patience_s`` did not help.
        ConfigError: the folder cannot be made or written to.
    """
    import filelock

    run_dir = pathlib.Path(run_dir)
    lock = filelock.FileLock(run_dir / LOCK_NAME)
    try:
        make_run_directory(run_dir)
        _acquire(lock, run_dir, patience_s)
        with contextlib.suppress(OSError):  # for others to read, no more
            (run_dir / HOLDER_NAME).write_text(json.dumps(_this_process()))
    except NotImplementedError:
        logger.warning("The file system of %s has no locks: start one run there at a time", run_dir)
    except OSError as error:
        raise _unusable(run_dir, error) from error
    try:
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                (run_dir / HOLDER_NAME).unlink(missing_ok=True)
        lock.release()


def make_run_directory(run_dir: str | pathlib.Path) -> None:
    """Makes the folder, if it is not there.

    Raises:
        ConfigError: the system refuses.
    """
    try:
        pathlib.Path(run_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(run_dir, error) from error


def _unusable(run_dir: str | pathlib.Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{run_dir} cannot be used as a run directory: {error.strerror or error} "
        f"({error.filename}); make it a folder that you can write to, or choose another "
        "hydra.run.dir"
    )


def _acquire(lock, run_dir: pathlib.Path, patience_s: float) -> None:
    import filelock

    start, has_warned = time.monotonic(), False
    while True:
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(timeout=0)
            return
        holder = _read_holder(run_dir)
        may_be_gone = _may_be_gone(holder)
        limit = min(patience_s, PATIENCE_S if may_be_gone else GRACE_S)
        if time.monotonic() - start >= limit:
            raise RunDirectoryInUse(
                f"another process trains in {run_dir}{_describe(holder)}; end it, or choose "
                "another hydra.run.dir"
            )
        if may_be_gone and not has_warned:
            has_warned = True
            logger.warning(
                "Another process trained in %s%s and something of it still holds the directory; "
                "waiting %g s for its end",
                run_dir,
                _describe(holder),
                limit,
            )
        time.sleep(_POLL_S)


def _this_process() -> dict[str, str | int]:
    since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _read_holder(run_dir: pathlib.Path) -> dict[str, str | int] | None:
    """None while the holder has not said who it is."""
    try:
        holder = json.loads((run_dir / HOLDER_NAME).read_text())
        return {"pid": int(holder["pid"]), "host": str(holder["host"]), "since": holder["since"]}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _may_be_gone(holder: dict[str, str | int] | None) -> bool:
    if holder is None:
        return False
    if holder["host"] != socket.gethostname():
        return True
    import psutil

    try:
        return psutil.Process(int(holder["pid"])).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:  # somebody else's
        return False


def _describe(holder: dict[str, str | int] | None) -> str:
    if holder is None:
        return ""
    return f" (process {holder['pid']} on {holder['host']}, since {holder['since']})"
