"""ReplayBuffer: names, layouts and numbers of the specification, both backends."""

import json
import math
import pathlib
import zipfile

import numpy as np
import pytest
import zarr
from damage import flip_a_bit, without_checksums
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import Blosc
from zarr.storage import MemoryStore, ZipStore

from diffusion_policy.common.errors import ConfigError, DataError
from diffusion_policy.common.replay_buffer import (
    ReplayBuffer,
    check_chunks_compatible,
    get_optimal_chunks,
    rechunk_recompress_array,
)
from diffusion_policy.storage.checksums import CHECKSUMS
from diffusion_policy.storage.nodes import arrays_in


def make_episode(length: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "obs": rng.normal(size=(length, 4)).astype(np.float32),
        "action": rng.normal(size=(length, 2)),
        "img": rng.integers(0, 255, size=(length, 6, 6, 3), dtype=np.uint8),
    }


def make_buffer(lengths=(5, 3, 7), backend: str = "numpy") -> ReplayBuffer:
    buffer = (
        ReplayBuffer.create_empty_numpy()
        if backend == "numpy"
        else ReplayBuffer.create_empty_zarr()
    )
    for i, length in enumerate(lengths):
        buffer.add_episode(make_episode(length, seed=i))
    return buffer


def read_all(buffer: ReplayBuffer) -> dict[str, np.ndarray]:
    return {key: np.asarray(array[:]) for key, array in buffer.items()}


def assert_same_contents(a: ReplayBuffer, b: ReplayBuffer) -> None:
    assert a.episode_ends[:].tolist() == b.episode_ends[:].tolist()
    left, right = read_all(a), read_all(b)
    assert left.keys() == right.keys()
    for key in left:
        assert left[key].dtype == right[key].dtype
        np.testing.assert_array_equal(left[key], right[key])


both_backends = pytest.mark.parametrize("backend", ["numpy", "zarr"])


# ---- chunks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((25650, 96, 96, 3), "u1", (73, 96, 96, 3)),
        ((25650, 96, 96, 3), "f4", (19, 96, 96, 3)),
        ((25650, 2), "f4", (25650, 2)),
        ((100, 9, 2), "f4", (100, 9, 2)),
        ((37000, 480, 640, 3), "u1", (3, 480, 640, 3)),
        ((50000, 5, 240, 320, 3), "u1", (2, 5, 240, 320, 3)),
        ((1000000,), "f8", (250000,)),
        ((300, 1, 1000000), "f8", (1, 1, 250000)),
    ],
)
def test_optimal_chunks_keep_trailing_axes_whole_and_cut_one(shape, dtype, expected):
    assert get_optimal_chunks(shape, dtype) == expected


def test_max_chunk_length_caps_the_time_axis():
    assert get_optimal_chunks((25650, 2), "f4", max_chunk_length=100) == (100, 2)


def test_optimal_chunks_equal_those_of_the_original(golden):
    cases = json.loads((golden / "c_replay_buffer.json").read_text())["get_optimal_chunks"]
    for case in cases:
        extra = {k: case[k] for k in ("target_chunk_bytes", "max_chunk_length") if k in case}
        assert get_optimal_chunks(case["shape"], case["dtype"], **extra) == tuple(case["chunks"])


@pytest.mark.parametrize("chunks", [(3,), (0, 2), (2.5, 2), (-1, 2)])
def test_chunks_that_cannot_tile_the_array_are_named(chunks):
    with pytest.raises(ConfigError, match=r"do not fit an array of shape \(8, 2\)"):
        check_chunks_compatible(chunks, (8, 2))


# ---- editing -------------------------------------------------------------------------------------


@both_backends
def test_episodes_are_appended_and_read_back(backend):
    buffer = make_buffer((5, 3), backend)
    assert (buffer.n_episodes, buffer.n_steps, buffer.backend) == (2, 8, backend)
    assert buffer.episode_ends[:].tolist() == [5, 8]
    assert buffer.episode_lengths.tolist() == [5, 3]
    assert buffer.get_episode_idxs().tolist() == [0] * 5 + [1] * 3
    assert buffer.get_episode_slice(1) == slice(5, 8)
    assert "obs" in buffer
    assert "nothing" not in buffer
    for idx in (0, 1, -1):
        expected = make_episode([5, 3][idx], seed=idx % 2)
        got = buffer.get_episode(idx)
        for key in expected:
            np.testing.assert_array_equal(got[key], expected[key])
    assert "2 episodes, 8 steps" in repr(buffer)
    assert "data/obs (8, 4) float32" in repr(buffer)


