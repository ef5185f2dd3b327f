"""The Push-T image data set, on synthetic, embedded and published data."""

import json
import shutil

import numcodecs
import numpy as np
import pytest
import torch
import zarr
from damage import without_checksums
from numcodecs.registry import codec_registry
from torch.utils.data import default_collate

from diffusion_policy.codecs.imagecodecs_numcodecs import Jpeg2k
from diffusion_policy.common.errors import ConfigError, DataError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.dataset import image_arrays
from diffusion_policy.dataset.pusht_dataset import EMBEDDED, PushTLowdimDataset
from diffusion_policy.dataset.pusht_image_dataset import PushTImageDataset, rendered_path

LENGTHS = [12, 5, 9, 7, 20, 6, 11, 8, 10, 15]
WINDOW = {"horizon": 8, "pad_before": 1, "pad_after": 3}
N = sum(LENGTHS)


def make_images(dtype=np.uint8, shape=(8, 9, 3)):
    return np.random.default_rng(1).integers(0, 256, (N, *shape)).astype(dtype)


def make_store(path, images=None, drop=(), chunks=(16, 8, 9, 3), compressor="disk", **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "img": make_images() if images is None else images,
        "state": rng.uniform(0, 512, (N, 5)).astype(np.float32),
        "action": rng.uniform(0, 512, (N, 2)).astype(np.float32),
    }
    for key, change in changes.items():
        change(arrays[key])
    data = {key: array for key, array in arrays.items() if key not in drop}
    buffer = ReplayBuffer({"data": data, "meta": {"episode_ends": np.cumsum(LENGTHS)}})
    fits = len(chunks) == arrays["img"].ndim
    layout = {"chunks": {"img": chunks}} if fits else {}
    return buffer.save_to_path(path, compressors={"img": compressor}, **layout)


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "pusht.zarr")


def everything(dataset):
    batch = dataset.get_batch(list(range(len(dataset))))
    return {**batch["obs"], "action": batch["action"]}


def assert_same(left, right):
    left, right = everything(left), everything(right)
    assert left.keys() == right.keys()
    for key in left:
        assert left[key].dtype == right[key].dtype
        assert torch.equal(left[key], right[key])


# ---- what an item is -----------------------------------------------------------------------------


def test_an_item_is_images_agent_positions_and_actions(store):
    dataset = PushTImageDataset(store, **WINDOW)
    raw = ReplayBuffer.copy_from_path(store)
    item = dataset[3]
    start = dataset.sampler.indices[3][0]
    steps = slice(start, start + 8)
    images = item["obs"]["image"]
    assert (images.shape, images.dtype) == ((8, 3, 8, 9), torch.uint8)
    np.testing.assert_array_equal(images, np.moveaxis(raw["img"][steps], -1, 1))
    np.testing.assert_array_equal(item["obs"]["agent_pos"], raw["state"][steps, :2])
    np.testing.assert_array_equal(item["action"], raw["action"][steps])
    assert item["obs"]["agent_pos"].dtype == item["action"].dtype == torch.float32


@pytest.mark.parametrize("n_obs_steps", [None, 2])
def test_a_batch_equals_the_collated_items_of_images(store, n_obs_steps):
    dataset = PushTImageDataset(store, **WINDOW, val_ratio=0.2, n_obs_steps=n_obs_steps)
    indices = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    batch, expected = dataset.get_batch(indices), default_collate([dataset[i] for i in indices])
    assert torch.equal(batch["action"], expected["action"])
    for key in ("image", "agent_pos"):
        assert batch["obs"][key].shape[1] == (n_obs_steps or 8)
        assert torch.equal(batch["obs"][key], expected["obs"][key])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32])
def test_whole_numbers_of_any_type_give_the_batches_of_uint8(tmp_path, store, dtype):
    other = make_store(tmp_path / "other.zarr.zip", make_images(dtype))
    assert_same(PushTImageDataset(other, **WINDOW), PushTImageDataset(store, **WINDOW))


LAYOUTS = {
    "raw": {"compressor": None},
    "one chunk": {"chunks": (N, 8, 9, 3)},
    "an image each": {"chunks": (1, 8, 9, 3)},
    "parts of images": {"chunks": (10, 4, 9, 2)},
    "zlib": {"compressor": numcodecs.Zlib()},
}


