"""Data made from other data once and used again: converted, decoded or rendered.

A cache is a zarr store (a directory or a ``.zip``). It carries, as an attribute of its root, the
fingerprint of everything that decides its content, so it can never be taken for another one:

* it is used when the fingerprint is the wanted one and reading it succeeds;
* it is made again when the fingerprint is another one, or when it is damaged (with one warning);
* a store without a fingerprint is somebody's data: it is never replaced.

A cache is written next to its place and moved there when it is complete: a kill or a full disk
leaves the old one. Processes that want the same cache at the same time make it once.
"""

import contextlib
import hashlib
import json
import logging
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import zarr
from zarr.abc.store import Store

from diffusion_policy.common.episode_store import open_root
from diffusion_policy.common.errors import DataError
from diffusion_policy.common.waiting import Patience, Waiting, describe_holder, wait_until
from diffusion_policy.storage.new_store import new_store

if TYPE_CHECKING:
    import filelock

logger = logging.getLogger(__name__)

T = TypeVar("T")

FINGERPRINT = "fingerprint"

#: With another process that makes a cache. Decoding millions of images takes hours, not days.
PATIENCE = Patience(limit_s=24 * 3600.0)

#: Up to this size the content of a source decides, wherever it lies; above, its path and times.
_HASHED_BYTES = 64_000_000


def fingerprint_of(**decisive: Any) -> str:
    """A short name for everything that decides the content of a cache.

    Args:
        **decisive: options, versions, :func:`identity_of` the sources: anything JSON can express.

    Returns:
        32 hexadecimal digits; equal for equal arguments, whatever their order.
    """
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:32]


def identity_of(path: pathlib.Path) -> str:
    """What tells one source (a file or a directory) from another.

    The content where it is small: a copy elsewhere is the same source. Otherwise path, sizes and
    times of change.

    Raises:
        DataError: when nothing is there.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path")
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    if sum(file.stat().st_size for file in files) <= _HASHED_BYTES:
        for file in files:
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{file.relative_to(path)}\0{content}\n".encode())
        return digest.hexdigest()
    digest.update(f"{path.resolve()}\n".encode())
    for file in files:
        facts = file.stat()
        line = f"{file.relative_to(path)}\0{facts.st_size}\0{facts.st_mtime_ns}\n"
        digest.update(line.encode())
    return digest.hexdigest()


def cached(
    path: pathlib.Path,
    fingerprint: str,
    build: Callable[[Store], None],
    read: Callable[[pathlib.Path], T],
) -> T:
    """Read a cache, after making it where that is needed.

    Args:
        path: where it is, or is to be; ends in ``.zip`` for a zip.
        fingerprint: see :func:`fingerprint_of`.
        build: writes the content into an empty store of format 2.
        read: reads what is needed of the store at a path; a :class:`DataError` means that it is
            damaged.

    Returns:
        What ``read`` returns.

    Raises:
        DataError: when the cache cannot be written, or ``path`` is data that is no cache.
    """
    with contextlib.suppress(_NotUsable):
        return _read_current(path, fingerprint, read)
    with _lock(path):
        try:
            return _read_current(path, fingerprint, read)  # another process may have made it
        except _NotUsable as reason:
            logger.log(reason.level, "%s", reason)
        _write(path, fingerprint, build)
        return read(path)


def rebuild(path: pathlib.Path, fingerprint: str, build: Callable[[Store], None]) -> None:
    """Make a cache whatever is at ``path``, somebody's data included; see :func:`cached`."""
    with _lock(path):
        _write(path, fingerprint, build)


class _NotUsable(Exception):
    """Why a cache has to be made."""

    def __init__(self, message: str, level: int = logging.INFO):
        super().__init__(message)
        self.level = level


def _read_current(path: pathlib.Path, fingerprint: str, read: Callable[[pathlib.Path], T]) -> T:
    if not path.exists():
        raise _NotUsable(f"{path} is made")
    try:
        found = _read_fingerprint(path)
        if found == fingerprint:
            return read(path)
    except DataError as error:
        raise _NotUsable(f"{path} is made again, it is damaged: {error}", logging.WARNING) from None
    if found is None:
        raise DataError(
            f"{path} was not made by this program as a cache, so it is not replaced; move it away "
            f"or choose another path"
        )
    raise _NotUsable(f"{path} is made again, it belongs to other data or options")


def _read_fingerprint(path: pathlib.Path) -> Any:
    root = open_root(path)
    with contextlib.closing(root.store_path.store):
        return root.attrs.asdict().get(FINGERPRINT)


def _write(path: pathlib.Path, fingerprint: str, build: Callable[[Store], None]) -> None:
    with new_store(path) as store:
        zarr.open_group(store, mode="a", zarr_format=2, attributes={FINGERPRINT: fingerprint})
        build(store)


def _wait_for(lock: "filelock.BaseFileLock", path: pathlib.Path) -> Any:
    import filelock

    def look(seconds: float) -> Any:
        with contextlib.suppress(filelock.Timeout):
            return lock.acquire(timeout=seconds)

    waiting = Waiting(
        PATIENCE,
        lambda: f"the process that makes {path} ({describe_holder(lock.lock_file)})",
        "finish it",
        "end that process, and run again",
        DataError,
    )
    return wait_until(look, waiting)


def _lock(path: pathlib.Path) -> contextlib.AbstractContextManager:
    """Hold the lock of a cache; it ends with the process that holds it, killed or not."""
    import filelock

    lock = filelock.FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.info("%s is being made by another process; waiting for it", path)
            return _wait_for(lock, path)
    except OSError as error:
        raise DataError(
            f"{path} could not be written ({error.strerror or error}); choose another path"
        ) from error
