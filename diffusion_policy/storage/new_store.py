"""A store that is written once and takes its place when it is complete."""

import asyncio
import contextlib
import pathlib
import threading
from collections.abc import Callable, Iterator

import numpy as np
import zarr
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore, ZipStore

from diffusion_policy.common.errors import DataError
from diffusion_policy.storage.checksums import CHECKSUMS, Checksums
from diffusion_policy.storage.durable_files import replacing


@contextlib.contextmanager
def new_store(
    path: pathlib.Path, check: Callable[[pathlib.Path], object] = lambda new: None
) -> Iterator[LocalStore | ZipStore]:
    """A fresh store that takes the place of ``path`` when the block ends well.

    At every instant a complete store is at ``path``, the old one or the new one
    (:func:`diffusion_policy.storage.durable_files.replacing`). A path ending in ``.zip`` gets a zip
    store, any other a directory store with checksums.

    Args:
        path: where the store is to be.
        check: called with the finished store before it gets its name; what it raises leaves
            ``path`` as it was.

    Raises:
        DataError: when the disk is full or cannot be written, or ``path`` is something else than a
            zarr store.
    """
    if path.is_dir() and not _is_zarr_or_empty(path):
        raise DataError(f"{path} is a folder but no zarr store; remove it or choose another path")
    try:
        with replacing(path) as new:
            store = ZipStore(new, mode="w") if path.suffix == ".zip" else NewDirectory(new)
            with contextlib.closing(store):
                yield store
                if isinstance(store, NewDirectory):
                    store.finish()
            check(new)
    except OSError as error:
        raise DataError(
            f"{path} could not be written ({error.strerror or error}); free some space or choose "
            f"another path"
        ) from error


def _is_zarr_or_empty(path: pathlib.Path) -> bool:
    return (path / ".zgroup").exists() or (path / "zarr.json").exists() or not any(path.iterdir())


class NewDirectory(LocalStore):
    """A directory store that is written once, beside its place, and gets its checksums at the end.

    Nothing is waited for: whoever moves it into place does that.
    """

    def __init__(self, root: pathlib.Path | str, *, read_only: bool = False):
        super().__init__(root, read_only=read_only)
        self._checksums, self._guard = Checksums(), threading.Lock()

    def _note(self, key: str, content: bytes | None) -> None:
        with self._guard:
            self._checksums.note(key, content)

    def set_sync(self, key: str, value: Buffer) -> None:
        super().set_sync(key, value)
        self._note(key, value.to_bytes())

    async def set(self, key: str, value: Buffer) -> None:
        await asyncio.to_thread(self.set_sync, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if not await self.exists(key):
            await self.set(key, value)

    def delete_sync(self, key: str) -> None:
        super().delete_sync(key)
        self._note(key, None)

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self.delete_sync, key)

    async def delete_dir(self, prefix: str) -> None:
        await super().delete_dir(prefix)
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        for key in [key for key in self._checksums.files if key.startswith(start)]:
            self._note(key, None)

    def finish(self) -> None:
        """Write the checksums of everything."""
        root = zarr.open_group(self, mode="r", zarr_format=2)
        if "meta/episode_ends" in root:
            ends = np.asarray(root["meta/episode_ends"])
            self._checksums.episode_ends = [int(end) for end in ends]
        (self.root / CHECKSUMS).write_bytes(self._checksums.encode())
