"""A checkpoint is read without running code from it; every damaged one gets one sentence."""

import collections
import functools
import io
import json
import operator
import os
import pickle
import random
import struct
import typing
import zipfile

import dill
import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from diffusion_policy.common.checkpoint_file import load_payload
from diffusion_policy.common.errors import CheckpointError
from diffusion_policy.common.safe_pickle import safe_loads


class Call:
    """Pickles as `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments

    def __call__(self):
        """Only so that a call of the result can be pickled as well."""


def payload(**changes):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), betas=OmegaConf.create([0.95, 0.999]))
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    cfg = OmegaConf.create({"a": {"b": [1, 2.5, "x", None, True]}, "c": "${a.b}", "d": b"\x80"})
    OmegaConf.set_struct(cfg, True)
    return {
        "cfg": cfg,
        "state_dicts": {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
        "pickles": {"epoch": dill.dumps(3), "_output_dir": dill.dumps(None)},
        **changes,
    }


def save(path, value=None, pickle_module=dill, **kwargs):
    torch.save(payload() if value is None else value, path, pickle_module=pickle_module, **kwargs)
    return path


def raw_pickle(path, data):
    """A torch file whose pickle is `data`, byte by byte."""
    source = io.BytesIO()
    torch.save({"weight": torch.arange(4.0)}, source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, data if name.endswith("data.pkl") else old.read(name))
    return path


def stack_global(module, name, argument):
    """Protocol 4: module and name are strings on the stack, and dots in the name are walked."""
    return (
        b"\x80\x04" + b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, name))
    ) + (b"\x93\x8c" + bytes([len(argument)]) + argument.encode() + b"\x85R.")


# ---- what is good loads -------------------------------------------------------------------------


@pytest.mark.parametrize("trust", [False, True])
def test_a_checkpoint_comes_back_as_it_was_written(tmp_path, trust):
    written = payload()
    read = load_payload(save(tmp_path / "latest.ckpt", written), trust=trust)
    assert isinstance(read["cfg"], DictConfig)
    assert read["cfg"] == written["cfg"]
    assert OmegaConf.is_struct(read["cfg"])
    for part in ("model", "optimizer"):
        torch.testing.assert_close(
            read["state_dicts"][part], written["state_dicts"][part], rtol=0, atol=0
        )
    assert read["state_dicts"]["model"]._metadata == written["state_dicts"]["model"]._metadata
    assert {k: safe_loads(v, trust=trust) for k, v in read["pickles"].items()} == {
        "epoch": 3,
        "_output_dir": None,
    }


def test_what_is_read_can_be_loaded_into_model_and_optimizer(tmp_path):
    read = load_payload(save(tmp_path / "latest.ckpt"))
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    model.load_state_dict(read["state_dicts"]["model"])
    torch.optim.AdamW(model.parameters()).load_state_dict(read["state_dicts"]["optimizer"])


NAMES = ["bet_lowdim", "transformer_lowdim", "unet_image", "unet_lowdim"]


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_of_the_original_load(golden, name):
    folder = golden / "k_checkpoints" / name
    expected = json.loads((folder / "payload_structure.json").read_text())
    read = load_payload(folder / "checkpoints" / "latest.ckpt")
    assert isinstance(read["cfg"], DictConfig)
    assert {k: safe_loads(v) for k, v in read["pickles"].items()} == expected["pickles"]
    assert structure(read["state_dicts"]) == expected["state_dicts"]


def structure(value):
    """The golden's description: tensors as kind, shape and dtype; of lists the first six."""
    if isinstance(value, torch.Tensor):
        return ["tensor", list(value.shape), str(value.dtype)]
    if isinstance(value, dict):
        return {str(k): structure(v) for k, v in value.items()}
    if isinstance(value, typing.Sequence) and not isinstance(value, str):
        return [structure(v) for v in value[:6]]
    return value


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("dumps", [dill.dumps, pickle.dumps])
@pytest.mark.parametrize(
    "value",
    [
        None,
        [1, -2.5, "x", b"\x00", True, 2**70, (), {"a": {1, 2}}, frozenset([3]), 1j],
        bytearray(b"ab"),
        slice(1, 2, None),
        collections.OrderedDict(a=1),
        collections.defaultdict(list, a=[1]),
        random.Random(0).getstate(),
        np.random.RandomState(0).get_state(),
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.zeros((0, 2), dtype=bool),
        np.float64(0.1),
        np.int64(-3),
        torch.arange(4.0)[1:],
        torch.float32,
        torch.Size([1, 2]),
        torch.device("cuda:1"),
        OmegaConf.create({"a": [1, {"b": None}]}),
        dict,
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_values_of_pickles_come_back(value, dumps, trust):
    read = safe_loads(dumps(value), trust=trust)
    assert type(read) is type(value)
    assert getattr(read, "dtype", None) == getattr(value, "dtype", None)
    if isinstance(value, torch.Tensor):
        read, value = read.numpy(), value.numpy()
    np.testing.assert_equal(read, value)


def test_big_endian_arrays_keep_their_values_and_shared_dtypes_their_order():
    value = np.arange(3, dtype=">i4")
    np.testing.assert_equal(safe_loads(pickle.dumps(value)), value)
    assert np.dtype("i4").isnative


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_is_read(protocol):
    value = {"rng": np.random.RandomState(0).get_state(), "bytes": b"\xff\x00", "set": {1}}
    read = safe_loads(pickle.dumps(value, protocol=protocol))
    np.testing.assert_equal(read, value)


# ---- what is malicious does not run -------------------------------------------------------------

TOUCH = "MARK"  # a file that must never appear in the working directory


def attacks():
    """Values whose unpickling would create TOUCH, or prepare for it; and what they name."""
    command = f"touch {TOUCH}"
    system = getattr(os.system, "__module__", "posix") + ".system"
    yield "os.system", Call(os.system, command), system
    yield "exec", Call(exec, f"open({TOUCH!r}, 'w')"), "builtins.exec"
    yield "eval", Call(eval, f"open({TOUCH!r}, 'w')"), "builtins.eval"
    yield "open", Call(open, TOUCH, "w"), "open"
    yield "import", Call(__import__, "os"), "builtins.__import__"
    yield "getattr chain", Call(Call(getattr, os, "system"), command), "builtins.getattr"
    yield "getattr", Call(getattr, "x", "upper"), "builtins.getattr"
    yield "partial", Call(Call(functools.partial, os.system, command)), "PartialType"
    yield "attrgetter", Call(operator.attrgetter("system"), 1), "AttrGetterType"
    yield "lambda", Call(lambda path: os.mkdir(path), TOUCH), "dill._dill._create_function"
    yield "dill type", Call(dill._dill._load_type, "CodeType"), "type `CodeType`"
    yield "dill function type", Call(dill._dill._load_type, "FunctionType"), "type `FunctionType`"
    yield "dill eval", Call(dill._dill._eval_repr, f"open({TOUCH!r}, 'w')"), "_eval_repr"
    yield "dill import", Call(dill._dill._import_module, "os.system"), "_import_module"
    yield "codec", Call(__import__("_codecs").encode, "x", "rot13"), "codec `rot13`"
    yield "torch.load", Call(torch.load, TOUCH), "torch.serialization.load"
    yield "pickle.loads", Call(pickle.loads, pickle.dumps(Call(os.system, command))), "loads"
    yield "type", Call(type, "T", (), {}), "type"
    yield "object array", np.array([1, "x", None], dtype=object), "array type `O8`"
    yield "nested", {"deep": [{"er": (1, Call(os.system, command))}]}, system
    yield "as dict key", {Call(os.system, command): 1}, system
    yield (
        "in a default factory",
        collections.defaultdict(functools.partial(os.system)),
        "PartialType",
    )


ATTACKS = {name: (value, named) for name, value, named in attacks()}


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """An empty working directory, in which no attack may leave its mark."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not os.path.exists(TOUCH), "code of the file has run"


def check_refusal(error, named):
    message = str(error.value)
    assert named in message
    assert "--trust-checkpoint" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_the_values_of_pickles_does_not_run(mark, name, protocol):
    value, named = ATTACKS[name]
    data = dill.dumps(value, protocol=protocol)
    with pytest.raises(CheckpointError) as error:
        safe_loads(data)
    check_refusal(error, named)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("place", ["cfg", "state_dicts", "pickles", "more"])
def test_code_in_a_checkpoint_does_not_run(mark, tmp_path, name, place):
    value, named = ATTACKS[name]
    path = save(tmp_path / "latest.ckpt", payload(**{place: {"x": value}}))
    with pytest.raises(CheckpointError) as error:
        load_payload(path)
    check_refusal(error, named)
    assert str(path) in str(error.value)


def test_the_attacks_are_real_for_an_ordinary_unpickler(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("os.system", "exec", "getattr chain", "lambda", "dill eval"):
        dill.loads(dill.dumps(ATTACKS[name][0]))
        assert os.path.exists(TOUCH), name
        os.rename(TOUCH, name)


def test_trust_lets_the_file_do_what_it_wants(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "latest.ckpt", payload(more=ATTACKS["os.system"][0]))
    load_payload(path, trust=True)
    assert os.path.exists(TOUCH)
    os.remove(TOUCH)
    safe_loads(dill.dumps(ATTACKS["exec"][0]), trust=True)
    assert os.path.exists(TOUCH)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "serialization.os.system"),
        ("torch", "_utils.os.system"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("collections", "OrderedDict.__init__"),
        ("collections", "_sys.modules"),
        ("omegaconf.dictconfig", "DictConfig.__init__.__globals__"),
        ("omegaconf.nodes", "os.system"),
        ("builtins", "dict.fromkeys"),
        ("numpy", "load"),
        ("numpy", "lib._npyio_impl.os.system"),
        ("posix", "system"),
        ("", "system"),
        ("torch.serialization.os", "system"),
        ("torch.storage", "_load_from_bytes.__globals__"),
        ("FloatStorage", "system"),
        ("os", "Storage.system"),
    ],
)
def test_dotted_and_unlisted_names_are_refused_exactly(mark, tmp_path, module, name):
    data = stack_global(module, name, f"touch {TOUCH}")
    for read in (lambda: safe_loads(data), lambda: load_payload(raw_pickle("x.ckpt", data))):
        with pytest.raises(CheckpointError) as error:
            read()
        check_refusal(error, f"`{module}.{name}`")


@pytest.mark.parametrize(
    "data",
    [
        b"cposix\nsystem\n(S'touch MARK'\ntR.",  # GLOBAL, protocol 0
        b"(S'touch MARK'\niposix\nsystem\n.",  # INST
        b"(cposix\nsystem\nS'touch MARK'\no.",  # OBJ
        b"\x80\x02cposix\nsystem\nX\x0a\x00\x00\x00touch MARK\x85\x81.",  # NEWOBJ
        b"\x80\x02c__builtin__\nexecfile\nX\x04\x00\x00\x00MARK\x85R.",  # a Python 2 name
        b"\x80\x02ccommands\ngetoutput\nX\x0a\x00\x00\x00touch MARK\x85R.",
    ],
)
def test_every_opcode_that_names_something_is_restricted(mark, data):
    for read in (lambda: safe_loads(data), lambda: load_payload(raw_pickle("x.ckpt", data))):
        with pytest.raises(CheckpointError) as error:
            read()
        check_refusal(error, "asks for `")


@pytest.mark.parametrize(
    ("target", "state", "named"),
    [
        (collections.OrderedDict, (None, {"x": 1}), "collections.OrderedDict"),
        (DictConfig, (None, {"__getattr__": dict}), "omegaconf.dictconfig.DictConfig"),
        (torch._utils._rebuild_tensor_v2, (None, {"__defaults__": (1,)}), "_rebuild_tensor_v2"),
        (collections.OrderedDict(), (None, {"__class__": DictConfig}), "OrderedDict"),
        (np.dtype("i4"), (3, "|", None, None, None, 8, 8, 63), "numpy.dtypes.Int32DType"),
        (torch.zeros(1), {"x": 1}, "torch.Tensor"),
    ],
)
def test_state_is_never_set_on_classes_functions_and_the_like(target, state, named):
    # BUILD after the target itself, which no ordinary pickler writes.
    data = pickle.dumps(target, 4)[:-1] + pickle.dumps(state, 4)[2:-1] + b"b."
    with pytest.raises(CheckpointError) as error:
        safe_loads(data)
    check_refusal(error, "a change to `")
    assert named in str(error.value)
    assert not hasattr(collections.OrderedDict, "x")


def test_a_persistent_id_reaches_nothing():
    with pytest.raises(CheckpointError, match="damaged"):
        safe_loads(b"Pmodule os\n.")


@pytest.mark.parametrize(
    "saved_id",
    [
        ("module", "os"),
        ("storage", os.system, "0", "cpu", 4),
        ("storage", torch.FloatStorage, "../../etc/passwd", "cpu", 4),
        ("storage", torch.FloatStorage, "0", "cpu", 10**6),
        ("storage", torch.FloatStorage, "0", "cpu", -4),
        "0",
    ],
)
def test_an_abused_persistent_id_of_torch_is_refused(mark, tmp_path, saved_id):
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol=2)
    pickler.persistent_id = lambda value: saved_id if value is Ellipsis else None
    pickler.dump({"weight": ...})
    with pytest.raises(CheckpointError) as error:
        load_payload(raw_pickle(tmp_path / "x.ckpt", file.getvalue()))
    assert str(tmp_path / "x.ckpt") in str(error.value)


def test_a_tensor_view_beyond_its_storage_is_refused():
    tensor = torch.arange(4.0)
    for size, offset in (((1000,), 0), ((4,), 4), ((4,), -1)):
        storage = torch.storage.TypedStorage(
            wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True
        )
        call = Call(torch._utils._rebuild_tensor_v2, storage, offset, size, (1,), False, None)
        try:
            read = safe_loads(pickle.dumps(call))
        except CheckpointError:
            continue
        # torch may grow the storage instead, with memory of its own.
        assert read.untyped_storage().nbytes() >= 4 * (offset + size[0])


def test_the_old_non_zip_torch_format_is_not_interpreted(mark, tmp_path):
    value = payload(more=ATTACKS["os.system"][0])
    path = save(tmp_path / "x.ckpt", value, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_payload(path)


def test_a_nested_torch_file_with_code_is_refused(mark):
    nested = io.BytesIO()
    torch.save(ATTACKS["os.system"][0], nested, pickle_module=dill)
    with pytest.raises(CheckpointError):
        safe_loads(pickle.dumps(Call(torch.storage._load_from_bytes, nested.getvalue())))


def test_a_torchscript_archive_is_not_run(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(path))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_payload(path)


# ---- what is damaged is named -------------------------------------------------------------------


def check_sentence(error, path):
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message


def test_a_missing_checkpoint_names_the_newest_other_one(tmp_path):
    old, new = save(tmp_path / "epoch=0001.ckpt"), save(tmp_path / "epoch=0002.ckpt")
    os.utime(old, (1, 1))
    path = tmp_path / "latest.ckpt"
    with pytest.raises(CheckpointError, match="there is no checkpoint") as error:
        load_payload(path)
    check_sentence(error, path)
    assert str(new) in str(error.value)
    assert str(old) not in str(error.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no other checkpoint in"):
        load_payload(tmp_path / "no" / "latest.ckpt")


def test_a_folder_is_not_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="directory"):
        load_payload(tmp_path)


def test_an_empty_checkpoint_says_to_delete_it_and_what_to_use(tmp_path):
    path, other = tmp_path / "latest.ckpt", save(tmp_path / "epoch=0001.ckpt")
    path.touch()
    with pytest.raises(CheckpointError, match="is empty; delete it") as error:
        load_payload(path)
    check_sentence(error, path)
    assert str(other) in str(error.value)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.95, 0.999])
def test_a_truncated_checkpoint_is_named_as_such(tmp_path, share):
    path = save(tmp_path / "latest.ckpt")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match="incomplete: it breaks off after") as error:
        load_payload(path)
    check_sentence(error, path)


@pytest.mark.parametrize("trust", [False, True])
def test_a_flipped_bit_in_a_weight_is_found_by_the_checksum(tmp_path, trust):
    path = save(tmp_path / "latest.ckpt")
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("/data/0"))
        offset = archive.getinfo(name).header_offset
    data = bytearray(path.read_bytes())
    name_length, extra_length = struct.unpack_from("<HH", data, offset + 26)
    data[offset + 30 + name_length + extra_length] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"checksum of its part .*/data/0 .*delete it") as e:
        load_payload(path, trust=trust)
    check_sentence(e, path)


def test_random_damage_anywhere_is_one_sentence_or_harmless(tmp_path):
    path = save(tmp_path / "latest.ckpt")
    original = load_payload(path)
    whole, rng = path.read_bytes(), random.Random(0)
    sentences = []
    for _ in range(60):
        data = bytearray(whole)
        start = rng.randrange(len(data))
        data[start : start + rng.choice([1, 8, 200])] = rng.randbytes(rng.choice([0, 1, 8, 200]))
        path.write_bytes(data)
        try:
            read = load_payload(path)
        except CheckpointError as error:
            sentences.append(str(error))
            continue
        assert read["cfg"] == original["cfg"]
        torch.testing.assert_close(read["state_dicts"], original["state_dicts"], rtol=0, atol=0)
    assert len(sentences) > 30
    assert not any("\n" in sentence for sentence in sentences)


@pytest.mark.parametrize("content", [b"hello", b"\x89HDF\r\n\x1a\n", b"{}" * 1000])
def test_another_kind_of_file_is_not_a_checkpoint(tmp_path, content):
    path = tmp_path / "latest.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a checkpoint") as error:
        load_payload(path)
    check_sentence(error, path)


def test_another_kind_of_zip_is_not_a_checkpoint(tmp_path):
    path = tmp_path / "latest.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/.zgroup", "{}")
    with pytest.raises(CheckpointError, match=r"not a checkpoint \(found data/.zgroup"):
        load_payload(path)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([1, 2], "a list"),
        ({"state_dict": {}}, "a dict without a proper cfg and state_dicts and pickles"),
        (payload(cfg={"a": 1}), "without a proper cfg"),
        (payload(pickles=None), "without a proper pickles"),
    ],
)
def test_a_torch_file_of_something_else_is_not_a_checkpoint(tmp_path, value, found):
    path = save(tmp_path / "latest.ckpt", value)
    with pytest.raises(CheckpointError, match=found) as error:
        load_payload(path)
    check_sentence(error, path)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x04N", b"junk", dill.dumps([1, 2])[:-3]])
def test_a_damaged_pickle_is_named_after_its_source(data):
    with pytest.raises(CheckpointError, match=r"^epoch of x\.ckpt is damaged"):
        safe_loads(data, source="epoch of x.ckpt")


def test_a_recursive_or_huge_pickle_is_an_error_and_not_a_crash():
    with pytest.raises(CheckpointError):
        safe_loads(
            b"\x80\x04cbuiltins\nbytearray\n\x8a\x07" + (2**50).to_bytes(7, "little") + b"\x85R."
        )


def test_tensors_come_to_the_cpu(tmp_path):
    read = load_payload(save(tmp_path / "latest.ckpt"))
    tensors = [*read["state_dicts"]["model"].values()]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}


# ---- what is small cannot stand for something huge ----------------------------------------------


def nested(levels, make):
    """A value that contains itself twice at every level: 2**levels in all."""
    value = make("x", "x")
    for _ in range(levels):
        value = make(value, value)
    return value


def reduce_to(module, name, argument):
    """``module.name(argument)``, whatever that is."""
    head = f"c{module}\n{name}\n".encode()
    return b"\x80\x04" + head + pickle.dumps(argument, 4)[2:-1] + b"\x85R."


@pytest.mark.parametrize("name", ["str", "list", "tuple", "dict", "int", "float", "bool", "object"])
def test_types_are_named_and_never_called(name):
    # str() of a nested list writes it out
    with pytest.raises(CheckpointError) as error:
        safe_loads(reduce_to("builtins", name, nested(60, lambda a, b: [a, b])))
    check_refusal(error, f"a call of `builtins.{name}`")


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (nested(60, lambda a, b: [a, b]), "more than 500,000 values"),
        (nested(60, lambda a, b: (a, b)), "more than 500,000 values"),
        (nested(60, lambda a, b: {"a": a, "b": b}), "more than 500,000 values"),
    ],
    ids=["lists", "tuples", "dicts"],
)
@pytest.mark.timeout(60)
def test_values_that_are_huge_when_written_out_are_refused(value, named):
    with pytest.raises(CheckpointError) as error:
        safe_loads(pickle.dumps(value, 4))
    check_refusal(error, named)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"}", b"K\x01s."),  # SETITEM
        (b"}(", b"K\x01u."),  # SETITEMS
        (b"(", b"K\x01d."),  # DICT
        (b"\x8f(", b"\x90."),  # ADDITEMS
        (b"(", b"\x91."),  # FROZENSET
        (b"cbuiltins\nset\n(", b"l\x85R."),
        (b"ccollections\nOrderedDict\n((", b"K\x01tl\x85R."),
    ],
)
@pytest.mark.timeout(60)
def test_keys_whose_hash_takes_for_ever_are_refused(before, after):
    # The hash of a tuple is computed anew each time, part by part.
    key = pickle.dumps(nested(60, lambda a, b: (a, b)), 4)[2:-1]
    with pytest.raises(CheckpointError) as error:
        safe_loads(b"\x80\x04" + before + key + after)
    check_refusal(error, "a key of type `tuple`")


def test_values_that_contain_themselves_are_refused():
    value = []
    value.append(value)
    with pytest.raises(CheckpointError, match="nested deeper than 100 levels"):
        safe_loads(pickle.dumps(value))


@pytest.mark.parametrize(
    ("module", "name", "argument"),
    [
        ("builtins", "bytearray", 2**50),
        ("builtins", "bytes", 2**50),
        ("torch", "Size", ["x"]),
        ("torch", "device", 7),
        ("collections", "defaultdict", "int"),
        ("numpy", "dtype", "f9999999"),
        ("torch.storage", "_load_from_bytes", b"junk"),
    ],
)
def test_sizes_and_odd_arguments_are_refused(module, name, argument):
    with pytest.raises(CheckpointError) as error:
        safe_loads(reduce_to(module, name, argument))
    assert "--trust-checkpoint" in str(error.value)


def test_a_tensor_repeats_what_is_stored_only_a_little():
    small = torch.zeros(1).expand(1000)
    assert safe_loads(pickle.dumps(small)).shape == (1000,)
    with pytest.raises(CheckpointError, match="in a way it is not used"):
        safe_loads(pickle.dumps(torch.zeros(1).expand(2**40)))


# ---- configurations are rebuilt from plain containers -------------------------------------------


def test_a_node_with_a_foreign_parent_loses_it(tmp_path):
    # `${x}` is harmless where the node stands, and something else at the parent that it claims.
    foreign = OmegaConf.create({"x": "os.system", "node": {"_target_": "${x}"}})
    cfg = OmegaConf.create({"x": "torch.nn.Identity", "policy": None})
    cfg._content["policy"] = foreign._get_node("node")
    assert cfg.policy._target_ == "os.system", "the attack is real"
    read = load_payload(save(tmp_path / "x.ckpt", payload(cfg=cfg)))
    assert read["cfg"].policy._target_ == "torch.nn.Identity"


def any_node(value):
    node = OmegaConf.create({"a": 1})._get_node("a")
    node.__dict__["_val"] = value
    return node


@pytest.mark.parametrize(
    "value",
    [
        OmegaConf.create({"_target_": "os.system"}),
        {"_target_": "os.system"},
        ["os.system"],
        ("os.system",),
        collections.OrderedDict(),
        torch.zeros(1),
        dict,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("place", ["cfg", "state_dicts", "pickles"])
def test_what_is_not_plain_in_a_configuration_is_refused(tmp_path, value, place):
    cfg = OmegaConf.create({"a": 1})
    cfg._content["a"] = any_node(value)
    path = save(tmp_path / "x.ckpt", payload(**{place: cfg}))
    with pytest.raises(CheckpointError) as error:
        load_payload(path)
    check_refusal(error, "with the value")


def test_a_configuration_keeps_its_kinds_of_values(tmp_path):
    cfg = OmegaConf.create(
        {"a": None, "b": "???", "c": "${a}", "d": {"e": None, 1: [1.5, True, {"f": b"x"}]}}
    )
    read = load_payload(save(tmp_path / "x.ckpt", payload(cfg=cfg)))["cfg"]
    assert read == cfg
    assert OmegaConf.is_missing(read, "b")
    assert OmegaConf.is_interpolation(read, "c")
    assert not OmegaConf.is_struct(read)
