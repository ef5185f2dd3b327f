"""What every file of a store holds, so that damage can be told from a kill.

Two files at the root of a store, which other readers of zarr ignore:

* :data:`CHECKSUMS` lists the SHA-256 of every file. It is replaced in one step, and carries a
  checksum of itself. So that damage can be mended, it also holds the text of the descriptions
  (``.zarray`` and the like) and the episode ends. Small changes of several files that have to
  happen as a whole are written into it first: that is the moment they happen, and everybody reads
  them from there until the files say the same.
* :data:`JOURNAL` is there while somebody writes: before a file changes, one line says what it is
  going to hold. After a kill, a file is sound if it holds what the list says or what a line of the
  journal announced; anything else is damage, at every instant.

A store in which a program wrote that knows nothing of this (the original implementation, zarr
itself) does not agree with its list any more. Whoever wants that removes the list.
"""

import functools
import hashlib
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusion_policy.common.errors import DataError

CHECKSUMS = ".checksums.json"
JOURNAL = ".checksums.journal"

#: Ends the sentence where the checksums and the files do not agree.
BY_ANOTHER = (
    f" (where another program changed the store and you want that: remove {CHECKSUMS} from it)"
)

_ABOUT = "SHA-256 of every file of this zarr store. If another program wrote to it, remove this."
_VERSION = 1
_ABSENT = "-"
_CHUNK = re.compile(r"[0-9]+(\.[0-9]+)*")
_DOCUMENTS = {".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json"}


class DamagedFileError(DataError):
    """A file of a store that does not hold what was written to it.

    Args:
        store: its name, for messages.
        key: the file, relative to the store.
        reason: what is wrong, to follow the name of the file.
        hint: what else to do, to follow the sentence.
    """

    def __init__(self, store: object, key: str, reason: str, hint: str = ""):
        self.key, self.reason = key, reason
        super().__init__(f"{store}: the file {key} {reason}; {rescue(store)}{hint}")


def rescue(store: object) -> str:
    """What to do about a damaged store, to end a sentence."""
    return (
        f"get the data set again, or rescue what is intact with "
        f"`python -m diffusion_policy.inspect {store} --repair NEW.zarr`"
    )


def digest_of(content: bytes) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def is_document(key: str) -> bool:
    """Whether a file describes a group or an array (``.zarray``, ``.zattrs``, ``zarr.json``)."""
    return key.rpartition("/")[2] in _DOCUMENTS


def is_store_file(key: str) -> bool:
    """Whether a file is a description or a chunk; nothing else is part of a zarr store."""
    is_relative = not key.startswith("/") and "\\" not in key
    return is_relative and (is_document(key) or bool(_CHUNK.fullmatch(key.rpartition("/")[2])))


@dataclass
class Checksums:
    """The content of :data:`CHECKSUMS`.

    Attributes:
        files: the digest of every file, by its place in the store.
        documents: the text of the descriptions.
        episode_ends: exclusive end of every episode. None: not a replay buffer (yet).
        redo: files that are to be written still, as base64; None: to be removed.
    """

    files: dict[str, str] = field(default_factory=dict)
    documents: dict[str, str] = field(default_factory=dict)
    episode_ends: list[int] | None = None
    redo: dict[str, str | None] = field(default_factory=dict)

    def note(self, key: str, content: bytes | None) -> None:
        """From now on ``key`` holds ``content``; None: it is not there."""
        if content is None:
            self.files.pop(key, None)
            self.documents.pop(key, None)
            return
        self.files[key] = digest_of(content)
        if is_document(key):
            self.documents[key] = content.decode(errors="replace")

    def set_redo(self, changes: Mapping[str, bytes | None]) -> None:
        """From now on these files hold this, whatever is on disk."""
        for key, content in changes.items():
            self.note(key, content)
        self.redo = {k: None if c is None else b64encode(c).decode() for k, c in changes.items()}

    def changes_to_redo(self) -> dict[str, bytes | None]:
        """The files that are to be written still."""
        return {
            key: None if text is None else b64decode(text, validate=True)
            for key, text in self.redo.items()
        }

    def encode(self) -> bytes:
        """The bytes of the file."""
        content = {
            "about": _ABOUT,
            "version": _VERSION,
            "files": self.files,
            "documents": self.documents,
            "episode_ends": self.episode_ends,
            "redo": self.redo,
        }
        return _dump({**content, "sha256": digest_of(_dump(content))})

    @classmethod
    def decode(cls, content: bytes) -> "Checksums":
        """Read the file.

        Raises:
            ValueError: when it is damaged.
        """
        values = json.loads(content)
        if not isinstance(values, dict):
            raise ValueError("it is no table")
        if values.pop("sha256", None) != digest_of(_dump(values)):
            raise ValueError("its own checksum is wrong")
        if values["version"] != _VERSION:
            raise ValueError(f"it is of version {values['version']}, {_VERSION} was expected")
        names = ("files", "documents", "episode_ends", "redo")
        read = cls(**{name: values[name] for name in names})
        read._check()
        return read

    def _check(self) -> None:
        """Somebody may have written the file who knows how to compute its checksum."""
        ends = [] if self.episode_ends is None else self.episode_ends
        texts = [*self.files.values(), *self.documents.values()]
        if not all(isinstance(text, str) for text in texts) or not all(
            type(end) is int and 0 <= end < 2**63 for end in ends
        ):
            raise ValueError("it holds something else than expected")
        self.changes_to_redo()
        for key in (*self.files, *self.documents, *self.redo):
            _check_key(key)