@pytest.mark.parametrize("suffix", [".zarr", ".zarr.zip"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_layout_on_disk_does_not_matter(tmp_path, store, layout, suffix):
    other = make_store(tmp_path / f"other{suffix}", **layout)
    assert_same(PushTImageDataset(other, **WINDOW), PushTImageDataset(store, **WINDOW))


def test_the_windows_are_those_of_the_state_data_set(tmp_path):
    keypoints = np.zeros((N, 9, 2), np.float32)
    path = make_store(tmp_path / "x.zarr")
    data = zarr.open_group(without_checksums(path), mode="r+", zarr_format=2)["data"]
    data.create_array("keypoint", data=keypoints, config={"write_empty_chunks": True})
    settings = {**WINDOW, "val_ratio": 0.3, "max_train_episodes": 4, "seed": 3}
    image, state = PushTImageDataset(path, **settings), PushTLowdimDataset(path, **settings)
    assert image.train_mask.tolist() == state.train_mask.tolist()
    indices = list(range(len(state)))
    assert len(image) == len(state)
    assert torch.equal(image.get_batch(indices)["action"], state.get_batch(indices)["action"])
    assert len(image.get_validation_dataset()) == len(state.get_validation_dataset())


def test_the_normalizer_fits_positions_and_actions(store):
    dataset = PushTImageDataset(store, **WINDOW)
    normalizer = dataset.get_normalizer()
    raw = ReplayBuffer.copy_from_path(store)
    for key, values in {"action": raw["action"], "agent_pos": raw["state"][:, :2]}.items():
        statistics = normalizer[key].get_input_stats()
        np.testing.assert_array_equal(statistics["min"].detach(), values.min(0))
        np.testing.assert_array_equal(statistics["max"].detach(), values.max(0))
    assert normalizer["image"].normalize(torch.tensor([0.0, 1.0])).tolist() == [-1, 1]
    np.testing.assert_array_equal(dataset.get_all_actions(), raw["action"])


# ---- JPEG 2000 -----------------------------------------------------------------------------------


@pytest.fixture
def jpeg_store(tmp_path, monkeypatch):
    path = make_store(tmp_path / "jpeg.zarr", chunks=(1, 8, 9, 3), compressor=Jpeg2k(), drop=())
    monkeypatch.delitem(codec_registry, Jpeg2k.codec_id, raising=False)
    return path


def test_jpeg_2000_is_read_without_further_ado(jpeg_store, store):
    assert_same(PushTImageDataset(jpeg_store, **WINDOW), PushTImageDataset(store, **WINDOW))


def test_every_image_is_decoded_once(jpeg_store, monkeypatch):
    calls, decode = [], Jpeg2k.decode

    def counting(self, buf, out=None):
        calls.append(1)
        return decode(self, buf, out)

    monkeypatch.setattr(Jpeg2k, "decode", counting)
    dataset = PushTImageDataset(jpeg_store, **WINDOW, val_ratio=0.2)
    for part in (dataset, dataset.get_validation_dataset(), dataset):
        everything(part)
    assert len(calls) == N


# ---- what can be wrong ---------------------------------------------------------------------------


def test_missing_images_name_the_command_that_draws_them(tmp_path):
    path = make_store(tmp_path / "demos.zarr.zip", drop=["img"])
    with pytest.raises(DataError) as error:
        PushTImageDataset(path)
    assert str(error.value) == (
        f"{path} holds states but no images ('img'); draw them with `python -m "
        f"diffusion_policy.scripts.render_pusht_images -i {path}` and train with "
        f"task.dataset.zarr_path=data/pusht/demos_with_images.zarr.zip"
    )


def test_the_embedded_demonstrations_need_drawing_first():
    with pytest.raises(DataError, match=f"-i {EMBEDDED}` and .*{rendered_path(EMBEDDED)}"):
        PushTImageDataset(EMBEDDED)
    assert str(rendered_path(EMBEDDED)) == "data/pusht/pusht_demos_with_images.zarr.zip"


def test_missing_data_name_both_ways_to_get_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error:
        PushTImageDataset("data/pusht/pusht_cchi_v7_replay.zarr")
    message = str(error.value)
    assert str(tmp_path / "data/pusht/pusht_cchi_v7_replay.zarr") in message
    assert "python -m diffusion_policy.scripts.download_data pusht" in message
    assert f"render_pusht_images -i {EMBEDDED}" in message
    assert f"task.dataset.zarr_path={rendered_path(EMBEDDED)}" in message


@pytest.mark.parametrize("key", ["state", "action"])
def test_another_missing_array_is_named(tmp_path, key):
    path = make_store(tmp_path / "x.zarr", drop=[key])
    with pytest.raises(DataError, match=rf"no data \['{key}'\]; it holds \['"):
        PushTImageDataset(path)


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 4), (3, 8, 9), (1, 8, 9, 3)])
def test_images_of_another_shape_are_refused(tmp_path, shape):
    path = make_store(tmp_path / "x.zarr", make_images(shape=shape), chunks=())
    with pytest.raises(DataError) as error:
        PushTImageDataset(path)
    assert str(error.value) == (
        f"{path}/data/img has shape {(N, *shape)}; images (steps, height, width, 3) were "
        f"expected, store them like that"
    )


