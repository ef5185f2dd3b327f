"""What a pickle of a checkpoint may call: stand-ins that check their arguments.

See :mod:`.safe_pickle`. Every route from the bytes of a checkpoint to a call is in this file.
"""

import collections
import dataclasses
import importlib
import pickle
import re
import typing
from collections.abc import Callable
from typing import Any

SCALARS = (type(None), bool, int, float, str, bytes)

_REPEATED_ELEMENTS = 1 << 20  # a tensor of fewer may be larger than what is stored of it


class ForbiddenPickleError(pickle.UnpicklingError):
    """A pickle asks for something that no checkpoint needs; the message names it."""


class Call:
    """The stand-in for something that checkpoints call, and for a type that they also name.

    Args:
        name: as the pickle has it, for messages.
        function: what is called instead; any error of it means a forbidden argument.
        value: the type itself, where it is one that checkpoints name without calling it.
    """

    def __init__(self, name: str, function: Callable, value: type | None = None):
        self.name, self.function, self.value = name, function, value

    def __call__(self, *args: Any) -> Any:
        try:
            return self.function(*args)
        except ForbiddenPickleError:
            raise
        except Exception as error:
            raise ForbiddenPickleError(f"`{self.name}` in a way it is not used") from error


def require(condition: bool) -> None:
    if not condition:
        raise ValueError("not an argument that a checkpoint has")


def _load_type(name: str) -> Any:
    """dill's way to name a built-in type."""
    if name == "NoneType":
        return type(None)
    if name not in TYPES:
        raise ForbiddenPickleError(f"the type `{name}` (through dill._dill._load_type)")
    return find_call("builtins", name) or TYPES[name]


def _encode(text: str, encoding: str) -> bytes:
    """How protocol 2 spells ``bytes``; other codecs have no business here."""
    if encoding != "latin1":
        raise ForbiddenPickleError(f"the codec `{encoding}` (through _codecs.encode)")
    return text.encode("latin1")


def _bytes(*args: Any) -> bytes:
    require(args == ())  # a number would be a size
    return b""


def _bytearray(*args: Any) -> bytearray:
    require(not args or isinstance(args[0], bytes) or args[1:] == ("latin-1",))
    return bytearray(*args)


def _set(items: Any = ()) -> set:
    return set(hashable(items))


def _frozenset(items: Any = ()) -> frozenset:
    return frozenset(hashable(items))


def hashable(items: Any) -> list:
    """Members of sets and keys of dicts: the hash of nested tuples can take any time."""
    items = list(items)
    for item in items:
        flat = type(item) is tuple and all(type(part) in SCALARS for part in item)
        if not flat and type(item) not in (*SCALARS, complex):
            raise ForbiddenPickleError(f"a key of type `{type(item).__name__}`")
    return items


def _complex(real: float, imag: float) -> complex:
    return complex(float(real), float(imag))


def _slice(*args: Any) -> slice:
    require(len(args) == 3 and all(type(a) in (int, type(None)) for a in args))
    return slice(*args)


def _ordered_dict(items: Any = ()) -> collections.OrderedDict:
    pairs = [tuple(pair) for pair in items]
    hashable([key for key, _ in pairs])
    return collections.OrderedDict(pairs)


def _defaultdict(factory: Any) -> collections.defaultdict:
    factory = factory.value if isinstance(factory, Call) else factory
    require(factory is None or factory in (dict, float, int, list, set, str))
    return collections.defaultdict(factory)


def _torch_size(items: Any) -> Any:
    require(all(type(item) is int for item in items))
    return importlib.import_module("torch").Size(items)


def _torch_device(kind: str, index: int | None = None) -> Any:
    require(type(kind) is str and type(index) in (int, type(None)))
    return importlib.import_module("torch").device(*[kind, index][: 1 + (index is not None)])


def _tensor(
    storage: Any,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    hooks: Any,
    metadata: Any = None,
) -> Any:
    """``torch._utils._rebuild_tensor_v2`` within the bounds of the storage."""
    torch = importlib.import_module("torch")
    require(isinstance(storage, Storage) and not hooks and not metadata)
    numbers = [offset, *size, *stride]
    require(all(type(n) is int and n >= 0 for n in numbers) and len(size) == len(stride))
    n_elements = 1
    for length in size:
        n_elements *= length
    if n_elements:
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        require(last < len(storage))
    # A stride of 0 repeats what is stored, which makes a small file large.
    require(n_elements <= max(len(storage), _REPEATED_ELEMENTS))
    tensor = torch.empty(0, dtype=storage.dtype)
    if storage.content:
        untyped = torch.frombuffer(storage.content, dtype=torch.uint8).untyped_storage()
        tensor.set_(untyped, offset, tuple(size), tuple(stride))
    else:
        tensor = tensor.reshape(tuple(size))
    return tensor.requires_grad_() if requires_grad else tensor


