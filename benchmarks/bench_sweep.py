"""What a sweep costs beside the trainings: against the same commands started by hand.

python benchmarks/bench_sweep.py
python benchmarks/bench_sweep.py --epochs 8 --repeats 1

A small demo_pusht, two seeds, side by side with one thread each. By hand is two processes of
train.py; the sweeps add their own process, the monitor of the metrics and, with ray, a cluster.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
SEEDS = (42, 43)
OVERRIDES = [
    "training.device=cpu",
    "training.max_val_steps=1",
    "training.rollout_every=1000",
    "training.sample_every=1000",
    "training.checkpoint_every=1000",
    *[f"task.env_runner.{key}=0" for key in ("n_train_vis", "n_test_vis", "n_train")],
    "task.env_runner.n_test=1",
    "task.env_runner.max_steps=8",
    "logging.mode=disabled",
]


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def by_hand(folder: pathlib.Path, overrides: list[str]) -> None:
    words = ["train.py", "--config-name=demo_pusht", *overrides]
    runs = [
        start(*words, f"training.seed={seed}", f"hydra.run.dir={folder}/{seed}") for seed in SEEDS
    ]
    finish(*runs)


def sweep(folder: pathlib.Path, overrides: list[str], *options: str) -> None:
    seeds = ",".join(map(str, SEEDS))
    words = ["--config-name=demo_pusht", f"--seeds={seeds}", "--num_cpus=1", "--num_gpus=0"]
    run_dir = f"multi_run.run_dir={folder}"
    finish(start("ray_train_multirun.py", *words, *options, "--", *overrides, run_dir))


def finish(*processes: subprocess.Popen) -> None:
    codes = [process.wait() for process in processes]
    assert not any(codes), f"exit codes {codes}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100, help="per epoch")
    parser.add_argument("--repeats", type=int, default=2, help="the median of these is printed")
    args = parser.parse_args()
    overrides = [f"training.num_epochs={args.epochs}", f"training.max_train_steps={args.steps}"]
    overrides += OVERRIDES
    forms = {
        "by hand": by_hand,
        "--backend process": lambda folder, o: sweep(folder, o, "--backend=process"),
        "--ray_address local": lambda folder, o: sweep(folder, o, "--ray_address=local"),
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(args.repeats):  # in turns, so that a busy machine hits all alike
        for name, form in forms.items():
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                form(pathlib.Path(folder) / "runs", overrides)
                times[name].append(time.perf_counter() - begin)
    base = statistics.median(times["by hand"])
    print(f"{len(SEEDS)} seeds, {args.epochs} epochs of {args.steps} steps, {os.cpu_count()} cores")
    print(f"{'form':<22}{'seconds':>9}{'overhead':>10}{'ratio':>8}")
    for name, values in times.items():
        seconds = statistics.median(values)
        print(f"{name:<22}{seconds:>9.1f}{seconds - base:>9.1f}s{seconds / base:>8.2f}")


if __name__ == "__main__":
    main()
