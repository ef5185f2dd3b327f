"""Stores of episodes: open, extend so that a kill never costs a finished episode.

How an episode is committed, and why a kill at any instant is harmless:

1. The data arrays are extended. Every file is announced in the journal of checksums, written to a
   temporary name, flushed to the disk (fsync) and renamed into place, so also a chunk that holds
   rows of earlier episodes is always either the old or the new one.
2. The list of checksums (:mod:`diffusion_policy.storage.checksums`) takes the new files of
   ``meta/episode_ends``. The moment it is renamed into place is the moment the episode exists:
   everybody reads these files from there.
3. ``meta/episode_ends`` itself is rewritten, and the list says that it is.

What happens when a store is opened for writing (:func:`open_root`):

* It is checked first. A store that is damaged is refused and not touched: nothing is ever deleted
  because something else is missing.
* What a killed writer left is told from damage by the checksums, for certain: step 3 is done
  again, and arrays are cut to the last finished episode by their description alone. The chunks
  behind it stay where they are until the next episode overwrites them.
* In a store without checksums (another program wrote it) rows behind the last episode may be those
  of a killed writer, or of episodes whose ends were lost. Nobody can tell, so that is refused, too.

A store opened for reading is never changed; whoever loads it takes only the rows up to the last
end.
"""

import contextlib
import json
import logging
import pathlib
import warnings
from collections.abc import Iterator
from typing import Literal

import numpy as np
import zarr
from zarr.core.sync import sync
from zarr.errors import ZarrUserWarning
from zarr.storage import LocalStore, StoreLike, ZipStore

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.zarr_util import save_array
from diffusion_policy.storage.checked_stores import (
    COMMIT_RECORD,
    OWN_FILES,
    Checked,
    CheckedDirectory,
    open_zip,
)
from diffusion_policy.storage.checksums import rescue
from diffusion_policy.storage.durable_files import PARTIAL, finish_replacement
from diffusion_policy.storage.durable_store import DurableStore
from diffusion_policy.storage.nodes import UNREADABLE, arrays_of, compressor_of, store_name
from diffusion_policy.storage.reading import check_chunks, read_array

logger = logging.getLogger(__name__)

Mode = Literal["r", "r+", "a", "w", "w-"]


# ---- opening -------------------------------------------------------------------------------------


def open_root(
    source: StoreLike, mode: Mode = "r", allow_missing_chunks: bool = False
) -> zarr.Group:
    """Open the root group of a store.

    Args:
        source: a path (directory, or a file ending in ``.zip``; ``~`` is expanded) or a zarr store.
        mode: as :func:`zarr.open_group`. Anything but ``'r'`` opens a directory durably, after
            checking it, and finishes what a killed writer began.
        allow_missing_chunks: (writing) see :func:`check_chunks`.

    Raises:
        DataError: when nothing is there, it is damaged, or a zip is to be extended.
    """
    if isinstance(source, (str, pathlib.Path)):
        source = _open_path(pathlib.Path(source).expanduser(), mode, allow_missing_chunks)
    root = _open_group(source, mode)
    if mode in ("a", "r+") and "data" in root:
        _finish_writing(root)
    return root


def _open_group(store: StoreLike, mode: Mode) -> zarr.Group:
    zarr_format = None if mode == "r" else 2  # None: whatever is there
    try:
        return zarr.open_group(store, mode=mode, zarr_format=zarr_format, use_consolidated=False)
    except DataError:
        raise  # it says what is wrong already
    except UNREADABLE as error:
        name = store.place if isinstance(store, Checked) else store
        raise DataError(
            f"{name}: this is not a readable zarr group ({error}); check the path or get the "
            f"data again"
        ) from error


def _open_path(path: pathlib.Path, mode: Mode, allow_missing_chunks: bool) -> LocalStore | ZipStore:
    if not path.exists():
        finish_replacement(path)
    if not path.exists() and mode in ("r", "r+"):
        raise DataError(
            f"{path} does not exist (working directory: {pathlib.Path.cwd()}); check the path, "
            f"relative ones start at the working directory"
        )
    if path.suffix == ".zip":
        if mode == "r":
            store = open_zip(path)
            store.check_documents()
            return store
        raise DataError(
            f"{path}: a zip store cannot be extended; record into a .zarr directory and save it "
            f"as a zip afterwards (ReplayBuffer.save_to_path)"
        )
    if path.is_file():
        raise DataError(f"{path} is a file; a zarr directory or a .zarr.zip was expected")
    if mode == "r":
        store = CheckedDirectory(path, read_only=True)
        store.check_documents()
        return store
    if mode in ("a", "r+"):
        _check_for_writing(path, allow_missing_chunks)
    return DurableStore(path)


