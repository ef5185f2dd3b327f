"""The summary: what it says about a sound data set, and that no kind of damage escapes it."""

import json
import shutil
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
import torch
import zarr
from damage import flip_a_bit, without_checksums

from diffusion_policy.codecs.imagecodecs_numcodecs import Jpeg2k
from diffusion_policy.common.errors import DataError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.inspect.scan import find_jumps, kind_of
from diffusion_policy.inspect.summary import length_histogram, summarize
from diffusion_policy.inspect.text import render_text
from diffusion_policy.model.common.normalizer import SingleFieldLinearNormalizer


def only(findings):
    assert len(findings) == 1, findings
    return findings[0]


def edit_ends(path, ends):
    root = zarr.open_group(path, mode="r+", zarr_format=2)
    root["meta/episode_ends"][:] = ends


def flip_a_byte_of_a_member(path, member, offset=-3):
    """Damage a file inside a zip, where it lies."""
    with zipfile.ZipFile(path) as file:
        info = file.getinfo(member)
        position = file.read(member)
    content = bytearray(path.read_bytes())
    at = content.index(position, info.header_offset) + len(position) + offset
    content[at] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["set.zarr", "set.zarr.zip"])
def test_a_sound_data_set_is_described_without_a_complaint(make_data_set, name):
    summary = summarize(make_data_set(name))
    assert summary.findings == []
    assert summary.verdict == "no damage, no warning"
    assert summary.format == "zarr format 2, " + ("zip" if name.endswith("zip") else "directory")
    assert (len(summary.ends), summary.n_steps, summary.n_intact_episodes) == (5, 56, 5)
    assert summary.lengths.tolist() == [10, 12, 8, 15, 11]
    keys = {key.name: key for key in summary.keys}
    assert {name: key.kind for name, key in keys.items()} == {
        "action": "low_dim",
        "pos": "low_dim",
        "joints": "low_dim",
        "img": "image",
    }
    assert keys["joints"].shape == (56, 2, 3)
    assert keys["joints"].dim_names[:4] == ["[0,0]", "[0,1]", "[0,2]", "[1,0]"]
    assert keys["img"].dtype == "uint8"
    assert keys["img"].compressor == "blosc lz4 5"
    assert [keys["img"].minimum[0], keys["img"].maximum[0], keys["img"].mean[0]] == [0, 220, 110]
    assert 0 < keys["img"].n_bytes < summary.n_bytes


def test_ranges_and_normalizer_are_those_of_the_normalizer_itself(make_data_set):
    path = make_data_set()
    buffer = ReplayBuffer.copy_from_path(path)
    for key in summarize(path).keys:
        if key.kind != "low_dim":
            assert key.scale is None
            continue
        data = buffer[key.name]
        normalizer = SingleFieldLinearNormalizer.create_fit(data, last_n_dims=data.ndim - 1)
        params, stats = normalizer.params_dict, normalizer.get_input_stats()
        assert torch.equal(torch.as_tensor(key.scale), params["scale"])
        assert torch.equal(torch.as_tensor(key.offset), params["offset"])
        np.testing.assert_array_equal(key.minimum, stats["min"])
        np.testing.assert_array_equal(key.maximum, stats["max"])
        np.testing.assert_allclose(key.mean, stats["mean"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "dtype", "kind"),
    [
        ((50, 2), "f4", "low_dim"),
        ((50,), "i8", "low_dim"),
        ((50, 9, 2), "f4", "low_dim"),
        ((50, 96, 96, 3), "f4", "image"),
        ((50, 5, 96, 96, 3), "u1", "image"),
        ((50, 96, 96, 1), "u1", "image"),
        ((50, 96, 96), "f4", "other"),
        ((50, 1024, 3), "f4", "other"),
        ((50,), "U5", "other"),
    ],
)
def test_keys_are_told_apart_by_shape_and_type(shape, dtype, kind):
    assert kind_of(shape, np.dtype(dtype)) == kind


