"""Continuing a run: which checkpoint continues it, what is compared, what is restored.

A run that is killed at any instant continues from a checkpoint. On a CPU it then ends bit-identical
to a run that was never killed: beside the weights, the optimizer and the counters a checkpoint has
``resume_state``, all else that a training step leaves behind (:func:`capture`), in plain Python
values. The original implementation finds it under a name that it does not look at. Each entry is
optional when reading, because older checkpoints lack some.
"""

import logging
import os
import pathlib
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from diffusion_policy.common.checkpoint_file import load_payload
from diffusion_policy.common.errors import CheckpointError, ConfigError, DiffusionPolicyError
from diffusion_policy.common.safe_pickle import safe_loads
from diffusion_policy.workspace.processes import exchange
from diffusion_policy.workspace.rng import get_rng_state, set_rng_state

logger = logging.getLogger(__name__)

# ---- which checkpoint ----------------------------------------------------------------------------


def load_last_checkpoint(workspace: Any) -> pathlib.Path | None:
    """Loads the checkpoint that the run directory offers; process 0 chooses for all processes.

    Returns:
        The file that training continues from; None for a run that begins.

    Raises:
        ConfigError: what is there belongs to another run, or ``training.resume`` is False.
        CheckpointError: what is there cannot be continued from.
    """
    path = exchange(find_checkpoint(workspace) if workspace.processes.is_main else None)
    if path is None:
        return None
    workspace.processes.check_agreement(
        f"whether {path} exists", path.is_file(), "all processes need the same run directory"
    )
    payload = load_payload(path)
    check_same_run(payload["cfg"], workspace.cfg, path)
    workspace.load_payload(payload)
    check_state(workspace.resume_state, path)
    # Checkpoints are written when an epoch is complete, before the counters move on.
    workspace.epoch += 1
    workspace.global_step += 1
    where = (path, workspace.epoch, workspace.global_step)
    logger.info("Resuming from %s at epoch %d, step %d", *where)
    return path


def find_checkpoint(workspace: Any) -> pathlib.Path | None:
    """``latest.ckpt``; where it is missing, the newest other one that is complete; None where there
    is none at all.

    Raises:
        ConfigError: there is one, but ``training.resume`` is False.
        CheckpointError: there are some, but none to continue from.
    """
    latest = workspace.get_checkpoint_path()
    try:
        _check_place(latest)
        others = _other_checkpoints(latest, workspace.cfg.checkpoint.topk.format_str)
        found = [latest] if os.path.lexists(latest) else others
    except OSError as error:
        raise CheckpointError(
            f"{latest.parent} cannot be read ({error.strerror}); make it readable, or choose "
            "another hydra.run.dir"
        ) from error
    if not found:
        return None
    if not workspace.cfg.training.resume:
        raise ConfigError(
            f"{workspace.output_dir} already holds a run ({found[0].name}) and training.resume is "
            "False; set training.resume=True to continue it, or choose another hydra.run.dir"
        )
    return latest if found == [latest] else _newest_complete(others, latest)


def _check_place(latest: pathlib.Path) -> None:
    """A run whose checkpoints are out of reach must not begin anew."""
    for path in (latest.parent, latest):
        if path.is_symlink() and not path.exists():
            raise CheckpointError(
                f"{path} is a link to {os.readlink(path)}, which does not exist; bring that back, "
                "or remove the link"
            )
    if latest.parent.exists() and not latest.parent.is_dir():
        raise CheckpointError(
            f"{latest.parent} is a file, but the folder of the checkpoints should be there; move "
            "it away, or choose another hydra.run.dir"
        )


def _other_checkpoints(latest: pathlib.Path, format_str: str) -> list[pathlib.Path]:
    suffixes = {latest.suffix, pathlib.Path(format_str).suffix or latest.suffix}
    paths = sorted(latest.parent.iterdir()) if latest.parent.is_dir() else []
    visible = [path for path in paths if not path.name.startswith(".") and path != latest]
    return [path for path in visible if path.suffix in suffixes]


def _newest_complete(paths: list[pathlib.Path], latest: pathlib.Path) -> pathlib.Path:
    """Newest by its step: dates do not survive every copy of a folder."""
    steps: dict[pathlib.Path, int] = {}
    for path in paths:
        try:
            steps[path] = _step_of(path)
        except CheckpointError as error:
            logger.warning("Not continued from: %s", error)
    if not steps:
        raise CheckpointError(
            f"{latest.parent} holds no {latest.name}, and none of its other checkpoints "
            f"({', '.join(path.name for path in paths)}) can continue the run; rename one to "
            f"{latest.name} to train on from its weights, or choose another hydra.run.dir"
        )
    newest = max(steps, key=steps.__getitem__)
    logger.warning("There is no %s: the newest checkpoint is %s", latest.name, newest.name)
    return newest


def _step_of(path: pathlib.Path) -> int:
    pickles = load_payload(path)["pickles"]
    step, state = (
        safe_loads(pickles[name], source=f"{name} of {path}") if name in pickles else None
        for name in ("global_step", "resume_state")
    )
    if not isinstance(step, int) or not isinstance(state, dict) or not state.keys() >= COMPLETE:
        raise CheckpointError(f"{path} does not say how its run goes on")
    return step


# ---- what is compared ----------------------------------------------------------------------------


def _itself(value: Any) -> Any:
    return value


def _file_name(value: Any) -> str:
    """Data may be moved to another folder."""
    return pathlib.PurePath(str(value)).name


