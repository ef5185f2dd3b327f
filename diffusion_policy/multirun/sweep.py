"""A sweep: the same training with several seeds, in one folder.

::

    <sweep>/config.yaml            the configuration, resolved
            sweep.json             what was asked for, and the command of every run
            status.json            how far the runs are (:mod:`.status`)
            train_0/ train_1/ ...  the runs, one per seed, as train.py leaves them, and console.log
            metrics/               their means (:mod:`.monitor`)
"""

import dataclasses
import datetime
import json
import pathlib
import re
import secrets
import shlex
import string
from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from diffusion_policy.common.checkpoint_util import atomic_write
from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.regular_files import read_regular
from diffusion_policy.config.compose import CONFIG_DIR
from diffusion_policy.config.compose import compose as compose_as_written
from diffusion_policy.config.hydra_node import check_config_files, is_of_hydra
from diffusion_policy.config.override import check_overrides, override
from diffusion_policy.config.resolvers import plain, resolve
from diffusion_policy.config.targets import check_targets, current_policy
from diffusion_policy.config.yaml_files import load_yaml
from diffusion_policy.multirun.run_command import DATA_LINK, REPOSITORY
from diffusion_policy.multirun.watch import CONFIG_NAME
from diffusion_policy.workspace.command_line import complete_overrides

SWEEP_NAME = "sweep.json"
MAX_BYTES = 16 * 2**20  # of it
CONSOLE_NAME = "console.log"


@dataclass(frozen=True)
class Task:
    """One run of a sweep: ``train_<i>``, and the command that starts or continues it."""

    name: str
    seed: int
    command: list[str]


@dataclass(frozen=True)
class Sweep:
    """What ``sweep.json`` says. ``group`` is the wandb group; runs are ``<group>_train_<i>``."""

    folder: pathlib.Path
    config_name: str
    config_dir: str
    overrides: list[str]
    seeds: list[int]
    group: str
    name_base: str
    tasks: list[Task]

    def run_dir(self, task: str) -> pathlib.Path:
        return self.folder / task

    def console(self, task: str) -> pathlib.Path:
        return self.folder / task / CONSOLE_NAME

    @property
    def config(self) -> DictConfig:
        """The resolved configuration, as it was written."""
        return _read_config(self.folder)


def parse_seeds(text: str) -> list[int]:
    """``42,43,44``.

    Raises:
        ConfigError: It is something else, or a seed is there twice.
    """
    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(
            f"--seeds {text!r}: give different whole numbers, from 0 on, and commas: 42,43,44"
        )
    return seeds


def compose(config_name: str, config_dir: str | None, overrides: Sequence[str]) -> DictConfig:
    """The resolved configuration that ``train.py`` would get.

    Args:
        config_name: A shipped configuration, or a file in ``config_dir``.
        config_dir: Absolute, or relative to the repository. None: only shipped ones.

    Raises:
        ConfigError: There is none of that name, or an override does not fit it.
    """
    check_overrides(overrides)
    folder = None if config_dir is None else REPOSITORY / config_dir
    if folder is not None:
        check_config_files(config_name, folder, complete_overrides(list(overrides)))
    cfg = compose_as_written(config_name, folder, complete_overrides(list(overrides)))
    resolve(cfg)
    check_targets(plain(cfg))  # once, and not by every run
    return cfg


def create_sweep(
    cfg: DictConfig,
    config_name: str,
    config_dir: str | None,
    overrides: Sequence[str],
    seeds: Sequence[int],
    data_src: pathlib.Path | None = None,
) -> Sweep:
    """Makes the folder of a new sweep.

    Args:
        cfg: What :func:`compose` returned for the next three.
        config_name, config_dir, overrides: See there.
        seeds: One run each.
        data_src: Absolute; what ``data`` is for the runs. None: ``data`` of the repository.

    Raises:
        ConfigError: The folder exists, or its name cannot stand in a configuration.
        CheckpointError: The disk refuses.
    """
    folder = _locate(_run_dir(cfg), data_src)
    sweep = Sweep(
        folder=folder,
        config_name=config_name,
        config_dir=config_dir or str(CONFIG_DIR.relative_to(REPOSITORY)),
        overrides=list(overrides),
        seeds=list(seeds),
        group="".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8)),
        name_base=OmegaConf.select(cfg, "multi_run.wandb_name_base") or folder.name,
        tasks=[],
    )
    sweep = _with_commands(sweep, cfg)
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(
            f"{folder} exists; continue that sweep with --resume {shlex.quote(str(folder))}, or "
            "name another folder with the override multi_run.run_dir=..."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot create the folder of the sweep, {folder}: {error.strerror}; name another with "
            "the override multi_run.run_dir=..."
        ) from error
    return _write(sweep, cfg)


def load_sweep(folder: str | pathlib.Path) -> Sweep:
    """The sweep of a folder that :func:`create_sweep` made.

    The commands of its runs are made anew from what was asked for: a record is not a script. Only
    with ``--trust-config`` those that stand there are run, which somebody may have edited.

    Raises:
        ConfigError: It is none, or asks for more than a configuration may.
    """
    path = pathlib.Path(folder).absolute() / SWEEP_NAME
    try:
        content = json.loads(read_regular(path, MAX_BYTES))
        tasks = [Task(**task) for task in content.pop("tasks")]
        written_in = content.pop("folder")
        sweep = Sweep(folder=path.parent, tasks=tasks, **content)
        _check_record(sweep)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; --resume needs the folder of a sweep, as this "
            "command printed it"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is not the record of a sweep ({error!r})") from error
    if written_in != str(sweep.folder):  # a folder that was moved: what is in it names another one
        return extend_sweep(sweep, [])
    if current_policy().everything:
        return sweep
    overrides = complete_overrides(sweep.overrides)
    check_config_files(sweep.config_name, REPOSITORY / sweep.config_dir, overrides)
    return _with_commands(sweep, sweep.config)