def test_infinities_of_both_signs_are_found_without_a_warning_of_numpy(make_data_set):
    def change(arrays):
        arrays["pos"][9] = np.inf, -np.inf

    path = make_data_set(change=change)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert only(summarize(path).damages).row == 9


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", ["pos", "joints"])
def test_a_value_that_is_not_finite_is_named_by_key_episode_and_step(make_data_set, key, value):
    def change(arrays):
        arrays[key][24] = value

    summary = summarize(make_data_set(change=change))
    damage = only(summary.damages)
    assert damage.text == f"{key!r} holds NaN or infinite values at step 2 of episode 2 (row 24)"
    assert damage.row == 24
    assert summary.place_of(damage) == (2, 2)
    assert summary.intact_episodes.tolist() == [0, 1, 3, 4]
    assert next(k for k in summary.keys if k.name == key).scale is None


def test_only_so_many_places_are_named(make_data_set):
    def change(arrays):
        arrays["pos"][20:30] = np.nan

    text = only(summarize(make_data_set(change=change)).damages).text
    assert text.endswith("(row 22) and at 7 further steps")


def test_images_that_are_not_finite_are_found_and_left_out_of_the_range(make_data_set):
    def change(arrays):
        arrays["img"] = arrays["img"].astype(np.float32)
        arrays["img"][40, 3, 3, 0] = np.inf

    summary = summarize(make_data_set(change=change))
    assert only(summary.damages).row == 40
    image = next(key for key in summary.keys if key.name == "img")
    assert (image.minimum[0], image.maximum[0]) == (0, 220)


def test_constant_dimensions_are_a_warning_not_damage(make_data_set):
    def change(arrays):
        arrays["joints"][:, 1, 0] = 3.25

    summary = summarize(make_data_set(change=change))
    assert summary.damages == []
    expected = "'joints' is constant in [1,0]=3.25: the normalizer maps it to 0"
    assert only(summary.warnings).text == expected
    joints = next(key for key in summary.keys if key.name == "joints")
    assert joints.scale[3] * 3.25 + joints.offset[3] == 0


def test_a_gap_in_the_recording_is_a_warning_with_its_place():
    values = np.arange(1000, dtype=np.float32)[:, None] * [0.1, 0.0]
    values[700:, 0] += 50
    ends = np.array([400, 1000])
    warning = only(find_jumps("pos", values, ["[0]", "[1]"], ends))
    assert warning.level == "warning"
    assert warning.row == 700
    assert warning.text.startswith("'pos'[0] jumps by 50.1, where 99 % of the steps are below 0.1")
    assert "step 300 of episode 1 (row 700)" in warning.text


def test_a_gap_in_a_short_recording_is_found_too():
    values = np.arange(30, dtype=np.float32)[:, None] * 0.1
    values[20:] += 50
    assert only(find_jumps("pos", values, ["[0]"], np.array([30]))).row == 20


def test_the_step_from_one_episode_to_the_next_is_no_gap():
    values = np.arange(1000, dtype=np.float32)[:, None] * 0.1
    values[400:] += 500
    assert find_jumps("pos", values, ["[0]"], np.array([400, 1000])) == []
    assert find_jumps("pos", values, ["[0]"], np.array([1000])) != []


@pytest.mark.parametrize("turn", [np.pi, 2 * np.pi])
def test_an_angle_that_starts_again_after_a_turn_has_no_gap(turn):
    angle = 0.03 * np.arange(1000.0)[:, None]
    ends = np.array([1000])
    assert find_jumps("angle", angle % turn, ["[0]"], ends) == []
    angle[700:] += 1.6
    assert only(find_jumps("angle", angle % turn, ["[0]"], ends)).row == 700


def test_a_gripper_that_opens_now_and_then_has_no_gaps():
    values = np.zeros((1000, 1))
    values[300:600] = 1
    assert find_jumps("gripper", values, ["[0]"], np.array([1000])) == []


@pytest.mark.parametrize(
    ("ends", "n_left", "row"),
    [
        ([10, 22, 22, 45, 56], 2, 22),
        ([10, 22, 15, 45, 56], 2, 22),
        ([-5, 22, 30, 45, 56], 0, 0),
    ],
)
def test_episode_ends_that_do_not_increase_are_damage(make_data_set, ends, n_left, row):
    path = make_data_set(checksums=False)
    edit_ends(path, ends)
    summary = summarize(path)
    damage = only(summary.damages)
    assert "meta/episode_ends does not increase" in damage.text
    assert damage.row == row
    assert summary.n_intact_episodes == len(summary.ends) == n_left
    assert summary.n_stored_episodes == 5
    render_text(summary)


