"""What the command lines that train share: configuration in, exit code out."""

import argparse
import contextlib
import logging
import pathlib
import re
import shlex
import sys
import time
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

import diffusion_policy.config
from diffusion_policy.common import interrupts
from diffusion_policy.common.errors import ConfigError, DiffusionPolicyError, shorten
from diffusion_policy.config.checks import check_num_processes
from diffusion_policy.config.hydra_node import check_config_files
from diffusion_policy.config.job import job_arguments
from diffusion_policy.config.override import (
    check_current_folder,
    check_overrides,
    is_override_of,
    override,
    with_overrides,
)
from diffusion_policy.config.resolvers import plain, resolve
from diffusion_policy.config.targets import (
    allow_targets,
    check_names,
    check_targets,
    current_policy,
    locate,
)
from diffusion_policy.workspace.launch import (
    is_launched_by_us,
    launch,
    process_count,
    process_index,
)
from diffusion_policy.workspace.signs_of_life import patience_of

logger = logging.getLogger(__name__)

CONFIG_DIR = pathlib.Path(diffusion_policy.config.__file__).parent

# Options that configurations, composed or published, do not have: their trees stay those that were
# published.
OPTIONS = {
    "training.num_processes": "N processes share every batch, one per GPU; same losses  [1]",
    "training.mixed_precision": "bf16: networks train in bfloat16  [no]",
    "training.max_grad_norm": "gradients are clipped to this norm  [no clipping]",
    "training.process_timeout_s": "seconds that processes wait for one of them; null: ever  [3600]",
    "task.env_runner.worker_timeout_s": "the same of workers with environments  [3600]",
    "logging.tensorboard": "True: write tensorboard/ as well  [False]",
}
_OPTION = re.compile("(" + "|".join(map(re.escape, OPTIONS)) + ")=")
_JOB_NAME, _RUN_DIR = "hydra.job.name", "hydra.run.dir"
_CALLBACK = "hydra.callbacks.run_directory._target_"
SAME_MISTAKE_S = 3.0
MOST_OF_A_SENTENCE = 20_000  # with the traceback of a worker process below it


@contextlib.contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Ends the process with one sentence on stderr, and exit code 1, where a user can mend the
    cause; with one word and exit code 130 after Ctrl-C.
    """
    try:
        with interrupts.raise_once():
            yield
    except KeyboardInterrupt:
        interrupts.tell()
        sys.exit(interrupts.EXIT_INTERRUPTED)
    except DiffusionPolicyError as error:
        sentence = shorten(str(error), MOST_OF_A_SENTENCE)
        if index := process_index():
            # Usually process 0 meets the same mistake and says so; its end then is ours.
            time.sleep(SAME_MISTAKE_S)
            sys.stderr.write(f"error (process {index} of {process_count()}): {sentence}\n")
        else:
            sys.stderr.write(f"error: {sentence}\n")
        sys.exit(1)


def complete_overrides(overrides: list[str]) -> list[str]:
    """Overrides as Hydra wants them: one of :data:`OPTIONS` is added where it is missing."""
    return [f"++{text}" if _OPTION.match(text) else text for text in overrides]


def run_hydra(config_name: str | None = None) -> None:
    """Trains as ``sys.argv`` says.

    Args:
        config_name: used without ``--config-name``.
    """
    if process_index() > 0:
        follow()
        return
    import hydra

    from diffusion_policy.workspace.hydra_sweep import command_of_sweep

    given = list(sys.argv)
    with errors_as_sentences(), command_of_sweep(given):
        check_current_folder()
        arguments = complete_overrides(take_target_options(given[1:]))
        check_overrides(arguments)
        _check_files(arguments, config_name)
        sys.argv[1:] = _with_ours(arguments, pathlib.Path(given[0]).stem)
        main = hydra.main(version_base=None, config_path=str(CONFIG_DIR), config_name=config_name)
        main(train)()


def take_target_options(arguments: list[str]) -> list[str]:
    """Heeds ``--trust-config`` and ``--allow=NAME``, for this process and those that it starts.

    Returns:
        The other arguments, which are Hydra's.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--trust-config", action="store_true")
    parser.add_argument("--allow", action="append", default=[])
    try:
        options, others = parser.parse_known_args(arguments)
    except argparse.ArgumentError:  # nothing follows --allow
        check_names([""])
        raise
    allow_targets(options.allow, options.trust_config)
    return others


def _check_files(arguments: list[str], config_name: str | None) -> None:
    """Looks at what files of ``--config-dir`` say to Hydra, before Hydra reads them."""
    from hydra._internal.utils import get_args_parser

    given = get_args_parser().parse_known_args(arguments)[0]
    folder, name = given.config_dir or given.config_path, given.config_name or config_name
    if folder is not None and name is not None:
        check_config_files(name, folder, given.overrides, is_sweep=given.multirun)


