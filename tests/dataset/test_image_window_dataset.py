"""Windows with images: the same windows as without, as uint8, and only the steps needed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import default_collate

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.common.sampler import SequenceSampler
from diffusion_policy.dataset.batching import make_dataloader
from diffusion_policy.dataset.image_window_dataset import ImageWindowDataset
from diffusion_policy.dataset.window_dataset import beginnings

ENDS = np.cumsum([12, 5, 9, 7, 1, 6])
SPLIT = {"name": "test data", "seed": 0, "val_ratio": 0.0, "max_train_episodes": None}
WINDOW = {"horizon": 8, "pad_before": 3, "pad_after": 7}


def make_dataset(n_obs_steps=None, **changes):
    rng, n = np.random.default_rng(0), ENDS[-1]
    return ImageWindowDataset(
        {
            "front": rng.integers(0, 256, (n, 6, 5, 3), dtype=np.uint8),
            "depth": rng.integers(0, 256, (n, 4, 4, 1), dtype=np.uint8),
        },
        {"pose": rng.normal(size=(n, 2))},
        rng.normal(size=(n, 2)),
        ENDS,
        n_obs_steps=n_obs_steps,
        **{**SPLIT, **WINDOW, **changes},
    )


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        if isinstance(value, dict):
            assert_equal(value, right[key])
        else:
            assert value.dtype == right[key].dtype
            assert torch.equal(value, right[key]), key


def test_an_item_has_channel_first_uint8_images_and_float32_numbers():
    item = make_dataset()[5]
    described = {k: (tuple(v.shape), v.dtype) for k, v in item["obs"].items()}
    assert described == {
        "front": ((8, 3, 6, 5), torch.uint8),
        "depth": ((8, 1, 4, 4), torch.uint8),
        "pose": ((8, 2), torch.float32),
    }
    assert (item["action"].shape, item["action"].dtype) == ((8, 2), torch.float32)


@pytest.mark.parametrize("n_obs_steps", [None, 1, 2, 8])
def test_a_batch_equals_the_collated_items(n_obs_steps):
    dataset = make_dataset(n_obs_steps)
    indices = list(range(len(dataset)))[::-1]
    assert_equal(dataset.get_batch(indices), default_collate([dataset[i] for i in indices]))


@pytest.mark.parametrize("n_obs_steps", [1, 2, 3, 5, 8])
def test_the_first_observations_are_those_of_the_whole_window(n_obs_steps):
    whole, needed = make_dataset(), make_dataset(n_obs_steps)
    indices = list(range(len(whole)))
    expected = whole.get_batch(indices)
    expected["obs"] = {key: value[:, :n_obs_steps] for key, value in expected["obs"].items()}
    assert len(needed) == len(whole)
    assert_equal(needed.get_batch(indices), expected)


def test_floats_made_of_the_batch_are_those_of_the_straightforward_path():
    dataset = make_dataset()
    reader = SequenceSampler(dataset._windows, 8, 3, 7)
    batch = dataset.get_batch([0, 9, 30])["obs"]["front"].float() / 255
    for row, idx in zip(batch, [0, 9, 30], strict=True):
        images = reader.sample_sequence(idx)["front"].astype(np.float32)
        np.testing.assert_array_equal(row.numpy(), np.moveaxis(images, -1, 1) / 255)


def test_floats_of_every_grey_level_equal_those_of_double_precision():
    levels = np.arange(256, dtype=np.uint8)
    ours = torch.from_numpy(levels).float() / 255
    np.testing.assert_array_equal(ours.numpy(), (levels / 255.0).astype(np.float32))


def test_the_images_of_a_batch_are_a_view_of_what_was_gathered():
    images = make_dataset(n_obs_steps=2).get_batch([3, 4, 5])["obs"]["front"]
    assert images.movedim(-3, -1).is_contiguous()
    flat = images.flatten(0, 1)  # what a policy does before the encoder
    assert flat.data_ptr() == images.data_ptr()
    assert flat.is_contiguous(memory_format=torch.channels_last)


def test_images_are_not_copied_when_the_data_set_is_made():
    images = np.zeros((ENDS[-1], 4, 4, 3), np.uint8)
    action = np.zeros((ENDS[-1], 2))
    dataset = ImageWindowDataset({"image": images}, {}, action, ENDS, **SPLIT, **WINDOW)
    held_out = dataset.get_validation_dataset()
    assert np.shares_memory(dataset._windows["image"], images)
    assert np.shares_memory(held_out._windows["image"], images)


def test_changing_an_item_or_a_batch_does_not_change_the_data():
    dataset = make_dataset(2)
    for idx in (0, 6):
        before = dataset[idx]["obs"]["front"].clone()
        dataset[idx]["obs"]["front"].zero_()
        dataset.get_batch([idx])["obs"]["front"].zero_()
        assert torch.equal(dataset[idx]["obs"]["front"], before)


def test_training_and_validation_cover_all_windows_once():
    whole = make_dataset(2)
    dataset = make_dataset(2, val_ratio=0.4)
    held_out = dataset.get_validation_dataset()
    assert not (dataset.train_mask & held_out.train_mask).any()
    assert len(dataset) + len(held_out) == len(whole)
    assert held_out.get_batch([0, 1])["obs"]["front"].shape == (2, 2, 3, 6, 5)


def test_loaders_ask_for_whole_batches_without_workers():
    loader = make_dataloader(make_dataset(2), batch_size=16, num_workers=3)
    assert loader.num_workers == 0
    first = next(iter(loader))
    assert first.batch["obs"]["front"].shape == (16, 2, 3, 6, 5)
    assert_equal(first.batch, make_dataset(2).get_batch(first.indices.tolist()))


def test_the_normalizer_scales_images_in_0_to_1_and_fits_the_rest():
    dataset = make_dataset()
    normalizer = dataset.get_normalizer()
    assert normalizer["front"].normalize(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1, 0, 1]
    for key in ("pose", "action"):
        every = torch.from_numpy(dataset._windows[key])
        normalized = normalizer[key].normalize(every)
        assert torch.allclose(normalized.amin(0), torch.tensor(-1.0), atol=1e-5)
        assert torch.allclose(normalized.amax(0), torch.tensor(1.0), atol=1e-5)
    assert torch.equal(dataset.get_all_actions(), torch.from_numpy(dataset._windows["action"]))


@pytest.mark.parametrize("n_obs_steps", [0, -1, 9])
def test_observation_steps_outside_the_horizon_are_explained(n_obs_steps):
    with pytest.raises(ConfigError, match=rf"n_obs_steps={n_obs_steps} .* horizon=8; choose 1"):
        make_dataset(n_obs_steps)


# ---- beginnings of windows -----------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    horizon=st.integers(1, 9),
    n_steps=st.integers(1, 9),
    pad_before=st.integers(0, 9),
    pad_after=st.integers(0, 9),
)
def test_the_beginning_of_every_window_is_its_first_steps(
    lengths, horizon, n_steps, pad_before, pad_after
):
    n_steps = min(n_steps, horizon)
    buffer = ReplayBuffer.create_empty_numpy()
    for i, length in enumerate(lengths):
        buffer.add_episode({"x": 100 * i + np.arange(length), "y": np.zeros(length)})
    sampler = SequenceSampler(buffer, horizon, pad_before, pad_after)
    shorter = beginnings(sampler, n_steps, ["x"])
    assert len(shorter) == len(sampler)
    every = list(range(len(sampler)))
    if not every:
        return
    expected = sampler.sample_sequences(every)["x"][:, :n_steps]
    assert shorter.sample_sequences(every).keys() == {"x"}
    np.testing.assert_array_equal(shorter.sample_sequences(every)["x"], expected)
    for idx in every:
        np.testing.assert_array_equal(shorter.sample_sequence(idx)["x"], expected[idx])


def test_only_the_first_steps_are_touched():
    class Watched(np.ndarray):
        rows: set = set()

        def take(self, indices, axis=None, out=None, mode="raise"):
            Watched.rows.update(np.ravel(indices).tolist())
            return np.asarray(self).take(indices, axis, out, mode)

    x = np.arange(20).view(Watched)
    buffer = ReplayBuffer({"data": {"x": x}, "meta": {"episode_ends": np.array([20])}})
    sampler = beginnings(SequenceSampler(buffer, 10), 2, ["x"])
    sampler.sample_sequences([0, 5])
    assert Watched.rows == {0, 1, 5, 6}
