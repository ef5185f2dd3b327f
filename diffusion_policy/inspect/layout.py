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

from diffusion_policy.common.episode_store import COMMIT_RECORD, finished_ends, open_root
from diffusion_policy.common.errors import DataError
from diffusion_policy.common.zarr_util import PARTIAL, UNREADABLE
from diffusion_policy.inspect.chunks import read_whole


@dataclass(frozen=True)
class Finding:
    """Something that is wrong (``damage``) or worth a look (``warning``).

    ``row`` is the first row of the arrays it concerns: the data before it are not affected. None:
    it does not concern the episodes.
    """

    level: Literal["damage", "warning"]
    text: str
    row: int | None = None


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
        DataError: when there is none, or its episode ends are not readable: nothing can be said
            about the data then.
    """
    from diffusion_policy.codecs.imagecodecs_numcodecs import register_codecs

    register_codecs(verbose=False)  # zarr cannot open arrays whose codec it does not know
    root = open_root(path)
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
    meta_arrays = _open_arrays(root, "meta", None, findings)
    ends = _read_ends(path, root, meta_arrays, findings)
    arrays = _open_arrays(root, "data", 0, findings)
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


def _stored_names(root: zarr.Group, folder: str) -> list[str]:
    """What lies in a folder of the store, except for descriptions (``.zgroup`` and the like)."""
    place = root.store_path / folder

    async def listed() -> list[str]:
        return [name async for name in place.store.list_dir(place.path)]

    return sorted(n for n in sync(listed()) if not n.startswith(".") and n != "zarr.json")


def _open_arrays(
    root: zarr.Group, group: str, row: int | None, findings: list[Finding]
) -> dict[str, zarr.Array]:
    arrays = {}
    for name in _stored_names(root, group):
        place = f"{group}/{name}"
        try:
            node = root[place]
        except UNREADABLE as error:
            described = sync((root.store_path / place / ".zarray").exists())
            if not described and all(n.endswith(PARTIAL) for n in _stored_names(root, place)):
                continue  # half-made by a writer that was killed: not an array yet
            reason = f"is not readable ({error})" if described else "is missing"
            findings.append(
                Finding("damage", f"{place}: its description, the .zarray file, {reason}", row)
            )
            continue
        if isinstance(node, zarr.Array):
            if 0 in node.chunks:
                text = f"{place}: chunks of {node.chunks} in its .zarray file hold nothing"
                findings.append(Finding("damage", text, row))
                continue
            arrays[name] = node
    return arrays


def _read_ends(
    path: pathlib.Path, root: zarr.Group, meta: dict[str, zarr.Array], findings: list[Finding]
) -> np.ndarray:
    if sync((root.store_path / COMMIT_RECORD).exists()):
        findings.append(
            Finding(
                "warning",
                "the last recording was stopped just before it ended; its last episode is "
                "complete, and the next recording into this data set tidies up",
            )
        )
        try:
            return finished_ends(root)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: {COMMIT_RECORD} is not readable ({error})") from error
    if "episode_ends" not in meta:
        raise DataError(
            f"{path}: 'meta/episode_ends' is missing or not readable; nobody can tell where the "
            f"episodes end without it: get the data set again"
        )
    ends = read_whole(meta["episode_ends"])
    if ends.ndim != 1 or ends.dtype.kind not in "iu":
        raise DataError(
            f"{path}: 'meta/episode_ends' has shape {ends.shape} and type {ends.dtype}; one whole "
            f"number per episode was expected: get the data set again"
        )
    return ends.astype(np.int64)


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
        )
    )
    return ends[:first]


def _check_lengths(layout: Layout) -> None:
    n_steps, findings = layout.n_steps, layout.findings
    if layout.n_stored_episodes == 0:
        findings.append(Finding("warning", "there is no episode yet"))
    elif not layout.arrays:
        findings.append(Finding("damage", "there is no array under 'data'", 0))
    for key, array in layout.arrays.items():
        length = array.shape[0] if array.ndim else 0
        if length < n_steps:
            findings.append(
                Finding(
                    "damage",
                    f"{key!r} has {length} rows, but the episodes have {n_steps} steps",
                    length,
                )
            )
        elif length > n_steps and len(layout.ends) == layout.n_stored_episodes:
            findings.append(
                Finding(
                    "warning",
                    f"{key!r} has {length - n_steps} rows behind the last episode, of a recording "
                    f"that was stopped; they are ignored",
                )
            )


def stored_bytes(path: pathlib.Path) -> dict[str, int]:
    """The size of every file of a store on disk, by its place in it."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as file:
            return {info.filename: info.compress_size for info in file.infolist()}
    files = (pathlib.Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    return {file.relative_to(path).as_posix(): file.stat().st_size for file in files}
