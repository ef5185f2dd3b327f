"""The run directory, before Hydra makes it and writes its own files there."""

import contextlib
import pathlib
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.config.yaml_files import load_yaml
from diffusion_policy.workspace.command_line import errors_as_sentences
from diffusion_policy.workspace.run_lock import locked_run, make_run_directory


class CheckRunDirectory(Callback):
    """Ends the process with a sentence where a run cannot write, where another process trains, or
    where another run has trained.

    Hydra would end with a traceback in the one case. In the others it would replace what the
    directory says about its run (``.hydra/``) by the configuration of a job that is then refused.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        run_dir = pathlib.Path(config.hydra.run.dir)
        with errors_as_sentences(), locked_run(run_dir):
            recorded = run_dir / ".hydra" / "config.yaml"
            if recorded.is_file() and any(run_dir.glob("checkpoints/*")):
                _check_same_run(recorded, config)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with errors_as_sentences():
            make_run_directory(config.hydra.sweep.dir)


def _check_same_run(recorded: pathlib.Path, config: DictConfig) -> None:
    from diffusion_policy.workspace.resume import check_same_run  # imports torch

    saved = None
    with contextlib.suppress(ConfigError):  # damaged; what counts in the end is the checkpoint
        saved = load_yaml(recorded)
    if saved is not None:
        check_same_run(saved, config, recorded)
