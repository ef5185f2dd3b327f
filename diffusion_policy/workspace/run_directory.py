"""The run directory, before Hydra makes it and writes its own files there."""

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from diffusion_policy.workspace.command_line import errors_as_sentences
from diffusion_policy.workspace.run_lock import locked_run, make_run_directory


class CheckRunDirectory(Callback):
    """Ends the process with a sentence where a run cannot write, or where another process trains.

    Hydra would end with a traceback in the one case, and in the other replace what the directory
    says about its run (``.hydra/``) by the configuration of a job that is then refused.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        with errors_as_sentences(), locked_run(config.hydra.run.dir):
            pass

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with errors_as_sentences():
            make_run_directory(config.hydra.sweep.dir)
