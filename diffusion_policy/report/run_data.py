"""Everything a report says about one training run, read from its folder."""

import json
import math
import os
import pathlib
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.json_logger import iter_json_log
from diffusion_policy.workspace.run_logger import INFO_NAME, LOG_NAME, MEDIA_NAME

AXES = ("global_step", "epoch")
SCORE_KEY = re.compile(r"(?P<group>.+)/mean_score")
EPISODE_KEY = re.compile(r"(?P<group>.+)/sim_(?P<what>max_reward|video)_(?P<seed>\d+)")


@dataclass
class Series:
    """A metric over training steps, in the order of the steps."""

    steps: list[int]
    values: list[float]


@dataclass
class Episode:
    """One rollout: its ``group`` (``train`` or ``test``), its max reward, its video."""

    group: str
    seed: int
    score: float | None = None
    video: pathlib.Path | None = None


@dataclass
class Evaluation:
    """The rollouts of a policy: its metrics, and its episodes with tests first, then by seed."""

    origin: str
    metrics: dict[str, float]
    episodes: list[Episode]


@dataclass
class Run:
    """A training run as its folder tells it. What the folder lacks is empty or None.

    ``last`` is the newest record; ``epochs`` maps the last step of each epoch to that epoch.
    """

    folder: pathlib.Path
    last: dict[str, Any]
    series: dict[str, Series]
    train_loss_means: Series
    epochs: dict[int, int]
    evaluation: Evaluation | None
    checkpoints: list[pathlib.Path]
    info: dict[str, Any]
    config_text: str | None
    config: dict[str, Any] = field(default_factory=dict)
    command: str | None = None

    @property
    def last_step(self) -> int:
        """The newest training step."""
        return max(self.epochs)

    @property
    def in_progress(self) -> bool:
        """Whether epochs are missing: the run goes on, or was interrupted."""
        n_epochs = self.config.get("training.num_epochs")
        return isinstance(n_epochs, int) and self.last.get("epoch", 0) + 1 < n_epochs

    @property
    def score_key(self) -> str | None:
        """The metric a run is judged by: ``test/mean_score``, or what comes nearest to it."""
        keys = [key for key in self.series if SCORE_KEY.fullmatch(key)]
        if self.evaluation is not None:
            keys += [key for key in self.evaluation.metrics if SCORE_KEY.fullmatch(key)]
        return "test/mean_score" if "test/mean_score" in keys else min(keys, default=None)


def load_run(folder: str | os.PathLike, evaluation_folder: str | os.PathLike | None = None) -> Run:
    """Reads a run, finished or in progress.

    Args:
        folder: Output folder of ``train.py``.
        evaluation_folder: Output folder of ``eval.py``, or its ``eval_log.json``, to be shown
            instead of the newest evaluation that the training made. Default: the run's own
            ``eval_log.json`` if there is one.

    Raises:
        DataError: If there is no log with at least one record, or a file is damaged.
    """
    folder = pathlib.Path(folder)
    table = _read_log(folder)
    config_text, config = _read_config(folder)
    return Run(
        folder=folder,
        last=table.last,
        series={key: _to_series(values) for key, values in table.values.items()},
        train_loss_means=_to_series(table.train_loss_means()),
        epochs={step: epoch for epoch, step in table.epoch_ends.items()},
        evaluation=_find_evaluation(folder, evaluation_folder, table),
        checkpoints=sorted((folder / "checkpoints").glob("*.ckpt")),
        info=_read_json(folder / INFO_NAME) if (folder / INFO_NAME).exists() else {},
        config_text=config_text,
        config=config,
        command=_reproduce_command(folder),
    )


@dataclass
class _Table:
    """The log by columns. Of repeated steps (a run resumed by other means) the last one counts."""

    values: dict[str, dict[int, float]] = field(default_factory=dict)
    epoch_ends: dict[int, int] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)

    def add(self, row: dict[str, Any], step: int) -> None:
        for key, value in row.items():
            if "/" in key:
                self.evaluation = row
                if "/sim_" in key:  # one of many episodes, not a curve
                    continue
            if key not in AXES:
                self.values.setdefault(key, {})[step] = value
        self.epoch_ends[row.get("epoch", 0)] = step
        self.last = row

    def train_loss_means(self) -> dict[int, float]:
        """The last record of a finished epoch holds the mean of its losses, not a batch's loss."""
        losses = self.values.get("train_loss", {})
        ends = list(self.epoch_ends.values())
        if len(ends) < 2 or ends[-1] - ends[-2] < ends[0] - min(losses, default=0) + 1:
            ends.pop()  # shorter than the first: still in progress
        return {step: losses[step] for step in ends if step in losses}


