"""What a replay buffer on disk consists of, opened such that damage is noted and not fatal."""

import contextlib
import os
import pathlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import zarr
from zarr.core.sync import sync
from zarr.storage import ZipStore

from diffusion_policy.common.episode_store import (
    finished_ends,
    has_unfinished_commit,
    open_root,
    read_ends,
)
from diffusion_policy.common.errors import DataError
from diffusion_policy.inspect.chunks import read_whole
from diffusion_policy.storage.checked_stores import Checked
from diffusion_policy.storage.checksums import Checksums, DamagedFileError, is_document
from diffusion_policy.storage.durable_files import PARTIAL, finish_replacement
from diffusion_policy.storage.mending import MendingDirectory, sentence
from diffusion_policy.storage.nodes import UNREADABLE
from diffusion_policy.storage.reading import chunk_counts, is_chunk

END = 2**63 - 1  # behind the last row, however many there are


@dataclass(frozen=True)
class Finding:
    """Something that is wrong (``damage``) or worth a look (``warning``).

    Attributes:
        text: one sentence.
        row: the first row of the arrays it concerns. None: it does not concern the episodes.
        key: the array it concerns. None: all of them.
        lost: the rows of it that are lost.
        mended: nothing is lost, what the file held is known from elsewhere.
    """

    level: Literal["damage", "warning"]
    text: str
    row: int | None = None
    key: str | None = None
    lost: tuple[slice, ...] = ()
    mended: bool = False