def _check_for_writing(path: pathlib.Path, allow_missing_chunks: bool) -> None:
    """Check a folder that is to be extended, without changing anything.

    Raises:
        DataError: when it is damaged, or something that is no replay buffer.
    """
    names = {file.name for file in path.iterdir()} if path.exists() else set()
    names = {name for name in names - OWN_FILES if not name.endswith(PARTIAL)}
    store = CheckedDirectory(path, read_only=True)
    if store.ledger is not None:
        for key in sorted(store.ledger.keys()):
            store.check_presence(key)
    if not names:
        return  # new, or its first writer was killed before anything was there
    root = _open_group(store, "r")
    if "data" not in root:
        _check_is_new(root, names)
        return
    ends = finished_ends(root)
    _check_lengths(root, ends, may_be_longer=store.ledger is not None)
    n_steps = int(ends[-1]) if len(ends) else 0
    for array in arrays_of(root, "data").values():
        check_chunks(array, n_steps, allow_missing_chunks)
    for name, array in arrays_of(root, "meta").items():
        if name != "episode_ends":  # they were read, or are to be written again
            check_chunks(array, None, allow_missing_chunks)


def _check_is_new(root: zarr.Group, names: set[str]) -> None:
    """A folder without data is one of which the first writer was killed, or no replay buffer."""
    others = sorted(name for name in names if not name.startswith(".z") and name != "meta")
    if others or ("meta/episode_ends" in root and len(read_ends(root))):
        raise DataError(
            f"{store_name(root)} has no group 'data', but holds {others or 'episode ends'}: it is "
            f"damaged, or no replay buffer; choose another path"
        )


def _check_lengths(root: zarr.Group, ends: np.ndarray, may_be_longer: bool) -> None:
    n_steps, name = int(ends[-1]) if len(ends) else 0, store_name(root)
    if (np.diff(ends, prepend=0) < 0).any():
        raise DataError(
            f"{name}: 'meta/episode_ends' does not increase, it is damaged; {rescue(name)}"
        )
    for key, array in arrays_of(root, "data").items():
        length = array.shape[0] if array.ndim else 0
        if length < n_steps or (length > n_steps and not may_be_longer):
            why = (
                "either 'meta/episode_ends' is damaged, or a recording was killed"
                if length > n_steps
                else "the store is incomplete"
            )
            raise DataError(
                f"{name}: array {key!r} has {length} rows, but the last of {len(ends)} episodes "
                f"ends at step {n_steps}: {why}. Nothing was changed; {rescue(name)} and record "
                f"into that copy"
            )


def _finish_writing(root: zarr.Group) -> None:
    """Finish what a killed writer began in a store that was checked."""
    store = root.store_path.store
    if not isinstance(store, DurableStore):
        return
    store.remove_left_overs()  # first: who is killed in the middle of the rest leaves nothing else
    ends = finished_ends(root)
    n_steps = int(ends[-1]) if len(ends) else 0
    longer = [a for a in arrays_of(root, "data").values() if a.shape[0] > n_steps]
    if not longer and not _is_unfinished(root):
        return
    store.finish()
    for array in longer:
        logger.warning(
            "%s: %d steps of an episode that was never finished are left out; the next episode "
            "overwrites them",
            store_name(array),
            array.shape[0] - n_steps,
        )
        shape = (n_steps, *array.shape[1:])
        sync(array.async_array.resize(shape, delete_outside_chunks=False))
    commit_ends(root, ends)
    (store.root / COMMIT_RECORD).unlink(missing_ok=True)


def add_checksums(path: pathlib.Path) -> None:
    """Note what every file of a replay buffer holds, after it was checked: from now on damage of it
    is noticed.

    Raises:
        DataError: when it is damaged, or cannot be written.
    """
    root = open_root(path, "r+")
    store = root.store_path.store
    assert isinstance(store, DurableStore)
    try:
        with store.atomic(finished_ends(root)):
            pass
    except OSError as error:
        raise DataError(
            f"{path} could not be written ({error.strerror or error}); free some space"
        ) from error


def _is_unfinished(root: zarr.Group) -> bool:
    """Whether a writer of the store was killed, or is at work."""
    store = root.store_path.store
    if not isinstance(store, Checked):
        return False
    return has_unfinished_commit(root) or (
        store.ledger is not None and bool(store.ledger.announced)
    )


