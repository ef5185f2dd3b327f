"""Files and folders on the disk such that a kill, or a power cut, leaves the old or the new one."""

import contextlib
import ctypes
import errno
import fcntl
import functools
import logging
import os
import pathlib
import re
import secrets
import shutil
import sys
from collections.abc import Iterator

logger = logging.getLogger(__name__)

PARTIAL = ".partial"  # suffix of files that were not finished; zarr uses it as well

_AT_FDCWD = -100  # linux/fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h
#: What says that a kernel or a file system cannot exchange two names.
_NOT_SUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}


def write_durably(path: pathlib.Path, content: bytes) -> None:
    """Write a file: temporary name, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def append_durably(path: pathlib.Path, content: bytes) -> None:
    """Add to the end of a file, which is made where it is missing."""
    is_new = not path.exists()
    with open(path, "ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        fsync(path.parent)


def fsync(path: pathlib.Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: pathlib.Path) -> None:
    """The same for a file, or for a folder with everything in it."""
    for folder, _, names in os.walk(path):
        for name in names:
            fsync(pathlib.Path(folder, name))
        fsync(pathlib.Path(folder))
    if path.is_file():
        fsync(path)


# ---- replacing a file or a folder ----------------------------------------------------------------
#
# A writer works in a folder of its own beside the target, ``.<name>.<16 digits>.partial``, and
# holds a lock on it that ends with the process:
#
#     new    what it writes
#     old    only where two names cannot be exchanged: what was at the target
#
# On Linux, ``new`` and the target change places in one step (renameat2), so at every instant a
# complete one is at the path. Where the system or the file system cannot do that, ``old`` is moved
# aside first, and a kill between the two moves leaves nothing at the path; then both are complete
# in that folder, and the next one who opens or writes the target moves the new one in place
# (:func:`finish_replacement`).

_NEW, _OLD = "new", "old"


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to write to; what is there when the block ends well takes the place of ``path``.

    What is at ``path`` stays until then, and where the block fails. Folders of killed writers of
    the same path are removed. The new path ends like ``path``.

    Raises:
        OSError: when the disk is full or cannot be written.
    """
    path = path.resolve()  # a link stays a link, and its target is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    finish_replacement(path)
    with _working_folder(path) as folder:
        new = folder / f"{_NEW}{path.suffix}"
        yield new
        fsync_tree(new)
        _move_into_place(new, path, aside=folder / _OLD)
        fsync(path.parent)


def finish_replacement(path: pathlib.Path) -> None:
    """Finish what killed writers of ``path`` began: a move that was half done, and tidying up.

    Folders of writers that are alive are left alone, and so is everything of another name.
    """
    path = path.resolve()
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}{re.escape(PARTIAL)}")
    if not path.parent.is_dir():
        return
    for name in os.listdir(path.parent):
        folder = path.parent / name
        if not pattern.fullmatch(name) or folder.is_symlink() or not folder.is_dir():
            continue
        with _locked(folder, where_no_locks=False) as is_ours:
            if is_ours:
                _finish(folder, path)


def _finish(folder: pathlib.Path, path: pathlib.Path) -> None:
    """End what the writer of a working folder was doing, with something complete at ``path``."""
    new, old = folder / f"{_NEW}{path.suffix}", folder / _OLD
    if os.path.lexists(old) and not os.path.lexists(path):
        logger.warning("%s: a replacement that was interrupted is finished", path)
        os.rename(new if os.path.lexists(new) else old, path)
        fsync(path.parent)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _working_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    while True:
        folder = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")
        folder.mkdir()
        with _locked(folder, where_no_locks=True) as is_ours:
            if not is_ours:
                continue  # somebody who tidies up was faster
            try:
                yield folder
            finally:
                _finish(folder, path)
            return


@contextlib.contextmanager
def _locked(folder: pathlib.Path, where_no_locks: bool) -> Iterator[bool]:
    """Hold the lock of a folder, if nobody else does; it ends with the process, killed or not.

    ``where_no_locks`` is the answer where the file system has none (some network file systems):
    a writer goes on, and nobody tidies up.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            yield where_no_locks and not isinstance(error, BlockingIOError)
            return
        yield folder.exists() and os.path.samestat(os.stat(folder), os.fstat(descriptor))
    finally:
        os.close(descriptor)


def _move_into_place(new: pathlib.Path, path: pathlib.Path, aside: pathlib.Path) -> None:
    if not path.is_dir() and not new.is_dir():
        os.replace(new, path)
    elif not os.path.lexists(path):
        os.rename(new, path)
    elif not exchange(new, path):
        os.rename(path, aside)
        os.rename(new, path)


def exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Let two files or folders change their names in one step.

    Returns:
        False where the system or the file system cannot do that; nothing has happened then.

    Raises:
        OSError: when it fails for another reason.
    """
    renameat2 = _renameat2()
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NOT_SUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


@functools.cache
def _renameat2():
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = [
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_uint,
        ]
    return function
