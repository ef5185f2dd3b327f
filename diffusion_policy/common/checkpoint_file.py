"""Read a checkpoint file: what it must be, and one sentence for everything that it may be instead.

A checkpoint is ``torch.save({cfg, state_dicts, pickles}, pickle_module=dill)``, the layout of the
original implementation.
"""

import zipfile
from pathlib import Path
from typing import Any

from diffusion_policy.common.checkpoint_util import newest_other_checkpoint
from diffusion_policy.common.errors import CheckpointError
from diffusion_policy.common.pickle_calls import ForbiddenPickleError
from diffusion_policy.common.safe_pickle import brief, refusal
from diffusion_policy.common.torch_archive import (
    ArchiveError,
    DamagedArchiveError,
    check_archive,
    read_archive,
    read_trusted_archive,
)


def load_payload(path: str | Path, trust: bool = False) -> dict[str, Any]:
    """Reads a checkpoint file: ``{cfg: DictConfig, state_dicts: {...}, pickles: {name: bytes}}``.

    Tensors are on the CPU. The values of ``pickles`` are still bytes; decode each with
    :func:`~diffusion_policy.common.safe_pickle.safe_loads`.

    Args:
        path: a file written by this package or by the original implementation.
        trust: read with torch and plain dill, which run whatever the file says.

    Raises:
        CheckpointError: the file is missing, damaged, something else than a checkpoint, or asks for
            an object that is not on the list.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            _check_file(path, file)
            payload = read_trusted_archive(path) if trust else read_archive(file)
    except CheckpointError:
        raise
    except ForbiddenPickleError as error:
        raise refusal(f"checkpoint {path}", error) from error
    except DamagedArchiveError as error:
        raise CheckpointError(f"checkpoint {path} {error}; {_delete_it(path)}") from error
    except ArchiveError as error:
        raise CheckpointError(f"checkpoint {path} {error}; {_instead(path)}") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}; {_instead(path)}") from error
    except Exception as error:  # torch and a damaged pickle raise just about anything
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({brief(error)}); {_instead(path)}"
        ) from error
    _check_payload(path, payload)
    return payload


def _check_file(path: Path, file: Any) -> None:
    """Tells a whole torch file from everything else, before anything in it is interpreted."""
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"checkpoint {path} is empty; {_delete_it(path)}")
    if file.read(4) != b"PK\x03\x04":
        raise CheckpointError(
            f"{path} is not a checkpoint (those are zip files written by torch.save); "
            f"{_instead(path)}"
        )
    if not zipfile.is_zipfile(file):
        raise CheckpointError(
            f"checkpoint {path} is incomplete: it breaks off after {size} bytes; {_delete_it(path)}"
        )
    check_archive(file, size)


def _check_payload(path: Path, payload: object) -> None:
    from omegaconf import DictConfig

    expected = {"cfg": DictConfig, "state_dicts": dict, "pickles": dict}
    if not isinstance(payload, dict):
        found = f"a {type(payload).__name__}"
    elif wrong := [k for k, kind in expected.items() if not isinstance(payload.get(k), kind)]:
        found = f"a dict without a proper {' and '.join(wrong)}"
    else:
        return
    raise CheckpointError(
        f"{path} holds {found}, but a diffusion_policy checkpoint is a dict of cfg, state_dicts "
        f"and pickles; {_instead(path)}"
    )


def _delete_it(path: Path) -> str:
    """What to do about a damaged file; ``workspace/resume.py`` keeps what it promises."""
    if newest_other_checkpoint(path) is None:
        return (
            f"delete it: there is no other checkpoint in {path.parent}, so a training that is "
            "started again begins anew, and its old log is kept"
        )
    return (
        f"delete it: {_instead(path)}, and a training that is started again continues from the "
        "newest one that is left"
    )


def _instead(path: Path) -> str:
    other = newest_other_checkpoint(path)
    if other is None:
        return f"there is no other checkpoint in {path.parent} to use instead"
    return f"the newest other checkpoint there is {other}"
