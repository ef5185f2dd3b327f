"""Add images to Push-T demonstrations that have states only.

    python -m diffusion_policy.scripts.render_pusht_images -i demos.zarr.zip -o
    demos_with_images.zarr

Writes everything the input holds, and ``img`` (steps, 96, 96, 3; uint8, RGB) drawn from ``state``,
as the recorder of demonstrations draws it: without a marker for the action. An ``img`` of the input
is replaced.
"""

import pathlib

import click
import numpy as np
from tqdm import tqdm

from diffusion_policy.common.assets import resolve_data_path
from diffusion_policy.common.episode_store import new_store, open_root
from diffusion_policy.common.errors import DataError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.common.zarr_util import (
    COMPRESSORS,
    create_array,
    get_optimal_chunks,
    write_rows,
)
from diffusion_policy.workspace.command_line import errors_as_sentences


def load_without_images(path: pathlib.Path) -> ReplayBuffer:
    """Everything but ``img``, in memory.

    Raises:
        DataError: when there are no states to draw.
    """
    keys = sorted(ReplayBuffer.create_from_path(path).keys() - {"img"})
    buffer = ReplayBuffer.copy_from_path(path, keys=keys)
    if "state" not in buffer or buffer["state"].shape[1:] != (5,):
        raise DataError(
            f"{path} holds {keys}; 'state' with five numbers per step (agent x, y, block x, y, "
            f"angle) is needed to draw images"
        )
    return buffer


def render_images(source: pathlib.Path, target: pathlib.Path, render_size: int = 96) -> None:
    """Copy the demonstrations at ``source`` to ``target``, with images.

    Args:
        source: zarr directory or zip.
        target: zarr directory or zip; appears when it is complete.
        render_size: side of the images, px.

    Raises:
        DataError: when the source cannot be used or the target not be written.
    """
    from diffusion_policy.env.pusht.pusht_env import PushTEnv

    buffer = load_without_images(source)
    states = np.asarray(buffer["state"], np.float64)
    shape = (len(states), render_size, render_size, 3)
    chunks = get_optimal_chunks(shape, np.uint8)
    env = PushTEnv(render_size=render_size)
    with new_store(target) as store, tqdm(total=len(states), desc="Rendering", unit=" img") as bar:
        buffer.save_to_store(store, compressors="disk")
        data = open_root(store, "a").require_group("data")
        images = create_array(data, "img", shape, np.uint8, chunks, COMPRESSORS["disk"])
        for start in range(0, len(states), chunks[0]):
            frames = [env.render_state(state) for state in states[start : start + chunks[0]]]
            write_rows(images, start, np.stack(frames))
            bar.update(len(frames))


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n", 1))
@click.option("-i", "--input", "source", required=True, help="A .zarr or .zarr.zip, or package://")
@click.option("-o", "--output", "target", required=True, type=click.Path(path_type=pathlib.Path))
@click.option("--render-size", default=96, show_default=True, type=click.IntRange(1))
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
def main(source: str, target: pathlib.Path, render_size: int, overwrite: bool) -> None:
    """Command line."""
    with errors_as_sentences():
        if target.exists() and not overwrite:
            raise DataError(f"{target} exists already; choose another path or pass --overwrite")
        render_images(resolve_data_path(source), target, render_size)
    print(f"written to {target}")


if __name__ == "__main__":
    main()
