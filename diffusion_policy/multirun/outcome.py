"""What a sweep came to, in words."""

import contextlib
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.json_lines import as_float, parse_object
from diffusion_policy.common.regular_files import open_regular, read_regular
from diffusion_policy.multirun.monitor import METRICS_DIR, SUMMARY_NAME
from diffusion_policy.multirun.status import State, SweepStatus
from diffusion_policy.multirun.sweep import Sweep

LAST_LINES = 20
_TAIL_BYTES = 16_384
MAX_BYTES = 16 * 2**20  # of the metrics
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Outcome:
    """Exit code of the command, and its last words."""

    exit_code: int
    text: str


def describe_outcome(
    sweep: Sweep,
    status: SweepStatus,
    endings: Mapping[str, str],
    was_interrupted: bool,
    options: Sequence[str],
) -> Outcome:
    """Sums up a sweep.

    Args:
        sweep, status: Of its runs, which have ended.
        endings: How those ended that did not finish, in words.
        was_interrupted: Whether a signal ended it.
        options: Of the command line, which ``--resume`` needs again.
    """
    unfinished = [name for name in status.tasks if status[name].state != State.FINISHED]
    parts = [_failure(sweep, name, endings) for name in status.names(State.FAILED)]
    parts += [_runs(sweep, status), _metrics(sweep)]
    if unfinished:
        command = ["python", "ray_train_multirun.py", "--resume", str(sweep.folder), *options]
        parts.append(
            f"{len(unfinished)} of {len(sweep.tasks)} runs are not finished "
            f"({', '.join(unfinished)}). This continues them from their last checkpoints:\n"
            f"  {shlex.join(command)}"
        )
    report = shlex.join(["python", "-m", "diffusion_policy.report", str(sweep.folder)])
    parts.append(f"A page of curves, scores and videos:\n  {report}")
    exit_code = 0 if not unfinished else EXIT_INTERRUPTED if was_interrupted else 1
    return Outcome(exit_code, "\n\n".join(filter(None, parts)))


def _runs(sweep: Sweep, status: SweepStatus) -> str:
    lines = [f"{'run':<10}{'seed':>8}  {'state':<13}{'attempts':>8}  host"]
    for task in sweep.tasks:
        run = status[task.name]
        lines.append(
            f"{task.name:<10}{task.seed:>8}  {run.state:<13}{run.attempts:>8}  {run.host or '-'}"
        )
    return "\n".join(lines)


def _metrics(sweep: Sweep) -> str:
    path = sweep.folder / METRICS_DIR / SUMMARY_NAME
    content: dict = {}
    with contextlib.suppress(OSError, DataError):
        content = parse_object(read_regular(path, MAX_BYTES)) or {}
    metrics = {name: value for name in content if (value := as_float(content[name])) is not None}
    if not metrics:
        return "No metrics so far: no run has had a rollout."
    width = max(map(len, metrics))
    lines = [f"  {name:<{width}}  {value:.6g}" for name, value in metrics.items()]
    return "\n".join([f"Means over the seeds, {path}:", *lines])


def _failure(sweep: Sweep, task: str, endings: Mapping[str, str]) -> str:
    console = sweep.console(task)
    seed = next(t.seed for t in sweep.tasks if t.name == task)
    lines = last_lines(console)
    says = f"its last lines, of {console}:" if lines else f"{console} is empty."
    heading = f"{task} (seed {seed}) failed: {endings.get(task, 'in an earlier session')}; {says}"
    return "\n".join([heading, *(f"  | {line}" for line in lines)])


def last_lines(path: pathlib.Path, n: int = LAST_LINES) -> list[str]:
    """The last lines of a text file, empty if there is none. Of a line that a progress bar has
    overwritten what was last to be seen.
    """
    try:
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except (OSError, DataError):
        return []
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return [line for line in lines if line.strip()][-n:]
