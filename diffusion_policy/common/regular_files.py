"""Opening files that somebody else may have put there: they are files, and lie where they should.

A named pipe in the place of a log would keep its reader waiting for ever, a device would never end,
and a link may lead to whatever its maker likes to see in a report.
"""

import os
import pathlib
import stat
from typing import BinaryIO

from diffusion_policy.common.errors import DataError


def open_regular(path: str | os.PathLike, within: str | os.PathLike | None = None) -> BinaryIO:
    """Opens a regular file for reading, without ever waiting for it.

    Args:
        path: The file; may be a link.
        within: A folder that the file has to lie in, links followed.

    Raises:
        FileNotFoundError: There is none; a link that leads nowhere counts as none.
        OSError: It cannot be opened.
        DataError: It is no regular file, or lies elsewhere.
    """
    real = os.path.realpath(path)
    if within is not None and not pathlib.Path(real).is_relative_to(os.path.realpath(within)):
        raise DataError(
            f"{os.fspath(path)} is a link that leads out of {os.fspath(within)}; put the file "
            "itself there, or remove the link."
        )
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if not stat.S_ISREG(os.stat(real).st_mode):  # opening a device can already do something
        raise _not_regular(path)
    descriptor = os.open(real, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path)
    return os.fdopen(descriptor, "rb")


def read_regular(
    path: str | os.PathLike, max_bytes: int, within: str | os.PathLike | None = None
) -> bytes:
    """The content of a regular file, see :func:`open_regular`.

    Raises:
        DataError: It also is larger than ``max_bytes``.
    """
    with open_regular(path, within) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise DataError(
            f"{os.fspath(path)} is larger than {max_bytes / 1e6:.0f} MB, which no such file is; "
            "restore it, or remove it."
        )
    return content


def _not_regular(path: str | os.PathLike) -> DataError:
    return DataError(f"{os.fspath(path)} is not a regular file; restore it, or remove it.")
