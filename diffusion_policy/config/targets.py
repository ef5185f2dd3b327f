"""Which classes a configuration that came out of a checkpoint may name.

``_target_: os.system`` in a saved configuration would run code as surely as a malicious pickle.
Without the user's word (``--trust-checkpoint``), a target must be a class or function that this
project or one of the named libraries *defines* — not merely one that can be reached through it
(``diffusion_policy.x.os.system``).
"""

import importlib
import inspect
import pathlib
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from diffusion_policy.common.errors import CheckpointError

# Packages whose classes only build networks, data sets, runners and the like.
SAFE_CLASSES = (
    "diffusion_policy.workspace",
    "diffusion_policy.policy",
    "diffusion_policy.model",
    "diffusion_policy.dataset",
    "diffusion_policy.env_runner",
    "diffusers.schedulers",
    "torch.optim",
    "torch.nn.modules",
)
# Packages whose functions build networks (model.vision.model_getter.get_resnet).
SAFE_FUNCTIONS = ("diffusion_policy.model",)


def check_targets(cfg: DictConfig, source: str | pathlib.Path) -> None:
    """Refuses a resolved configuration that names anything outside of the safe packages.

    Raises:
        CheckpointError: names the first such target and where it stands.
    """
    container = OmegaConf.to_container(cfg, resolve=True)
    for path, target in _targets(container):
        if not _is_safe(target):
            raise CheckpointError(
                f"the configuration inside {source} names {target!r} (at {path or 'the top'}), "
                "which is not a "
                "class of this project; if you trust the file, pass --trust-checkpoint"
            )


def _targets(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict | DictConfig):
        for key, value in node.items():
            if key == "_target_":
                yield path, str(value)
            yield from _targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | ListConfig):
        for i, value in enumerate(node):
            yield from _targets(value, f"{path}[{i}]")


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def _is_safe(target: str) -> bool:
    module_name, _, name = target.rpartition(".")
    if not _within(module_name, (*SAFE_CLASSES, "torch.nn")):
        return False
    try:
        # A method (``package.Class.method``) is refused here: its class is not a module.
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError):
        return False
    if inspect.isclass(found):
        return _within(found.__module__, SAFE_CLASSES)
    return inspect.isfunction(found) and _within(found.__module__, SAFE_FUNCTIONS)
