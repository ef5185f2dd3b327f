"""Download published demonstrations.

    python -m diffusion_policy.scripts.download_data pusht

Interrupted, it continues where it stopped when started again. The publisher states no checksum of
the archive, so the content is verified instead: every chunk is there and can be read, episodes,
shapes, and a digest of all arrays but the images (those are guarded by the checksums inside the
zip). Then the checksum of every file is noted, so that damage on this disk is noticed whenever the
data are loaded. Pass --sha256 to verify the archive itself against a checksum you trust.

Data that are there already are verified in the same way, all of them.
"""

import hashlib
import os
import pathlib
import re
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import click
import numpy as np
import requests
from tqdm import tqdm

from diffusion_policy.common.episode_store import add_checksums
from diffusion_policy.common.errors import DataError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.inspect.summary import summarize
from diffusion_policy.storage.durable_files import fsync_tree
from diffusion_policy.workspace.command_line import errors_as_sentences

BLOCK = 1 << 16  # bytes; so many can be lost when a connection breaks
TIMEOUT = 30  # seconds without a byte
N_DAMAGES = 5  # so many are told in a sentence


@dataclass(frozen=True)
class PublishedData:
    """What is published, and how to recognise it.

    Attributes:
        url: the zip archive.
        store: path of the zarr store, in the archive and under the output folder.
        sha256: of the archive; None where the publisher states none.
        n_episodes: number of episodes.
        shapes: shape of every array.
        digest: of the arrays but ``img``, see :func:`content_digest`.
    """

    url: str
    store: str
    sha256: str | None
    n_episodes: int
    shapes: Mapping[str, tuple[int, ...]]
    digest: str


DATA = {
    "pusht": PublishedData(
        url="https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip",
        store="pusht/pusht_cchi_v7_replay.zarr",
        sha256=None,
        n_episodes=206,
        shapes={
            "action": (25650, 2),
            "img": (25650, 96, 96, 3),
            "keypoint": (25650, 9, 2),
            "n_contacts": (25650, 1),
            "state": (25650, 5),
        },
        digest="b338a964b552325482172afe4edc574d798304da4f6b5f72fcbbb2315d647d29",
    ),
}


