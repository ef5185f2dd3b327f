"""Add images to Push-T demonstrations that have states only.

    python -m diffusion_policy.scripts.render_pusht_images

Without options: those of the embedded demonstrations, once. An output that is complete and belongs
to the same demonstrations and pictures is left alone; one that does not is made again.

Writes everything the input holds, and ``img`` (steps, 96, 96, 3; uint8, RGB) drawn from ``state``,
as the recorder of demonstrations draws it: without a marker for the action. An ``img`` of the input
is replaced.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import click
import numpy as np
from tqdm import tqdm
from zarr.abc.store import Store

from diffusion_policy.common.assets import resolve_data_path
from diffusion_policy.common.episode_store import open_root
from diffusion_policy.common.errors import ConfigError, DataError
from diffusion_policy.common.file_cache import cached, fingerprint_of, identity_of, rebuild
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.common.zarr_util import (
    COMPRESSORS,
    create_array,
    get_optimal_chunks,
    write_rows,
)
from diffusion_policy.scripts.worker_pool import map_in_processes
from diffusion_policy.storage.reading import missing_chunks
from diffusion_policy.workspace.command_line import errors_as_sentences

# The data sets (and with them torch) are imported where they are needed: every process that draws
# imports this module.


def load_without_images(path: pathlib.Path) -> ReplayBuffer:
    """Everything but ``img``, in memory.

    Raises:
        DataError: when there are no states to draw.
    """
    from diffusion_policy.dataset.image_arrays import stored_keys

    keys = [key for key in stored_keys(path) if key != "img"]
    buffer = ReplayBuffer.copy_from_path(path, keys=keys)
    if "state" not in buffer or buffer["state"].shape[1:] != (5,) or buffer.n_steps == 0:
        raise DataError(
            f"{path} holds {keys} of {buffer.n_steps} steps; 'state' with five numbers per step "
            f"(agent x, y, block x, y, angle) is needed to draw images"
        )
    return buffer


@functools.cache
def _env(render_size: int) -> Any:
    from diffusion_policy.env.pusht.pusht_env import PushTEnv

    return PushTEnv(render_size=render_size)


def draw(states: np.ndarray, render_size: int) -> np.ndarray:
    """The pictures of some states (n, 5): uint8 (n, S, S, 3), RGB."""
    env = _env(render_size)
    return np.stack([env.render_state(np.asarray(state, np.float64)) for state in states])


def draw_all(
    states: np.ndarray, render_size: int, block_length: int, workers: int
) -> Iterator[np.ndarray]:
    """The pictures of all states, in order, in blocks, drawn by several processes.

    Raises:
        EnvWorkerError: if a process dies.
    """
    blocks = [states[i : i + block_length] for i in range(0, len(states), block_length)]
    draw_block = functools.partial(draw, render_size=render_size)
    yield from map_in_processes(draw_block, blocks, workers)


def render_images(
    source: pathlib.Path,
    target: pathlib.Path,
    render_size: int = 96,
    workers: int = 1,
    force: bool = False,
) -> None:
    """Copy the demonstrations at ``source`` to ``target``, with images; nothing if that is done.

    Args:
        source: zarr directory or zip.
        target: zarr directory or zip; appears when it is complete.
        render_size: side of the images, px.
        workers: processes that draw.
        force: draw anyway, and replace whatever store is at ``target``.

    Raises:
        DataError: when the source cannot be used, the target not be written, or the target is a
            store that was not made by this function.
        EnvWorkerError: if a process dies.
    """
    buffer = load_without_images(source)
    states = np.asarray(buffer["state"])
    shape = (len(states), render_size, render_size, 3)

    def build(store: Store) -> None:
        buffer.save_to_store(store, compressors="disk")
        chunks = get_optimal_chunks(shape, np.uint8)
        data = open_root(store, "a").require_group("data")
        images = create_array(data, "img", shape, np.uint8, chunks, COMPRESSORS["disk"])
        start = 0
        with tqdm(total=len(states), desc="Drawing", unit=" img") as bar:
            for block in draw_all(states, render_size, chunks[0], workers):
                write_rows(images, start, block)
                start += len(block)
                bar.update(len(block))

    # Three pictures stand for the code and the libraries that draw: what changes them, changes all.
    sample = draw(states[[0, len(states) // 2, -1]], render_size)
    fingerprint = fingerprint_of(
        source=identity_of(source), sample=hashlib.sha256(sample.tobytes()).hexdigest(), shape=shape
    )
    if force:
        rebuild(target, fingerprint, build)
    else:
        cached(target, fingerprint, build, read=functools.partial(check_complete, shape=shape))


def check_complete(path: pathlib.Path, shape: tuple[int, ...]) -> None:
    """Check that a store has all its images, without decoding them.

    Raises:
        DataError: when some are missing.
    """
    root = open_root(path)
    with contextlib.closing(root.store_path.store):
        images: Any = root.get("data/img")
        if images is None or images.shape != shape or missing_chunks(images)[0]:
            raise DataError(f"{path} does not hold all images")


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n", 1))
@click.option(
    "-i",
    "--input",
    "source",
    help="A .zarr or .zarr.zip, or package://...  [default: the embedded demonstrations]",
)
@click.option(
    "-o",
    "--output",
    "target",
    type=click.Path(path_type=pathlib.Path),
    help="A .zarr or .zarr.zip.  [default: data/pusht/<name of the input>_with_images.zarr.zip]",
)
@click.option("--render-size", default=96, show_default=True, type=click.IntRange(1))
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: one per core]")
@click.option("--force", is_flag=True, help="Draw again, replacing whatever store is there.")
def main(
    source: str | None,
    target: pathlib.Path | None,
    render_size: int,
    workers: int | None,
    force: bool,
) -> None:
    """Command line."""
    from diffusion_policy.dataset.pusht_image_dataset import EMBEDDED, rendered_path

    with errors_as_sentences():
        source = source or EMBEDDED
        target = target or rendered_path(source)
        if not target.name.endswith((".zarr", ".zarr.zip")):
            raise ConfigError(f"the output {target} is a zarr store: end it in .zarr or .zarr.zip")
        render_images(
            resolve_data_path(source), target, render_size, workers or os.cpu_count() or 1, force
        )
    print(f"images are in {target}")


if __name__ == "__main__":
    main()
