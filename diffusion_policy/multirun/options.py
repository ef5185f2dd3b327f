"""Options that the command lines of ray have in common."""

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = [
    click.option(
        "-ra",
        "--ray_address",
        default="auto",
        show_default=True,
        help="host:port of the cluster; auto: the one that runs here, or else a new one; local: a "
        "new one on this machine.",
    ),
    click.option(
        "-nc",
        "--num_cpus",
        type=float,
        help="CPUs for each run.  [default: 7 on a running cluster; on this machine alone an equal "
        "share, at most 7]",
    ),
    click.option(
        "-ng",
        "--num_gpus",
        type=float,
        help="GPUs for each run; 0.5: two runs share one.  [default: 1; 0 on a machine without]",
    ),
    click.option(
        "-mr",
        "--max_retries",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="How often a run that failed is started again.",
    ),
    click.option(
        "-d",
        "--data_src",
        help="Folder that data/ is for the runs, on all nodes.  [default: ./data]",
    ),
    click.option("-u", "--unbuffer_python", is_flag=True, help="Runs write their output at once."),
]


def ray_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --ray_address, --num_cpus, --num_gpus, --max_retries, --data_src, --unbuffer_python."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
