"""How long `python train.py --help` takes, against importing what training itself needs.

python benchmarks/bench_startup.py
"""

import pathlib
import subprocess
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "train.py --help": ["train.py", "--help"],
    "eval.py --help": ["eval.py", "--help"],
    "import torch": ["-c", "import torch"],
    "import torch, diffusers schedulers": [
        "-c",
        "import torch; from diffusers.schedulers.scheduling_ddpm import DDPMScheduler",
    ],
}


def seconds(arguments: list[str], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats + 1):  # the first fills the file cache
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, *arguments], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL
        )
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main() -> None:
    base = seconds(COMMANDS["train.py --help"])
    print(f"{'command':<38}{'seconds':>9}{'ratio':>8}")
    for name, arguments in COMMANDS.items():
        elapsed = seconds(arguments)
        print(f"{name:<38}{elapsed:>9.2f}{elapsed / base:>8.1f}")


if __name__ == "__main__":
    main()
