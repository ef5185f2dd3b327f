"""Groups and arrays of a zarr store that was opened: names, listings, codecs."""

import pathlib
import warnings
import zipfile
from typing import Any

import zarr
from numcodecs.abc import Codec
from zarr.errors import ZarrUserWarning

from diffusion_policy.common.errors import DataError

#: What zarr and the codecs raise when a store is truncated, corrupt, or needs an unknown codec.
UNREADABLE = (
    ValueError,
    RuntimeError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    OSError,
    zipfile.BadZipFile,
)


def store_name(node: zarr.Group | zarr.Array) -> str:
    """Where a group or array lives, as a person would name it: a path, or ``memory``."""
    store = node.store_path.store
    root = getattr(store, "root", None) or getattr(store, "path", None)
    if not isinstance(root, (str, pathlib.Path)):
        return "memory"
    return str(pathlib.Path(root, node.store_path.path))


def arrays_of(root: zarr.Group, group: str) -> dict[str, zarr.Array]:
    """The arrays of ``data`` or ``meta``.

    Raises:
        DataError: when the group is missing, or the description of an array is damaged.
    """
    if group not in root:
        raise DataError(
            f"{store_name(root)} holds no replay buffer: the group {group!r} is missing; check the "
            f"path or get the data set again"
        )
    return arrays_in(root[group])


def arrays_in(group: Any) -> dict[str, Any]:
    """The arrays of a zarr group (by name; sub-groups are skipped) or of a dict.

    Raises:
        DataError: when the description of an array is damaged.
    """
    if isinstance(group, dict):
        return group
    try:
        with warnings.catch_warnings():  # what a killed writer left half-made is simply no array
            warnings.simplefilter("ignore", ZarrUserWarning)
            return dict(sorted(group.arrays()))
    except DataError:
        raise  # it says what is wrong already
    except UNREADABLE as error:
        raise DataError(
            f"{store_name(group)}: the .zarray file of an array is not readable ({error}); it is "
            f"truncated or corrupt: get the data set again"
        ) from error


def compressor_of(array: zarr.Array) -> Codec | None:
    """The codec a format-2 array is compressed with, None where it is stored raw."""
    return array.compressors[0] if array.compressors else None  # type: ignore[return-value]