@both_backends
def test_pop_returns_the_last_episode_and_drop_removes_it(backend):
    buffer = make_buffer((5, 3, 7), backend)
    buffer.drop_episode()
    popped = buffer.pop_episode()
    np.testing.assert_array_equal(popped["img"], make_episode(3, seed=1)["img"])
    assert_same_contents(buffer, make_buffer((5,), backend))
    buffer.extend(make_episode(3, seed=1))
    assert_same_contents(buffer, make_buffer((5, 3), backend))
    buffer.drop_episode()
    buffer.drop_episode()
    assert (buffer.n_steps, buffer.n_episodes) == (0, 0)
    with pytest.raises(IndexError, match="no episode"):
        buffer.drop_episode()


@both_backends
def test_a_step_slice_takes_every_key_with_start_stop_and_step(backend):
    buffer = make_buffer((5, 3), backend)
    part = buffer.get_steps_slice(1, 7, 2)
    np.testing.assert_array_equal(part["obs"], buffer["obs"][1:7:2])


@both_backends
@pytest.mark.parametrize("idx", [2, -3])
def test_an_episode_that_does_not_exist_is_an_index_error(backend, idx):
    with pytest.raises(IndexError, match="of 2"):
        make_buffer((5, 3), backend).get_episode(idx)


@both_backends
def test_a_new_key_is_zero_for_earlier_episodes(backend):
    buffer = make_buffer((5,), backend)
    buffer.add_episode({**make_episode(3), "score": np.full((3, 1), 7.0)})
    np.testing.assert_array_equal(buffer["score"][:, 0], [0] * 5 + [7] * 3)
    assert len(buffer["obs"][:]) == 8


