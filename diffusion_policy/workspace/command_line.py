"""What the command lines that train share: configuration in, exit code out."""

import contextlib
import pathlib
import shlex
import sys
from collections.abc import Iterator

from omegaconf import DictConfig

import diffusion_policy.config
from diffusion_policy.common.errors import ConfigError, DiffusionPolicyError
from diffusion_policy.config.resolvers import resolve

CONFIG_DIR = pathlib.Path(diffusion_policy.config.__file__).parent


@contextlib.contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Ends the process with one sentence on stderr, and exit code 1, where a user can mend the
    cause.
    """
    try:
        yield
    except DiffusionPolicyError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)


def train(cfg: DictConfig) -> None:
    """Builds the workspace that ``cfg._target_`` names and runs it."""
    import hydra

    with errors_as_sentences():
        # Resolved once and for all: every ${now:} then means the same moment.
        resolve(cfg)
        if "_target_" not in cfg:
            raise ConfigError("the configuration has no _target_, the workspace class to run")
        workspace = hydra.utils.get_class(cfg._target_)(cfg)
        try:
            workspace.run()
        except KeyboardInterrupt:
            command = shlex.join([*sys.argv, f"hydra.run.dir={workspace.output_dir}"])
            sys.stderr.write(f"\ninterrupted; this continues the run: python {command}\n")
            sys.exit(130)


def run_as_script(module_file: str) -> None:
    """Trains with the configuration named like a workspace module (``python <module file> key=value
    ...``).
    """
    import hydra

    name = pathlib.Path(module_file).stem
    hydra.main(version_base=None, config_path=str(CONFIG_DIR), config_name=name)(train)()