def test_episode_ends_beyond_the_arrays_are_damage(make_data_set):
    path = make_data_set(checksums=False)
    edit_ends(path, [10, 22, 30, 45, 60])
    summary = summarize(path)
    assert {f.text for f in summary.damages} == {
        f"{key!r} has 56 rows, but the episodes have 60 steps"
        for key in ("action", "img", "joints", "pos")
    }
    assert summary.n_intact_episodes == 4


def test_a_shorter_array_is_damage_from_its_end_on(make_data_set):
    path = make_data_set(checksums=False)
    zarr.open_group(path, mode="r+", zarr_format=2)["data/pos"].resize((43, 2))
    summary = summarize(path)
    assert only(summary.damages).text == "'pos' has 43 rows, but the episodes have 56 steps"
    assert summary.n_intact_episodes == 3


def test_rows_of_an_unfinished_recording_are_a_warning(make_data_set):
    path = make_data_set(checksums=False)
    root = zarr.open_group(path, mode="r+", zarr_format=2)
    root["data/pos"].resize((60, 2))
    summary = summarize(path)
    assert summary.damages == []
    assert "'pos' has 4 rows behind the last episode" in only(summary.warnings).text
    assert summary.keys[-1].values.shape == (56, 2)


def damage_a_chunk(path, how):
    if path.is_file():
        flip_a_byte_of_a_member(path, "data/pos/6.0")
        return
    chunk = path / "data/pos/6.0"
    content = chunk.read_bytes()
    if how == "missing":
        chunk.unlink()
    elif how == "truncated":
        chunk.write_bytes(content[:-2])
    elif how == "empty":
        chunk.write_bytes(b"")
    else:
        chunk.write_bytes(b"\0" * len(content))


@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "zeros"])
def test_a_damaged_chunk_is_named_and_the_rest_is_read(make_data_set, how):
    path = make_data_set()
    damage_a_chunk(path, how)
    summary = summarize(path)
    damage = only(summary.damages)
    assert damage.text.startswith("'pos': chunk 6.0 is ")
    assert damage.text.endswith("4 steps are lost, from step 2 of episode 2 (row 24) on")
    assert summary.intact_episodes.tolist() == [0, 1, 3, 4]
    pos = next(key for key in summary.keys if key.name == "pos")
    assert np.isnan(pos.values[24:28]).all()
    assert np.isfinite(np.delete(pos.values, range(24, 28), axis=0)).all()
    assert np.isfinite(pos.maximum).all()


@pytest.mark.parametrize("member", ["data/pos/6.0", "data/img/6.0.0.0"])
def test_a_damaged_file_in_a_zip_is_found_by_its_checksum(make_data_set, member):
    path = make_data_set("set.zarr.zip")
    flip_a_byte_of_a_member(path, member)
    damage = only(summarize(path).damages)
    assert "is not readable (Bad CRC-32" in damage.text
    assert damage.row == 24


@pytest.mark.parametrize("compressor", [None, "disk"])
def test_truncated_chunks_are_found_whatever_the_compressor(tmp_path, compressor):
    buffer = ReplayBuffer.create_empty_numpy()
    buffer.add_episode({"pos": np.random.default_rng(0).normal(size=(20, 3))})
    path = buffer.save_to_path(tmp_path / "x.zarr", chunks={"pos": (5, 2)}, compressors=compressor)
    assert summarize(path).damages == []
    chunk = path / "data/pos/2.1"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert only(summarize(path).damages).row == 10


def test_truncated_images_of_jpeg_2000_are_found(tmp_path):
    y, x = np.mgrid[:32, :32]
    images = np.stack([np.stack([y * 7 + i, x * 7, y + x], -1) for i in range(6)]).astype(np.uint8)
    buffer = ReplayBuffer.create_empty_numpy()
    buffer.add_episode({"camera": images})
    path = buffer.save_to_path(
        tmp_path / "x.zarr",
        chunks={"camera": (1, 32, 32, 3)},
        compressors={"camera": Jpeg2k(level=50)},
    )
    summary = summarize(path)
    assert summary.damages == []
    assert summary.keys[0].compressor == "imagecodecs_jpeg2k 50"
    chunk = path / "data/camera/4.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    assert only(summarize(path).damages).row == 4