@both_backends
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("obs"), r"lacks \['obs'\]"),
        (lambda e: e.update(obs=e["obs"][:2]), "one common length"),
        (lambda e: e.update({k: v[:0] for k, v in e.items()}), "at least 1"),
        (lambda e: e.clear(), "at least 1"),
        (lambda e: e.update(obs=e["obs"][:, :3]), r"'obs' has steps of shape \(3,\).*\(4,\)"),
        (lambda e: e.update(scalar=np.float32(1)), "one common length"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused_and_changes_nothing(backend, change, message):
    buffer = make_buffer((5, 3), backend)
    episode = make_episode(4)
    change(episode)
    with pytest.raises(DataError, match=message):
        buffer.add_episode(episode)
    assert_same_contents(buffer, make_buffer((5, 3), backend))


def test_views_of_a_growing_numpy_buffer_stay_valid():
    buffer = make_buffer((5,))
    views = []
    for i in range(20):
        views.append((buffer["obs"], buffer["obs"].copy()))
        if i % 5 == 4:
            buffer.drop_episode()
        buffer.add_episode(make_episode(3, seed=100 + i))
    for view, copy in views:
        np.testing.assert_array_equal(view, copy)


def test_growing_a_numpy_buffer_reallocates_only_when_it_doubles():
    buffer = make_buffer((4,))
    bases = set()
    for i in range(200):
        buffer.add_episode(make_episode(4, seed=i))
        bases.add(id(buffer["obs"].base))
        buffer._keep = [*getattr(buffer, "_keep", []), buffer["obs"].base]  # ids stay unique
    assert len(bases) <= math.log2(201) + 1


def test_a_replaced_array_is_not_overwritten_by_the_old_spare_memory():
    buffer = make_buffer((5, 3))
    buffer.data["obs"] = np.ones((8, 4), np.float32)
    buffer.add_episode(make_episode(2, seed=9))
    np.testing.assert_array_equal(buffer["obs"][:8], 1)
    np.testing.assert_array_equal(buffer["obs"][8:], make_episode(2, seed=9)["obs"])


def test_copies_of_an_episode_do_not_share_memory_and_views_do():
    buffer = make_buffer((5,))
    buffer.get_episode(0, copy=True)["obs"][:] = 0
    assert np.abs(buffer["obs"]).sum() > 0
    buffer.get_episode(0)["obs"][:] = 0
    assert np.abs(buffer["obs"]).sum() == 0


@settings(max_examples=25, deadline=None)
@given(ops=st.lists(st.integers(0, 6), max_size=12), backend=st.sampled_from(["numpy", "zarr"]))
def test_any_sequence_of_adds_and_drops_equals_a_list_of_episodes(ops, backend):
    buffer, episodes = make_buffer((), backend), []
    for i, length in enumerate(ops):
        if length:
            episodes.append(make_episode(length, seed=i))
            buffer.add_episode(episodes[-1])
        elif episodes:
            episodes.pop()
            buffer.drop_episode()
    assert buffer.episode_lengths.tolist() == [len(e["obs"]) for e in episodes]
    for key in buffer.keys() if episodes else ():
        np.testing.assert_array_equal(buffer[key][:], np.concatenate([e[key] for e in episodes]))


@both_backends
def test_meta_takes_arrays_of_numbers_only(backend):
    buffer = make_buffer((5,), backend)
    buffer.update_meta({"seed": [1, 2, 3], "rate": 10.0})
    buffer.update_meta({"seed": [4]})
    assert buffer.meta["seed"][:].tolist() == [4]
    assert float(buffer.meta["rate"][()]) == 10.0
    with pytest.raises(TypeError, match="'bad'"):
        buffer.update_meta({"bad": [object()]})


# ---- wrapping damaged roots ----------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["data", "meta"])
def test_a_root_without_its_groups_is_named(missing):
    root = {"data": {}, "meta": {"episode_ends": np.zeros(0, np.int64)}}
    del root[missing]
    with pytest.raises(DataError, match=missing):
        ReplayBuffer(root)


@pytest.mark.parametrize("ends", [[4], [6], []])
def test_arrays_that_disagree_with_the_episode_ends_are_named(ends):
    root = {"data": {"obs": np.zeros((5, 2))}, "meta": {"episode_ends": np.array(ends, np.int64)}}
    with pytest.raises(DataError, match=r"'obs' has shape \(5, 2\)"):
        ReplayBuffer(root)


def test_episode_ends_that_go_back_are_named():
    root = {"data": {}, "meta": {"episode_ends": np.array([4, 9, 5, 12])}}
    with pytest.raises(DataError, match="episode 2 ends before it begins"):
        ReplayBuffer(root)


# ---- saving and loading --------------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize("suffix", [".zarr", ".zarr.zip"])
def test_a_buffer_survives_the_disk(tmp_path, backend, suffix):
    buffer = make_buffer(backend=backend)
    buffer.update_meta({"seed": [1, 2, 3], "rate": 10.0})
    path = buffer.save_to_path(tmp_path / f"x{suffix}", chunk_length=-1)
    assert zipfile.is_zipfile(path) == (suffix == ".zarr.zip")
    copy = ReplayBuffer.copy_from_path(path)
    assert copy.backend == "numpy"
    assert_same_contents(copy, buffer)
    assert copy.meta["seed"].tolist() == [1, 2, 3]
    assert copy.meta["rate"].shape == ()
    assert_same_contents(ReplayBuffer.copy_from_path(path, store=MemoryStore()), buffer)
    assert_same_contents(ReplayBuffer.create_from_path(path), buffer)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_empty_buffer_survives_the_disk(tmp_path):
    ReplayBuffer.create_empty_numpy().save_to_path(tmp_path / "e.zarr")
    assert ReplayBuffer.copy_from_path(tmp_path / "e.zarr").n_episodes == 0


@both_backends
def test_a_zip_store_holds_every_member_once_and_uncompressed(tmp_path, backend):
    path = make_buffer(backend=backend).save_to_path(tmp_path / "x.zarr.zip")
    with zipfile.ZipFile(path) as file:
        assert len(set(file.namelist())) == len(file.namelist())
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}