@pytest.mark.parametrize("dtype", [bool, np.complex64])
def test_images_that_are_no_numbers_are_refused(tmp_path, dtype):
    path = make_store(tmp_path / "x.zarr", make_images(dtype))
    with pytest.raises(DataError, match=rf"img holds {np.dtype(dtype)}; .* best as uint8"):
        PushTImageDataset(path)


@pytest.mark.parametrize("value", [0.5, -1, 256, 1e9, np.nan, np.inf])
def test_a_value_that_is_no_grey_level_is_named_with_its_place(tmp_path, value):
    def damage(images):
        images[19, 3, 2, 1] = value  # episode 2 starts at 17
        images[50, 0, 0, 0] = value

    path = make_store(tmp_path / "x.zarr", make_images(np.float32), img=damage)
    with pytest.raises(DataError) as error:
        PushTImageDataset(path)
    assert f"data/img holds {np.float32(value)} at step 2 of episode 2 (row 19)" in str(error.value)
    assert "whole numbers 0..255" in str(error.value)


def test_images_in_0_to_1_are_told_what_to_do(tmp_path):
    path = make_store(tmp_path / "x.zarr", make_images(np.float32) / 255)
    with pytest.raises(DataError, match="have to be multiplied by 255 and rounded"):
        PushTImageDataset(path)


@pytest.mark.parametrize("compressor", ["disk", None, numcodecs.Zlib(), Jpeg2k(level=50)])
def test_a_truncated_chunk_is_named(tmp_path, compressor):
    path = make_store(tmp_path / "x.zarr", chunks=(1, 8, 9, 3), compressor=compressor)
    chunk = path / "data" / "img" / "19.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    with pytest.raises(DataError, match=r"img: .*(chunk 19.0.0.0|step 2 of episode 2 \(row 19\))"):
        PushTImageDataset(path)


def test_a_corrupt_jpeg_2000_chunk_is_named(jpeg_store):
    (jpeg_store / "data" / "img" / "40.0.0.0").write_bytes(b"\x00" * 100)
    with pytest.raises(DataError, match=r"img: the images from step 7 of episode 4 \(row 40\) on"):
        PushTImageDataset(jpeg_store)


def test_a_codec_that_is_unknown_is_named(store):
    description = without_checksums(store) / "data" / "img" / ".zarray"
    meta = json.loads(description.read_text())
    meta["compressor"] = {"id": "imagecodecs_from_the_future"}
    description.write_text(json.dumps(meta))
    with pytest.raises(DataError, match="imagecodecs_from_the_future"):
        PushTImageDataset(store)


@pytest.mark.parametrize("chunk", ["img/1.0.0.0", "state/0.0"])
def test_missing_chunks_are_refused_unless_they_are_allowed(store, caplog, chunk):
    (without_checksums(store) / "data" / chunk).unlink()
    n, name = {"img/1.0.0.0": (7, "img"), "state/0.0": (1, "state")}[chunk]
    with pytest.raises(
        DataError, match=rf"1 of {n} chunks are missing.*\+task.dataset.allow_missing_chunks=true"
    ):
        PushTImageDataset(store, **WINDOW)
    dataset = PushTImageDataset(store, **WINDOW, allow_missing_chunks=True)
    assert f"data/{name}: 1 of {n} chunks are missing ({chunk.split('/')[1]})" in caplog.text
    assert not dataset.replay_buffer[name][16:17].any()


def test_a_missing_chunk_that_was_certainly_written_is_never_allowed(store):
    (store / "data" / "img" / "1.0.0.0").unlink()
    for allowed in (False, True):
        with pytest.raises(DataError, match=r"data/img/1\.0\.0\.0 is missing"):
            PushTImageDataset(store, **WINDOW, allow_missing_chunks=allowed)


def test_too_few_images_are_explained(store):
    without_checksums(store)
    zarr.open_group(store, mode="r+", zarr_format=2)["data/img"].resize((N - 1, 8, 9, 3))
    with pytest.raises(DataError, match=f"img has {N - 1} images for {N} steps"):
        PushTImageDataset(store)


def test_images_of_an_episode_that_was_never_finished_are_left_out(store):
    without_checksums(store)
    zarr.open_group(store, mode="r+", zarr_format=2)["data/img"].resize((N + 40, 8, 9, 3))
    dataset = PushTImageDataset(store, **WINDOW)
    assert dataset.replay_buffer["img"].shape == (N, 8, 9, 3)
    np.testing.assert_array_equal(dataset.replay_buffer["img"], make_images())


