"""Command line: ``python -m diffusion_policy.report <run dir> -o report.html``."""

import pathlib

import click

from diffusion_policy.common.errors import DiffusionPolicyError
from diffusion_policy.report.build import build_report


@click.command()
@click.argument("run_dir", type=click.Path(path_type=pathlib.Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    help="The page to write.  [default: RUN_DIR/report.html]",
)
@click.option("--title", help="Heading of the page.  [default: name of RUN_DIR]")
@click.option(
    "--eval",
    "evaluation_dir",
    type=click.Path(path_type=pathlib.Path),
    help="Output folder of eval.py to show instead of the newest evaluation of the training.",
)
@click.option(
    "--max-videos",
    type=click.IntRange(min=0),
    default=12,
    show_default=True,
    help="So many videos are embedded; further ones are linked.",
)
def main(
    run_dir: pathlib.Path,
    output: pathlib.Path | None,
    title: str | None,
    evaluation_dir: pathlib.Path | None,
    max_videos: int,
) -> None:
    """Write one self-contained HTML page about the training run in RUN_DIR.

    It shows scores, curves, rollouts that play in the page, checkpoints, and the configuration. The
    run may be in progress.
    """
    try:
        path = build_report(
            run_dir, output or run_dir / "report.html", title, evaluation_dir, max_videos
        )
    except DiffusionPolicyError as e:
        raise click.ClickException(str(e)) from e
    click.echo(path)


if __name__ == "__main__":
    main()