def test_a_store_the_caller_opened_stays_open_for_the_caller_to_close(tmp_path):
    with ZipStore(tmp_path / "x.zarr.zip", mode="w") as store:
        assert make_buffer().save_to_store(store, if_exists="replace") is store
    assert_same_contents(ReplayBuffer.copy_from_path(tmp_path / "x.zarr.zip"), make_buffer())


def test_only_the_keys_asked_for_are_read(tmp_path):
    path = make_buffer().save_to_path(tmp_path / "x.zarr")
    for chunk in (path / "data" / "img").glob("[0-9]*"):
        chunk.write_bytes(b"not to be touched")
    buffer = ReplayBuffer.copy_from_path(path, backend="numpy", keys=["action", "obs"])
    assert list(buffer.keys()) == ["action", "obs"]
    with pytest.raises(
        DataError, match=r"no data \['nothing'\]; it holds \['action', 'img', 'obs'\]"
    ):
        ReplayBuffer.copy_from_path(path, keys=["nothing"])


def test_saving_over_a_store_replaces_it_and_raise_refuses(tmp_path):
    path = make_buffer((9, 9)).save_to_path(tmp_path / "x.zarr")
    make_buffer((2,)).save_to_path(path)
    assert ReplayBuffer.copy_from_path(path).n_steps == 2
    with pytest.raises(DataError, match="exists already"):
        make_buffer().save_to_path(path, if_exists="raise")
    store = MemoryStore()
    make_buffer((2,)).save_to_store(store)
    make_buffer((3,)).save_to_store(store)
    assert_same_contents(ReplayBuffer(zarr.open_group(store)), make_buffer((3,)))
    with pytest.raises(DataError, match="already"):
        make_buffer().save_to_store(store, if_exists="raise")


def test_a_buffer_can_be_saved_over_the_store_it_reads_from(tmp_path):
    path = make_buffer().save_to_path(tmp_path / "x.zarr")
    ReplayBuffer.create_from_path(path).save_to_path(path, compressors="disk")
    assert_same_contents(ReplayBuffer.copy_from_path(path), make_buffer())


def test_a_folder_that_is_no_store_is_never_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("42")
    with pytest.raises(DataError, match="no zarr store"):
        make_buffer().save_to_path(tmp_path / "home")
    assert (tmp_path / "home" / "thesis.txt").exists()


@pytest.mark.parametrize("suffix", [".zarr", ".zarr.zip"])
def test_a_full_disk_while_saving_is_one_sentence_and_keeps_the_old_store(
    tmp_path, monkeypatch, suffix
):
    path = make_buffer((9,)).save_to_path(tmp_path / f"x{suffix}")

    def full(*_args, **_kw):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zarr.storage._local._put", full)
    monkeypatch.setattr(ZipStore, "set", full)
    with pytest.raises(DataError, match=r"could not be written .No space left on device"):
        make_buffer().save_to_path(path)
    monkeypatch.undo()
    assert ReplayBuffer.copy_from_path(path).n_steps == 9
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


# ---- chunks and compressors ----------------------------------------------------------------------


def test_compressors_are_resolved_per_key(tmp_path):
    path = make_buffer().save_to_path(
        tmp_path / "x.zarr",
        compressors={"img": "disk", "obs": None},
        chunks={"img": (2, 6, 6, 3), "obs": (100, 4)},
    )
    buffer = ReplayBuffer.create_from_path(path)
    assert buffer.get_compressors() == {
        "img": Blosc("zstd", 5, Blosc.BITSHUFFLE),
        "obs": None,
        "action": Blosc("lz4", 5, Blosc.NOSHUFFLE),
    }
    assert buffer.get_chunks() == {"img": (2, 6, 6, 3), "obs": (100, 4), "action": (15, 2)}
    assert_same_contents(buffer, make_buffer())


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"compressors": "tiny"}, ConfigError, "unknown compressor 'tiny'"),
        ({"chunks": [3]}, TypeError, "not list"),
        ({"chunks": {"obs": (3,)}}, ConfigError, "do not fit"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, kwargs, error, message):
    with pytest.raises(error, match=message):
        make_buffer().save_to_path(tmp_path / "x.zarr", **kwargs)
    assert list(tmp_path.iterdir()) == []