def test_a_number_that_is_not_finite_is_named_before_images_are_loaded(tmp_path, monkeypatch):
    def damage(state):
        state[19, 1] = np.nan

    path = make_store(tmp_path / "x.zarr", state=damage)
    monkeypatch.setattr(image_arrays, "read_images", None)
    with pytest.raises(DataError, match=r"'state' is not finite at step 2 of episode 2 \(row 19\)"):
        PushTImageDataset(path)


def test_a_truncated_zip_is_named(tmp_path):
    path = make_store(tmp_path / "x.zarr.zip")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"x\.zarr\.zip is not a readable zip file"):
        PushTImageDataset(path)


def test_a_store_without_arrays_is_named(tmp_path):
    zarr.open_group(tmp_path / "x.zarr", mode="w", zarr_format=2)
    with pytest.raises(DataError, match=r"x.zarr has no data \['state', 'action', 'img'\]"):
        PushTImageDataset(tmp_path / "x.zarr")


def test_data_with_images_but_without_episodes_are_named(tmp_path):
    data = {"img": np.zeros((0, 8, 9, 3), np.uint8)}
    data |= {"state": np.zeros((0, 5)), "action": np.zeros((0, 2))}
    root = {"data": data, "meta": {"episode_ends": np.zeros(0, np.int64)}}
    with pytest.raises(DataError, match="holds no episode"):
        PushTImageDataset(ReplayBuffer(root).save_to_path(tmp_path / "x.zarr"))


def test_settings_that_leave_no_window_are_explained(store):
    with pytest.raises(ConfigError, match=r"longest of the 10 training episodes .* has 20 steps"):
        PushTImageDataset(store, horizon=21)
    with pytest.raises(ConfigError, match="n_obs_steps=9"):
        PushTImageDataset(store, **WINDOW, n_obs_steps=9)


# ---- memory --------------------------------------------------------------------------------------


def test_float_images_are_converted_a_chunk_at_a_time(tmp_path):
    import tracemalloc

    side, chunk = 128, 5
    images = make_images(np.float32, (side, side, 3))
    path = make_store(tmp_path / "x.zarr", images, chunks=(chunk, side, side, 3))
    raw, chunk_bytes = N * side * side * 3, chunk * side * side * 3 * 4
    tracemalloc.start()
    try:
        PushTImageDataset(path, **WINDOW)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < raw + 4 * chunk_bytes + 1e6 < 2 * raw  # the stored array alone is 4 raw


# ---- real data -----------------------------------------------------------------------------------


def test_images_of_the_original_recorder_give_the_numbers_of_the_original(golden):
    path = golden / "k_data" / "pusht_tiny.zarr"
    dataset = PushTImageDataset(path, **WINDOW)
    raw = ReplayBuffer.copy_from_path(path)
    assert raw["img"].dtype == np.uint8
    for idx in (0, 200, len(dataset) - 1):
        window = dataset.sampler.sample_sequence(idx)
        expected = (np.moveaxis(window["image"], -1, 1) / 255).astype(np.float32)
        np.testing.assert_array_equal(dataset[idx]["obs"]["image"].float() / 255, expected)
    np.testing.assert_array_equal(dataset.replay_buffer["img"], raw["img"])


def test_the_published_images_load_as_uint8(human_pusht_zarr, tmp_path):
    """The first chunk of the published array, which is stored as float32."""
    folder = tmp_path / "human.zarr"
    for key in ("img", "state", "action"):
        (folder / "data" / key).mkdir(parents=True)
        source = human_pusht_zarr / "data" / key
        shutil.copy(source / ("0.0.0.0" if key == "img" else "0.0"), folder / "data" / key)
        meta = json.loads((source / ".zarray").read_text())
        assert meta["dtype"] == "<f4"
        meta["shape"][0] = 161  # the first episode
        (folder / "data" / key / ".zarray").write_text(json.dumps(meta))
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    (folder / "data" / ".zgroup").write_text('{"zarr_format": 2}')
    root = zarr.open_group(folder, mode="r+", zarr_format=2)
    root.require_group("meta").create_array("episode_ends", data=np.array([161]))
    dataset = PushTImageDataset(folder, horizon=16, pad_before=1, pad_after=7, n_obs_steps=2)
    published = zarr.open_group(human_pusht_zarr, mode="r")["data/img"][:161]
    np.testing.assert_array_equal(dataset.replay_buffer["img"], published)
    assert dataset[0]["obs"]["image"].shape == (2, 3, 96, 96)
