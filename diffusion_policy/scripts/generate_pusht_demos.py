"""Let the scripted expert demonstrate Push-T and store what it does.

    python -m diffusion_policy.scripts.generate_pusht_demos -o pusht_demos.zarr.zip -n 300

The store has the layout of the published human demonstrations (without images, which can be
rendered from the states): ``data/{state,keypoint,action,n_contacts}`` and ``meta/episode_ends``.
The same options give the same bytes, whatever the number of workers.

Starts are those of ``PushTEnv.reset(seed=0, 1, 2 ...)``; published evaluations use seeds from
100000 on, so no start of a test is ever demonstrated. Demonstrations of recovering follow
(``--n-recoveries``): in turns from a T beside its goal and from one that went astray.
"""

import itertools
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Iterator
from typing import NamedTuple

import click
import numcodecs
import numpy as np
from tqdm import tqdm

from diffusion_policy.common.errors import ConfigError, DataError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.env.pusht.expert.episode import Recording, Start, record_episode
from diffusion_policy.scripts.worker_pool import map_in_processes
from diffusion_policy.workspace.command_line import errors_as_sentences

FIRST_TEST_SEED = 100_000
_COMPRESSOR = numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE)
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can state: equal content, equal bytes


def is_legacy(episode: int) -> bool:
    """Two of three starts are placed as published evaluations place them, one as the benchmark does
    today.
    """
    return episode % 3 != 2


class Job(NamedTuple):
    """Arguments of :func:`record_episode`."""

    env_seed: int
    expert_seed: int
    legacy: bool
    start: Start = Start.RESET


def _record(job: Job) -> Recording:
    return record_episode(**job._asdict())


def jobs_of(n_episodes: int, n_recoveries: int, seed: int) -> list[Job]:
    """Starts 0 ... n_episodes - 1, then places to recover from, in turns of either kind."""
    whole = [Job(episode, seed, is_legacy(episode)) for episode in range(n_episodes)]
    kinds = itertools.cycle([Start.NEARLY_THERE, Start.ASTRAY])
    numbers = range(n_episodes, n_episodes + n_recoveries)
    return whole + [Job(n, seed, False, kind) for n, kind in zip(numbers, kinds, strict=False)]


def record_all(n_episodes: int, n_recoveries: int, seed: int, workers: int) -> Iterator[Recording]:
    """The demonstrations of :func:`jobs_of`, in order.

    Raises:
        EnvWorkerError: if a worker process dies.
    """
    return map_in_processes(_record, jobs_of(n_episodes, n_recoveries, seed), workers)


def write_store(recordings: list[Recording], path: pathlib.Path) -> None:
    """Write demonstrations to a zipped zarr store; ``path`` is either complete or untouched."""
    buffer = ReplayBuffer.create_empty_numpy()
    for recording in recordings:
        buffer.add_episode(recording.data)
    whole = {key: array.shape for key, array in buffer.items()}
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        tree = buffer.save_to_path(
            pathlib.Path(folder, "store.zarr"), chunks=whole, compressors=_COMPRESSOR
        )
        packed = pathlib.Path(folder, "store.zip")
        _zip(tree, packed)
        os.replace(packed, path)


def _zip(tree: pathlib.Path, path: pathlib.Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(p for p in tree.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(file.relative_to(tree).as_posix(), _ZIP_DATE)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, file.read_bytes())


def _summary(recordings: list[Recording], kept: list[Recording]) -> str:
    lengths = np.array([len(recording) for recording in kept])
    return (
        f"{len(kept)} episodes kept, {len(recordings) - len(kept)} failures dropped "
        f"(success rate {len(kept) / len(recordings):.1%}); {lengths.sum()} steps, "
        f"per episode mean {lengths.mean():.1f}, min {lengths.min()}, max {lengths.max()}"
    )


@click.command(help="Record demonstrations of the scripted Push-T expert.")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=pathlib.Path, dir_okay=False)
)
@click.option(
    "-n",
    "--n-episodes",
    default=300,
    show_default=True,
    type=click.IntRange(1, FIRST_TEST_SEED),
    help="Starts to demonstrate.",
)
@click.option(
    "--n-recoveries",
    default=300,
    show_default=True,
    type=click.IntRange(0),
    help="Further ones, from where mistakes lead.",
)
@click.option("--seed", default=0, show_default=True, help="What the expert leaves to chance.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Processes.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
def main(
    output: pathlib.Path,
    n_episodes: int,
    n_recoveries: int,
    seed: int,
    workers: int,
    overwrite: bool,
) -> None:
    """Command line."""
    with errors_as_sentences():
        if "".join(output.suffixes[-2:]) != ".zarr.zip":
            raise ConfigError(
                f"the output {output} is a zipped zarr store, so it must end in .zarr.zip"
            )
        if output.exists() and not overwrite:
            raise DataError(f"{output} exists already; choose another name or pass --overwrite")
        output.parent.mkdir(parents=True, exist_ok=True)

        total = n_episodes + n_recoveries
        episodes = record_all(n_episodes, n_recoveries, seed, workers)
        recordings = list(tqdm(episodes, total=total, desc="Demonstrations"))
        kept = [recording for recording in recordings if recording.success]
        if not kept:
            raise DataError(f"none of the {total} starts was solved, so there is nothing to store")
        write_store(kept, output)
        print(_summary(recordings, kept))
        print(f"written to {output}")


if __name__ == "__main__":
    main()
