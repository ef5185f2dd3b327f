"""Command line: ``python -m diffusion_policy.inspect <data set> [-o page.html] [--repair new]``."""

import contextlib
import pathlib
import sys

import click
from tqdm import tqdm

from diffusion_policy.common.assets import resolve_data_path
from diffusion_policy.common.errors import DiffusionPolicyError
from diffusion_policy.inspect.page import build_page
from diffusion_policy.inspect.repair import repair
from diffusion_policy.inspect.summary import Summary, summarize
from diffusion_policy.inspect.text import render_text

BAR_DELAY_S = 2.0  # a progress bar for those who would wonder


class EpisodeList(click.ParamType):
    """``0,5,10-19`` as a list of numbers."""

    name = "numbers"

    def convert(self, value, param, ctx) -> list[int]:
        """One list of all numbers and ranges, in the order given."""
        if isinstance(value, list):
            return value
        try:
            return [i for part in value.split(",") for i in self._range(part)]
        except ValueError:
            self.fail(f"{value!r} is no list of episodes such as 0,5,10-19", param, ctx)

    def _range(self, part: str) -> range:
        first, _, last = part.partition("-")
        chosen = range(int(first), int(last or first) + 1)
        if not chosen:
            raise ValueError
        return chosen


@click.command()
@click.argument("dataset")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    help="Also write one self-contained HTML page with episodes to scrub through.",
)
@click.option(
    "--episodes",
    type=EpisodeList(),
    help="The episodes in the page, as in 0,5,10-19.  [default: the first ten]",
)
@click.option(
    "--max-frames",
    type=click.IntRange(min=1),
    default=40,
    show_default=True,
    help="So many images of every episode are embedded in the page.",
)
@click.option(
    "--repair",
    "new_path",
    type=click.Path(path_type=pathlib.Path),
    help="Copy every episode that is whole to this new place, a zarr directory, or a zip if it "
    "ends in .zip.",
)
def main(
    dataset: str,
    output: pathlib.Path | None,
    episodes: list[int] | None,
    max_frames: int,
    new_path: pathlib.Path | None,
) -> None:
    """Show what DATASET holds, a replay buffer in a zarr directory or zip, and check all of it.

    The exit code is 0 where it is fit for training, warnings or not, and 1 where it is damaged
    (also if --repair rescued a part of it). DATASET itself is never changed.
    """
    if episodes is not None and output is None:
        raise click.UsageError("--episodes chooses what is in the page; name the page with -o")
    try:
        summary = _summarize(resolve_data_path(dataset))
        click.echo(render_text(summary))
        if output is not None:
            click.echo(f"Page: {build_page(summary, output, episodes, max_frames)}")
        if new_path is not None:
            _repair(summary, new_path)
    except DiffusionPolicyError as e:
        raise click.ClickException(str(e)) from e
    if summary.damages:
        sys.exit(1)


def _summarize(path: pathlib.Path) -> Summary:
    with contextlib.ExitStack() as stack:

        def start(n_bytes: int):
            bar = tqdm(
                total=n_bytes,
                desc="Reading",
                unit="B",
                unit_scale=True,
                delay=BAR_DELAY_S,
                leave=False,
            )
            return stack.enter_context(bar).update

        return summarize(path, start)


def _repair(summary: Summary, new_path: pathlib.Path) -> None:
    repaired = repair(summary, new_path)
    lost = set(range(summary.n_stored_episodes)) - set(repaired.kept.tolist())
    click.echo(
        f"Repaired copy: {repaired.path}\n"
        f"  kept {repaired.n_kept_episodes} episodes, {repaired.n_kept_steps} steps\n"
        f"  lost {repaired.n_lost_episodes} episodes, {repaired.n_lost_steps} steps"
        + (f": episodes {format_numbers(sorted(lost))}" if lost else "")
    )
    for what in repaired.mended:
        click.echo(f"  mended: {what}")
    for what in repaired.left_out:
        click.echo(f"  left out: {what}")
    for key in repaired.encoded_again:
        click.echo(f"  {key}: its values are kept, compressed by a codec without loss")


def format_numbers(numbers: list[int]) -> str:
    """``[0, 5, 10, 11, 12]`` as ``'0, 5, 10-12'``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


if __name__ == "__main__":
    main()
