"""How fast training batches of Push-T from state are put together.

    python benchmarks/bench_batches.py [--zarr-path data/pusht/pusht_cchi_v7_replay.zarr]

Compares, in one process: asking the data set for a whole batch (``get_batch``), and the
straightforward way, ``__getitem__`` for every sample and torch's ``default_collate``. Both make the
same 256 windows of 16 steps. Without the published data, synthetic data of the same size are used
(206 episodes, 25,650 steps).
"""

import pathlib
import tempfile
import time
from collections.abc import Callable

import click
import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.dataset.batching import make_dataloader
from diffusion_policy.dataset.pusht_dataset import PushTLowdimDataset

N_EPISODES, N_STEPS = 206, 25_650


def synthetic_store(folder: str) -> pathlib.Path:
    """Random data of the size of the published demonstrations."""
    rng = np.random.default_rng(0)
    ends = np.append(np.sort(rng.choice(N_STEPS - 1, N_EPISODES - 1, replace=False) + 1), N_STEPS)
    data = {
        key: rng.uniform(0, 512, (N_STEPS, *shape)).astype(np.float32)
        for key, shape in {"keypoint": (9, 2), "state": (5,), "action": (2,)}.items()
    }
    buffer = ReplayBuffer({"data": data, "meta": {"episode_ends": ends.astype(np.int64)}})
    return buffer.save_to_path(pathlib.Path(folder, "synthetic.zarr"))


def seconds_per_call(call: Callable[[], object], repeats: int) -> float:
    """Median of ``repeats`` calls, after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def load(zarr_path: pathlib.Path | None) -> tuple[PushTLowdimDataset, str]:
    """The data set, and a word on where it comes from."""
    settings = {"horizon": 16, "pad_before": 1, "pad_after": 7}
    if zarr_path is not None:
        return PushTLowdimDataset(zarr_path, **settings), str(zarr_path)
    with tempfile.TemporaryDirectory() as folder:
        return PushTLowdimDataset(synthetic_store(folder), **settings), "synthetic"


@click.command(help=__doc__)
@click.option("--zarr-path", type=click.Path(path_type=pathlib.Path), help="Data to read.")
@click.option("--batch-size", default=256, show_default=True)
@click.option("--repeats", default=30, show_default=True)
def main(zarr_path: pathlib.Path | None, batch_size: int, repeats: int) -> None:
    """Command line."""
    dataset, source = load(zarr_path)
    indices = torch.randperm(len(dataset))[:batch_size].tolist()
    whole = seconds_per_call(lambda: dataset.get_batch(indices), repeats)
    one_by_one = seconds_per_call(lambda: default_collate([dataset[i] for i in indices]), repeats)
    options = {"batch_size": batch_size, "shuffle": True}
    plain, ours = DataLoader(dataset, **options), make_dataloader(dataset, **options)
    plain_epoch, our_epoch = (
        seconds_per_call(lambda loader=loader: sum(1 for _ in loader), 3) / len(loader)
        for loader in (plain, ours)
    )

    print(f"{source}: {len(dataset)} windows of {dataset.horizon} steps, batch {batch_size}")
    print(f"{'':34}{'ms per batch':>14}{'samples/s':>14}{'ratio':>8}")
    rows = [
        ("__getitem__ + default_collate", one_by_one, one_by_one),
        ("get_batch", whole, one_by_one),
        ("an epoch of torch's DataLoader", plain_epoch, plain_epoch),
        ("an epoch of make_dataloader", our_epoch, plain_epoch),
    ]
    for name, seconds, reference in rows:
        rate, ratio = batch_size / seconds, reference / seconds
        print(f"{name:34}{seconds * 1e3:14.3f}{rate:14,.0f}{ratio:8.1f}")


if __name__ == "__main__":
    main()