def test_arrays_are_rechunked_and_recompressed_in_place():
    buffer = make_buffer(backend="zarr")
    assert buffer.chunk_size == 5
    buffer.set_chunks({"img": (2, 6, 6, 3), "nothing": (1,)})
    buffer.set_compressors({"obs": "disk", "action": None, "nothing": "disk"})
    assert buffer.get_chunks()["img"] == (2, 6, 6, 3)
    assert buffer.get_compressors()["obs"].cname == "zstd"
    assert buffer.get_compressors()["action"].cname == "lz4"  # None keeps
    assert_same_contents(buffer, make_buffer())


def test_rechunking_by_length_keeps_the_other_axes_and_no_change_is_no_copy():
    buffer = make_buffer(backend="zarr")
    new = rechunk_recompress_array(buffer.data, "img", chunk_length=4, compressor="disk")
    assert new.chunks == (4, 6, 6, 3)
    assert sorted(buffer.keys()) == ["action", "img", "obs"]
    assert rechunk_recompress_array(buffer.data, "img").chunks == (4, 6, 6, 3)
    assert_same_contents(buffer, make_buffer())


def test_an_equal_layout_is_copied_without_decoding(tmp_path, monkeypatch):
    path = make_buffer().save_to_path(tmp_path / "x.zarr", compressors="disk")
    decodes = []
    original = Blosc.decode
    monkeypatch.setattr(Blosc, "decode", lambda *a: decodes.append(1) or original(*a))
    copy = ReplayBuffer.copy_from_path(path, store=MemoryStore())
    monkeypatch.undo()
    assert len(decodes) <= 4  # the episode ends, now and then; none of the three data arrays
    assert_same_contents(copy, make_buffer())


def test_a_buffer_in_memory_has_no_chunks():
    buffer = make_buffer()
    assert buffer.chunk_size is None
    for call in (buffer.get_chunks, buffer.get_compressors):
        with pytest.raises(TypeError, match="in memory"):
            call()


# ---- damaged and missing stores ------------------------------------------------------------------


def test_a_missing_path_names_the_working_directory(tmp_path):
    with pytest.raises(DataError, match=r"does not exist.*working directory"):
        ReplayBuffer.copy_from_path(tmp_path / "nothing.zarr")
    with pytest.raises(DataError, match="does not exist"):
        ReplayBuffer.create_from_path(tmp_path / "nothing.zarr.zip")


@pytest.mark.parametrize("kind", ["truncated", "garbage", "empty"])
@pytest.mark.parametrize("key", ["obs", "img"])
def test_a_damaged_chunk_is_named(tmp_path, kind, key):
    path = make_buffer().save_to_path(tmp_path / "x.zarr", chunks={"img": (4, 6, 6, 3)})
    without_checksums(path)
    chunk = path / "data" / key / {"obs": "0.0", "img": "2.0.0.0"}[key]
    chunk.write_bytes(
        {"truncated": chunk.read_bytes()[:-9], "garbage": b"x" * 99, "empty": b""}[kind]
    )
    with pytest.raises(
        DataError, match=rf"x.zarr/data/{key}: chunk {chunk.name} cannot be decoded"
    ):
        ReplayBuffer.copy_from_path(path)


@pytest.mark.parametrize("compressors", [None, "disk"])
def test_a_flipped_bit_in_a_chunk_is_found_by_its_checksum(tmp_path, compressors):
    path = make_buffer().save_to_path(tmp_path / "x.zarr", compressors=compressors)
    flip_a_bit(path / "data" / "obs" / "0.0")
    message = r"data/obs/0\.0 is damaged \(its checksum is wrong\).*--repair NEW\.zarr"
    for kwargs in ({}, {"store": MemoryStore()}, {"store": MemoryStore(), "chunks": (3, 4)}):
        with pytest.raises(DataError, match=message):
            ReplayBuffer.copy_from_path(path, keys=["obs"], **kwargs)
    with pytest.raises(DataError, match=message):
        ReplayBuffer.create_from_path(path)["obs"][:]


def test_a_truncated_raw_chunk_is_named(tmp_path):
    path = make_buffer().save_to_path(tmp_path / "x.zarr", compressors=None)
    without_checksums(path)
    chunk = path / "data" / "obs" / "0.0"
    chunk.write_bytes(chunk.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"chunk 0\.0"):
        ReplayBuffer.copy_from_path(path)


