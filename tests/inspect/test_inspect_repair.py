"""Repair: what is intact is copied bit by bit, the original and everything else stay untouched."""

import errno
import json
import os

import numpy as np
import pytest
import zarr
from damage import without_checksums

from diffusion_policy.codecs.imagecodecs_numcodecs import Jpeg2k, JpegXl
from diffusion_policy.common.errors import DataError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.inspect import repair as repair_module
from diffusion_policy.inspect.repair import repair
from diffusion_policy.inspect.summary import summarize
from diffusion_policy.storage import durable_files


@pytest.fixture
def damaged(make_data_set):
    """A data set whose third episode lost a chunk; its values before, as arrays."""
    path = make_data_set()
    before = ReplayBuffer.copy_from_path(path)
    (path / "data/pos/6.0").unlink()
    return path, before


@pytest.mark.parametrize("name", ["new.zarr", "new.zarr.zip", "folder/new"])
def test_every_episode_that_is_whole_is_copied(damaged, tmp_path, contents, name):
    path, before = damaged
    original = contents(path)
    repaired = repair(summarize(path), tmp_path / name)
    assert contents(path) == original
    assert (repaired.kept.tolist(), repaired.n_kept_steps) == ([0, 1, 3, 4], 48)
    assert (repaired.n_lost_episodes, repaired.n_lost_steps) == (1, 8)
    assert (repaired.left_out, repaired.mended, repaired.encoded_again) == ([], [], [])
    assert (tmp_path / name).is_file() == name.endswith(".zip")
    copy = summarize(tmp_path / name)
    assert copy.findings == []
    assert copy.ends.tolist() == [10, 22, 37, 48]
    buffer = ReplayBuffer.copy_from_path(tmp_path / name)
    assert set(buffer.keys()) == set(before.keys())
    for key, array in buffer.items():
        np.testing.assert_array_equal(array, np.delete(before[key], range(22, 30), axis=0))
    assert buffer.meta["seed"].tolist() == [100, 101, 103, 104]
    assert buffer.meta["rate"] == 10
    assert not list(tmp_path.rglob("*.partial*"))


def test_a_zip_can_be_repaired_into_a_directory_and_extended(make_data_set, tmp_path):
    def change(arrays):
        arrays["action"][50] = np.inf

    path = make_data_set("set.zarr.zip", change=change)
    repair(summarize(path), tmp_path / "new.zarr")
    buffer = ReplayBuffer.create_from_path(tmp_path / "new.zarr", mode="a")
    assert (buffer.n_episodes, buffer.n_steps) == (4, 45)
    buffer.add_episode(buffer.get_episode(0, copy=True))
    assert summarize(tmp_path / "new.zarr").damages == []


def test_images_of_lossy_codecs_keep_every_bit(tmp_path, contents):
    y, x = np.mgrid[:32, :32]
    images = np.stack([np.stack([y * 7 + i, x * 7, y + x], -1) for i in range(6)]).astype(np.uint8)
    buffer = ReplayBuffer.create_empty_numpy()
    for half in (images[:3], images[3:]):
        buffer.add_episode({"camera": half, "pos": np.arange(3.0)[:, None]})
    path = buffer.save_to_path(
        tmp_path / "x.zarr",
        chunks={"camera": (1, 32, 32, 3), "pos": (3, 1)},
        compressors={"camera": Jpeg2k(level=30), "pos": None},
    )
    (path / "data/pos/1.0").unlink()
    repair(summarize(path), tmp_path / "new.zarr")
    original, copy = contents(path), contents(tmp_path / "new.zarr")
    chunks = {name for name in copy if name.startswith("data/camera/") and ".z" not in name}
    assert chunks == {f"data/camera/{i}.0.0.0" for i in range(3)}
    assert all(copy[name] == original[name] for name in chunks)
    description = json.loads(original["data/camera/.zarray"])
    assert json.loads(copy["data/camera/.zarray"]) == description | {"shape": [3, 32, 32, 3]}


def test_an_unfinished_recording_is_tidied_up_in_the_copy(make_data_set, tmp_path):
    path = make_data_set(checksums=False)
    zarr.open_group(path, mode="r+", zarr_format=2)["data/pos"].resize((60, 2))
    repaired = repair(summarize(path), tmp_path / "new.zarr")
    assert (repaired.n_kept_episodes, repaired.n_kept_steps) == (5, 56)
    assert (repaired.n_lost_episodes, repaired.n_lost_steps) == (0, 4)
    assert summarize(tmp_path / "new.zarr").findings == []


def test_episodes_before_impossible_ends_are_kept(make_data_set, tmp_path):
    path = make_data_set(checksums=False)
    zarr.open_group(path, mode="r+", zarr_format=2)["meta/episode_ends"][:] = [10, 22, 5, 45, 56]
    repaired = repair(summarize(path), tmp_path / "new.zarr")
    assert (repaired.n_kept_episodes, repaired.n_lost_episodes) == (2, 3)
    assert (repaired.n_kept_steps, repaired.n_lost_steps) == (22, 34)