# Continued with another one of these, a run would be two experiments in one folder, and the second
# would look finished when the first is.
IDENTITY: dict[str, Callable[[Any], Any]] = {
    "_target_": _itself,
    "policy._target_": _itself,
    "task.name": _itself,
    "task.dataset._target_": _itself,
    "task.dataset.zarr_path": _file_name,
    "task.dataset.dataset_path": _file_name,
    "training.seed": _itself,
    "training.use_ema": _itself,
}


def check_same_run(saved: DictConfig, cfg: DictConfig, path: pathlib.Path) -> None:
    """Compares what makes a run this run, as far as both configurations say it.

    Args:
        saved: the configuration in the checkpoint. cfg: that of the run that is to continue it.

    Raises:
        ConfigError: they are different experiments.
    """
    for key, comparable in IDENTITY.items():
        theirs, ours = (_written(key, c) for c in (saved, cfg))
        if None not in (theirs, ours) and comparable(theirs) != comparable(ours):
            raise ConfigError(
                f"{path.parent.parent} holds another run: {key} is {theirs} in {path.name}, but "
                f"{ours} here; choose another hydra.run.dir, or continue that run with "
                f"{key}={theirs}"
            )


def _written(key: str, cfg: DictConfig) -> Any:
    """A value as it is written; None where there is none, or where it has to be looked up."""
    value: Any = OmegaConf.to_container(cfg, resolve=False)
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return None if isinstance(value, str) and "${" in value else value


# ---- what is restored ----------------------------------------------------------------------------

_STATE: dict[str, type | tuple[type, ...]] = {
    "log_bytes": int,
    "rng": dict,
    "optimizer_steps": int,
    "ema_steps": (int, type(None)),
    "sampling_indices": (list, type(None)),
    "topk": dict,
    "gradients": dict,
    "workers": list,
}
# What a run cannot go on without as if it had never been killed.
COMPLETE = {"log_bytes", "rng", "optimizer_steps", "topk"}
LOADERS = ("train_loader", "val_loader")


def capture(workspace: Any) -> dict[str, Any]:
    """What an epoch leaves behind beside weights, optimizer and counters, in plain values."""
    return {
        "log_bytes": workspace.run_logger.sync(),
        "rng": get_rng_state(),
        "optimizer_steps": workspace.lr_scheduler.last_epoch,
        "ema_steps": workspace.ema.optimization_step if workspace.ema is not None else None,
        "sampling_indices": workspace.sampling_indices,
        "topk": workspace.topk.state_dict(),
        "gradients": {k: _to_bytes(v) for k, v in workspace.pending_gradients().items()},
        "workers": [name for name in LOADERS if _has_workers(getattr(workspace, name))],
    }


def check_state(state: dict[str, Any], path: pathlib.Path) -> None:
    """Checks the ``resume_state`` that was read from a checkpoint.

    Raises:
        CheckpointError: it is not what :func:`capture` returns.
    """
    odd = [key for key, kind in _STATE.items() if key in state and not isinstance(state[key], kind)]
    if odd:
        raise CheckpointError(
            f"checkpoint {path} has an odd {' and '.join(odd)} in its resume_state: it was not "
            "written by a training; use another checkpoint, or another hydra.run.dir"
        )


def optimizer_steps(workspace: Any) -> int:
    """How often the optimizer has stepped; counted for checkpoints of the original, which do not
    say so.
    """
    steps = [int(s["step"]) for s in workspace.optimizer.state.values() if "step" in s]
    accumulate = workspace.cfg.training.get("gradient_accumulate_every", 1)
    counted = max(steps, default=workspace.global_step // accumulate)
    return workspace.resume_state.get("optimizer_steps", counted)


def restore(workspace: Any) -> None:
    """Last act of the set-up, which may itself have drawn random numbers.

    Raises:
        CheckpointError: the checkpoint does not fit, or the folder of checkpoints is not writable.
    """
    path, state = workspace.continued_from, workspace.resume_state
    try:
        if indices := state.get("sampling_indices"):
            workspace.keep_sampling_batch(indices)
        if path is not None and workspace.processes.is_main:
            workspace.topk.load_state_dict(state.get("topk", {}))
            workspace.topk.finish_commit(path)
        _restore_gradients(workspace)
        _start_workers(workspace)
        if "rng" in state:
            set_rng_state(state["rng"])
    except DiffusionPolicyError:
        raise
    except Exception as error:  # of whatever is built from odd values
        raise CheckpointError(
            f"what checkpoint {path} says about the running epoch does not fit this run "
            f"({type(error).__name__}: {error}); use the configuration it was made with, or "
            "another hydra.run.dir"
        ) from error


def _restore_gradients(workspace: Any) -> None:
    """Every process gets them all: they are means over the processes."""
    state, training = workspace.resume_state, workspace.cfg.training
    if state and "gradients" not in state and training.get("gradient_accumulate_every", 1) > 1:
        logger.warning(
            "The checkpoint is of a version that did not save the gradients which wait for their "
            "update: the next update is made without them"
        )
    parameters = dict(workspace.model.named_parameters())
    for name, data in state.pop("gradients", {}).items():  # as large as the weights: not kept
        parameters[name].grad = _like(data, parameters[name])


def _start_workers(workspace: Any) -> None:
    """Workers that live on draw no random number when the next epoch begins; new ones would."""
    for name in set(LOADERS).intersection(workspace.resume_state.get("workers", [])):
        if (loader := getattr(workspace, name)).persistent_workers:
            iter(loader)


def _to_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _like(data: bytes, parameter: torch.Tensor) -> torch.Tensor:
    values = torch.frombuffer(bytearray(data), dtype=parameter.dtype)
    return values.reshape(parameter.shape).to(parameter.device)


def _has_workers(loader: Any) -> bool:
    """Whether workers that outlive an epoch have been started."""
    return loader.persistent_workers and loader._iterator is not None
