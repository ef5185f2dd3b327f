"""Archives of ``torch.save`` are read without torch's reader; ambiguous ones are refused."""

import io
import struct
import zipfile

import dill
import pytest
import torch
from omegaconf import OmegaConf

from diffusion_policy.common.checkpoint_file import load_payload
from diffusion_policy.common.errors import CheckpointError


def parts_of_a_checkpoint():
    """{name: bytes} of a whole checkpoint."""
    file = io.BytesIO()
    weights = {"weight": torch.arange(4.0), "step": torch.tensor(3)}
    payload = {"cfg": OmegaConf.create({"a": 1}), "state_dicts": {"model": weights}, "pickles": {}}
    torch.save(payload, file, pickle_module=dill)
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, parts, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in parts.items() if isinstance(parts, dict) else parts:
            archive.writestr(name, content)
    return path


def refused(path):
    with pytest.raises(CheckpointError) as error:
        load_payload(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_kind_of_tensor_is_read_as_torch_reads_it(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "view": base[1:, ::2],
        "transposed": base.T,
        "again": base,
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "expanded": torch.ones(1, 3).expand(5, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "gradient": torch.ones(2, requires_grad=True),
    }
    for dtype in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16"):
        tensors[dtype] = torch.arange(3).to(getattr(torch, dtype))
    tensors |= {"complex64": torch.tensor([1j]), "float64": torch.tensor([0.1]).double()}
    payload = {"cfg": OmegaConf.create({}), "state_dicts": tensors, "pickles": {}}
    path = tmp_path / "x.ckpt"
    torch.save(payload, path, pickle_module=dill)
    read = load_payload(path)["state_dicts"]
    expected = torch.load(path, pickle_module=dill, weights_only=False)["state_dicts"]
    for name, tensor in expected.items():
        assert type(read[name]) is type(tensor), name
        assert read[name].dtype == tensor.dtype, name
        assert read[name].stride() == tensor.stride(), name
        assert read[name].requires_grad == tensor.requires_grad, name
        assert torch.equal(read[name].detach(), tensor.detach()), name
    assert read["view"].untyped_storage().data_ptr() != 0


def test_tensors_that_share_memory_still_do(tmp_path):
    base = torch.zeros(4)
    payload = {"cfg": OmegaConf.create({}), "state_dicts": {"a": base, "b": base[1:]}}
    torch.save(payload | {"pickles": {}}, tmp_path / "x.ckpt", pickle_module=dill)
    read = load_payload(tmp_path / "x.ckpt")["state_dicts"]
    read["a"][1] = 7
    assert read["b"][0] == 7


# ---- TorchScript ---------------------------------------------------------------------------------


NEVER = [(torch, "load"), (torch.jit, "load"), (torch._C, "PyTorchFileReader")]


@pytest.fixture
def without_torchs_reader(monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("torch's own reader was entered")

    for module, name in NEVER:
        monkeypatch.setattr(module, name, never)


@pytest.mark.parametrize(
    "name",
    [
        "archive/constants.pkl",
        "archive/CONSTANTS.PKL",  # torch's reader ignores case
        "other/constants.pkl",
        "a" * 490 + "/constants.pkl",
        "archive/constants.pkl" + "x" * 500,  # and cuts names at 511 bytes
    ],
)
def test_an_archive_that_torch_takes_for_torchscript_is_refused(
    tmp_path, without_torchs_reader, name
):
    path = write(tmp_path / "x.ckpt", parts_of_a_checkpoint() | {name: b"\x80\x02)."})
    assert "not a checkpoint" in refused(path)


def test_safe_reading_never_enters_torchs_reader(tmp_path, without_torchs_reader):
    path = write(tmp_path / "x.ckpt", parts_of_a_checkpoint())
    assert load_payload(path)["state_dicts"]["model"]["weight"].tolist() == [0, 1, 2, 3]


# ---- ambiguous and oversized archives ------------------------------------------------------------


def test_double_names_and_names_that_differ_by_case_are_refused(tmp_path):
    parts = [*parts_of_a_checkpoint().items()]
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = write(tmp_path / "x.ckpt", [*parts, ("archive/data.pkl", b"N.")])
    assert "several parts named archive/data.pkl" in refused(twice)
    case = write(tmp_path / "y.ckpt", [*parts, ("archive/DATA.pkl", b"N.")])
    assert "several parts named archive/data.pkl" in refused(case)


@pytest.mark.parametrize("name", ["archive/" + "x" * 600, "archive/a\nb", "archive/ä"])
def test_long_and_odd_names_are_refused(tmp_path, name):
    path = write(tmp_path / "x.ckpt", parts_of_a_checkpoint() | {name: b""})
    assert "it has a part named" in refused(path)


def test_several_folders_are_refused(tmp_path):
    path = write(tmp_path / "x.ckpt", parts_of_a_checkpoint() | {"b/data.pkl": b"N."})
    assert "several folders" in refused(path)


def test_compressed_parts_are_refused_because_they_can_be_bombs(tmp_path):
    parts = parts_of_a_checkpoint() | {"archive/data/9": bytes(50_000_000)}
    path = write(tmp_path / "x.ckpt", parts, compression=zipfile.ZIP_DEFLATED)
    assert "is compressed" in refused(path)


def test_parts_that_overlap_are_refused_because_they_can_be_bombs(tmp_path):
    path = write(tmp_path / "x.ckpt", parts_of_a_checkpoint() | {"archive/data/8": bytes(9_000)})
    data = bytearray(path.read_bytes())
    # Eight more entries of the directory for the bytes of one part.
    end = data.rfind(b"PK\x05\x06")
    start = struct.unpack_from("<I", data, end + 16)[0]
    big = data.rfind(b"archive/data/8") - 46
    record = data[big : big + 46 + len("archive/data/8")]
    copies = b"".join(record.replace(b"data/8", b"data/%c" % c) for c in b"abcdefgh")
    n = struct.unpack_from("<H", data, end + 10)[0] + 8
    tail = bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, n, n, end - start + len(copies))
    path.write_bytes(data[:end] + copies + tail)
    assert "larger than the file" in refused(path) or "overlap" in refused(path).lower()


def test_a_missing_part_is_named(tmp_path):
    parts = parts_of_a_checkpoint()
    del parts["archive/data/0"]
    assert "its part data/0 is missing" in refused(write(tmp_path / "x.ckpt", parts))


def test_a_part_of_another_size_is_named(tmp_path):
    parts = parts_of_a_checkpoint() | {"archive/data/0": bytes(12)}
    said = refused(write(tmp_path / "x.ckpt", parts))
    assert "data/0 has 12 bytes, but the pickle says 4 elements of torch.float32" in said


def test_the_other_byte_order_is_not_misread(tmp_path):
    path = write(tmp_path / "x.ckpt", parts_of_a_checkpoint() | {"archive/byteorder": b"big"})
    assert "'big' byte order" in refused(path)
