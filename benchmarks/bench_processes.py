"""A run in two processes against the same run in one: seconds per training step, and the losses.

    python benchmarks/bench_processes.py
    python benchmarks/bench_processes.py --batch-size 256 task=pusht_lowdim

Each process computes with one thread. Further arguments override the configuration of the demo.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
RUN = [
    "training.num_epochs=3",
    "training.device=cpu",
    "training.rollout_every=100",
    "training.val_every=100",
    "training.sample_every=100",
    "training.checkpoint_every=100",
    "task.env_runner.n_test=1",
    "task.env_runner.n_test_vis=0",
    "task.env_runner.max_steps=8",
]


def read_lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(run_dir: pathlib.Path, n_processes: int, n_threads: int, overrides: list[str]):
    """Seconds per step of the last two epochs, and the losses."""
    command = [sys.executable, "train.py", "--config-name=demo_pusht", *RUN, *overrides]
    command += [f"training.num_processes={n_processes}", f"hydra.run.dir={run_dir}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(n_threads)}
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, stdout=subprocess.DEVNULL)
    log = read_lines(run_dir / "logs.json.txt")
    epochs = read_lines(run_dir / "times.json.txt")[1:]
    n_steps = sum(line["epoch"] > 0 for line in log)
    spent = sum(epoch["time/step"] + epoch["time/data_wait"] for epoch in epochs)
    return spent / n_steps, [line["train_loss"] for line in log]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30, help="per epoch")
    args, overrides = parser.parse_known_args()
    overrides += [f"dataloader.batch_size={args.batch_size}"]
    overrides += [f"training.max_train_steps={args.steps}"]
    forms = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes": (2, 1)}
    print(f"batch of {args.batch_size}\n{'':<24}{'s/step':>9}{'speed':>8}{'loss differs by':>17}")
    reference = None
    with tempfile.TemporaryDirectory() as folder:
        for name, (n_processes, n_threads) in forms.items():
            run_dir = pathlib.Path(folder) / name.replace(" ", "_").replace(",", "")
            per_step, losses = train(run_dir, n_processes, n_threads, overrides)
            reference = reference or (per_step, losses)
            worst = max(abs(a - b) for a, b in zip(losses, reference[1], strict=True))
            ratio = reference[0] / per_step
            print(f"{name:<24}{per_step:>9.3f}{ratio:>7.2f}x{worst:>17.1e}", flush=True)


if __name__ == "__main__":
    main()