def test_an_array_without_a_readable_description_is_damage_of_everything(make_data_set):
    path = make_data_set(checksums=False)
    (path / "data/pos/.zarray").write_text("{")
    summary = summarize(path)
    assert (
        "data/pos: its description, the .zarray file, is not readable" in only(summary.damages).text
    )
    assert (summary.lost_keys, summary.n_intact_episodes) == (["pos"], 5)
    assert summary.verdict == "damaged: 5 of 5 episodes are whole, but for 'pos'"
    (path / "data/pos/.zarray").unlink()
    assert "is missing" in only(summarize(path).damages).text


def test_a_description_that_is_impossible_is_damage_of_everything(make_data_set):
    path = make_data_set(checksums=False)
    described = path / "data/pos/.zarray"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"chunks": [0, 2]}))
    summary = summarize(path)
    assert "data/pos: its description, the .zarray file, is not readable (chunks [0, 2]" in (
        only(summary.damages).text
    )
    assert summary.lost_keys == ["pos"]


def test_a_folder_that_a_killed_writer_left_is_no_array(make_data_set):
    path = make_data_set()
    (path / "data/depth").mkdir()
    (path / "data/depth/.zarray.123.partial").write_text("{")
    (path / "data/depth/0.0.123.partial").write_text("")
    summary = summarize(path)
    assert summary.findings == []
    assert len(summary.keys) == 4


def test_other_meta_arrays_do_not_concern_the_episodes(make_data_set):
    path = make_data_set()
    (path / "meta/seed/0").write_bytes(b"")
    summary = summarize(path)
    assert "meta/seed is not readable" in only(summary.damages).text
    assert summary.n_intact_episodes == 5


def test_a_committed_episode_whose_writer_was_killed_counts(make_data_set):
    path = make_data_set(checksums=False)
    edit_ends(path, [10, 22, 30, 45, 46])
    record = path / ".committed_episode_ends.json"
    record.write_text(json.dumps({"episode_ends": [10, 22, 30, 45, 56]}))
    summary = summarize(path)
    assert (len(summary.ends), summary.n_steps, summary.damages) == (5, 56, [])
    assert "stopped just before it ended" in only(summary.warnings).text
    for content in ("{", "{}", "null", "[10, 22]", '{"episode_ends": [1.5]}'):
        record.write_text(content)
        with pytest.raises(DataError, match=r"committed_episode_ends\.json is not readable"):
            summarize(path)


@pytest.mark.parametrize("name", ["0", ".zarray"])
def test_without_episode_ends_nothing_can_be_said(make_data_set, name):
    path = make_data_set(checksums=False)
    (path / "meta/episode_ends" / name).unlink()
    with pytest.raises(DataError, match="episode_ends"):
        summarize(path)