def _check_key(key: object) -> str:
    """The key, if it is a file of a zarr store that lies in that store."""
    if not isinstance(key, str) or not is_store_file(key) or ".." in key.split("/"):
        raise ValueError(f"{key!r} is no file of a zarr store")
    return key


def _dump(values: dict[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, indent=0).encode()


def journal_line(key: str, content: bytes | None) -> bytes:
    """The line that announces what a file is going to hold; None: it will not be there."""
    line = f"{_ABSENT if content is None else digest_of(content)} {json.dumps(key)}"
    return f"{_check(line)} {line}\n".encode()


def _check(line: str) -> str:
    return digest_of(line.encode())[:8]


def _announced(journal: bytes) -> Iterable[tuple[str, str | None]]:
    """What the lines of a journal announce.

    Raises:
        ValueError: when a line is damaged. The last one may have been cut by a kill.
    """
    *lines, _ = journal.split(b"\n")
    for number, line in enumerate(lines, 1):
        check, _, text = line.decode(errors="replace").partition(" ")
        digest, _, key = text.partition(" ")
        if check != _check(text):
            raise ValueError(f"its line {number} is damaged")
        yield _check_key(json.loads(key)), None if digest == _ABSENT else digest


@dataclass
class Ledger:
    """The list and the journal together: what each file may hold.

    Attributes:
        listed: the list.
        announced: by file, what the journal announced, in order. None: it is not there.
    """

    listed: Checksums
    announced: dict[str, list[str | None]] = field(default_factory=dict)

    @classmethod
    def load(cls, store: object, read: Callable[[str], bytes | None]) -> "Ledger | None":
        """Read the ledger of a store; None where there is none.

        The journal is read first: a writer empties it after the list was replaced.

        Args:
            store: its name, for messages.
            read: gives the content of one of its files, None where that is not there.

        Raises:
            DamagedFileError: when the list or the journal is damaged.
        """
        journal, content = read(JOURNAL), read(CHECKSUMS)
        if content is None:
            return None
        name = CHECKSUMS
        try:
            ledger = cls(Checksums.decode(content))
            name = JOURNAL
            for key, digest in _announced(journal or b""):
                ledger.announced.setdefault(key, []).append(digest)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedFileError(store, name, f"is damaged ({error})", BY_ANOTHER) from error
        return ledger

    @functools.cached_property
    def redo(self) -> dict[str, bytes | None]:
        """What some files hold, whatever is on disk."""
        return self.listed.changes_to_redo()

    def keys(self) -> set[str]:
        """Every file of which something is known."""
        return {*self.listed.files, *self.announced}

    def problem(self, key: str, content: bytes | None) -> str | None:
        """What is wrong with a file that holds ``content``; None: nothing."""
        if key in self.redo:
            return None
        allowed = {self.listed.files.get(key), *self.announced.get(key, ())}
        if content is None:
            return None if None in allowed else "is missing"
        if digest_of(content) in allowed:
            return None
        if allowed == {None}:
            return "is not among the checksums of the store"
        return "is damaged (its checksum is wrong)"
