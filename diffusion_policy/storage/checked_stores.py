"""Zarr stores on disk that know what each of their files should hold.

Whatever zarr reads passes :meth:`Checked.check`: the checksums of the store, where it has some, and
the gate for descriptions (:mod:`diffusion_policy.storage.documents`).
"""

import asyncio
import os
import pathlib
import stat
import zipfile
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import LocalStore, ZipStore

from diffusion_policy.common.errors import DataError
from diffusion_policy.storage.checksums import (
    BY_ANOTHER,
    CHECKSUMS,
    JOURNAL,
    DamagedFileError,
    Ledger,
    is_document,
    is_store_file,
)
from diffusion_policy.storage.documents import MAX_CHUNK_BYTES, check_document
from diffusion_policy.storage.durable_files import PARTIAL

#: Earlier versions kept the episode ends of a write that was under way in this file.
COMMIT_RECORD = ".committed_episode_ends.json"
#: Files of ours that are no part of a zarr store; they check themselves.
OWN_FILES = {CHECKSUMS, JOURNAL, COMMIT_RECORD}

NOT_LOADED: Any = object()
_N_TRIES = 5  # while another process writes


class Checked:
    """Checks what is read from a store; stands in front of a store of zarr."""

    _ledger: Ledger | None = NOT_LOADED

    @property
    def place(self) -> str:
        """The path of the store."""
        raise NotImplementedError

    def read_raw(self, key: str) -> bytes | None:
        """The content of a file, unchecked; None where it is not there."""
        raise NotImplementedError

    @property
    def ledger(self) -> Ledger | None:
        """What the files should hold; None where the store carries no checksums.

        Raises:
            DamagedFileError: when the checksums themselves are damaged.
        """
        if self._ledger is NOT_LOADED:
            self._ledger = Ledger.load(self.place, self.read_raw)
        return self._ledger

    def check(self, key: str, content: bytes | None) -> bytes | None:
        """Check what was read from a file, None where it is not there.

        Returns:
            The content.

        Raises:
            DataError: when it is not what was written, or a description that is not allowed.
        """
        if key in OWN_FILES:
            return content
        changes = self.changes()
        if key in changes:
            return changes[key]
        problem = self._problem(key, content)
        for _ in range(_N_TRIES):
            if problem is None:
                break
            # somebody may be writing: what does the file hold by now, and what is said of it?
            content, self._ledger = self.read_raw(key), NOT_LOADED
            problem = self._problem(key, content)
        if problem is None and content is not None and is_document(key):
            check_document(self.place, key, content)
        return content if problem is None else self.on_damage(key, problem)

    def changes(self) -> Mapping[str, bytes | None]:
        """What some files hold, whatever is on disk (None: they are gone)."""
        return {} if self.ledger is None else self.ledger.redo

    def _problem(self, key: str, content: bytes | None) -> str | None:
        return None if self.ledger is None else self.ledger.problem(key, content)

    def check_documents(self) -> None:
        """Check every description that the checksums know, so that none can be missing unseen.

        Raises:
            DataError: when one is missing or damaged.
        """
        for key in sorted(self.ledger.keys() if self.ledger else ()):
            if is_document(key):
                self.check(key, self.read_raw(key))

    def on_damage(self, key: str, problem: str) -> bytes | None:
        """What to read instead of a file that is damaged.

        Raises:
            DamagedFileError: always; stores that mend override this.
        """
        hint = BY_ANOTHER if isinstance(self, LocalStore) else ""
        raise DamagedFileError(self.place, key, problem, hint)


class CheckedDirectory(Checked, LocalStore):
    """A directory store that checks what is read."""

    @property
    def place(self) -> str:
        return str(self.root)

    def read_raw(self, key: str) -> bytes | None:
        path = self.root / key
        try:
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe would block for ever
                raise DataError(f"{self.root}: {key} is no regular file; remove it")
            return path.read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    async def get(self, key: str, prototype: BufferPrototype | None = None, byte_range=None):
        return await asyncio.to_thread(
            self.get_sync, key, prototype=prototype, byte_range=byte_range
        )

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range=None
    ) -> Buffer | None:
        self._ensure_open_sync()
        if byte_range is not None:  # of a header; format 2 never decodes a part of a file
            return super().get_sync(key, prototype=prototype, byte_range=byte_range)
        content = self.check(key, self.read_raw(key))
        buffer = (prototype or default_buffer_prototype()).buffer
        return None if content is None else buffer.from_bytes(content)

    async def exists(self, key: str) -> bool:
        changes = self.changes()
        return changes[key] is not None if key in changes else await super().exists(key)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        names = {name async for name in super().list_dir(prefix)}
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        for key, content in self.changes().items():
            if content is not None and key.startswith(start):
                names.add(key.removeprefix(start).split("/")[0])
        for name in names:
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        keys = {key async for key in super().list_prefix(prefix)}
        keys |= {key for key, content in self.changes().items() if content is not None}
        for key in keys:
            if key.startswith(prefix):
                yield key

    def check_presence(self, key: str) -> None:
        """Check that a file of the list is there; its content only where it is a description or may
        be one of several.

        Raises:
            DamagedFileError: when it is missing or damaged.
        """
        assert self.ledger is not None
        is_there = (self.root / key).is_file() or key in self.ledger.redo
        if is_document(key) or key in self.ledger.announced or not is_there:
            self.check(key, self.read_raw(key))

    def store_files(self) -> Iterator[str]:
        """The descriptions and chunks on disk; everything else is no part of a zarr store."""
        for folder, _, names in os.walk(self.root, followlinks=True):
            place = pathlib.Path(folder).relative_to(self.root)
            for name in names:
                key = (place / name).as_posix()
                is_ours = name.endswith(PARTIAL) or key in OWN_FILES
                if not is_ours and is_store_file(key):
                    yield key


class CheckedZip(Checked, ZipStore):
    """A zip store for reading that checks what is read."""

    def __init__(self, path: pathlib.Path):
        super().__init__(path, mode="r")

    @property
    def place(self) -> str:
        return str(self.path)

    def _sync_open(self) -> None:
        super()._sync_open()
        for member in self._zf.infolist():
            parts = pathlib.PurePosixPath(member.filename.replace("\\", "/")).parts
            if ".." in parts or "/" in parts or member.file_size > MAX_CHUNK_BYTES:
                self.close()
                raise DataError(
                    f"{self.path} holds {member.filename!r} of {member.file_size:,} bytes, which "
                    f"does not belong into a zarr store; do not trust this file"
                )

    def read_raw(self, key: str) -> bytes | None:
        try:
            with self._lock:
                return self._zf.read(key)
        except KeyError:
            return None
        except Exception as error:  # zipfile raises what it likes
            raise DamagedFileError(self.path, key, f"is not readable ({error})") from error

    async def get(self, key: str, prototype: BufferPrototype, byte_range=None) -> Buffer | None:
        if not self._is_open:
            self._sync_open()
        if byte_range is not None:
            return await super().get(key, prototype, byte_range)
        content = self.check(key, self.read_raw(key))
        return None if content is None else prototype.buffer.from_bytes(content)


def open_zip(path: pathlib.Path) -> CheckedZip:
    """Open a zip for reading.

    Raises:
        DataError: when it is damaged.
    """
    store = CheckedZip(path)
    try:
        store._sync_open()
    except DataError:
        raise
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{path} is not a readable zip file ({error}); it is truncated or corrupt: get it again"
        ) from error
    return store