def _read_log(folder: pathlib.Path) -> _Table:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; name the output folder of a training run.")
    table = _Table()
    for number, row in enumerate(iter_json_log(folder / LOG_NAME)):
        table.add(row, int(row.get("global_step", number)))
    if not table.last:
        raise DataError(
            f"{folder / LOG_NAME} has no complete line yet; wait for the first training step, or "
            "name another run."
        )
    return table


def _to_series(values: dict[int, float]) -> Series:
    points = sorted((s, float(v)) for s, v in values.items() if math.isfinite(v))
    return Series([s for s, _ in points], [v for _, v in points])


def _find_evaluation(
    folder: pathlib.Path, evaluation_folder: str | os.PathLike | None, table: _Table
) -> Evaluation | None:
    path = pathlib.Path(evaluation_folder or folder)
    path = path / "eval_log.json" if path.is_dir() else path
    if evaluation_folder is not None or path.exists():
        return _make_evaluation("eval.py", _read_json(path), path.parent)
    if not table.evaluation:
        return None
    row = table.evaluation
    origin = f"epoch {row['epoch']}" if "epoch" in row else f"step {row.get('global_step', '?')}"
    return _make_evaluation(origin, row | _videos_of(folder, row), folder)


def _videos_of(folder: pathlib.Path, row: dict[str, Any]) -> dict[str, str]:
    if not (folder / MEDIA_NAME).exists():
        return {}
    same_step = [
        media
        for media in iter_json_log(folder / MEDIA_NAME)
        if media.get("global_step") == row.get("global_step")
    ]
    return {k: v for media in same_step for k, v in media.items() if EPISODE_KEY.fullmatch(k)}


def _make_evaluation(origin: str, row: dict[str, Any], folder: pathlib.Path) -> Evaluation:
    episodes: dict[tuple[str, int], Episode] = {}
    metrics = {}
    for key, value in row.items():
        match = EPISODE_KEY.fullmatch(key)
        if match:
            where = match["group"], int(match["seed"])
            episode = episodes.setdefault(where, Episode(*where))
            if match["what"] == "video":
                episode.video = _first_existing(_candidates(str(value), folder))
            else:
                episode.score = float(value)
        elif "/" in key:
            metrics[key] = float(value)
    order = sorted(episodes.values(), key=lambda e: (e.group != "test", e.group, e.seed))
    return Evaluation(origin, dict(sorted(metrics.items(), key=_tests_first)), order)


def _tests_first(item: tuple[str, float]) -> tuple[bool, str]:
    return not item[0].startswith("test/"), item[0]


def _candidates(path: str, folder: pathlib.Path) -> Iterable[pathlib.Path]:
    """Where a video may lie: as written, or, if the folder was moved, in its media folder."""
    if path.endswith(".mp4"):
        yield folder / path
        yield pathlib.Path(path)
        yield folder / "media" / pathlib.Path(path).name


def _first_existing(paths: Iterable[pathlib.Path]) -> pathlib.Path | None:
    return next((path for path in paths if path.is_file()), None)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise DataError(f"Cannot read {path}: {e}; restore the file or leave it out.") from e
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a JSON object; restore the file or leave it out.")
    return content


def _read_config(folder: pathlib.Path) -> tuple[str | None, dict[str, Any]]:
    """The text of the configuration, and the few values of it that a headline needs."""
    import yaml
    from omegaconf import OmegaConf

    path = folder / ".hydra" / "config.yaml"
    if not path.exists():
        return None, {}
    text = path.read_text()
    try:
        tree = OmegaConf.create(text)
    except yaml.YAMLError as e:
        raise DataError(f"{path} is not valid YAML ({str(e).splitlines()[0]}); restore it.") from e
    keys = ("name", "task.name", "training.num_epochs", "training.seed")
    select = {k: OmegaConf.select(tree, k, throw_on_resolution_failure=False) for k in keys}
    return text, {key: value for key, value in select.items() if value is not None}


def _reproduce_command(folder: pathlib.Path) -> str | None:
    """The command line that made the run, without its output folder: a repetition needs its own."""
    import yaml

    path = folder / ".hydra" / "overrides.yaml"
    hydra_path = folder / ".hydra" / "hydra.yaml"
    if not (path.exists() and hydra_path.exists()):
        return None
    overrides = yaml.safe_load(path.read_text()) or []
    hydra = yaml.safe_load(hydra_path.read_text())["hydra"]
    words = ["python", "train.py", f"--config-name={hydra['job']['config_name']}"]
    words += [
        f"--config-dir={source['path']}"
        for source in hydra["runtime"]["config_sources"]
        if source["provider"] == "command-line"
    ]
    words += overrides
    words += [o for o in hydra["overrides"]["hydra"] if not re.match(r"hydra\.(run\.dir|mode)=", o)]
    return shlex.join(words)