def _parameter(data: Any, requires_grad: bool, hooks: Any) -> Any:
    torch = importlib.import_module("torch")
    require(isinstance(data, torch.Tensor) and not hooks)
    return torch.nn.Parameter(data, bool(requires_grad))


def _numeric_dtype(spec: str, *_: object) -> Any:
    """A bool, integer, float or complex dtype; objects and structures could carry pointers."""
    if not (isinstance(spec, str) and re.fullmatch(r"[biufc]\d{1,2}", spec)):
        raise ForbiddenPickleError(f"the array type `{spec}` (through numpy.dtype)")
    # A copy, because the byte order will be set on it and np.dtype("i4") is shared by everybody.
    return importlib.import_module("numpy").dtype(spec, copy=True)


def _numeric_scalar(dtype: Any, data: bytes) -> Any:
    np = importlib.import_module("numpy")
    require(isinstance(dtype, np.dtype) and isinstance(data, bytes))
    require(len(data) == dtype.itemsize)
    return np.frombuffer(data, dtype)[0]


def _array_from_buffer(buffer: Any, dtype: Any, shape: tuple[int, ...], order: str) -> Any:
    np = importlib.import_module("numpy")
    require(isinstance(dtype, np.dtype) and isinstance(buffer, bytes | bytearray))
    return np.frombuffer(bytearray(buffer), dtype).reshape(tuple(shape), order=order)


def _blank_array(*_: object) -> Any:
    """The empty array whose shape, dtype and bytes follow as state."""
    return importlib.import_module("numpy").empty(0, dtype="i1")


def fill_array(array: Any, state: Any) -> None:
    np = importlib.import_module("numpy")
    _version, _shape, dtype, _is_fortran, data = state
    require(isinstance(dtype, np.dtype) and isinstance(data, bytes))
    array.__setstate__(state)  # numpy checks shape and dtype against the number of bytes


def _array_by_dill(_create: Any, _args: tuple, state: tuple, _npdict: object = None) -> Any:
    array = _blank_array()
    fill_array(array, state)
    return array


@dataclasses.dataclass
class Storage:
    """The bytes of a tensor: what it is rebuilt from."""

    content: bytearray
    dtype: Any

    def __len__(self) -> int:
        return len(self.content) // self.dtype.itemsize


# Named as the type of a configuration node; not to be called, unless below.
TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(bool, bytearray, bytes, complex, dict, float, frozenset, int, list, object, set),
        *(slice, str, tuple),
    )
}
TYPING = {"Any": typing.Any, "Dict": typing.Dict, "List": typing.List}  # noqa: UP006

CALLS: dict[tuple[str, str], tuple[Callable, type | None]] = {
    ("builtins", "bytearray"): (_bytearray, bytearray),
    ("builtins", "bytes"): (_bytes, bytes),
    ("builtins", "complex"): (_complex, complex),
    ("builtins", "frozenset"): (_frozenset, frozenset),
    ("builtins", "set"): (_set, set),
    ("builtins", "slice"): (_slice, slice),
    ("_codecs", "encode"): (_encode, None),
    ("collections", "OrderedDict"): (_ordered_dict, None),
    ("collections", "defaultdict"): (_defaultdict, None),
    ("dill._dill", "_load_type"): (_load_type, None),
    ("dill._dill", "_create_array"): (_array_by_dill, None),
    ("numpy", "dtype"): (_numeric_dtype, None),
    ("numpy._core.multiarray", "_reconstruct"): (_blank_array, None),
    ("numpy._core.multiarray", "scalar"): (_numeric_scalar, None),
    ("numpy._core.numeric", "_frombuffer"): (_array_from_buffer, None),
    ("torch", "Size"): (_torch_size, None),
    ("torch", "device"): (_torch_device, None),
    ("torch._utils", "_rebuild_parameter"): (_parameter, None),
    ("torch._utils", "_rebuild_tensor_v2"): (_tensor, None),
}

STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}


class StorageType:
    """The stand-in for ``torch.FloatStorage`` and its kin."""

    def __init__(self, name: str):
        self.dtype = getattr(importlib.import_module("torch"), STORAGES[name])


def find_call(module: str, name: str) -> Call | None:
    """The stand-in for a name, if it is one that may be called."""
    if (module, name) not in CALLS:
        return None
    return Call(f"{module}.{name}", *CALLS[module, name])