def test_what_is_no_replay_buffer_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        summarize(tmp_path / "nowhere.zarr")
    zarr.open_group(tmp_path / "other.zarr", mode="w", zarr_format=2).create_group("things")
    with pytest.raises(DataError, match=r"holds no replay buffer.*found \['things'\]"):
        summarize(tmp_path / "other.zarr")
    (tmp_path / "cut.zarr.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match="not a readable zip file"):
        summarize(tmp_path / "cut.zarr.zip")


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("content", [None, "{", "[]", '{"zarr_format": 3}'])
@pytest.mark.parametrize("group", ["", "data/", "meta/"])
def test_a_group_without_its_description_is_named_and_read(
    make_data_set, group, content, checksums
):
    path = make_data_set(checksums=checksums)
    (path / f"{group}.zgroup").unlink()
    if content is not None:
        (path / f"{group}.zgroup").write_text(content)
    summary = summarize(path)
    damage = only(summary.damages)
    assert damage.text.startswith(f"{group}.zgroup is ")
    assert damage.text.endswith("; what it held is known")
    assert summary.n_intact_episodes == 5


def test_damage_of_descriptions_and_episode_ends_is_mended_by_the_checksums(make_data_set):
    path = make_data_set()
    for name in ("data/pos/.zarray", "data/img/.zattrs"):
        (path / name).unlink()
    flip_a_bit(path / "data/joints/.zarray")
    flip_a_bit(path / "meta/episode_ends/0")
    summary = summarize(path)
    assert {f.text for f in summary.damages} == {
        "data/pos/.zarray is missing; what it held is known",
        "data/img/.zattrs is missing; what it held is known",
        "data/joints/.zarray is damaged (its checksum is wrong); what it held is known",
        "meta/episode_ends is damaged (its checksum is wrong); where the episodes end is known "
        "from the checksums",
    }
    assert all(f.mended for f in summary.damages)
    assert (summary.n_intact_episodes, len(summary.keys)) == (5, 4)


@pytest.mark.parametrize("at", [0, 300, -5])
def test_damaged_checksums_are_damage_of_nothing_else(make_data_set, at):
    path = make_data_set()
    flip_a_bit(path / ".checksums.json", at)
    summary = summarize(path)
    assert only(summary.damages).text.startswith(".checksums.json is damaged (")
    assert summary.n_intact_episodes == 5


def test_a_flipped_bit_that_decodes_is_found_by_its_checksum(make_data_set):
    path = make_data_set(change=lambda arrays: arrays.update(raw=arrays["pos"].copy()))
    buffer = ReplayBuffer.copy_from_path(path)
    path = buffer.save_to_path(path, compressors=None)
    flip_a_bit(path / "data/raw/0.0", at=8 * 24)
    damage = only(summarize(path).damages)
    assert damage.text.startswith("'raw': chunk 0.0 is damaged (its checksum is wrong)")
    assert summarize(without_checksums(path)).damages == []  # nobody can tell


def test_an_array_that_vanished_as_a_whole_is_missed(make_data_set):
    path = make_data_set()
    shutil.rmtree(path / "data/img")
    texts = [f.text for f in summarize(path).damages]
    assert any(text.startswith("'img': chunk 0.0.0.0 is missing") for text in texts)
    assert summarize(path).lost_keys == ["img"]


def test_an_empty_buffer_is_not_damaged(tmp_path):
    ReplayBuffer.create_from_path(tmp_path / "new.zarr", mode="w")
    summary = summarize(tmp_path / "new.zarr")
    assert [f.text for f in summary.warnings] == ["there is no episode yet"]
    assert summary.damages == []
    assert "0 episodes, 0 steps" in render_text(summary)


def test_images_are_never_in_memory_as_a_whole(make_data_set):
    def change(arrays):
        arrays["img"] = np.zeros((56, 128, 128, 3), np.float32)

    path = make_data_set(change=change)
    summarize(path)  # imports
    tracemalloc.start()
    summarize(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 56 * 128 * 128 * 3 * 4 / 3


def test_progress_adds_up_to_what_was_announced(make_data_set):
    totals, parts = [], []

    def start(total):
        totals.append(total)
        return parts.append

    summarize(make_data_set(), start)
    assert totals == [sum(parts)]
    assert totals[0] == 56 * (2 * 4 + 2 * 4 + 6 * 4 + 16 * 20 * 3)


def test_lengths_fall_into_bins_that_cover_all_of_them():
    lengths = np.array([5, 5, 6, 30, 104])
    histogram = length_histogram(lengths)
    assert len(histogram) == 10
    assert histogram[0] == (5, 14, 3)
    assert histogram[-1] == (95, 104, 1)
    assert sum(n for _, _, n in histogram) == 5
    assert length_histogram(np.array([7, 7])) == [(7, 7, 2)]
    assert length_histogram(np.array([], int)) == []


def test_the_text_says_it_all(make_data_set):
    def change(arrays):
        arrays["pos"][24, 1] = np.nan
        arrays["action"][:, 0] = 1

    path = make_data_set(change=change)
    text = render_text(summarize(path))
    assert text.startswith(f"{path}\nzarr format 2, directory, ")
    assert "5 episodes, 56 steps\nlength: shortest 8, mean 11.2, longest 15" in text
    assert "       8 .. 8           1  ####" in text
    for line in text.splitlines():
        assert line == line.rstrip()
    image = next(line for line in text.splitlines() if line.startswith("img"))
    assert image.split()[:3] == ["img", "56x16x20x3", "uint8"]
    assert image.split()[-3:] == ["0", "220", "110"]
    assert "\nDAMAGE   'pos' holds NaN" in text
    assert "\nWARNING  'action' is constant in [0]=1" in text
    assert text.endswith("Result: damaged: 4 of 5 episodes are whole")