@dataclass
class Layout:
    """An opened replay buffer.

    ``ends`` are the episode ends up to the first impossible one, ``n_stored_episodes`` is how many
    there are with those behind it. ``meta`` holds the other small arrays that are readable.
    """

    path: pathlib.Path
    root: zarr.Group
    arrays: dict[str, zarr.Array]
    meta: dict[str, np.ndarray]
    ends: np.ndarray
    n_stored_episodes: int
    findings: list[Finding] = field(default_factory=list)

    @property
    def n_steps(self) -> int:
        """The number of steps of the episodes in ``ends``."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def is_zip(self) -> bool:
        """Whether it is a zip, not a directory."""
        return isinstance(self.root.store_path.store, ZipStore)


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Layout]:
    """Open a replay buffer, a zarr directory or zip, for reading.

    Raises:
        DataError: when there is none, or nobody knows where its episodes end: nothing can be said
            about the data then.
    """
    from diffusion_policy.codecs.imagecodecs_numcodecs import register_codecs

    register_codecs(verbose=False)  # zarr cannot open arrays whose codec it does not know
    finish_replacement(path)
    root = open_root(MendingDirectory(path) if path.is_dir() else path)
    with contextlib.closing(root.store_path.store):
        yield _layout(path, root)


def _layout(path: pathlib.Path, root: zarr.Group) -> Layout:
    findings: list[Finding] = []
    for group in ("data", "meta"):
        if not _has(root, group):
            found = _stored_names(root, "")
            lost = f"; {group}/.zgroup is missing or not readable" if group in found else ""
            raise DataError(
                f"{path} holds no replay buffer: groups 'data' and 'meta' with "
                f"'meta/episode_ends' were expected, found {found}{lost}"
            )
    meta_arrays = _open_arrays(root, "meta", findings)
    ends = _read_ends(path, root, findings)
    arrays = _open_arrays(root, "data", findings)
    meta_arrays.pop("episode_ends", None)
    meta = _read_meta(meta_arrays, findings)
    layout = Layout(path, root, arrays, meta, _possible(ends, findings), len(ends), findings)
    _check_lengths(layout)
    return layout


def _has(root: zarr.Group, group: str) -> bool:
    try:
        return group in root
    except UNREADABLE:
        return False


def _checksums(root: zarr.Group) -> Checksums | None:
    """The list of the store, where it has one."""
    store = root.store_path.store
    ledger = store.ledger if isinstance(store, Checked) else None
    return None if ledger is None else ledger.listed


def _stored_names(root: zarr.Group, folder: str) -> list[str]:
    """The arrays and groups that lie in a folder of the store, or should."""
    place = root.store_path / folder

    async def listed() -> list[str]:
        return [name async for name in place.store.list_dir(place.path)]

    names = {name for name in sync(listed()) if not name.startswith(".") and name != "zarr.json"}
    known, prefix = _checksums(root), f"{folder}/" if folder else ""
    for key in known.documents if known is not None else ():
        name, _, below = key.removeprefix(prefix).partition("/")
        if key.startswith(prefix) and below:
            names.add(name)
    return sorted(names)


def _open_arrays(root: zarr.Group, group: str, findings: list[Finding]) -> dict[str, zarr.Array]:
    arrays = {}
    for name in _stored_names(root, group):
        place = f"{group}/{name}"
        try:
            node = root[place]
        except UNREADABLE as error:
            described = sync((root.store_path / place / ".zarray").exists())
            if not described and all(n.endswith(PARTIAL) for n in _stored_names(root, place)):
                continue  # half-made by a writer that was killed: not an array yet
            reason = _reason_of(error)
            text = f"{place}: its description, the .zarray file, " + (
                reason if described else "is missing"
            )
            if group == "data":
                findings.append(Finding("damage", text, 0, name, (slice(0, END),)))
            elif name != "episode_ends":
                findings.append(Finding("damage", text))
            continue
        if isinstance(node, zarr.Array):
            arrays[name] = node
    return arrays


def _read_ends(path: pathlib.Path, root: zarr.Group, findings: list[Finding]) -> np.ndarray:
    if has_unfinished_commit(root):
        text = (
            "the last recording was stopped just before it ended; its last episode is complete, "
            "and the next recording into this data set tidies up"
        )
        findings.append(Finding("warning", text))
        return finished_ends(root)
    try:
        return read_ends(root)
    except DataError as error:
        known, reason = _checksums(root), _reason_of(error)
        if known is None or known.episode_ends is None:
            raise DataError(
                f"{path}: 'meta/episode_ends' {reason}; nobody can tell where the episodes end "
                f"without it: get the data set again"
            ) from error
    text = f"meta/episode_ends {reason}; where the episodes end is known from the checksums"
    findings.append(Finding("damage", text, mended=True))
    return np.asarray(known.episode_ends, np.int64)


def _reason_of(error: Exception) -> str:
    """What is wrong with an array, to follow its name."""
    if isinstance(error, DamagedFileError):
        return error.reason
    return f"is not readable ({getattr(error, 'reason', error)})"


def _read_meta(arrays: dict[str, zarr.Array], findings: list[Finding]) -> dict[str, np.ndarray]:
    meta = {}
    for name, array in arrays.items():
        try:
            meta[name] = read_whole(array)
        except (DataError, *UNREADABLE) as error:
            findings.append(Finding("damage", f"meta/{name} is not readable ({error})"))
    return meta


def _possible(ends: np.ndarray, findings: list[Finding]) -> np.ndarray:
    """The ends up to the first that does not lie behind the one before."""
    lengths = np.diff(ends, prepend=0)
    if (lengths > 0).all():
        return ends
    first = int(np.argmax(lengths <= 0))
    start = int(ends[first - 1]) if first else 0
    findings.append(
        Finding(
            "damage",
            f"meta/episode_ends does not increase: episode {first} begins at row {start} and "
            f"ends at row {ends[first]}; the {len(ends) - first} episodes from there on are not "
            f"examined",
            start,
            lost=(slice(start, END),),
        )
    )
    return ends[:first]


def _check_lengths(layout: Layout) -> None:
    n_steps, findings = layout.n_steps, layout.findings
    if layout.n_stored_episodes == 0:
        findings.append(Finding("warning", "there is no episode yet"))
    elif not layout.arrays:
        text = "there is no array under 'data' that is readable"
        findings.append(Finding("damage", text, 0, lost=(slice(0, END),)))
    for key, array in layout.arrays.items():
        length = array.shape[0] if array.ndim else 0
        if length < n_steps:
            text = f"{key!r} has {length} rows, but the episodes have {n_steps} steps"
            findings.append(Finding("damage", text, length, key, (slice(length, END),)))
        elif length > n_steps and len(layout.ends) == layout.n_stored_episodes:
            known = _checksums(layout.root) is not None
            doubt = "" if known else ", or of episodes whose ends were lost (nobody can tell)"
            text = (
                f"{key!r} has {length - n_steps} rows behind the last episode, of a recording that "
                f"was stopped{doubt}; they are ignored"
            )
            findings.append(Finding("warning", text))


def find_other_damage(layout: Layout) -> list[Finding]:
    """What is wrong with files that no other check has read, and what was mended so far."""
    store, known = layout.root.store_path.store, _checksums(layout.root)
    if not isinstance(store, MendingDirectory):
        return []
    files = known.files if known is not None else {}
    examined = {key for key in files if key.startswith("meta/")}
    for name, array in layout.arrays.items():
        counts, folder = chunk_counts(array, layout.n_steps), f"data/{name}/"
        inside = {key for key in files if key.startswith(folder)}
        examined |= {key for key in inside if is_chunk(key.removeprefix(folder), array, counts)}
    unreadable = tuple(f"data/{f.key}/" for f in layout.findings if f.key is not None)
    damaged = store.damaged_files({key for key in examined if not is_document(key)})
    found = [
        Finding("damage", f"{key} {problem}")
        for key, problem in damaged.items()
        if not key.startswith(unreadable)
    ]
    mended = sorted(store.mended.items())
    return found + [Finding("damage", sentence(*what), mended=True) for what in mended]


def stored_bytes(path: pathlib.Path) -> dict[str, int]:
    """The size of every file of a store on disk, by its place in it."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as file:
            return {info.filename: info.compress_size for info in file.infolist()}
    files = (pathlib.Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    return {file.relative_to(path).as_posix(): file.stat().st_size for file in files}
