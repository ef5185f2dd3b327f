"""From a checkpoint file to scores: what ``eval.py`` calls."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from diffusion_policy.common.checkpoint_file import load_payload
from diffusion_policy.common.checkpoint_util import atomic_write
from diffusion_policy.common.device import resolve_device
from diffusion_policy.common.errors import CheckpointError, ConfigError
from diffusion_policy.common.media import VideoFile
from diffusion_policy.config.instantiate import instantiate
from diffusion_policy.config.targets import locate
from diffusion_policy.env_runner.base_runner import BaseRunner
from diffusion_policy.workspace.base_workspace import BaseWorkspace
from diffusion_policy.workspace.checkpoint_config import configuration_of

# Rows per policy call in deterministic mode: small enough that one environment does not waste much.
DETERMINISTIC_BATCH_SIZE = 8


def prepare_output_dir(
    output_dir: str | pathlib.Path, ask: Callable[..., Any] | None = None
) -> None:
    """Makes the output directory; if it exists already, ``ask(question, abort=True)`` decides."""
    output_dir = pathlib.Path(output_dir)
    if output_dir.exists() and ask is not None:
        ask(f"{output_dir} already exists. Overwrite its results?", abort=True)
    output_dir.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def open_workspace(
    checkpoint: str | pathlib.Path,
    output_dir: str | pathlib.Path,
    overrides: Sequence[str] = (),
    trust: bool = False,
    allow: Sequence[str] = (),
) -> Iterator[BaseWorkspace]:
    """The workspace inside a checkpoint, in the state it was saved in; while this is open, the
    checkpoint's configuration decides what may be built.

    Args:
        overrides: ``key=value`` changes of the saved configuration.
        trust: let the file run code, and let its configuration name anything.
        allow: classes, modules or packages that its configuration may name.

    Raises:
        CheckpointError: the file is missing, damaged or not safe, or does not fit its own
            configuration.
    """
    payload = load_payload(checkpoint, trust=trust)
    with configuration_of(payload, checkpoint, overrides, trust, allow) as cfg:
        kind = locate(cfg.get("_target_"))
        if not (isinstance(kind, type) and issubclass(kind, BaseWorkspace)):
            raise CheckpointError(
                f"the configuration inside {checkpoint} names {cfg._target_} at the top, which is "
                "not a workspace; is this a checkpoint of a training?"
            )
        workspace = kind(cfg, output_dir=str(output_dir))
        workspace.load_payload(payload, trust=trust)
        yield workspace


def evaluate(
    checkpoint: str | pathlib.Path,
    output_dir: str | pathlib.Path,
    device: str = "auto",
    overrides: Sequence[str] | None = None,
    deterministic: bool = False,
    trust: bool = False,
    allow: Sequence[str] = (),
) -> dict[str, Any]:
    """Rolls a checkpoint's policy out and writes ``<output_dir>/eval_log.json``.

    Args:
        deterministic: run the policy on batches of one fixed shape, so that the result is the same
            for any number of environments at a time.
        overrides, trust, allow: see :func:`open_workspace`.

    Returns:
        The content of the file: metrics, and paths of videos.
    """
    options = {"policy_batch_size": DETERMINISTIC_BATCH_SIZE} if deterministic else {}
    with open_workspace(checkpoint, output_dir, overrides or (), trust, allow) as workspace:
        policy: Any = workspace.get_eval_policy()
        policy.to(resolve_device(device))
        policy.eval()
        runner = instantiate(workspace.cfg.task.env_runner, output_dir=str(output_dir), **options)
        if not isinstance(runner, BaseRunner):
            raise CheckpointError(
                f"task.env_runner inside {checkpoint} is a {type(runner).__name__}, not a runner"
            )
        with contextlib.closing(runner):
            result = runner.run(policy)
    log = {key: _plain(key, value) for key, value in result.items()}
    text = json.dumps(log, indent=2, sort_keys=True)
    atomic_write(pathlib.Path(output_dir) / "eval_log.json", lambda file: file.write(text.encode()))
    return log


def _plain(key: str, value: Any) -> Any:
    """A runner's value as JSON has it: numbers of any kind, paths of videos."""
    if isinstance(value, VideoFile):
        return value.path
    if hasattr(value, "item"):  # numpy and torch scalars
        return value.item()
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    raise ConfigError(f"the env_runner returned {key} as {type(value).__name__}; expected a number")
