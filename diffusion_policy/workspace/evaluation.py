"""From a checkpoint file to scores: what ``eval.py`` calls."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf, open_dict

from diffusion_policy.common.checkpoint_file import load_payload
from diffusion_policy.common.checkpoint_util import atomic_write
from diffusion_policy.common.device import resolve_device
from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.media import VideoFile
from diffusion_policy.config.instantiate import instantiate
from diffusion_policy.config.resolvers import resolve
from diffusion_policy.config.targets import check_targets
from diffusion_policy.workspace.base_workspace import BaseWorkspace

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


def load_workspace(
    checkpoint: str | pathlib.Path,
    output_dir: str | pathlib.Path,
    overrides: list[str] | None = None,
    trust: bool = False,
) -> BaseWorkspace:
    """The workspace inside a checkpoint, in the state it was saved in.

    Args:
        overrides: ``key=value`` changes of the saved configuration.
        trust: let the file run code, and let its configuration name classes of any package.

    Raises:
        CheckpointError: the file is missing, damaged or not safe.
    """
    payload = load_payload(checkpoint, trust=trust)
    cfg: DictConfig = payload["cfg"]
    resolve(cfg)  # before the check: an interpolation can hide a target
    if not trust:
        check_targets(cfg, source=checkpoint)
    with open_dict(cfg):
        # Hydra marks new keys with a plus; here every key may be new.
        changes = [change.lstrip("+") for change in overrides or []]
        cfg.merge_with(OmegaConf.from_dotlist(changes))
    workspace = hydra.utils.get_class(cfg._target_)(cfg, output_dir=str(output_dir))
    workspace.load_payload(payload, trust=trust)
    return workspace


def evaluate(
    checkpoint: str | pathlib.Path,
    output_dir: str | pathlib.Path,
    device: str = "auto",
    overrides: list[str] | None = None,
    deterministic: bool = False,
    trust: bool = False,
) -> dict[str, Any]:
    """Rolls a checkpoint's policy out and writes ``<output_dir>/eval_log.json``.

    Args:
        deterministic: run the policy on batches of one fixed shape, so that the result is the same
            for any number of environments at a time.

    Returns:
        The content of the file: metrics, and paths of videos.
    """
    workspace = load_workspace(checkpoint, output_dir, overrides, trust)
    policy: Any = workspace.get_eval_policy()
    policy.to(resolve_device(device))
    policy.eval()
    options = {"policy_batch_size": DETERMINISTIC_BATCH_SIZE} if deterministic else {}
    runner = instantiate(workspace.cfg.task.env_runner, output_dir=str(output_dir), **options)
    try:
        result = runner.run(policy)
    finally:
        runner.close()
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
