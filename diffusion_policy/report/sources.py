"""Which runs the folders of a report hold: a run, a sweep, or a Hydra multirun each."""

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.json_lines import as_count
from diffusion_policy.multirun.monitor import seed_folders
from diffusion_policy.multirun.status import STATUS_NAME, State
from diffusion_policy.multirun.sweep import SWEEP_NAME
from diffusion_policy.multirun.watch import CONFIG_NAME
from diffusion_policy.report.run_data import CONFIG_PATH, read_json
from diffusion_policy.workspace.run_logger import LOG_NAME


@dataclass(frozen=True)
class Place:
    """Where a run lies.

    Attributes:
        folder: Of the run.
        source: The folder that was named: the run itself, or the sweep it belongs to.
        state: What the sweep says of it; None outside of sweeps.
        note: Whatever else there is to say about that state.
        seed: Its seed, as far as the sweep knows.
    """

    folder: pathlib.Path
    source: pathlib.Path
    state: State | None = None
    note: str = ""
    seed: int | None = None

    @property
    def name(self) -> str:
        """``my_sweep/train_0``, or the name of a run that was named itself."""
        source = self.source.resolve().name
        return source if self.folder == self.source else f"{source}/{self.folder.name}"

    @property
    def shared_config(self) -> pathlib.Path:
        """The configuration of the whole sweep; missing where there is none."""
        return self.source / CONFIG_NAME


def find_runs(folders: Sequence[pathlib.Path]) -> list[Place]:
    """All runs in these folders, in this order, each once.

    Raises:
        DataError: If one of the folders is neither a run nor holds one.
    """
    places = [place for folder in folders for place in _runs_in(folder)]
    return list({place.folder.resolve(): place for place in reversed(places)}.values())[::-1]


def is_run(folder: pathlib.Path) -> bool:
    """Whether a training has begun here; its log may still be missing."""
    return (folder / LOG_NAME).exists() or (folder / CONFIG_PATH).exists()


def _runs_in(folder: pathlib.Path) -> list[Place]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; name the output folder of a training run.")
    if is_run(folder):
        return [Place(folder, folder)]
    seeds = seed_folders(folder)
    if seeds:
        return _sweep(folder, seeds)
    jobs = [path for path in folder.iterdir() if path.is_dir() and is_run(path)]
    if not jobs:
        raise DataError(
            f"Cannot read the log {folder / LOG_NAME}: No such file, and no folder in there is a "
            "run either; name the output folder of a training run, of a sweep, or of train.py "
            "--multirun."
        )
    jobs.sort(key=lambda path: (not path.name.isdigit(), len(path.name), path.name))
    return [Place(job, folder) for job in jobs]


def _sweep(folder: pathlib.Path, seeds: list[pathlib.Path]) -> list[Place]:
    status = _optional(folder / STATUS_NAME).get("tasks")
    tasks = _optional(folder / SWEEP_NAME).get("tasks")
    return [
        Place(
            path,
            folder,
            seed=_seed(tasks, path.name),
            **_describe(status.get(path.name) if isinstance(status, dict) else None),
        )
        for path in seeds
    ]


def _seed(tasks: Any, name: str) -> int | None:
    """That of a run in the record of its sweep."""
    for task in tasks if isinstance(tasks, list) else ():
        if isinstance(task, dict) and task.get("name") == name:
            return as_count(task.get("seed"))
    return None


def _describe(task: Any) -> dict[str, Any]:
    """State and note of a run from its entry in ``status.json``."""
    if not isinstance(task, dict) or task.get("state") not in list(State):
        return {}
    notes = [f"on {task['host']}"] if task.get("host") else []
    if (as_count(task.get("attempts")) or 0) > 1:
        notes.append(f"attempt {task['attempts']}")
    if task["state"] == State.FAILED and task.get("exit_code") is not None:
        notes.append(f"exit code {task['exit_code']}")
    return {"state": State(task["state"]), "note": ", ".join(notes)}


def _optional(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