def test_what_is_left_out_is_named(damaged, tmp_path):
    path, _ = damaged
    (path / "meta/rate/0").write_bytes(b"")
    without_checksums(path)
    zarr.open_group(path, mode="r+", zarr_format=2).attrs["fingerprint"] = "of the whole"
    repaired = repair(summarize(path), tmp_path / "new.zarr")
    meta, attribute = repaired.left_out
    assert meta.startswith("meta/rate is not readable")
    assert attribute == "attribute 'fingerprint' of the data set"
    copy = zarr.open_group(tmp_path / "new.zarr", mode="r")
    assert dict(copy.attrs) == {}
    assert "rate" not in copy["meta"]


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_a_path_where_something_is_gets_refused(damaged, tmp_path, kind):
    new = tmp_path / "new.zarr"
    if kind == "file":
        new.write_text("mine")
    elif kind == "folder":
        new.mkdir()
    else:
        new.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="exists already"):
        repair(summarize(damaged[0]), new)
    assert kind != "file" or new.read_text() == "mine"


def test_a_path_inside_the_original_is_refused(damaged, contents):
    path, _ = damaged
    original = contents(path)
    with pytest.raises(DataError, match="lies inside the data set itself"):
        repair(summarize(path), path / "data/new.zarr")
    assert contents(path) == original


def test_nothing_is_written_when_no_episode_is_whole(make_data_set, tmp_path):
    path = make_data_set()
    for chunk in (path / "data").glob("*/[0-9]*"):
        chunk.unlink()
    with pytest.raises(DataError, match="no episode is whole"):
        repair(summarize(path), tmp_path / "new.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["set.zarr"]


def test_damage_of_descriptions_and_ends_costs_nothing(make_data_set, tmp_path):
    path = make_data_set()
    before = ReplayBuffer.copy_from_path(path)
    for name in (".zgroup", "data/.zgroup", "data/pos/.zarray", "meta/episode_ends/0"):
        (path / name).unlink()
    repaired = repair(summarize(path), tmp_path / "new.zarr")
    assert (repaired.n_kept_episodes, repaired.n_lost_steps, repaired.left_out) == (5, 0, [])
    assert len(repaired.mended) == 4
    copy = ReplayBuffer.copy_from_path(tmp_path / "new.zarr")
    for key, array in before.items():
        np.testing.assert_array_equal(copy[key], array)
    assert summarize(tmp_path / "new.zarr").findings == []


@pytest.mark.parametrize("checksums", [True, False])
def test_an_array_that_is_lost_as_a_whole_is_left_out(make_data_set, tmp_path, checksums):
    path = make_data_set(checksums=checksums)
    for chunk in (path / "data/pos").glob("[0-9]*"):
        chunk.unlink()
    repaired = repair(summarize(path), tmp_path / "new.zarr")
    assert (repaired.n_kept_episodes, repaired.n_lost_steps) == (5, 0)
    assert [text[:24] for text in repaired.left_out] == ["'pos': chunk 0.0 is miss"]
    assert sorted(ReplayBuffer.copy_from_path(tmp_path / "new.zarr").keys()) == [
        "action",
        "img",
        "joints",
    ]


@pytest.mark.parametrize("chunk", [1, 2])
def test_images_of_lossy_codecs_behind_the_damage_keep_every_value(tmp_path, contents, chunk):
    """Chunks of one image keep their bytes; others get a codec without loss."""
    images = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), np.uint8)
    buffer = ReplayBuffer.create_empty_numpy()
    for part in np.split(images, 3):
        buffer.add_episode({"camera": part, "pos": np.arange(3.0)[:, None]})
    path = buffer.save_to_path(
        tmp_path / "x.zarr",
        chunks={"camera": (chunk, 32, 32, 3), "pos": (3, 1)},
        compressors={
            "camera": JpegXl(distance=2.0, lossless=False) if chunk > 1 else Jpeg2k(level=30),
            "pos": None,
        },
    )
    before = ReplayBuffer.copy_from_path(path)["camera"]
    assert (before != images).any()
    (path / "data/pos/1.0").unlink()
    repaired = repair(summarize(path), tmp_path / "new.zarr")
    assert repaired.kept.tolist() == [0, 2]
    assert repaired.encoded_again == (["camera"] if chunk > 1 else [])
    after = ReplayBuffer.copy_from_path(tmp_path / "new.zarr")["camera"]
    np.testing.assert_array_equal(after, np.delete(before, range(3, 6), axis=0))
    if chunk == 1:
        old, new = contents(path), contents(tmp_path / "new.zarr")
        assert new["data/camera/3.0.0.0"] == old["data/camera/6.0.0.0"]


@pytest.mark.parametrize("name", ["new.zarr", "new.zarr.zip"])
def test_a_full_disk_leaves_nothing_behind(damaged, tmp_path, monkeypatch, name):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable_files, "fsync", full)
    with pytest.raises(DataError, match=r"No space left on device.*free some space"):
        repair(summarize(damaged[0]), tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["set.zarr"]


def test_a_copy_that_does_not_read_back_gets_no_name(damaged, tmp_path, monkeypatch):
    def spoil(path, ends, verify=repair_module._verify):
        (path / "data/pos/1.0").unlink()
        verify(path, ends)

    monkeypatch.setattr(repair_module, "_verify", spoil)
    with pytest.raises(DataError, match=r"does not read back \('pos': chunk 1.0 is missing"):
        repair(summarize(damaged[0]), tmp_path / "new.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["set.zarr"]
