"""Reading a damaged store as far as that is possible, to inspect it and to rescue what it holds."""

import pathlib

from diffusion_policy.storage.checked_stores import NOT_LOADED, CheckedDirectory
from diffusion_policy.storage.checksums import CHECKSUMS, DamagedFileError, Ledger, is_document
from diffusion_policy.storage.documents import check_document

#: A group of format 2 is described by nothing else.
_GROUP = b'{"zarr_format": 2}'
_GROUPS = {".zgroup", "data/.zgroup", "meta/.zgroup"}


class MendingDirectory(CheckedDirectory):
    """A directory store in which descriptions that are damaged are read from the checksums.

    Attributes:
        mended: the files of which the content is known although they are damaged, and what is wrong
            with them.
    """

    def __init__(self, root: pathlib.Path | str, *, read_only: bool = True):
        super().__init__(root, read_only=read_only)
        self.mended: dict[str, str] = {}

    @property
    def ledger(self) -> Ledger | None:
        """The ledger; None also where it is damaged itself."""
        if self._ledger is NOT_LOADED:
            try:
                self._ledger = Ledger.load(self.place, self.read_raw)
            except DamagedFileError as error:
                self.mended[error.key] = error.reason
                self._ledger = None
        return self._ledger

    def check(self, key: str, content: bytes | None) -> bytes | None:
        """As of every store, but for the descriptions of the three groups: they are all alike."""
        try:
            content = super().check(key, content)
        except DamagedFileError as error:
            if key not in _GROUPS or not self._is_buffer():
                raise
            self.mended[key] = error.reason
            return _GROUP
        if content is None and key in _GROUPS and self._is_buffer():
            self.mended[key] = "is missing"
            return _GROUP
        return content

    def _is_buffer(self) -> bool:
        """Whether what is there is the rest of a replay buffer of format 2."""
        return not (self.root / "zarr.json").exists() and all(
            (self.root / group).is_dir() for group in ("data", "meta")
        )

    def on_damage(self, key: str, problem: str) -> bytes | None:
        """The text of a description from the list; of everything else there is no second copy."""
        assert self.ledger is not None
        text = self.ledger.listed.documents.get(key)
        if text is None:
            return super().on_damage(key, problem)
        check_document(self.place, key, text.encode())
        self.mended[key] = problem
        return text.encode()

    def damaged_files(self, examined: set[str]) -> dict[str, str]:
        """What is wrong with the files of the list that were not ``examined`` otherwise."""
        damaged = {}
        for key in sorted(set(self.ledger.keys() if self.ledger else ()) - examined):
            content = self.read_raw(key)
            problem = self._problem(key, content)
            if problem and is_document(key):
                self.check(key, content)  # mended
            elif problem:
                damaged[key] = problem
        return damaged


def sentence(key: str, problem: str) -> str:
    """What to say about a file that was mended."""
    if key == CHECKSUMS:
        return f"{key} {problem}: nothing of the store can be verified, nor mended"
    return f"{key} {problem}; what it held is known"
