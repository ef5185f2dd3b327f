"""What the benchmarks of networks and policies share: their options, their clock, their tables."""

import argparse
import statistics
import time
from collections.abc import Callable

import torch


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Options that all of them have; ``description`` is printed as it is written."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="the median of these is printed")
    return parser


def print_machine(device: str) -> None:
    """What the numbers hold for."""
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} thread(s)")


def seconds(
    functions: dict[str, Callable[[], object]], repeats: int, device: str
) -> dict[str, float]:
    """Median wall time of each function; they take turns, so that a busy machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if device != "cpu":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def print_table(title: str, times: dict[str, float]) -> None:
    """Times, and how many times as fast as the first."""
    slowest = next(iter(times.values()))
    print(f"\n{title}")
    for name, value in times.items():
        print(f"  {name:<18}{value * 1e3:>10.0f} ms{slowest / value:>8.2f} x")


def compare(
    title: str, forms: dict[str, Callable[[], torch.Tensor]], args: argparse.Namespace
) -> None:
    """Time the forms; report how far, at one seed, the others are from what the first computes."""
    results = []
    for form in forms.values():
        torch.manual_seed(0)
        results.append(form())
    difference = max((results[0] - other).abs().max().item() for other in results[1:])
    times = seconds(forms, args.repeats, args.device)
    print_table(f"{title} (largest difference {difference:.1e})", times)
