"""torchvision, also beside a build of torch that its wheel was not compiled for."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_NOT_COMPILED_FOR_THIS_TORCH = "operator torchvision::nms does not exist"
_libraries: "list[torch.library.Library]" = []  # a declaration lives as long as its Library


def import_torchvision() -> ModuleType:
    """``import torchvision`` that also works beside a CPU-only torch.

    The wheel of torchvision then cannot load its compiled operators, and its import fails at the
    first mention of one. Nothing of ours uses them (they select bounding boxes), so it is enough
    that they are declared. With a matching build this is a plain import.

    An object of a torchvision class can be unpickled once this has been called in the process.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: torchvision is broken in some other way.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if _NOT_COMPILED_FOR_THIS_TORCH not in str(error):
            raise
        _declare_operators()
        _forget_half_imported_modules()
        import torchvision
    return torchvision


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)


def _forget_half_imported_modules() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