@pytest.mark.parametrize("kwargs", [{}, {"store": MemoryStore()}])
def test_a_missing_chunk_is_refused_unless_it_is_allowed(tmp_path, caplog, kwargs):
    path = without_checksums(make_buffer().save_to_path(tmp_path / "x.zarr"))
    (path / "data" / "obs" / "0.0").unlink()
    message = r"data/obs: 1 of 1 chunks are missing \(0\.0\).*allow_missing_chunks=True"
    with pytest.raises(DataError, match=message):
        ReplayBuffer.copy_from_path(path, **kwargs)
    buffer = ReplayBuffer.copy_from_path(path, allow_missing_chunks=True, **kwargs)
    assert "data/obs: 1 of 1 chunks are missing (0.0) and are read as 0" in caplog.text
    assert not buffer["obs"][:].any()


def test_a_missing_chunk_that_was_certainly_written_is_never_allowed(tmp_path):
    path = make_buffer().save_to_path(tmp_path / "x.zarr")
    (path / "data" / "obs" / "0.0").unlink()
    for allowed in (False, True):
        with pytest.raises(DataError, match=r"data/obs/0\.0 is missing"):
            ReplayBuffer.copy_from_path(path, allow_missing_chunks=allowed)


def test_chunks_are_written_for_steps_before_a_key_was_there(tmp_path):
    buffer = ReplayBuffer.create_from_path(tmp_path / "x.zarr", mode="a")
    for i in range(4):
        late = {"late": np.ones((3, 2))} if i == 3 else {}
        buffer.add_episode({"obs": np.ones((3, 2)), **late})
    copy = ReplayBuffer.copy_from_path(tmp_path / "x.zarr")
    assert copy["late"].sum() == 6


def test_chunks_of_zeros_are_written_so_that_a_missing_one_means_damage(tmp_path, caplog):
    buffer = ReplayBuffer.create_from_path(tmp_path / "z.zarr", mode="a")
    for _ in range(3):
        buffer.add_episode({"obs": np.zeros((4, 2))})
    buffer.save_to_path(tmp_path / "z2.zarr")
    for name in ("z.zarr", "z2.zarr"):
        assert len(list((tmp_path / name / "data" / "obs").glob("[0-9]*"))) == 3
    ReplayBuffer.copy_from_path(tmp_path / "z.zarr")
    assert caplog.text == ""


@pytest.mark.parametrize("cut", [0, 10, 500])
def test_a_corrupt_zip_is_one_sentence(tmp_path, cut):
    path = make_buffer().save_to_path(tmp_path / "x.zarr.zip")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="not a readable zip"):
        ReplayBuffer.copy_from_path(path)


def test_a_zip_with_a_flipped_byte_names_the_array(tmp_path):
    path = make_buffer().save_to_path(tmp_path / "x.zarr.zip", compressors=None)
    with zipfile.ZipFile(path) as file:
        offset = file.getinfo("data/img/0.0.0.0").header_offset + 200
    content = bytearray(path.read_bytes())
    content[offset] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data/img.*Bad CRC"):
        ReplayBuffer.copy_from_path(path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (".zgroup", None, "readable zarr group"),
        (".zgroup", "{", r"the file \.zgroup is not readable"),
        ("data/obs/.zarray", "{", r"the file data/obs/\.zarray is not readable"),
        ("meta/episode_ends/.zarray", None, "holds no replay buffer"),
        ("meta/episode_ends/0", "x", "cannot be decoded"),
    ],
)
@pytest.mark.parametrize("checksums", [True, False])
def test_damaged_metadata_is_one_sentence(tmp_path, file, content, message, checksums):
    path = make_buffer().save_to_path(tmp_path / "x.zarr")
    if checksums:
        message = f"the file {file} is {'damaged' if content else 'missing'}"
    else:
        without_checksums(path)
    (path / file).unlink()
    if content is not None:
        (path / file).write_text(content)
    with pytest.raises(DataError, match=message):
        ReplayBuffer.copy_from_path(path)