def _check_record(sweep: Sweep) -> None:
    """Names of runs are names of folders in that of the sweep, and commands are words."""
    texts = [sweep.config_name, sweep.config_dir, sweep.group, sweep.name_base, *sweep.overrides]
    for task in sweep.tasks:
        texts += [task.name, *task.command]
        if not re.fullmatch(r"train_[0-9]+", task.name) or not isinstance(task.command, list):
            raise ValueError(f"a run {task.name!r} with the command {task.command!r}")
    acting = [text for text in sweep.overrides if text.startswith("-") or is_of_hydra(text)]
    if acting and not current_policy().everything:
        raise ConfigError(
            f"the record of the sweep in {sweep.folder} has the override {acting[0]!r}, which "
            "can run code; repeat with --trust-config if you wrote it"
        )
    numbers = [*sweep.seeds, *(task.seed for task in sweep.tasks)]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a number, or something else, in the place of a text")
    if not all(isinstance(number, int) for number in numbers):
        raise TypeError("a text, or something else, in the place of a seed")
    if not all(task.command for task in sweep.tasks):
        raise ValueError("a run without a command")


def extend_sweep(sweep: Sweep, overrides: Sequence[str]) -> Sweep:
    """The same sweep with further overrides, ``training.num_epochs=200`` for example."""
    sweep = dataclasses.replace(sweep, overrides=[*sweep.overrides, *overrides])
    cfg = compose(sweep.config_name, sweep.config_dir, sweep.overrides)
    if "multi_run" in cfg:
        cfg.multi_run = sweep.config.multi_run  # of another ${now:} now
    return _write(_with_commands(sweep, cfg), cfg)


def _with_commands(sweep: Sweep, cfg: DictConfig) -> Sweep:
    """The sweep with the commands that follow from the rest of it."""
    tasks = [
        Task(f"train_{i}", seed, _command(sweep, cfg, i, seed))
        for i, seed in enumerate(sweep.seeds)
    ]
    return dataclasses.replace(sweep, tasks=tasks)


def _write(sweep: Sweep, cfg: DictConfig) -> Sweep:
    """Writes what the folder says about the sweep."""
    record = {**dataclasses.asdict(sweep), "folder": str(sweep.folder)}
    for task in sweep.tasks:
        sweep.run_dir(task.name).mkdir(exist_ok=True)
    config = OmegaConf.to_yaml(cfg, resolve=True).encode()
    atomic_write(sweep.folder / CONFIG_NAME, lambda file: file.write(config))
    atomic_write(
        sweep.folder / SWEEP_NAME, lambda file: file.write(json.dumps(record, indent=2).encode())
    )
    return sweep


def _command(sweep: Sweep, cfg: DictConfig, index: int, seed: int) -> list[str]:
    def own(key: str, value: str | int) -> str:
        parent, _, name = key.rpartition(".")
        is_there = name in (OmegaConf.select(cfg, parent) or {})
        return override(key if is_there else f"++{key}", value)

    seeds = [own("training.seed", seed)]
    # A real robot has no seeds; its task would refuse the override.
    if "test_start_seed" in (OmegaConf.select(cfg, "task.env_runner") or {}):
        seeds.append(own("task.env_runner.test_start_seed", (seed + 1) * 100_000))
    name = f"train_{index}"
    return [
        "python",
        "train.py",
        f"--config-name={sweep.config_name}",
        f"--config-dir={sweep.config_dir}",
        *current_policy().words,
        *sweep.overrides,
        *seeds,
        own("logging.name", f"{sweep.name_base}_{name}"),
        own("logging.id", f"{sweep.group}_{name}"),
        own("logging.group", sweep.group),
        override("hydra.run.dir", str(sweep.folder / name)),
    ]


def _run_dir(cfg: DictConfig) -> pathlib.Path:
    named = OmegaConf.select(cfg, "multi_run.run_dir")
    if named:
        return pathlib.Path(named)
    now, name = datetime.datetime.now(), cfg.get("name", "train")
    task = cfg.get("task_name") or OmegaConf.select(cfg, "task.name") or "task"
    return pathlib.Path(DATA_LINK, "outputs", f"{now:%Y.%m.%d}", f"{now:%H.%M.%S}_{name}_{task}")


def _locate(run_dir: pathlib.Path, data_src: pathlib.Path | None) -> pathlib.Path:
    """Absolute, so that it is the same folder here and in ray's copy of the repository."""
    if data_src is not None and run_dir.parts[:1] == (DATA_LINK,):
        return data_src / pathlib.Path(*run_dir.parts[1:])
    return REPOSITORY / run_dir


def _read_config(folder: pathlib.Path) -> DictConfig:
    try:
        cfg = load_yaml(folder / CONFIG_NAME)
    except ConfigError as error:
        raise ConfigError(f"the sweep's configuration has to be restored: {error}") from error
    for name in ("training", "logging", "multi_run"):
        if not isinstance(cfg._get_node(name), DictConfig | None):
            raise ConfigError(
                f"{folder / CONFIG_NAME} has a {name} that is no section of keys; restore the "
                "configuration of the sweep"
            )
    return cfg


def configuration_dir(config_dir: str | None) -> str | None:
    """``--config-dir`` as a run in any copy of the repository finds it: relative to the repository
    where it lies within, absolute elsewhere.
    """
    if config_dir is None:
        return None
    path = pathlib.Path(config_dir).absolute()
    if not path.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: there is no such folder")
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)
