"""One process at a time trains in a run directory."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator

from diffusion_policy.common.errors import ConfigError

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
# A run that was just killed, on another machine perhaps, may take a moment to be gone.
PATIENCE_S = 60.0


@contextlib.contextmanager
def locked_run(run_dir: str | pathlib.Path, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Keeps other processes from training in this folder; the end of this one, of any kind, frees
    it.

    Raises:
        ConfigError: another process trains there, and has not ended after ``patience_s``.
    """
    import filelock

    lock = filelock.FileLock(pathlib.Path(run_dir) / LOCK_NAME)
    try:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if patience_s == 0:
                raise
            logger.warning(
                "Another process trains in %s; waiting %g s for its end", run_dir, patience_s
            )
            lock.acquire(timeout=patience_s)
    except filelock.Timeout:
        raise ConfigError(
            f"another process trains in {run_dir}; end it, or choose another hydra.run.dir"
        ) from None
    except NotImplementedError:
        logger.warning("The file system of %s has no locks: start one run there at a time", run_dir)
    try:
        yield
    finally:
        lock.release()
