"""Everything a report says about one training run, read from its folder."""

import json
import os
import pathlib
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.json_logger import iter_json_log
from diffusion_policy.config.job import job_arguments
from diffusion_policy.report.run_config import RunConfig, read_config
from diffusion_policy.report.run_log import (
    RunLog,
    Series,
    Times,
    read_log,
    read_times,
    to_series,
)
from diffusion_policy.workspace.run_logger import INFO_NAME, LOG_NAME, MEDIA_NAME, TIMES_NAME

CONFIG_PATH = pathlib.Path(".hydra", "config.yaml")  # in the folder of a run
EVALUATION_NAME = "eval_log.json"
CHECKPOINTS_NAME = "checkpoints"
# Overrides that say where a run is, or which others were started with it.
# What is read of a run's folder, which changes as the run goes on.
INPUT_NAMES = (
    LOG_NAME,
    MEDIA_NAME,
    TIMES_NAME,
    INFO_NAME,
    EVALUATION_NAME,
    CHECKPOINTS_NAME,
    CONFIG_PATH,
)
SCORE_KEY = re.compile(r"(?P<group>.+)/mean_score")
EPISODE_KEY = re.compile(r"(?P<group>.+)/sim_(?P<what>max_reward|video)_(?P<seed>\d+)")


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

    ``last`` is the newest record; ``epochs`` maps the last step of each epoch to that epoch;
    ``info`` is ``run_info.json``; ``written`` is when the log was written last, in seconds.
    """

    folder: pathlib.Path
    last: dict[str, Any]
    series: dict[str, Series]
    train_loss_means: Series
    epochs: dict[int, int]
    evaluation: Evaluation | None
    checkpoints: list[pathlib.Path]
    info: dict[str, Any]
    times: Times | None
    written: float
    config: RunConfig
    command: str | None = None

    @property
    def last_step(self) -> int:
        """The newest training step."""
        return max(self.epochs)

    @property
    def in_progress(self) -> bool:
        """Whether epochs are missing: the run goes on, or was interrupted."""
        return self.n_epochs is not None and self.last.get("epoch", 0) + 1 < self.n_epochs

    @property
    def n_epochs(self) -> int | None:
        """How many epochs the run is to have, if its configuration is there."""
        n_epochs = self.config.get("training.num_epochs")
        return n_epochs if isinstance(n_epochs, int) else None

    @property
    def seconds(self) -> float | None:
        """For how long it has trained, all sessions together."""
        seconds = self.info.get("seconds")
        return seconds if isinstance(seconds, int | float) else None

    @property
    def sessions(self) -> int | None:
        """How many times it was started."""
        sessions = self.info.get("sessions")
        return sessions if isinstance(sessions, int) else None

    @property
    def score_keys(self) -> list[str]:
        """The scores of its evaluations, the one that a run is judged by first."""
        return sort_score_keys(self.series)

    @property
    def score_key(self) -> str | None:
        """The metric a run is judged by: ``test/mean_score``, or what comes nearest to it."""
        metrics = self.evaluation.metrics if self.evaluation else {}
        return next(iter(sort_score_keys([*self.series, *metrics])), None)


def sort_score_keys(keys: Iterable[str]) -> list[str]:
    """Those of the keys that are mean scores, each once, ``test/mean_score`` first."""
    scores = {key for key in keys if SCORE_KEY.fullmatch(key)}
    return sorted(scores, key=lambda key: (key != "test/mean_score", key))


def load_run(
    folder: str | os.PathLike,
    evaluation_folder: str | os.PathLike | None = None,
    shared_config: pathlib.Path | None = None,
) -> Run:
    """Reads a run, finished or in progress.

    Args:
        folder: Output folder of ``train.py``.
        evaluation_folder: Output folder of ``eval.py``, or its ``eval_log.json``, to be shown
            instead of the newest evaluation that the training made. Default: the run's own
            ``eval_log.json`` if there is one.
        shared_config: Configuration of a run that has none of its own; it may be missing too.

    Raises:
        NothingLoggedError: If there is no record yet.
        DataError: If a file is damaged.
    """
    folder = pathlib.Path(folder)
    log = read_log(folder)
    paths = (folder / CONFIG_PATH, shared_config)
    config_path = next((path for path in paths if path is not None and path.exists()), None)
    return Run(
        folder=folder,
        last=log.last,
        series={key: to_series(values) for key, values in log.values.items()},
        train_loss_means=to_series(log.train_loss_means()),
        epochs={step: epoch for epoch, step in log.epoch_ends.items()},
        evaluation=_find_evaluation(folder, evaluation_folder, log),
        checkpoints=sorted((folder / CHECKPOINTS_NAME).glob("*.ckpt")),
        info=read_json(folder / INFO_NAME) if (folder / INFO_NAME).exists() else {},
        times=read_times(folder, log.epoch_ends),
        written=(folder / LOG_NAME).stat().st_mtime,
        config=RunConfig() if config_path is None else read_config(config_path),
        command=_reproduce_command(folder),
    )


def _find_evaluation(
    folder: pathlib.Path, evaluation_folder: str | os.PathLike | None, log: RunLog
) -> Evaluation | None:
    path = pathlib.Path(evaluation_folder or folder)
    path = path / EVALUATION_NAME if path.is_dir() else path
    if evaluation_folder is not None or path.exists():
        return _make_evaluation("eval.py", read_json(path), path.parent)
    if not log.evaluation:
        return None
    row = log.evaluation
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
        elif "/" in key and isinstance(value, int | float):
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


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        DataError: If it cannot be read, or is no object.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise DataError(f"Cannot read {path}: {e}; restore the file or leave it out.") from e
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a JSON object; restore the file or leave it out.")
    return content


def _reproduce_command(folder: pathlib.Path) -> str | None:
    """The command line that made the run, alone and without its output folder: a repetition needs
    its own.
    """
    import yaml

    path = folder / ".hydra" / "overrides.yaml"
    hydra_path = folder / ".hydra" / "hydra.yaml"
    if not (path.exists() and hydra_path.exists()):
        return None
    try:
        overrides = yaml.safe_load(path.read_text()) or []
        hydra = yaml.safe_load(hydra_path.read_text())["hydra"]
        return shlex.join(["python", "train.py", *job_arguments(hydra, overrides)])
    except (yaml.YAMLError, KeyError, TypeError) as e:
        raise DataError(
            f"{path.parent} does not have the files that Hydra writes ({e!r}); restore it, or "
            "remove it."
        ) from e