def content_digest(buffer: ReplayBuffer) -> str:
    """SHA-256 over name, type, shape and values of every array, independent of how it is stored."""
    digest = hashlib.sha256()
    for key, array in sorted({**dict(buffer.items()), "episode_ends": buffer.episode_ends}.items()):
        values = np.ascontiguousarray(array)
        digest.update(f"{key} {values.dtype.str} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def verify_content(path: pathlib.Path, published: PublishedData, name: object = None) -> None:
    """Check that a zarr store holds the published data; ``name`` is what messages call it.

    Raises:
        DataError: when something is missing or damaged, or it holds something else.
    """
    name = name or path
    damages = [finding.text for finding in summarize(path).damages]
    if damages:
        more = f", and {len(damages) - N_DAMAGES} more" if len(damages) > N_DAMAGES else ""
        raise DataError(
            f"{name} is not complete: {'; '.join(damages[:N_DAMAGES])}{more}. Remove it and "
            f"download again"
        )
    store = ReplayBuffer.create_from_path(path)
    shapes = {key: tuple(array.shape) for key, array in store.items()}
    if shapes != dict(published.shapes) or store.n_episodes != published.n_episodes:
        raise DataError(
            f"{name} holds {store.n_episodes} episodes with arrays {shapes}, the published data "
            f"{published.n_episodes} with {dict(published.shapes)}; remove it and download again"
        )
    keys = [key for key in published.shapes if key != "img"]
    if content_digest(ReplayBuffer.copy_from_path(path, keys=keys)) != published.digest:
        raise DataError(
            f"{name} does not hold the numbers that were published; remove it and download again"
        )


# ---- the archive ---------------------------------------------------------------------------------


def download(url: str, path: pathlib.Path) -> None:
    """Download ``url`` to ``path``, which appears when it is complete.

    What arrives is kept in ``<path>.partial``, and a second attempt asks the server for the rest.

    Raises:
        DataError: when the server cannot be reached, the connection breaks, or the disk is full.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _receive(url, partial)
        os.replace(partial, path)
    except requests.RequestException as error:
        have = partial.stat().st_size if partial.exists() else 0
        raise DataError(
            f"{url} could not be downloaded ({_reason(error)}); check the connection and run the "
            f"same command again, it continues after the {have} bytes that have arrived"
        ) from error
    except OSError as error:
        raise DataError(
            f"{partial} could not be written ({error.strerror or error}); free some space and run "
            f"the same command again, it continues where it stopped"
        ) from error


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server says {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke"
    if isinstance(error, (requests.ConnectionError, requests.Timeout)):
        return "no connection to the server"
    return str(error)


def _receive(url: str, partial: pathlib.Path) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            if response.headers.get("Content-Range") == f"bytes */{have}":
                return  # all of it had arrived
            partial.unlink()  # longer than the file: of something else
            return _receive(url, partial)
        response.raise_for_status()
        resumed = response.status_code == requests.codes.partial_content and have > 0
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise requests.RequestException("the server sent another part than was asked for")
        start = have if resumed else 0  # a server without ranges begins again
        length = int(response.headers.get("Content-Length", 0))
        bar = tqdm(
            desc=url.rpartition("/")[2],
            initial=start,
            total=start + length if length else None,
            unit="B",
            unit_scale=True,
        )
        with bar, open(partial, "ab" if resumed else "wb") as file:
            for block in response.iter_content(BLOCK):
                file.write(block)
                bar.update(len(block))


def verify_checksum(path: pathlib.Path, sha256: str) -> None:
    """Check the SHA-256 of a file; a file that differs is removed.

    Raises:
        DataError: when it differs.
    """
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        path.unlink()
        raise DataError(
            f"{path} has the SHA-256 checksum {found}, expected {sha256}; it was removed, run the "
            f"same command again"
        )


def unzip(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Extract an archive into a folder, with a progress bar.

    Raises:
        DataError: when it is damaged, does not fit on the disk, or holds a member that would land
            outside of the folder; nothing is extracted in the last case.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
            for member in members:
                _check_member(archive, member)
            for member in tqdm(members, desc="Unzipping", unit=" files"):
                file.extract(member, folder)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        archive.unlink()
        raise DataError(
            f"{archive} is not a readable zip file ({error}); it was removed, run the same command "
            f"again"
        ) from error
    except OSError as error:
        raise DataError(
            f"{archive} could not be unpacked in {folder.parent} ({error.strerror or error}); free "
            f"some space and run the same command again"
        ) from error


def _check_member(archive: pathlib.Path, member: zipfile.ZipInfo) -> None:
    path = pathlib.PurePosixPath(member.filename.replace("\\", "/"))
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", str(path)) or is_link:
        raise DataError(
            f"{archive} holds {member.filename!r}, which would be written outside of the data "
            f"folder; nothing was unpacked, do not trust this archive"
        )


# ---- all of it -----------------------------------------------------------------------------------


def fetch(
    published: PublishedData,
    output_dir: pathlib.Path,
    url: str | None = None,
    sha256: str | None = None,
) -> pathlib.Path:
    """Download, verify and unpack a data set, unless it is there already.

    Args:
        published: what to get.
        output_dir: folder for data sets.
        url: get the archive from here instead.
        sha256: what the archive's checksum must be.

    Returns:
        The zarr store.

    Raises:
        DataError: when any of it fails; a store appears only when it is complete and verified.
    """
    target = output_dir / published.store
    if target.exists():
        verify_content(target, published)
        return target
    url = url or published.url
    name = url.rpartition("/")[2]
    if name in ("", ".", ".."):
        raise DataError(
            f"{url} does not end in the name of a file; give the address of the zip archive itself"
        )
    archive = output_dir / name
    if not archive.exists():
        download(url, archive)
    if checksum := sha256 or published.sha256:
        verify_checksum(archive, checksum)
    with tempfile.TemporaryDirectory(prefix=".unzip-", dir=output_dir) as folder:
        unzip(archive, pathlib.Path(folder))
        unpacked = pathlib.Path(folder, published.store)
        try:
            if not unpacked.exists():
                raise DataError(f"{url} does not hold {published.store}; is the address right?")
            verify_content(unpacked, published, name=url)
        finally:
            archive.unlink()
        add_checksums(unpacked)
        fsync_tree(unpacked)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(unpacked, target)
    return target


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n", 1))
@click.argument("name", type=click.Choice(sorted(DATA)))
@click.option(
    "--output-dir", default="data", show_default=True, type=click.Path(path_type=pathlib.Path)
)
@click.option("--url", help="Get the archive from another address.")
@click.option("--sha256", help="Checksum that the archive must have.")
def main(name: str, output_dir: pathlib.Path, url: str | None, sha256: str | None) -> None:
    """Command line."""
    published = DATA[name]
    there = (output_dir / published.store).exists()
    with errors_as_sentences():
        path = fetch(published, output_dir, url, sha256)
    print(f"{path} {'was there already and is complete' if there else 'is complete'}")
    print(f"{published.n_episodes} episodes, {next(iter(published.shapes.values()))[0]:,} steps")


if __name__ == "__main__":
    main()