def test_an_array_shorter_than_the_episodes_is_named(tmp_path):
    path = without_checksums(make_buffer().save_to_path(tmp_path / "x.zarr"))
    zarr.open_array(path / "data" / "obs", mode="r+").resize((10, 4))
    for open_ in (ReplayBuffer.copy_from_path, ReplayBuffer.create_from_path):
        with pytest.raises(DataError, match=r"'obs' has shape \(10, 4\).*ends at step 15"):
            open_(path)


def test_a_file_that_is_no_store_is_named(tmp_path):
    (tmp_path / "x.zarr").write_text("hello")
    with pytest.raises(DataError, match="is a file"):
        ReplayBuffer.copy_from_path(tmp_path / "x.zarr")


def test_a_zip_cannot_be_extended(tmp_path):
    path = make_buffer().save_to_path(tmp_path / "x.zarr.zip")
    with pytest.raises(DataError, match="zip store cannot be extended"):
        ReplayBuffer.create_from_path(path, mode="a")


# ---- the original's own stores and numbers -------------------------------------------------------


def layout(path: pathlib.Path) -> dict:
    """Files of a store: parsed metadata, sizes of chunks. Defaults of the format are left out."""
    files = {}
    for file in sorted(path.rglob("*")):
        name = str(file.relative_to(path))
        if file.is_file() and file.name.startswith(".z"):
            files[name] = json.loads(file.read_text())
            if file.name == ".zarray" and files[name].get("dimension_separator") == ".":
                del files[name]["dimension_separator"]
        elif file.is_file():
            files[name] = "chunk"
    files.pop(CHECKSUMS, None)  # other programs ignore it
    return {name: value for name, value in files.items() if value != {}}


def expected_layout(files: dict) -> dict:
    return {k: "chunk" if "bytes" in v else v for k, v in files.items() if v != {}}


@pytest.fixture(scope="module")
def log(golden) -> dict:
    return json.loads((golden / "c_replay_buffer.json").read_text())


@pytest.fixture(scope="module")
def episodes(golden) -> list[dict[str, np.ndarray]]:
    with np.load(golden / "c_replay_buffer_episodes.npz") as file:
        return [{k: file[f"{i}/{k}"] for k in ("obs", "action", "img")} for i in range(4)]


def check_record(buffer: ReplayBuffer, record: dict) -> None:
    assert (buffer.n_steps, buffer.n_episodes) == (record["n_steps"], record["n_episodes"])
    assert buffer.episode_ends[:].tolist() == record["episode_ends"]
    assert buffer.episode_lengths.tolist() == record["lengths"]
    assert sorted(buffer.keys()) == record["keys"]
    for key, array in buffer.items():
        assert list(array.shape) == record["shapes"][key]
        assert str(array.dtype) == record["dtypes"][key]
        np.testing.assert_allclose(
            np.asarray(array[:], np.float64).sum(), record["checksum"][key], rtol=1e-9
        )
    assert buffer.chunk_size == record["chunk_size"]
    if record["chunks"] is None:
        return
    assert {k: list(v) for k, v in buffer.get_chunks().items()} == record["chunks"]
    assert list(buffer.episode_ends.chunks) == record["episode_ends_chunks"]
    configs = {k: c.get_config() for k, c in buffer.get_compressors().items()}
    assert configs == record["compressors"]


@both_backends
def test_the_operation_log_of_the_original_is_reproduced(backend, log, episodes):
    buffer = make_buffer((), backend)
    for record in log[f"ops_{backend}"]:
        op, _, argument = record["op"].partition(" ")
        if op in ("add_episode", "extend"):
            getattr(buffer, op)(episodes[int(argument)])
            check_record(buffer, record)
        elif op == "drop_episode":
            buffer.drop_episode()
            check_record(buffer, record)
        elif record["op"] == "pop_episode returned":
            popped = buffer.pop_episode()
            assert {k: list(v.shape) for k, v in popped.items()} == record["shapes"]
        elif op == "pop_episode":
            check_record(buffer, record)
        elif op == "update_meta":
            buffer.update_meta({"fps": 10, "names": np.array(["obs", "action"])})
            assert sorted(arrays_in(buffer.meta)) == sorted(record["keys"])
            assert int(buffer.meta["fps"][()]) == record["fps"]
        elif op == "dropped":
            while buffer.n_episodes:
                buffer.drop_episode()
            check_record(buffer, record)
        elif op == "get_episode_slice":
            got = buffer.get_episode_slice(int(argument))
            assert [got.start, got.stop] == record["slice"]
        elif op == "get_episode_idxs":
            assert buffer.get_episode_idxs().tolist() == record["idxs"]
        else:
            numbers = [int(n) for n in argument.split()]
            part = getattr(buffer, op)(*numbers)
            assert {k: list(v.shape) for k, v in part.items()} == record["shapes"]
            for key, value in part.items():
                total = np.asarray(value, np.float64).sum()
                np.testing.assert_allclose(total, record["sum"][key], rtol=1e-9)


