"""The configuration inside a checkpoint: resolved, checked, and what may be built from it."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from diffusion_policy.common.errors import CheckpointError, ConfigError, DiffusionPolicyError
from diffusion_policy.config.interpolations import check_foreign
from diffusion_policy.config.resolvers import plain, resolve
from diffusion_policy.config.targets import (
    FOREIGN,
    TargetPolicy,
    check_targets,
    targets_allowed_by,
    with_targets_of,
)


@contextlib.contextmanager
def configuration_of(
    payload: dict[str, Any],
    source: str | pathlib.Path,
    overrides: Sequence[str] = (),
    trust: bool = False,
    allow: Sequence[str] = (),
) -> Iterator[DictConfig]:
    """The configuration of a checkpoint, resolved and changed; while this is open, it decides what
    may be built.

    Args:
        payload: see :func:`~diffusion_policy.common.checkpoint_file.load_payload`.
        source: the file, for messages.
        overrides: ``key=value``, the user's changes; what they name may be built.
        trust: whether the configuration may name anything.
        allow: classes, modules or packages that it may name beside the listed ones.

    Raises:
        CheckpointError: the configuration names, or would read, what it may not.
        ConfigError: it cannot be resolved.
    """
    cfg: DictConfig = payload["cfg"]
    # Hydra marks new keys with a plus; here every key may be new.
    changes = OmegaConf.from_dotlist([change.lstrip("+") for change in overrides])
    policy = replace(FOREIGN, names=tuple(allow), everything=trust)
    if not trust:
        _check_interpolations(cfg, source)
    resolve(cfg)
    if not trust:
        _check_targets(cfg, source, policy)
    with open_dict(cfg):
        cfg.merge_with(changes)
    resolve(cfg)
    policy = with_targets_of(policy, OmegaConf.to_container(changes, resolve=False))
    with targets_allowed_by(policy), _sentences(source):
        yield cfg


def _check_interpolations(cfg: DictConfig, source: str | pathlib.Path) -> None:
    try:
        check_foreign(cfg, source)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _check_targets(cfg: DictConfig, source: str | pathlib.Path, policy: TargetPolicy) -> None:
    """All at once, before anything is built: the first refusal then comes at the start."""
    with targets_allowed_by(policy):
        try:
            check_targets(plain(cfg), f"the configuration inside {source}")
        except ConfigError as error:
            raise CheckpointError(str(error)) from error


@contextlib.contextmanager
def _sentences(source: str | pathlib.Path) -> Iterator[None]:
    """What an odd configuration does to the constructors it names is the file's fault."""
    try:
        yield
    except DiffusionPolicyError:
        raise
    except Exception as e:  # a constructor may raise anything
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        raise CheckpointError(
            f"what the configuration inside {source} describes cannot be built or run "
            f"({type(e).__name__}: {' '.join(str(e).split())}); use the file as it was written, or "
            "override the value that is wrong (HYDRA_FULL_ERROR=1 shows the traceback)"
        ) from e
