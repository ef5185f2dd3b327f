"""What the bytes of a store may choose: codecs, types and sizes, all of them by list."""

import json
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import zarr
from damage import without_checksums

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.inspect.repair import repair
from diffusion_policy.inspect.summary import summarize
from diffusion_policy.storage.checksums import DamagedFileError
from diffusion_policy.storage.documents import COMPRESSORS, check_document

ARRAY = {
    "zarr_format": 2,
    "shape": [10, 2],
    "chunks": [5, 2],
    "dtype": "<f4",
    "compressor": None,
    "fill_value": 0.0,
    "filters": None,
    "order": "C",
}


def check(**changes) -> None:
    document = {key: value for key, value in {**ARRAY, **changes}.items() if value is not ...}
    check_document("x.zarr", "data/obs/.zarray", json.dumps(document).encode())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shape": [], "chunks": []},
        {"shape": [0], "chunks": [1]},
        {"shape": [2], "chunks": [161]},
        {"dtype": "<U6", "fill_value": ""},
        {"dtype": "|b1", "fill_value": False},
        {"dtype": "<c8", "fill_value": [0.0, 0.0]},
        {"fill_value": "NaN"},
        {"fill_value": None},
        {"filters": []},
        {"filters": [{"id": "shuffle"}]},
        {"dimension_separator": "/"},
        *({"compressor": {"id": name}} for name in sorted(COMPRESSORS)),
    ],
    ids=str,
)
def test_what_published_stores_need_is_allowed(changes):
    check(**{"shape": [10, 2], **changes} if "chunks" not in changes else changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({"compressor": {"id": name}}, f"the compressor '{name}' is not allowed, only .*blosc")
            for name in ("pickle", "json2", "msgpack2", "vlen-utf8", "categorize", "astype")
        ),
        ({"filters": [{"id": "pickle"}]}, "the filter 'pickle' is not allowed"),
        ({"filters": [{"id": "shuffle"}, {"id": "delta"}]}, "the filter 'delta' is not allowed"),
        ({"filters": [None]}, "the filter is None"),
        ({"compressor": "blosc"}, "the compressor is 'blosc'"),
        ({"compressor": {"id": ["blosc"]}}, "the compressor is"),
        ({"dtype": "|O"}, r"the type '\|O' is not allowed"),
        ({"dtype": [["a", "<f4"]]}, "is not allowed, only plain numbers and text"),
        ({"dtype": "|V8"}, "is not allowed"),
        ({"dtype": "f4"}, "is not allowed"),
        ({"chunks": [2**40, 2]}, "are larger than 2 GB"),
        ({"dtype": "<U999999", "chunks": [2000, 2]}, "are larger than 2 GB"),
        ({"chunks": [0, 2]}, "whole numbers of at least 1"),
        ({"chunks": [2.0, 2]}, "whole numbers"),
        ({"chunks": [True, 2]}, "whole numbers"),
        ({"shape": [-1, 2]}, "whole numbers of at least 0"),
        ({"shape": [2**63, 2]}, "whole numbers"),
        ({"shape": "10"}, "whole numbers"),
        ({"shape": [1] * 40, "chunks": [1] * 40}, "up to 32"),
        ({"shape": [10]}, "different numbers of axes"),
        ({"order": "K"}, "order is 'K'"),
        ({"dimension_separator": "../"}, "dimension_separator is"),
        ({"fill_value": {"a": 1}}, "fill_value is"),
        ({"zarr_format": 3}, "zarr_format is 3"),
        *(({name: ...}, f"{name}' is missing") for name in ARRAY),
    ],
    ids=str,
)
def test_everything_else_is_refused_in_a_sentence(changes, message):
    with pytest.raises(DamagedFileError, match=rf"x\.zarr: the file data/obs/\.zarray .*{message}"):
        check(**changes)


V3 = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [10],
    "data_type": "float32",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [5]}},
    "codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 0}}],
}
SHARDS = {"name": "sharding_indexed", "configuration": {"codecs": [{"name": "numcodecs.pickle"}]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codecs": [{"name": "numcodecs.pickle"}]}, "the codec 'numcodecs.pickle' is not allowed"),
        ({"codecs": [SHARDS]}, "the codec 'numcodecs.pickle' is not allowed"),
        ({"codecs": ["vlen-utf8"]}, "the codec 'vlen-utf8' is not allowed"),
        ({"codecs": 3}, "is not readable"),
        ({"data_type": "object"}, "the type 'object' is not allowed"),
        ({"data_type": {"name": "x"}}, "is not allowed"),
        ({"chunk_grid": {}}, "'configuration' is missing"),
        ({"storage_transformers": [{}]}, "storage_transformers are not allowed"),
    ],
)
def test_format_3_is_guarded_as_well(changes, message):
    check_document("x", "data/obs/zarr.json", json.dumps(V3).encode())
    with pytest.raises(DataError, match=message):
        check_document("x", "data/obs/zarr.json", json.dumps({**V3, **changes}).encode())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b"3"], ids=range(7)
)
@pytest.mark.parametrize("name", [".zarray", ".zattrs", ".zgroup", "zarr.json"])
def test_what_is_no_table_is_refused(content, name):
    with pytest.raises(DataError, match="is not readable"):
        check_document("x", f"data/{name}", content)


