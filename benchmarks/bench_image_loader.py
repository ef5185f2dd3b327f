"""How fast training batches of images are put together, and how much memory the images take.

    python benchmarks/bench_image_loader.py [--data data/pusht/pusht_cchi_v7_replay.zarr] [--quick]

1. In one process: asking the data set for a whole batch of uint8 images (``get_batch``), and the
   straightforward way: every sample cut out, turned to float32 in [0, 1], channel first, then
   torch's ``default_collate``. Windows of 16 steps; a policy that conditions on 2 observations
   needs 2 of the 16 images (``n_obs_steps``). "as floats" adds what the policy does on its device.
2. In a process of its own for each way: the peak memory of loading all images, against their raw
   size as uint8. The straightforward way is to load the stored array as it is.

Without ``--data``, synthetic images of the size of the published demonstrations are used (206
episodes, 25,650 steps; stored as float32, as those are).
"""

import contextlib
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import click
import numpy as np
import torch
import zarr
from bench_batches import seconds_per_call
from torch.utils.data import default_collate

from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.common.sampler import SequenceSampler
from diffusion_policy.common.zarr_util import COMPRESSORS, create_array, write_rows
from diffusion_policy.dataset.pusht_image_dataset import PushTImageDataset

WINDOW = {"horizon": 16, "pad_before": 1, "pad_after": 7}
N_OBS_STEPS = 2
SIDE, CHUNK = 96, 161


def synthetic_store(folder: str, n_episodes: int, n_steps: int) -> pathlib.Path:
    """Images in which a square moves, stored as float32; written block by block."""
    rng = np.random.default_rng(0)
    ends = np.append(np.sort(rng.choice(n_steps - 1, n_episodes - 1, replace=False) + 1), n_steps)
    positions = rng.uniform(0, 512, (n_steps, 2)).astype(np.float32)
    small = {"state": np.pad(positions, ((0, 0), (0, 3))), "action": positions}
    path = pathlib.Path(folder, "synthetic.zarr")
    ReplayBuffer({"data": small, "meta": {"episode_ends": ends}}).save_to_path(path)
    data = zarr.open_group(path, mode="r+", zarr_format=2).require_group("data")
    shape, chunks = (n_steps, SIDE, SIDE, 3), (CHUNK, SIDE, SIDE, 3)
    images = create_array(data, "img", shape, np.float32, chunks, COMPRESSORS["disk"])
    for start in range(0, n_steps, CHUNK):
        block = np.full((min(CHUNK, n_steps - start), SIDE, SIDE, 3), 255, np.float32)
        for frame, (x, y) in zip(block, positions[start : start + CHUNK] / 512 * SIDE, strict=True):
            frame[int(y) : int(y) + 20, int(x) : int(x) + 20] = (x, y, 120)
            frame[:] = np.floor(frame)
        write_rows(images, start, block)
    return path


@contextlib.contextmanager
def data_at(path: pathlib.Path | None, quick: bool) -> Iterator[pathlib.Path]:
    """The data to measure with."""
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield synthetic_store(folder, *((10, 600) if quick else (206, 25_650)))


class Straightforward(torch.utils.data.Dataset):
    """Every sample as the policy wants it in the end: all images, float32, channel first."""

    def __init__(self, dataset: PushTImageDataset):
        keys = ["img", "state", "action"]
        self.sampler = SequenceSampler(dataset.replay_buffer, 16, 1, 7, keys=keys)

    def __getitem__(self, idx: int) -> dict:
        sample = self.sampler.sample_sequence(idx)
        image = np.divide(np.moveaxis(sample["img"], -1, 1), 255, dtype=np.float32)
        data = {
            "obs": {"image": image, "agent_pos": sample["state"][:, :2].astype(np.float32)},
            "action": sample["action"].astype(np.float32),
        }
        return _as_tensors(data)


def _as_tensors(data: dict) -> dict:
    return {
        key: _as_tensors(value) if isinstance(value, dict) else torch.from_numpy(value)
        for key, value in data.items()
    }


def measure_batches(path: pathlib.Path, batch_size: int, repeats: int) -> None:
    """Print samples per second."""
    whole = PushTImageDataset(path, **WINDOW)
    needed = PushTImageDataset(path, **WINDOW, n_obs_steps=N_OBS_STEPS)
    plain = Straightforward(whole)
    indices = torch.randperm(len(whole))[:batch_size].tolist()

    def as_floats() -> torch.Tensor:
        return needed.get_batch(indices)["obs"]["image"].float().div_(255)

    rows = [
        ("__getitem__ + default_collate", lambda: default_collate([plain[i] for i in indices])),
        ("get_batch, 16 images", lambda: whole.get_batch(indices)),
        (f"get_batch, {N_OBS_STEPS} images", lambda: needed.get_batch(indices)),
        (f"get_batch, {N_OBS_STEPS} images, as floats", as_floats),
    ]
    print(f"{path.name}: {len(whole)} windows of 16 steps, batch {len(indices)}")
    print(f"{'':34}{'ms per batch':>14}{'samples/s':>14}{'ratio':>8}")
    reference = None
    for name, call in rows:
        seconds = seconds_per_call(call, repeats)
        reference = reference or seconds
        rate = len(indices) / seconds
        print(f"{name:34}{seconds * 1e3:14.2f}{rate:14,.0f}{reference / seconds:8.1f}")


def measure_memory(path: pathlib.Path) -> None:
    """Print the peak memory of a process that loads the images, for both ways."""
    n_images, *frame = ReplayBuffer.create_from_path(path)["img"].shape
    raw = n_images * np.prod(frame) / 1e6
    ways = {"nothing": "imports alone", "stored": "the stored array", "dataset": "our data set"}
    print(f"\n{n_images} images, raw size {raw:.0f} MB")
    print(f"{'':34}{'peak MB':>14}{'of raw':>14}{'s':>8}")
    for way, name in ways.items():
        command = [sys.executable, __file__, "--data", str(path), "--load-only", way]
        start = time.perf_counter()
        peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        seconds = time.perf_counter() - start
        print(f"{name:34}{peak:14.0f}{peak / raw:14.2f}{seconds:8.1f}")


def load_and_report(path: pathlib.Path, way: str) -> None:
    """Load in one way and print the peak memory of this process, MB."""
    if way == "stored":
        ReplayBuffer.copy_from_path(path, keys=["img", "state", "action"])
    elif way == "dataset":
        PushTImageDataset(path, **WINDOW)
    # not getrusage: a child's ru_maxrss starts with the peak of the parent it was forked from
    status = pathlib.Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6)


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=pathlib.Path), help="Data to read.")
@click.option("--batch-size", default=64, show_default=True)
@click.option("--repeats", default=10, show_default=True)
@click.option("--quick", is_flag=True, help="Little data: to see that it runs.")
@click.option("--load-only", hidden=True, type=click.Choice(["nothing", "stored", "dataset"]))
def main(
    data: pathlib.Path | None, batch_size: int, repeats: int, quick: bool, load_only: str | None
) -> None:
    """Command line."""
    if load_only and data:
        return load_and_report(data, load_only)
    with data_at(data, quick) as path:
        measure_batches(path, batch_size, 3 if quick else repeats)
        measure_memory(path)


if __name__ == "__main__":
    main()
