"""Read pickles of checkpoints as data: nothing in them is called but what is written here.

A pickle is a little program: it may name any importable object, call it, and set its state.
:class:`RestrictedUnpickler` keeps the language and takes away the library:

* it *names* what is on a list of module and name pairs, and gets a stand-in for it; dotted names
  are never walked;
* it *calls* only the stand-ins of :mod:`.pickle_calls`, each of which checks its arguments;
* it *fills* only plain containers, arrays and stand-ins for configuration nodes;
* what comes out is a copy (:mod:`.pickle_copy`) of known types only, of bounded depth and number.
  So a small file cannot stand for a huge value, and a configuration is rebuilt from plain
  containers: no object of the file's making is left in it.

What a loaded configuration *says* is still the file's word: ``config/targets.py`` decides what it
may name, ``config/resolvers.py`` what its interpolations may do.
"""

import collections
import importlib
import io
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

from diffusion_policy.common.errors import CheckpointError
from diffusion_policy.common.pickle_calls import (
    STORAGES,
    TYPES,
    TYPING,
    Call,
    ForbiddenPickleError,
    Storage,
    StorageType,
    fill_array,
    find_call,
    hashable,
    require,
)
from diffusion_policy.common.pickle_copy import Copy, Node, NodeType, describe

_NODES: dict[str, set[str]] = {
    "omegaconf.base": {"ContainerMetadata", "Metadata"},
    "omegaconf.dictconfig": {"DictConfig"},
    "omegaconf.listconfig": {"ListConfig"},
    "omegaconf.nodes": {
        *("AnyNode", "BooleanNode", "BytesNode", "FloatNode", "IntegerNode", "StringNode"),
    },
}

