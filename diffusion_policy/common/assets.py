"""Where data lies: on this machine, or inside an installed package."""

import importlib.resources
import pathlib

from diffusion_policy.common.errors import DataError

PACKAGE_SCHEME = "package://"


def resolve_data_path(path: str | pathlib.Path) -> pathlib.Path:
    """The file or folder that a data path of a configuration means.

    ``package://diffusion_policy/assets/x.zarr.zip`` lies inside the installed package, wherever
    that is. ``~`` is the home folder. Any other relative path starts at the working directory, as
    in the shell.

    Raises:
        DataError: when a package path names a package or a file that is not there.
    """
    if not str(path).startswith(PACKAGE_SCHEME):
        return pathlib.Path(path).expanduser()
    package, _, inside = str(path).removeprefix(PACKAGE_SCHEME).partition("/")
    try:
        resolved = pathlib.Path(str(importlib.resources.files(package) / inside))
    except (ModuleNotFoundError, ValueError) as error:
        raise DataError(f"{path}: there is no Python package {package!r} installed") from error
    if not resolved.exists():
        beside = sorted(p.name for p in resolved.parent.glob("*")) or "nothing"
        raise DataError(f"{path} does not exist; {resolved.parent} holds {beside}")
    return resolved