# ---- episode ends --------------------------------------------------------------------------------


def has_unfinished_commit(root: zarr.Group) -> bool:
    """Whether a writer was killed, or is, between the last two steps above."""
    store = root.store_path.store
    if not isinstance(store, Checked):
        return False
    has_redo = store.ledger is not None and bool(store.ledger.redo)
    return has_redo or _commit_record(root) is not None


def _commit_record(root: zarr.Group) -> bytes | None:
    """The episode ends that an earlier version was about to write, unless we wrote some since."""
    store = root.store_path.store
    if not isinstance(store, Checked):
        return None
    is_ours = store.ledger is not None and store.ledger.listed.episode_ends is not None
    return None if is_ours else store.read_raw(COMMIT_RECORD)


def finished_ends(root: zarr.Group) -> np.ndarray:
    """The ends of all episodes that were committed, i64 ``(n_episodes,)``.

    Raises:
        DataError: when the store has no readable ``meta/episode_ends``.
    """
    record = _commit_record(root)
    if record is not None:
        return _recorded_ends(store_name(root), record)
    if "meta/episode_ends" not in root:
        raise DataError(
            f"{store_name(root)} holds no replay buffer: groups 'data' and 'meta' with "
            f"'meta/episode_ends' were expected, found {_names_in(root)}"
        )
    return read_ends(root)


def _names_in(group: zarr.Group) -> list[str]:
    with warnings.catch_warnings():  # of files that are no part of the store
        warnings.simplefilter("ignore", ZarrUserWarning)
        return sorted(group.keys())


def read_ends(root: zarr.Group) -> np.ndarray:
    """What ``meta/episode_ends`` holds.

    Raises:
        DataError: when it is damaged.
    """
    try:
        ends = read_array(root["meta/episode_ends"])  # type: ignore[arg-type]
    except KeyError as error:
        raise DataError(
            f"{store_name(root)}: 'meta/episode_ends' is missing; get the data set again"
        ) from error
    if ends.ndim != 1 or ends.dtype.kind not in "iu":
        raise DataError(
            f"{store_name(root)}: 'meta/episode_ends' has shape {ends.shape} and type "
            f"{ends.dtype}; one whole number per episode was expected: get the data set again"
        )
    return ends.astype(np.int64)


def _recorded_ends(name: str, record: bytes) -> np.ndarray:
    try:
        ends = json.loads(record)["episode_ends"]
        if not all(type(end) is int and 0 <= end < 2**63 for end in ends):
            raise ValueError(f"{ends!r} are no episode ends")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{name}: {COMMIT_RECORD} is not readable ({error}); it is damaged: get the "
            f"data set again"
        ) from error
    return np.asarray(ends, dtype=np.int64)


def commit_ends(root: zarr.Group, ends: np.ndarray) -> None:
    """Make ``ends`` the episode ends of a store, all or nothing (steps 2 and 3 above)."""
    with atomic(root, ends):
        _write_ends(root, ends)


@contextlib.contextmanager
def atomic(root: zarr.Group, ends: np.ndarray | None = None) -> Iterator[None]:
    """Small writes that happen as a whole, where the store can do that.

    Args:
        root: of the store.
        ends: the episode ends, where the block writes them.
    """
    store = root.store_path.store
    with store.atomic(ends) if isinstance(store, DurableStore) else contextlib.nullcontext():
        yield


def settle(root: zarr.Group) -> None:
    """Bring the checksums of a store up to date after its arrays were edited."""
    if isinstance(root.store_path.store, DurableStore):
        root.store_path.store.settle()


def _write_ends(root: zarr.Group, ends: np.ndarray) -> None:
    """Rewrite ``meta/episode_ends``: one chunk, with room to grow as in the published stores."""
    chunk, codec = 1, None
    if "meta/episode_ends" in root:
        old: zarr.Array = root["meta/episode_ends"]  # type: ignore[assignment]
        chunk, codec = old.chunks[0], compressor_of(old)
    if len(ends) > chunk:
        chunk = int(1.5 * len(ends))
    save_array(root.require_group("meta"), "episode_ends", ends, (chunk,), codec)


def is_clean(root: zarr.Group) -> bool:
    """Whether all arrays end where the last episode does, and no writer is to be finished."""
    ends = finished_ends(root)
    n_steps = int(ends[-1]) if len(ends) else 0
    return not _is_unfinished(root) and all(
        a.shape[0] <= n_steps for a in arrays_of(root, "data").values()
    )