_TORCH_DTYPES = {
    *("bool", "uint8", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
}

_RENAMED_MODULES = {
    "__builtin__": "builtins",  # protocol 2 spells Python 2 names
    "dill.dill": "dill._dill",
    "numpy.core.multiarray": "numpy._core.multiarray",  # numpy 1
    "numpy.core.numeric": "numpy._core.numeric",
}


class RestrictedUnpickler(pickle._Unpickler):
    """Python's unpickler, closed as said above.

    The slow pure Python one, because only its opcodes can be overridden. Tensors are not in the
    pickle but beside it, so that speed is no matter.

    :meth:`load` returns a copy of known types. Storages of tensors come from ``persistent_load``.
    """

    stack: list

    def load(self) -> Any:
        return Copy().of(super().load())

    def find_class(self, module: str, name: str, /) -> Any:
        module = _RENAMED_MODULES.get(module, module)
        if call := find_call(module, name):
            return call
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return Call(f"{module}.{name}", _storage_of_old_format)
        if module == "builtins" and name in TYPES:
            return TYPES[name]
        if module == "typing" and name in TYPING:
            return TYPING[name]
        if name in _NODES.get(module, ()):
            return NodeType(f"{module}.{name}")
        if module == "torch" and name in _TORCH_DTYPES:
            return getattr(importlib.import_module("torch"), name)
        if module in ("torch", "torch.storage") and name in STORAGES:
            return StorageType(name)
        if (module, name) == ("numpy", "ndarray"):
            return importlib.import_module("numpy").ndarray
        raise ForbiddenPickleError(f"`{module}.{name}`")

    # ---- what acts -------------------------------------------------------------------------------

    def load_reduce(self) -> None:
        args = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(function, Call) or type(args) is not tuple:
            raise ForbiddenPickleError(f"a call of {describe(function)}")
        self.stack[-1] = function(*args)

    def load_newobj(self) -> None:
        args = self.stack.pop()
        kind = self.stack[-1]
        if not isinstance(kind, NodeType) or args != ():
            raise ForbiddenPickleError(f"a new {describe(kind)}")
        self.stack[-1] = Node(kind.name)

    def load_newobj_ex(self) -> None:
        raise ForbiddenPickleError(f"a new {describe(self.stack[-3])}")

    def load_inst(self) -> None:
        self.find_class(*[self.readline()[:-1].decode("ascii") for _ in range(2)])  # type: ignore
        raise ForbiddenPickleError("`an instance in the style of protocol 0`")

    def load_obj(self) -> None:
        raise ForbiddenPickleError("`an instance in the style of protocol 1`")

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Node) and isinstance(state, dict):
            target.state = state
        elif type(target) is collections.OrderedDict and _is_metadata(state):
            # of a state_dict: the versions of its modules
            target._metadata = state["_metadata"]  # type: ignore[attr-defined]
        elif _is_array(target) and isinstance(state, tuple):
            Call("numpy.ndarray", fill_array)(target, state)
        elif type(target).__module__ == "numpy.dtypes" and _is_byte_order(state):
            target.__setstate__(state)  # type: ignore[union-attr]
        else:
            raise ForbiddenPickleError(f"a change to {describe(target)}")

    # ---- what fills ------------------------------------------------------------------------------

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill({key: value} if hashable([key]) else {})

    def load_setitems(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        hashable(items[::2])
        self._fill(dict(zip(items[::2], items[1::2], strict=True)))

    def _fill(self, items: dict) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, collections.OrderedDict, collections.defaultdict):
            raise ForbiddenPickleError(f"items in {describe(target)}")
        target.update(items)

    def load_dict(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        hashable(items[::2])
        self.append(dict(zip(items[::2], items[1::2], strict=True)))  # type: ignore[attr-defined]

    def load_append(self) -> None:
        value = self.stack.pop()
        self._extend([value])

    def load_appends(self) -> None:
        self._extend(self.pop_mark())  # type: ignore[attr-defined]

    def _extend(self, values: list) -> None:
        if type(self.stack[-1]) is not list:
            raise ForbiddenPickleError(f"items in {describe(self.stack[-1])}")
        self.stack[-1].extend(values)

    def load_additems(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        if type(self.stack[-1]) is not set:
            raise ForbiddenPickleError(f"items in {describe(self.stack[-1])}")
        self.stack[-1].update(hashable(items))

    def load_frozenset(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self.append(frozenset(hashable(items)))  # type: ignore[attr-defined]

    dispatch: dict = {
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.INST[0]: load_inst,
        pickle.OBJ[0]: load_obj,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
    }


class _Reader(RestrictedUnpickler):
    """A restricted unpickler of which several read one file, one after the other."""

    def load(self) -> Any:
        return pickle._Unpickler.load(self)


def _storage_of_old_format(data: bytes) -> Storage:
    """A tensor pickled outside ``torch.save`` nests a file of torch's old format, with one storage:
    five pickles, its number of elements, its bytes.
    """
    file = io.BytesIO(data)
    magic, _protocol, system = (_Reader(file).load() for _ in range(3))
    require(magic == 0x1950A86A20F9469CFC6C and system.get("little_endian") is True)
    dtypes: list[Any] = []

    def storage_of(saved_id: tuple) -> Any:
        require(saved_id[0] == "storage" and isinstance(saved_id[1], StorageType))
        dtypes.append(saved_id[1].dtype)
        return _Blank()

    reader = _Reader(file)
    reader.persistent_load = storage_of  # type: ignore[method-assign]
    require(isinstance(reader.load(), _Blank) and len(dtypes) == 1)
    _keys = _Reader(file).load()
    n_elements = int.from_bytes(file.read(8), "little")
    content = file.read()
    require(len(content) == n_elements * dtypes[0].itemsize)
    return Storage(bytearray(content), dtypes[0])


class _Blank:
    """The place of a storage whose bytes come later."""


def _is_metadata(state: object) -> bool:
    return (
        isinstance(state, dict)
        and set(state) == {"_metadata"}
        and isinstance(state["_metadata"], dict)
    )


def _is_array(value: object) -> bool:
    return type(value).__module__ == "numpy" and type(value).__name__ == "ndarray"


def _is_byte_order(state: object) -> bool:
    """Whether the state of a dtype is just its byte order; the rest could forge object pointers."""
    return (
        isinstance(state, tuple)
        and len(state) == 8
        and state[1] in ("<", ">", "=", "|")
        and state[2:] == (None, None, None, -1, -1, 0)
    )


def refusal(source: object, error: ForbiddenPickleError) -> CheckpointError:
    """What a user is told of a forbidden pickle."""
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
    if not isinstance(data, bytes):
        raise CheckpointError(f"{source} is a {type(data).__name__}, but pickled bytes belong here")
    try:
        if trust:
            import dill

            return dill.loads(data)
        return RestrictedUnpickler(io.BytesIO(data)).load()
    except ForbiddenPickleError as error:
        raise refusal(source, error) from error
    except Exception as error:  # a damaged pickle raises just about anything
        raise CheckpointError(f"{source} is damaged ({brief(error)})") from error


def restricted_load(file: BinaryIO, persistent_load: Callable[[Any], Any]) -> Any:
    """Unpickles a file whose storages lie elsewhere; see :class:`RestrictedUnpickler`."""
    unpickler = RestrictedUnpickler(file)
    unpickler.persistent_load = persistent_load  # type: ignore[method-assign]
    return unpickler.load()


def brief(error: Exception) -> str:
    """The first line of an error, with its type."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
