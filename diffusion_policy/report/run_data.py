"""Everything a report says about one training run, read from its folder."""

import os
import pathlib
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from diffusion_policy.common.errors import ConfigError, DataError
from diffusion_policy.common.json_lines import as_count, as_finite, as_float, parse_object
from diffusion_policy.common.regular_files import read_regular
from diffusion_policy.config.job import job_arguments
from diffusion_policy.config.yaml_files import MAX_BYTES, parse_yaml
from diffusion_policy.report.run_config import RunConfig, read_config
from diffusion_policy.report.run_log import (
    LARGEST,
    OddLines,
    RunLog,
    Series,
    Times,
    iter_rows,
    read_log,
    read_times,
    to_series,
)
from diffusion_policy.report.videos import Video, find_video
from diffusion_policy.workspace.run_logger import INFO_NAME, LOG_NAME, MEDIA_NAME, TIMES_NAME

CONFIG_PATH = pathlib.Path(".hydra", "config.yaml")  # in the folder of a run
EVALUATION_NAME = "eval_log.json"
CHECKPOINTS_NAME = "checkpoints"
MAX_JSON_BYTES = 16 * 2**20
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
EPISODE_KEY = re.compile(r"(?P<group>.+)/sim_(?P<what>max_reward|video)_(?P<seed>[0-9]{1,18})")


@dataclass
class Episode:
    """One rollout: its ``group`` (``train`` or ``test``), its max reward, its video."""

    group: str
    seed: int
    score: float | None = None
    video: Video | None = None


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
    ``info`` is ``run_info.json``; ``written`` is when the log was written last, in seconds;
    ``notes`` are sentences about what is left out.
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
    notes: list[str] = field(default_factory=list)

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
        return as_count(self.config.get("training.num_epochs"))

    @property
    def seconds(self) -> float | None:
        """For how long it has trained, all sessions together."""
        seconds = as_finite(self.info.get("seconds"))
        return seconds if seconds is not None and 0 <= seconds < LARGEST else None

    @property
    def sessions(self) -> int | None:
        """How many times it was started."""
        return as_count(self.info.get("sessions"))

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
    odd = {name: OddLines(folder / name) for name in (MEDIA_NAME, TIMES_NAME)}
    config = RunConfig()
    if (folder / CONFIG_PATH).exists():
        config = read_config(folder / CONFIG_PATH, folder)
    elif shared_config is not None and shared_config.exists():
        config = read_config(shared_config, shared_config.parent)
    run = Run(
        folder=folder,
        last=log.last,
        series={key: to_series(values) for key, values in log.values.items()},
        train_loss_means=to_series(log.train_loss_means()),
        epochs={step: epoch for epoch, step in log.epoch_ends.items()},
        evaluation=_find_evaluation(folder, evaluation_folder, log, odd[MEDIA_NAME]),
        checkpoints=sorted((folder / CHECKPOINTS_NAME).glob("*.ckpt")),
        info=read_json(folder / INFO_NAME) if (folder / INFO_NAME).exists() else {},
        times=read_times(folder, log.epoch_ends, odd[TIMES_NAME]),
        written=(folder / LOG_NAME).stat().st_mtime,
        config=config,
        command=_reproduce_command(folder),
    )
    run.notes = [*log.notes, *(sentence for lines in odd.values() for sentence in lines.sentences)]
    return run


def _find_evaluation(
    folder: pathlib.Path, evaluation_folder: str | os.PathLike | None, log: RunLog, odd: OddLines
) -> Evaluation | None:
    path = pathlib.Path(evaluation_folder or folder)
    path = path / EVALUATION_NAME if path.is_dir() else path
    if evaluation_folder is not None or path.exists():
        return _make_evaluation("eval.py", read_json(path), path.parent)
    if not log.evaluation:
        return None
    row = log.evaluation
    origin = f"epoch {row['epoch']}" if "epoch" in row else f"step {row.get('global_step', '?')}"
    return _make_evaluation(origin, row | _videos_of(folder, row, odd), folder)


def _videos_of(folder: pathlib.Path, row: dict[str, Any], odd: OddLines) -> dict[str, Any]:
    same_step = [
        media
        for media in iter_rows(folder / MEDIA_NAME, folder, odd)
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
                episode.video = find_video(value, folder)
            else:
                episode.score = as_finite(value)
        elif "/" in key and (number := as_float(value)) is not None:
            metrics[key] = number
    order = sorted(episodes.values(), key=lambda e: (e.group != "test", e.group, e.seed))
    return Evaluation(origin, dict(sorted(metrics.items(), key=_tests_first)), order)


def _tests_first(item: tuple[str, float]) -> tuple[bool, str]:
    return not item[0].startswith("test/"), item[0]


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a file, which has to lie in its folder.

    Raises:
        DataError: If it cannot be read, or is no object.
    """
    try:
        content = parse_object(read_regular(path, MAX_JSON_BYTES, within=path.parent))
    except OSError as e:
        raise DataError(
            f"Cannot read {path}: {e.strerror}; restore the file or leave it out."
        ) from e
    if content is None:
        raise DataError(f"{path} is not a JSON object; restore the file or leave it out.")
    return content


def _reproduce_command(folder: pathlib.Path) -> str | None:
    """The command line that made the run, alone and without its output folder: a repetition needs
    its own.
    """
    path = folder / ".hydra" / "overrides.yaml"
    hydra_path = folder / ".hydra" / "hydra.yaml"
    if not (path.exists() and hydra_path.exists()):
        return None
    try:
        overrides, hydra = (
            parse_yaml(read_regular(file, MAX_BYTES, within=folder), file)
            for file in (path, hydra_path)
        )
        arguments = job_arguments(hydra["hydra"], overrides or [])
        return shlex.join(["python", "train.py", *arguments])
    except ConfigError as e:
        raise DataError(str(e)) from e
    except (LookupError, TypeError, AttributeError) as e:
        raise DataError(
            f"{path.parent} does not have the files that Hydra writes ({e!r}); restore it, or "
            "remove it."
        ) from e