@pytest.fixture(scope="module")
def written(tmp_path_factory, episodes) -> pathlib.Path:
    """The stores of golden/c_zarr and two more, written by us as the original wrote them."""
    folder = tmp_path_factory.mktemp("layouts")
    in_memory, in_zarr = ReplayBuffer.create_empty_numpy(), ReplayBuffer.create_empty_zarr()
    grow = ReplayBuffer.create_from_path(folder / "grow.zarr", mode="a")
    for episode in episodes:
        in_memory.add_episode(episode)
        in_zarr.add_episode(episode)
        grow.add_episode(episode, compressors="disk")
    in_memory.save_to_path(folder / "np.zarr")
    in_zarr.save_to_path(folder / "z.zarr")
    in_memory.save_to_path(
        folder / "npdisk.zarr", chunks={"img": (5, 24, 24, 3)}, compressors="disk"
    )
    in_zarr.save_to_path(
        folder / "zdisk.zarr",
        chunks={"obs": (4, 10)},
        compressors={"img": "disk", "obs": None},
    )
    in_memory.save_to_path(
        folder / "pusht.zarr", chunks={"img": (161, 24, 24, 3)}, compressors="disk"
    )
    return folder


@pytest.mark.parametrize("name", ["np", "z", "npdisk", "zdisk", "pusht", "grow"])
def test_stores_have_the_files_and_metadata_of_the_original(written, log, name):
    expected = expected_layout(log["layouts"][f"{name}.zarr"])
    assert layout(written / f"{name}.zarr") == expected


@pytest.mark.parametrize("name", ["np", "zdisk", "pusht", "grow"])
def test_stores_of_the_original_load(golden, episodes, name):
    expected = ReplayBuffer.create_empty_numpy()
    for episode in episodes:
        expected.add_episode(episode)
    path = golden / "c_zarr" / f"{name}.zarr"
    assert_same_contents(ReplayBuffer.copy_from_path(path), expected)
    assert_same_contents(ReplayBuffer.create_from_path(path), expected)


def test_copies_into_a_memory_store_have_the_layout_of_the_original(written, log):
    expected = log["copy_from_path"]

    def check(buffer, record):
        assert {k: list(v) for k, v in buffer.get_chunks().items()} == record["chunks"]
        configs = {k: c.get_config() for k, c in buffer.get_compressors().items()}
        assert configs == record["compressors"]

    path = written / "npdisk.zarr"
    check(ReplayBuffer.copy_from_path(path, store=MemoryStore()), expected["memstore"])
    buffer = ReplayBuffer.copy_from_path(
        path, store=MemoryStore(), chunks={"img": (9, 24, 24, 3)}, compressors="default"
    )
    check(buffer, expected["memstore_rechunk"])
    buffer.set_chunks({"obs": (3, 10)})
    buffer.set_compressors({"obs": "disk"})
    check(buffer, expected["after_set"])


def test_the_human_demonstrations_load(human_pusht_zarr):
    keys = ["action", "state", "keypoint", "n_contacts"]
    buffer = ReplayBuffer.copy_from_path(human_pusht_zarr, keys=keys)
    assert (buffer.n_episodes, buffer.n_steps) == (206, 25650)
    assert (buffer.episode_lengths.min(), buffer.episode_lengths.max()) == (49, 246)
    assert {k: a.shape[1:] for k, a in buffer.items()} == {
        "action": (2,),
        "state": (5,),
        "keypoint": (9, 2),
        "n_contacts": (1,),
    }
