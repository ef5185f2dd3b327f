"""Image networks by name, with or without published weights."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import hub, nn

from diffusion_policy.common.errors import ConfigError, DiffusionPolicyError
from diffusion_policy.common.torchvision_util import import_torchvision


def get_resnet(name: str, weights: Any = None, **kwargs: Any) -> nn.Module:
    """A ResNet of torchvision that ends in its pooled features.

    Args:
        name: ``resnet18``, ``resnet34``, ``resnet50`` or any other of torchvision.
        weights: None for random ones, an identifier of torchvision (``IMAGENET1K_V1``,
            ``DEFAULT``), downloaded once into torch's cache, or ``r3m``, see :func:`get_r3m`.
        kwargs: further arguments of torchvision's constructor.

    Returns:
        (N, 3, H, W) to (N, 512) features; 2048 for ResNet-50 and larger.

    Raises:
        ConfigError: unknown name or weights.
        DiffusionPolicyError: the weights cannot be downloaded.
    """
    if isinstance(weights, str) and weights.lower() == "r3m":
        return get_r3m(name, **kwargs)
    models = import_torchvision().models
    known = models.list_models(module=models, include=["*resn*"])
    if name not in known:
        raise ConfigError(f"rgb_model.name is {name!r}; expected one of {', '.join(known)}")
    if isinstance(weights, str):
        weights = _find_weights(models, name, weights)
    try:
        resnet = models.get_model(name, weights=weights, **kwargs)
    except (OSError, RuntimeError) as error:
        if weights is None:
            raise
        raise DiffusionPolicyError(_how_to_get(weights, error)) from error
    resnet.fc = nn.Identity()
    return resnet


def get_r3m(name: str, **kwargs: Any) -> nn.Module:
    """A ResNet with R3M weights, on the CPU: Nair et al. 2022, "R3M: A Universal Visual
    Representation for Robot Manipulation".

    Args:
        name: ``resnet18``, ``resnet34`` or ``resnet50``.
        kwargs: further arguments of ``r3m.load_r3m``.

    Raises:
        DiffusionPolicyError: the package r3m is not installed, or its weights cannot be had.
    """
    import_torchvision()  # r3m imports it too, without our remedy
    try:
        r3m: Any = importlib.import_module("r3m")
    except ImportError as error:
        raise DiffusionPolicyError(
            f"weights: r3m needs the package r3m, which cannot be imported ({error}); install it "
            "with `pip install git+https://github.com/facebookresearch/r3m`, or choose weights: "
            "IMAGENET1K_V1 or null"
        ) from error
    r3m.device = "cpu"  # the package moves its network there while loading
    try:
        network = r3m.load_r3m(name, **kwargs)
    except Exception as error:  # whatever its download helper raises
        raise DiffusionPolicyError(
            f"the R3M weights of {name!r} could not be loaded ({type(error).__name__}: {error}); "
            "the names are resnet18, resnet34 and resnet50, and the first use needs the internet"
        ) from error
    return network.module.convnet.to("cpu")


def _find_weights(models: ModuleType, name: str, identifier: str) -> Any:
    """``IMAGENET1K_V1`` or ``ResNet18_Weights.IMAGENET1K_V1`` as torchvision's enum member."""
    known = models.get_model_weights(name)
    member = identifier.removeprefix(f"{known.__name__}.")
    if member not in known.__members__:
        raise ConfigError(
            f"rgb_model.weights is {identifier!r}; expected null, r3m or, for {name}, one of "
            f"{', '.join(known.__members__)}"
        )
    return known[member]


def _how_to_get(weights: Any, error: Exception) -> str:
    folder = Path(hub.get_dir()) / "checkpoints"
    return (
        f"the weights {weights} could not be loaded ({error}); put the file {weights.url} into "
        f"{folder}, or choose weights: null to start from random ones"
    )
