"""Command line: ``python -m diffusion_policy.report <run or sweep> ... -o report.html``."""

import pathlib
from collections.abc import Sequence

import click

from diffusion_policy.common.errors import DiffusionPolicyError


@click.command()
@click.argument(
    "folders", nargs=-1, required=True, metavar="FOLDER...", type=click.Path(path_type=pathlib.Path)
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    help="The page to write.  [default: report.html in FOLDER, if it is a single one]",
)
@click.option("--title", help="Heading of the page.  [default: the names of the folders]")
@click.option(
    "--eval",
    "evaluation_dir",
    type=click.Path(path_type=pathlib.Path),
    help="Output folder of eval.py to show instead of the newest evaluation of the training; for "
    "a single run.",
)
@click.option(
    "--max-videos",
    type=click.IntRange(min=0),
    default=12,
    show_default=True,
    help="So many videos are embedded; further ones are linked.",
)
@click.option(
    "--watch",
    is_flag=True,
    help="Serve the page on this machine, up to date, until Ctrl-C. It is written to a file only "
    "with -o.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="With --watch: the port on 127.0.0.1.  [default: a free one]",
)
def main(
    folders: Sequence[pathlib.Path],
    output: pathlib.Path | None,
    title: str | None,
    evaluation_dir: pathlib.Path | None,
    max_videos: int,
    watch: bool,
    port: int,
) -> None:
    """Write one self-contained HTML page about training runs, finished or in progress.

    A FOLDER is a run, a sweep with its runs in train_0, train_1 ..., or a folder of train.py
    --multirun. Of one run the page shows scores, curves, rollouts that play in the page, time and
    memory, checkpoints, and the configuration. Of several it compares the methods: runs that differ
    in their seed only count as one, with mean and band, unless a seed is there twice.

    \b
    python -m diffusion_policy.report data/outputs/mine
    python -m diffusion_policy.report data/outputs/sweep_a data/outputs/sweep_b -o comparison.html
    python -m diffusion_policy.report data/outputs/sweep_a --watch
    """
    from diffusion_policy.report.build import Report, build_report
    from diffusion_policy.report.serve import serve

    if output is None and len(folders) > 1 and not watch:
        raise click.UsageError("name the page with -o when there are several folders")
    try:
        if watch:
            report = Report(folders, title, evaluation_dir, max_videos)
            serve(report, port, output, announce=click.echo)
        else:
            page = output or pathlib.Path(folders[0], "report.html")
            page = build_report(folders, page, title, evaluation_dir, max_videos)
            click.echo(click.format_filename(page))
    except DiffusionPolicyError as e:
        raise click.ClickException(str(e)) from e


if __name__ == "__main__":
    main()
