"""Read what ``torch.save`` wrote, without torch's own reader.

``torch.load`` decides by the names in a file what the file is; one that looks like TorchScript is
handed to ``torch.jit.load``, whose programs can read and write files. This reader knows tensors
only. It needs no more of the format than this: a zip, nothing in it compressed, with

    <name>/data.pkl     a pickle in which the storages of tensors are persistent ids
    <name>/data/<key>   the bytes of one storage
    <name>/byteorder    "little" or "big" (missing in old files)
"""

import io
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from diffusion_policy.common.pickle_calls import ForbiddenPickleError, Storage, StorageType
from diffusion_policy.common.safe_pickle import restricted_load

MAX_NAME_LENGTH = 255  # torch writes a dozen letters; its own reader cuts at 511
_CHUNK_BYTES = 1 << 24


class ArchiveError(Exception):
    """Why a file is not a whole archive; the end of a sentence that begins with the file."""


class DamagedArchiveError(ArchiveError):
    """It was one once."""


def check_archive(file: BinaryIO, size: int) -> None:
    """Makes sure that a zip is one of ``torch.save``, whole and unambiguous, before any of it is
    interpreted.

    Raises:
        ArchiveError: it is another kind of zip, or is damaged.
    """
    with _open(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        records = {name.partition("/")[2] for name in names}
        lower = {record.lower() for record in records}
        if "data.pkl" not in records or "constants.pkl" in lower:
            found = ", ".join(name[:40] for name in names[:3])
            raise ArchiveError(f"is a zip file but not a checkpoint (found {found} ...)")
        if len({name.partition("/")[0] for name in names}) > 1:
            raise ArchiveError("is a zip file but not a checkpoint (it holds several folders)")
        for name, count in Counter(name.casefold() for name in names).items():
            if count > 1:
                raise ArchiveError(f"is not a checkpoint: it has several parts named {name[:60]}")
            if len(name) > MAX_NAME_LENGTH or not name.isascii() or not name.isprintable():
                raise ArchiveError(f"is not a checkpoint: it has a part named {name[:60]!r}")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                raise ArchiveError(f"is not a checkpoint: its part {member.filename} is compressed")
        if sum(member.file_size for member in members) > size:
            raise ArchiveError("is not a checkpoint: its parts are larger than the file")


def read_archive(file: BinaryIO) -> Any:
    """The value that was saved, with all tensors on the CPU; see :mod:`.safe_pickle` for what it
    can consist of.

    Raises:
        ForbiddenPickleError: the pickle asks for something that no checkpoint needs.
        ArchiveError: a part is missing, damaged, or has another size than the pickle says.
    """
    with _open(file) as archive:
        return _Archive(archive).load()


class _Archive:
    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        self._root = archive.namelist()[0].partition("/")[0]
        self._contents: dict[str, bytearray] = {}
        order = self._read("byteorder").decode() if self._has("byteorder") else "little"
        if order != sys.byteorder:
            raise ArchiveError(f"was written on a machine with {order!r} byte order, unlike this")

    def load(self) -> Any:
        return restricted_load(io.BytesIO(self._read("data.pkl")), self._storage)

    def _has(self, record: str) -> bool:
        return f"{self._root}/{record}" in self._archive.NameToInfo

    def _read(self, record: str) -> bytearray:
        """The bytes of a part; zipfile compares them with its checksum."""
        if not self._has(record):
            raise DamagedArchiveError(f"is not whole: its part {record[:60]} is missing")
        name = f"{self._root}/{record}"
        content = bytearray(self._archive.getinfo(name).file_size)
        view, start = memoryview(content), 0
        try:
            with self._archive.open(name) as part:
                while start < len(content):
                    block = part.read(_CHUNK_BYTES)
                    if not block:
                        raise DamagedArchiveError(f"is not whole: its part {record} breaks off")
                    view[start : start + len(block)] = block
                    start += len(block)
                part.read(1)  # the end, where the checksum is compared
        except zipfile.BadZipFile as error:
            raise DamagedArchiveError(
                f"is damaged: the checksum of its part {name} is wrong"
            ) from error
        return content

    def _storage(self, saved_id: Any) -> Storage:
        """What a persistent id stands for: ("storage", type, key, location, number of elements)."""
        if not (
            isinstance(saved_id, tuple)
            and len(saved_id) == 5
            and saved_id[0] == "storage"
            and isinstance(saved_id[1], StorageType)
            and isinstance(saved_id[2], str)
            and type(saved_id[4]) is int
        ):
            raise ForbiddenPickleError("a persistent object that is no storage of a tensor")
        _, kind, key, _location, n_elements = saved_id
        if key not in self._contents:
            self._contents[key] = self._read(f"data/{key}")
        content = self._contents[key]
        if n_elements * kind.dtype.itemsize != len(content):
            raise DamagedArchiveError(
                f"is damaged: its part data/{key[:60]} has {len(content)} bytes, but the pickle "
                f"says {n_elements} elements of {kind.dtype}"
            )
        return Storage(content, kind.dtype)


def _open(file: BinaryIO) -> zipfile.ZipFile:
    file.seek(0)
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise DamagedArchiveError(f"is damaged ({error})") from error


def read_trusted_archive(path: Path) -> Any:
    """Reads a file that is trusted: torch and dill do whatever it says.

    Raises:
        ArchiveError: a part is damaged, to which torch itself pays no attention.
    """
    import dill
    import torch

    with path.open("rb") as file, _open(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise DamagedArchiveError(f"is damaged: the checksum of its part {damaged} is wrong")
    return torch.load(path, map_location="cpu", pickle_module=dill, weights_only=False)
