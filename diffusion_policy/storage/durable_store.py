"""The store that recordings go to: every write is announced, atomic and on the disk."""

import asyncio
import contextlib
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping

from zarr.core.buffer import Buffer

from diffusion_policy.storage.checked_stores import CheckedDirectory
from diffusion_policy.storage.checksums import (
    CHECKSUMS,
    JOURNAL,
    Checksums,
    Ledger,
    digest_of,
    is_document,
    journal_line,
)
from diffusion_policy.storage.durable_files import PARTIAL, append_durably, write_durably


class DurableStore(CheckedDirectory):
    """A directory store in which every write is atomic and on the disk when it returns.

    Every write is announced in the journal first. The list is brought up to date by
    :meth:`settle`; a store without a list gets one before its first write. Several small writes
    happen as a whole in a block of :meth:`atomic`.
    """

    def __init__(self, root: pathlib.Path | str, *, read_only: bool = False):
        super().__init__(root, read_only=read_only)
        self._guard = threading.RLock()
        self._now: Checksums | None = None  # what the files hold
        self._staged: dict[str, bytes | None] | None = None  # in an atomic block

    # ---- writing ---------------------------------------------------------------------------------

    async def set(self, key: str, value: Buffer) -> None:
        """Write one file: journal, temporary name, fsync, rename, fsync of the folder."""
        await asyncio.to_thread(self.set_sync, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """The same, for files that may be there already (the ``.zgroup`` of parent groups)."""
        if not await self.exists(key):
            await self.set(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """The same, for zarr's synchronous code paths."""
        self._check_writable()
        self._change({key: value.to_bytes()})

    async def delete(self, key: str) -> None:
        """Remove a file, or a folder with everything in it."""
        await asyncio.to_thread(self.delete_sync, key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove a folder with everything in it."""
        await asyncio.to_thread(self.delete_sync, prefix)

    def delete_sync(self, key: str) -> None:
        """Remove a file or a folder; of a folder the descriptions first: a rest is no array."""
        self._check_writable()
        if not key:
            self._delete_all()
            return
        files = {*self.store_files(), *self.changes()}
        inside = {name for name in files if name == key or name.startswith(f"{key}/")}
        self._change(dict.fromkeys(sorted(inside, key=lambda name: not is_document(name))))
        if self._staged is None and (self.root / key).is_dir():
            shutil.rmtree(self.root / key)

    async def clear(self) -> None:
        """Remove everything."""
        await self.delete_dir("")

    def _delete_all(self) -> None:
        """First the list: from then on, nothing that is still there is part of the store."""
        with self._guard:
            self._now = Checksums()
            self.settle()
            for child in self.root.iterdir():
                if child.name == CHECKSUMS:
                    continue
                if child.is_dir() and not child.is_symlink():
                    shutil.rmtree(child)
                else:
                    child.unlink()

    def _change(self, contents: Mapping[str, bytes | None]) -> None:
        if self._staged is not None:
            self._staged.update(contents)
            return
        with self._guard:
            now, ledger = self._begin()
            lines = b"".join(journal_line(key, content) for key, content in contents.items())
            append_durably(self.root / JOURNAL, lines)
            for key, content in contents.items():
                digest = None if content is None else digest_of(content)
                ledger.announced.setdefault(key, []).append(digest)
        self._write(contents)
        with self._guard:
            for key, content in contents.items():
                now.note(key, content)

    def _write(self, contents: Mapping[str, bytes | None]) -> None:
        for key, content in contents.items():
            if content is None:
                (self.root / key).unlink(missing_ok=True)
            else:
                write_durably(self.root / key, content)

    @contextlib.contextmanager
    def atomic(self, episode_ends: Iterable[int] | None = None) -> Iterator[None]:
        """What is written in the block happens as a whole or, also after a kill, not at all.

        For small things: they are kept in memory, and written twice.

        Args:
            episode_ends: from that moment on the ends of all episodes; None: as before.
        """
        with self._guard:
            now, _ = self._begin()
        self._staged = {}
        try:
            yield
            changes = self._staged
        finally:
            self._staged = None
        with self._guard:
            if episode_ends is not None:
                now.episode_ends = [int(end) for end in episode_ends]
            now.set_redo(changes)
            self.settle()
            self._carry_out(now)

    def _carry_out(self, now: Checksums) -> None:
        self._write(now.changes_to_redo())
        now.set_redo({})
        self.settle()

    # ---- checksums -------------------------------------------------------------------------------

    def changes(self) -> Mapping[str, bytes | None]:
        return {**super().changes(), **(self._staged or {})}

    def finish(self) -> None:
        """Finish what a killed writer began to write as a whole, and empty its journal.

        Raises:
            DamagedFileError: when a file that was being written is damaged.
        """
        with self._guard:
            self._begin()

    def _begin(self) -> tuple[Checksums, Ledger]:
        """Know what every file holds now, as far as it is part of the store."""
        if self._now is None:
            self.root.mkdir(parents=True, exist_ok=True)
            self._now = self._found() if self.ledger is None else self._known(self.ledger)
            self.settle()
            if self._now.redo:
                self._carry_out(self._now)
        assert self._ledger is not None
        return self._now, self._ledger

    def _found(self) -> Checksums:
        """Of a store without a list."""
        now = Checksums()
        for key in self.store_files():
            now.note(key, self.read_raw(key))
        return now

    def _known(self, ledger: Ledger) -> Checksums:
        """Of a store whose writer was killed, perhaps."""
        now = Checksums.decode(ledger.listed.encode())
        for key in ledger.announced.keys() - ledger.redo.keys():
            content = self.read_raw(key)
            self.check(key, content)
            now.note(key, content)
        return now

    def settle(self) -> None:
        """Bring the list up to date, in one step, and empty the journal."""
        with self._guard:
            now = self._now or self._begin()[0]
            write_durably(self.root / CHECKSUMS, now.encode())
            (self.root / JOURNAL).unlink(missing_ok=True)
            self._ledger = Ledger(Checksums.decode(now.encode()))

    def remove_left_overs(self) -> None:
        """Remove temporary files of writers that are dead."""
        for path in self.root.rglob(f"*{PARTIAL}"):
            match = re.fullmatch(rf".*\.([0-9]+){re.escape(PARTIAL)}", path.name)
            if match and not _is_running(int(match[1])):
                path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