# ---- through the front door ----------------------------------------------------------------------


@pytest.fixture
def store(tmp_path) -> pathlib.Path:
    buffer = ReplayBuffer.create_empty_numpy()
    buffer.add_episode({"obs": np.arange(6.0)[:, None], "extra": np.arange(6.0)[:, None]})
    return without_checksums(buffer.save_to_path(tmp_path / "x.zarr"))


def change(store: pathlib.Path, **changes) -> None:
    file = store / "data/extra/.zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


PICKLE = {"id": "pickle"}
#: zarr takes these for text and asks nobody about the second filter.
HIDDEN = {"filters": [{"id": "vlen-utf8"}, PICKLE], "dtype": "|O", "fill_value": ""}


@pytest.fixture
def old_numcodecs(monkeypatch):
    """Newer ones unpickle only if they are told to."""
    monkeypatch.setattr("numcodecs.pickles.ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"compressor": PICKLE},
        {"compressor": None, "filters": [PICKLE]},
        {"compressor": None, "filters": [PICKLE], "dtype": "|O"},
        {"compressor": None, **HIDDEN},
    ],
    ids=["compressor", "filter", "objects", "hidden"],
)
@pytest.mark.usefixtures("old_numcodecs")
def test_a_pickle_in_a_chunk_is_never_run(store, tmp_path, changes):
    evil = tmp_path / "evil"
    change(store, **{"fill_value": None, **changes})
    (store / "data/extra/0.0").write_bytes(pickle.dumps(Bomb(evil)))
    for open_ in (
        ReplayBuffer.copy_from_path,
        ReplayBuffer.create_from_path,
        lambda path: ReplayBuffer.create_from_path(path, mode="a"),
        lambda path: ReplayBuffer.copy_from_path(path, keys=["extra"]),
    ):
        with pytest.raises(DataError, match=r"'(pickle|vlen-utf8)' is not allowed"):
            open_(store)
    summary = summarize(store)
    assert summary.lost_keys == ["extra"]
    repair(summary, tmp_path / "new.zarr")
    assert not evil.exists()


@pytest.mark.usefixtures("old_numcodecs")
def test_zarr_itself_would_have_run_it(store, tmp_path):
    """What the test before this one is about."""
    change(store, compressor=None, **HIDDEN)
    (store / "data/extra/0.0").write_bytes(pickle.dumps(Bomb(tmp_path / "evil")))
    with pytest.raises(Exception):  # noqa: B017  (what it made is no text)
        zarr.open_array(store / "data/extra", mode="r", zarr_format=2)[...]
    assert (tmp_path / "evil").exists()


@pytest.mark.parametrize("shape", [[2**40, 1], [2**62, 1], [2**62, 2**62], [6, 2**40], [6, 2**62]])
def test_an_absurd_length_is_refused_before_memory_is_needed(store, shape):
    change(store, shape=shape, chunks=[1, 1])
    for mode in ("r", "a"):
        with pytest.raises(DataError):
            ReplayBuffer.create_from_path(store, mode=mode)
    with pytest.raises(DataError):
        ReplayBuffer.copy_from_path(store)
    summarize(store)


def test_a_chunk_that_claims_to_be_huge_is_refused_before_it_is_decoded(store):
    chunk = store / "data/extra/0.0"
    header = bytearray(chunk.read_bytes())
    header[4:8] = (2**31 - 1).to_bytes(4, "little")
    chunk.write_bytes(header)
    with pytest.raises(DataError, match="it holds 2147483647 bytes of values, expected 48"):
        ReplayBuffer.copy_from_path(store)


@pytest.mark.parametrize("name", ["data/obs/.zarray", "data/obs/0.0", "meta/episode_ends/0"])
def test_a_pipe_in_the_place_of_a_file_blocks_nobody(store, name):
    (store / name).unlink()
    os.mkfifo(store / name)
    with pytest.raises(DataError, match=r"no regular file|missing"):
        ReplayBuffer.copy_from_path(store)
    if name.startswith("meta"):
        with pytest.raises(DataError, match=r"no regular file|missing"):
            summarize(store)
    else:
        assert summarize(store).lost_keys == ["obs"]


@pytest.mark.parametrize(
    "member", ["data/obs/../../../evil", "/evil/.zarray", "data\\..\\..\\evil"]
)
def test_a_zip_with_members_outside_of_the_store_is_refused(tmp_path, member):
    buffer = ReplayBuffer.create_empty_numpy()
    buffer.add_episode({"obs": np.arange(6.0)[:, None]})
    path = buffer.save_to_path(tmp_path / "x.zarr.zip")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(member, b"x")
    for open_ in (ReplayBuffer.copy_from_path, summarize):
        with pytest.raises(DataError, match="does not belong into a zarr store"):
            open_(path)


def test_only_what_belongs_to_an_array_is_copied(store, tmp_path):
    (store / "data/obs/run_me.sh").write_text("echo evil")
    ReplayBuffer.create_from_path(store).save_to_path(tmp_path / "copy.zarr")
    assert not list((tmp_path / "copy.zarr").rglob("*.sh"))
