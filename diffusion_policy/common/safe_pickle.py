"""Read dill checkpoints without running code from them.

A checkpoint is ``torch.save({cfg, state_dicts, pickles}, pickle_module=dill)``. A pickle is a
little program: it may name any importable object and call it. :class:`RestrictedUnpickler` closes
that door on three sides:

* it *names* only what checkpoints are made of (an exact list of module and name pairs; dotted names
  are never walked);
* it *calls* only those, and the few that could be bent to something else are replaced by narrow
  versions;
* it *sets state* only on configuration nodes, ordered dicts and numeric arrays, never on a class or
  a function.

What a loaded ``cfg`` says is still the file's word: its interpolations run the registered resolvers
on access (harmless ones, see ``config/resolvers.py``), and ``hydra.utils.instantiate`` of it calls
what its ``_target_`` entries name, which ``config/targets.py`` checks.
"""

import importlib
import io
import pickle
import re
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from diffusion_policy.common.checkpoint_util import newest_other_checkpoint
from diffusion_policy.common.errors import CheckpointError

_PLAIN_TYPES = {
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list"),
    *("object", "set", "slice", "str", "tuple"),
}

_ALLOWED: dict[str, set[str]] = {
    "builtins": _PLAIN_TYPES,
    "collections": {"OrderedDict", "defaultdict"},
    "typing": {"Any", "Dict", "List"},
    "omegaconf.base": {"ContainerMetadata", "Metadata"},
    "omegaconf.dictconfig": {"DictConfig"},
    "omegaconf.listconfig": {"ListConfig"},
    "omegaconf.nodes": {
        *("AnyNode", "BooleanNode", "BytesNode", "FloatNode", "IntegerNode", "StringNode"),
    },
    "numpy": {"ndarray"},
    "numpy._core.multiarray": {"scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "torch": {
        *("Size", "device", "bool", "uint8", "int8", "int16", "int32", "int64"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
    },
    "torch._utils": {"_rebuild_parameter", "_rebuild_tensor", "_rebuild_tensor_v2"},
}

# Types whose instances a pickle may fill with state. Anything else (above all classes and
# functions, whose attributes are shared by the whole process) is refused.
_FILLABLE = {("collections", "OrderedDict"), ("numpy", "ndarray")} | {
    (module, name) for module, names in _ALLOWED.items() if "omegaconf" in module for name in names
}

_RENAMED_MODULES = {
    "__builtin__": "builtins",  # protocol 2 spells Python 2 names
    "dill.dill": "dill._dill",
    "numpy.core.multiarray": "numpy._core.multiarray",  # numpy 1
    "numpy.core.numeric": "numpy._core.numeric",
}


class ForbiddenPickleError(pickle.UnpicklingError):
    """A pickle asks for something that no checkpoint needs; the message names it."""


def _load_type(name: str) -> type:
    """dill's way to name a built-in type, for the plain ones only."""
    if name == "NoneType":
        return type(None)
    if name not in _PLAIN_TYPES:
        raise ForbiddenPickleError(f"the type `{name}` (through dill._dill._load_type)")
    return getattr(importlib.import_module("builtins"), name)


def _encode(text: str, encoding: str) -> bytes:
    """How protocol 2 spells ``bytes``; other codecs have no business here."""
    if encoding != "latin1":
        raise ForbiddenPickleError(f"the codec `{encoding}` (through _codecs.encode)")
    return text.encode("latin1")


def _numeric_dtype(spec: str, *_: object) -> Any:
    """A bool, integer, float or complex dtype; objects and structures could carry pointers."""
    if not re.fullmatch(r"[biufc]\d+", spec):
        raise ForbiddenPickleError(f"the array type `{spec}` (through numpy.dtype)")
    # A copy, because the byte order will be set on it and np.dtype("i4") is shared by everybody.
    return importlib.import_module("numpy").dtype(spec, copy=True)


def _blank_array(*_: object) -> Any:
    """The empty array whose shape, dtype and bytes follow as state."""
    return importlib.import_module("numpy").empty(0, dtype="i1")


def _array_by_dill(_create: Callable, _args: tuple, state: tuple, _npdict: object = None) -> Any:
    array = _blank_array()
    array.__setstate__(state)  # numpy checks shape and dtype against the number of bytes
    return array


def _storage(data: bytes) -> Any:
    """A tensor pickled outside ``torch.save`` nests a torch file: for torch's own safe reader."""
    return importlib.import_module("torch").load(io.BytesIO(data), weights_only=True)


_NARROWED: dict[tuple[str, str], Callable] = {
    ("_codecs", "encode"): _encode,
    ("dill._dill", "_load_type"): _load_type,
    ("dill._dill", "_create_array"): _array_by_dill,
    ("numpy", "dtype"): _numeric_dtype,
    ("numpy._core.multiarray", "_reconstruct"): _blank_array,
    ("torch.storage", "_load_from_bytes"): _storage,
}


class RestrictedUnpickler(pickle._Unpickler):
    """Python's unpickler, closed as said above.

    The slow pure Python one, because only its opcodes can be overridden. Tensors are not in the
    pickle but beside it, so that speed is no matter.
    """

    def find_class(self, module: str, name: str, /) -> Any:
        module = _RENAMED_MODULES.get(module, module)
        if (module, name) in _NARROWED:
            return _NARROWED[module, name]
        if name in _ALLOWED.get(module, ()):
            return getattr(importlib.import_module(module), name)
        raise ForbiddenPickleError(f"`{module}.{name}`")

    def load_build(self) -> None:
        target, state = self.stack[-2:]  # type: ignore[attr-defined]
        kind = type(target)
        if (kind.__module__, kind.__name__) in _FILLABLE:
            # A (dict, slots) pair would be spread with setattr, __class__ included.
            allowed = isinstance(state, dict) or kind.__name__ == "ndarray"
        else:
            allowed = kind.__module__ == "numpy.dtypes" and _is_byte_order(state)
        if not allowed:
            what = target if isinstance(target, type) or callable(target) else kind
            name = getattr(what, "__name__", what)
            raise ForbiddenPickleError(f"a change to `{getattr(what, '__module__', '?')}.{name}`")
        super().load_build()  # type: ignore[misc]

    dispatch: dict = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


def _is_byte_order(state: object) -> bool:
    """Whether the state of a dtype is just its byte order; the rest could forge object pointers."""
    return (
        isinstance(state, tuple)
        and len(state) == 8
        and state[1] in ("<", ">", "=", "|")
        and state[2:] == (None, None, None, -1, -1, 0)
    )


def _restricted_load(file: BinaryIO, **kwargs: Any) -> Any:
    return RestrictedUnpickler(file, **kwargs).load()


# What torch.load takes as `pickle_module`.
_RESTRICTED_PICKLE = types.SimpleNamespace(
    __name__="restricted_pickle", Unpickler=RestrictedUnpickler, load=_restricted_load
)


def _refusal(source: object, error: ForbiddenPickleError) -> CheckpointError:
    return CheckpointError(
        f"{source} asks for {error}, which no checkpoint needs, so it was not loaded; if you know "
        "who wrote the file and let it run any code on this machine, repeat with --trust-checkpoint"
    )


def safe_loads(data: bytes, trust: bool = False, source: object = "the pickle") -> Any:
    """Unpickles what ``dill.dumps`` or ``pickle.dumps`` wrote, without running code from it.

    Args:
        data: one value of a checkpoint's ``pickles``.
        trust: read with plain dill, which runs whatever the bytes say.
        source: what the error message calls the data.

    Raises:
        CheckpointError: the data asks for something off the list, or is damaged.
    """
    try:
        if trust:
            import dill

            return dill.loads(data)
        return _restricted_load(io.BytesIO(data))
    except ForbiddenPickleError as error:
        raise _refusal(source, error) from error
    except Exception as error:  # a damaged pickle raises just about anything
        raise CheckpointError(f"{source} is damaged ({_brief(error)})") from error


def load_payload(
    path: str | Path, trust: bool = False, map_location: Any = "cpu"
) -> dict[str, Any]:
    """Reads a checkpoint file: ``{cfg: DictConfig, state_dicts: {...}, pickles: {name: bytes}}``.

    The values of ``pickles`` are still bytes; decode each with :func:`safe_loads`.

    Args:
        path: a file written by this package or by the original implementation.
        trust: read with plain dill, which runs whatever the file says.
        map_location: where the tensors go, as in ``torch.load``.

    Raises:
        CheckpointError: the file is missing, damaged, something else than a checkpoint, or asks for
            an object that is not on the list.
    """
    import torch

    path = Path(path)
    pickle_module: Any = importlib.import_module("dill") if trust else _RESTRICTED_PICKLE
    try:
        with path.open("rb") as file:
            _check_archive(path, file)
            # weights_only=True cannot read OmegaConf containers; pickle_module is what restricts.
            payload = torch.load(
                file, map_location=map_location, pickle_module=pickle_module, weights_only=False
            )
    except CheckpointError:
        raise
    except ForbiddenPickleError as error:
        raise _refusal(f"checkpoint {path}", error) from error
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}; {_instead(path)}") from error
    except Exception as error:  # torch and a damaged pickle raise just about anything
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({_brief(error)}); {_instead(path)}"
        ) from error
    _check_payload(path, payload)
    return payload


def _check_archive(path: Path, file: BinaryIO) -> None:
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
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        records = {name.partition("/")[2] for name in names}
        if "data.pkl" not in records or "constants.pkl" in records:
            raise CheckpointError(
                f"{path} is a zip file but not a checkpoint (found {', '.join(names[:3])} ...); "
                f"{_instead(path)}"
            )
        # torch ignores the checksums: a flipped bit would silently become a wrong weight.
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(
            f"checkpoint {path} is damaged: the checksum of its part {damaged} is wrong; "
            f"{_delete_it(path)}"
        )
    file.seek(0)


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


def _brief(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