def _ours(name: str) -> dict[str, str]:
    """Overrides of Hydra's own configuration that every command line gets, by key."""
    return {
        # The job, and its log file, have the name of the script; Hydra's would be this module's.
        _JOB_NAME: override(_JOB_NAME, name),
        # Hydra asks for the run directory before it makes it, or writes into it.
        _CALLBACK: override(
            f"++{_CALLBACK}", "diffusion_policy.workspace.run_directory.CheckRunDirectory"
        ),
    }


def _with_ours(arguments: list[str], name: str) -> list[str]:
    missing = [
        text
        for key, text in _ours(name).items()
        if not any(is_override_of(key, argument) for argument in arguments)
    ]
    return with_overrides(arguments, missing)


def train(cfg: DictConfig) -> None:
    """Builds the workspace that ``cfg._target_`` names and runs it: a job of Hydra.

    With ``training.num_processes`` the same job is started in so many processes.
    """
    from hydra.core.hydra_config import HydraConfig

    from diffusion_policy.workspace.hydra_sweep import is_job_of_sweep, job_of_sweep

    job = HydraConfig.get()
    if is_job_of_sweep(job):
        with job_of_sweep(job):
            _run_or_launch(cfg, job)
    else:
        with errors_as_sentences(), _hint_when_interrupted(job.runtime.output_dir):
            _run_or_launch(cfg, job)


def _run_or_launch(cfg: DictConfig, job: Any) -> None:
    # Resolved once and for all: every ${now:} then means the same moment.
    resolve(cfg)
    if "_target_" not in cfg:
        raise ConfigError("the configuration has no _target_, the workspace class to run")
    check_targets(plain(cfg))  # all of them, before anything is built
    output_dir = job.runtime.output_dir
    n_processes = check_num_processes(cfg) or process_count()
    if n_processes == process_count():
        _run(cfg, output_dir)
    elif process_count() == 1:
        hydra: Any = OmegaConf.to_container(job)
        arguments = job_arguments(hydra, hydra["overrides"]["task"])
        arguments += [override(_RUN_DIR, output_dir), override(_JOB_NAME, job.job.name)]
        sys.exit(launch(n_processes, arguments, patience_of(cfg.training)))
    else:
        raise ConfigError(
            f"training.num_processes is {n_processes}, but {process_count()} processes were "
            "launched; leave one of the two to the other"
        )


def follow() -> None:
    """Trains as process 0 of the run says: without Hydra, which would make folders and files."""
    with errors_as_sentences(), _hint_when_interrupted(None):
        _run(None, None)


def _run(cfg: Any, output_dir: str | None) -> None:
    """Trains in this process; both arguments come from process 0."""
    if process_count() == 1:
        if "process_timeout_s" in (cfg.get("training") or {}):
            logger.warning("training.process_timeout_s changes nothing in a run of one process")
        _workspace_class(cfg)(cfg).run()
        return
    from diffusion_policy.workspace.processes import be_patient, connected

    with connected() as exchange:
        cfg, output_dir = exchange((cfg, output_dir))
        be_patient(cfg.training)
        own = {"output_dir": output_dir} if process_index() else {}  # process 0 has Hydra's
        _workspace_class(cfg)(cfg, **own).run()


def _workspace_class(cfg: DictConfig) -> Any:
    from diffusion_policy.workspace.base_workspace import BaseWorkspace

    kind = locate(cfg._target_)
    if not (isinstance(kind, type) and issubclass(kind, BaseWorkspace)):
        raise ConfigError(f"_target_ is {cfg._target_}; expected a workspace, which trains")
    return kind


@contextlib.contextmanager
def _hint_when_interrupted(output_dir: str | None) -> Iterator[None]:
    """Exit code 130, and from process 0 how the run goes on, unless its launcher says so."""
    try:
        yield
    except KeyboardInterrupt:
        if output_dir is not None and not is_launched_by_us():
            interrupts.tell(f"; {_how_to_continue(output_dir)}")
        sys.exit(interrupts.EXIT_INTERRUPTED)


def _how_to_continue(output_dir: str) -> str:
    try:
        run_dir = override(_RUN_DIR, output_dir)
    except ConfigError:  # bytes that are no text: nothing that is printed could be pasted
        return f"the same command with {_RUN_DIR} at {output_dir!r} continues"
    if process_count() > 1:
        return f"the same command with {shlex.quote(run_dir)} continues"
    script, *arguments = sys.argv
    ours = _ours(pathlib.Path(script).stem).values()
    given = [a for a in arguments if not (a in ours or is_override_of(_RUN_DIR, a))]
    words = [*with_overrides(given, [run_dir]), *current_policy().words]
    command = shlex.join(["python", script, *words])
    return f"this continues the run: {command}"


def run_as_script(module_file: str) -> None:
    """Trains with the configuration named like a workspace module (``python <module file> key=value
    ...``).
    """
    run_hydra(config_name=pathlib.Path(module_file).stem)
