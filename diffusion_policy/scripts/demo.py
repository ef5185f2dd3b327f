"""The demo: train on the embedded Push-T demonstrations, evaluate, show the result.

    python -m diffusion_policy.scripts.demo --run-dir data/outputs/demo_pusht

Interrupted, it continues where it stopped when started again.
"""

import json
import pathlib
import shlex
import subprocess
import sys
import time

import click

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def run_script(name: str, *arguments: str) -> None:
    """Runs a top-level command line, as a user would; ends with its exit code if it fails."""
    command = [sys.executable, str(REPOSITORY / name), *arguments]
    click.secho("$ python " + shlex.join([name, *arguments]), fg="cyan")
    code = subprocess.call(command)
    if code != 0:
        sys.exit(code)


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--run-dir", default="data/outputs/demo_pusht", show_default=True)
@click.option("--config-name", default="demo_pusht", show_default=True)
@click.option("--n-test", default=50, show_default=True, help="Unseen environments to evaluate in.")
@click.argument("overrides", nargs=-1)
def main(run_dir: str, config_name: str, n_test: int, overrides: tuple[str, ...]) -> None:
    from diffusion_policy.config.override import override
    from diffusion_policy.report.build import build_report

    start = time.monotonic()
    place = override("hydra.run.dir", run_dir)
    run_script("train.py", f"--config-name={config_name}", place, *overrides)
    trained = time.monotonic()
    evaluation = pathlib.Path(run_dir) / "eval"
    run_script(
        "eval.py",
        *("--checkpoint", f"{run_dir}/checkpoints/latest.ckpt"),
        *("--output_dir", str(evaluation)),
        "--overwrite",
        f"task.env_runner.n_test={n_test}",
        "task.env_runner.n_test_vis=6",
    )
    report = build_report(
        pathlib.Path(run_dir), pathlib.Path(run_dir) / "report.html", evaluation_dir=evaluation
    )
    result = json.loads((evaluation / "eval_log.json").read_text())
    click.secho(f"\ntest/mean_score {result['test/mean_score']:.3f}", bold=True, nl=False)
    click.echo(f" over {n_test} unseen environments")
    click.echo(
        f"training {(trained - start) / 60:.1f} min, evaluation "
        f"{(time.monotonic() - trained) / 60:.1f} min"
    )
    for key in sorted(key for key in result if "sim_video" in key):
        click.echo(f"  {result[key]}")
    click.secho(f"report: {report}", bold=True)


if __name__ == "__main__":
    main()
