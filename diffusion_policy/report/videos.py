"""Videos of rollouts: found by what a log says, and shown only if they are files of the run."""

import pathlib
from dataclasses import dataclass
from typing import Any

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.regular_files import open_regular, read_regular

MAX_VIDEO_BYTES = 32 * 2**20  # embedded in one page; browsers and mail programs stay usable


@dataclass(frozen=True)
class Video:
    """A video file that lies in the folder of a run."""

    path: pathlib.Path
    folder: pathlib.Path

    @property
    def size(self) -> int:
        """In bytes; 0 if it has gone meanwhile."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def read(self) -> bytes:
        """Its content; nothing if it has gone meanwhile."""
        try:
            return read_regular(self.path, MAX_VIDEO_BYTES, within=self.folder)
        except (DataError, OSError):
            return b""


def find_video(written: Any, folder: pathlib.Path) -> Video | None:
    """The video that a log names, if there is one in the folder of the run.

    Logs come from other people: a file that lies elsewhere is none of the run's.

    Args:
        written: What the log says: a path, as seen from the folder, or from where the run was
            started. If the folder was moved, its ``media`` has the file all the same.
        folder: Of the run.
    """
    if not isinstance(written, str) or not written.endswith(".mp4"):
        return None
    path = pathlib.Path(written)
    for candidate in (folder / path, path, folder / "media" / path.name):
        try:
            open_regular(candidate, within=folder).close()
        except (DataError, OSError, ValueError):  # ValueError: no file can have such a name
            continue
        return Video(candidate, folder)
    return None
