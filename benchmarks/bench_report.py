"""How long the report of a long run takes.

    python benchmarks/bench_report.py [--epochs 5000] [--steps 10]

Compares, in one process and from the same folder: ``build_report``, and the straightforward way,
``pandas.read_json`` of the log and every point of every curve drawn. The log has the lines of a
real one: a loss and a learning rate per step, a validation per epoch, and every 50 epochs the
rewards of 56 rollouts. There are no videos, which would cost both the same.
"""

import functools
import json
import math
import pathlib
import random
import tempfile
from typing import Any

import click
from timing import print_table, seconds

from diffusion_policy.report.build import build_report
from diffusion_policy.report.charts import UNITS
from diffusion_policy.workspace.run_logger import LOG_NAME

ROLLOUT_EVERY = 50
CURVES = ("train_loss", "val_loss", "lr", "train_action_mse_error", "test/mean_score")


def write_run(folder: pathlib.Path, n_epochs: int, n_steps: int) -> int:
    """Writes the log of a run; returns its number of lines."""
    rng = random.Random(0)
    with open(folder / LOG_NAME, "w") as log:
        for epoch in range(n_epochs):
            for i in range(n_steps):
                row: dict[str, Any] = {"train_loss": math.exp(-epoch / 900) * rng.uniform(0.7, 1.3)}
                row |= {
                    "global_step": epoch * n_steps + i,
                    "epoch": epoch,
                    "lr": 1e-4 / (1 + epoch),
                }
                if i == n_steps - 1:
                    row |= evaluation(rng, epoch)
                log.write(json.dumps(row) + "\n")
    return n_epochs * n_steps


def evaluation(rng: random.Random, epoch: int) -> dict[str, float]:
    """What the last line of an epoch has beside the others."""
    row = {"val_loss": 0.1 + math.exp(-epoch / 700)}
    if epoch % 5 == 0:
        row["train_action_mse_error"] = 100 * rng.random()
    if epoch % ROLLOUT_EVERY == 0:
        rewards = {f"test/sim_max_reward_{100000 + i}": rng.random() for i in range(50)}
        rewards |= {f"train/sim_max_reward_{i}": rng.random() for i in range(6)}
        row |= rewards | {"test/mean_score": rng.random(), "train/mean_score": rng.random()}
    return row


def build_straightforwardly(folder: pathlib.Path, output: pathlib.Path) -> None:
    """A page with the same curves, as one would write it without thinking of long runs."""
    import pandas as pd

    frame = pd.read_json(folder / LOG_NAME, lines=True)
    charts = []
    for key in CURVES:
        rows = frame[frame[key].notna()]
        low, high = rows[key].min(), rows[key].max()
        xs = UNITS * rows["global_step"] / frame["global_step"].max()
        ys = UNITS * (1 - (rows[key] - low) / (high - low))
        points = "L".join(f"{x:.0f} {y:.0f}" for x, y in zip(xs, ys, strict=True))
        charts.append(
            f'<h2>{key}</h2><svg viewBox="0 0 {UNITS} {UNITS}"><path d="M{points}"/></svg>'
        )
    output.write_text(f"<!doctype html><title>{folder.name}</title>{''.join(charts)}")


@click.command(help=__doc__)
@click.option("--epochs", default=5000, show_default=True)
@click.option("--steps", default=10, show_default=True, help="Per epoch.")
@click.option("--repeats", default=3, show_default=True, help="The median of these is printed.")
def main(epochs: int, steps: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        n_lines = write_run(folder, epochs, steps)
        pages = {"pandas, all points": folder / "all.html", "build_report": folder / "report.html"}
        forms = zip(pages, (build_straightforwardly, build_report), strict=True)
        functions = {form: functools.partial(build, folder, pages[form]) for form, build in forms}
        times = seconds(functions, repeats, "cpu")
        size = (folder / LOG_NAME).stat().st_size / 1e6
        print_table(f"{epochs:,} epochs, {n_lines:,} lines, {size:.1f} MB", times)
        for form, page in pages.items():
            print(f"  {form:<18}{page.stat().st_size / 1e6:>10.2f} MB")


if __name__ == "__main__":
    main()
