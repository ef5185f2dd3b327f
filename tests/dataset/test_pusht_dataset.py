"""The Push-T state data set, on synthetic, embedded and published data."""

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from diffusion_policy.common.errors import ConfigError, DataError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.dataset.base_dataset import BaseImageDataset, BaseLowdimDataset
from diffusion_policy.dataset.pusht_dataset import EMBEDDED, PushTLowdimDataset

LENGTHS = [12, 5, 9, 7, 20, 6, 11, 8, 10, 15]
WINDOW = {"horizon": 8, "pad_before": 1, "pad_after": 3}


def make_store(path, lengths=LENGTHS, dtype=np.float32, **arrays):
    buffer, rng = ReplayBuffer.create_empty_numpy(), np.random.default_rng(0)
    for length in lengths:
        buffer.add_episode(
            {
                "keypoint": rng.uniform(0, 512, (length, 9, 2)).astype(dtype),
                "state": rng.uniform(0, 512, (length, 5)).astype(dtype),
                "action": rng.uniform(0, 512, (length, 2)).astype(dtype),
                "img": np.zeros((length, 4, 4, 3), np.uint8),
            }
        )
    for key, change in arrays.items():
        change(buffer[key])
    return buffer.save_to_path(path)


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "pusht.zarr.zip")


def test_an_item_is_key_points_then_agent_position_and_the_action(store):
    dataset = PushTLowdimDataset(store, **WINDOW)
    raw = ReplayBuffer.copy_from_path(store)
    item = dataset[3]
    start = dataset.sampler.indices[3][0]
    steps = slice(start, start + 8)
    assert {k: (v.shape, v.dtype) for k, v in item.items()} == {
        "obs": ((8, 20), torch.float32),
        "action": ((8, 2), torch.float32),
    }
    np.testing.assert_array_equal(item["obs"][:, :18], raw["keypoint"][steps].reshape(8, 18))
    np.testing.assert_array_equal(item["obs"][:, 18:], raw["state"][steps, :2])
    np.testing.assert_array_equal(item["action"], raw["action"][steps])
    assert "img" not in dataset.replay_buffer


def test_a_batch_equals_the_collated_items(store):
    dataset = PushTLowdimDataset(store, **WINDOW, val_ratio=0.2)
    indices = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    batch = dataset.get_batch(indices)
    expected = default_collate([dataset[i] for i in indices])
    assert batch.keys() == expected.keys()
    for key in batch:
        assert batch[key].dtype == expected[key].dtype
        assert torch.equal(batch[key], expected[key])


def test_changing_an_item_or_a_batch_does_not_change_the_data(store):
    dataset = PushTLowdimDataset(store, **WINDOW)
    for idx in (0, 3):
        before = dataset[idx]["obs"].clone()
        dataset[idx]["obs"].zero_()
        dataset.get_batch([idx])["obs"].zero_()
        assert torch.equal(dataset[idx]["obs"], before)


def test_training_and_validation_share_no_episode_and_cover_all(store):
    dataset = PushTLowdimDataset(store, **WINDOW, val_ratio=0.2, max_train_episodes=4)
    held_out = dataset.get_validation_dataset()
    assert dataset.train_mask.sum() == 4
    assert held_out.train_mask.sum() == 6  # not 2: everything that is not trained on
    assert not (dataset.train_mask & held_out.train_mask).any()
    whole = PushTLowdimDataset(store, **WINDOW)
    assert len(dataset) + len(held_out) == len(whole)
    assert len(PushTLowdimDataset(store, **WINDOW).get_validation_dataset()) == 0


def test_the_choice_of_episodes_depends_on_the_seed_only(store):
    def masks(seed):
        dataset = PushTLowdimDataset(store, **WINDOW, val_ratio=0.3, seed=seed)
        return dataset.train_mask.tolist()

    assert masks(1) == masks(1)
    assert masks(1) != masks(2)


def test_the_normalizer_maps_all_steps_to_minus_one_to_one(store):
    dataset = PushTLowdimDataset(store, **WINDOW)
    normalizer = dataset.get_normalizer()
    actions = dataset.get_all_actions()
    assert actions.shape == (sum(LENGTHS), 2)
    normalized = normalizer["action"].normalize(actions)
    assert torch.allclose(normalized.amin(0), torch.tensor(-1.0), atol=1e-5)
    assert torch.allclose(normalized.amax(0), torch.tensor(1.0), atol=1e-5)
    assert normalizer["obs"].params_dict["scale"].shape == (20,)


def test_other_keys_and_other_float_types_can_be_named(tmp_path):
    store = make_store(tmp_path / "x.zarr", dtype=np.float64)
    dataset = PushTLowdimDataset(store, obs_key="state", state_key="action", action_key="state")
    assert dataset[0]["obs"].shape == (1, 7)
    assert dataset[0]["action"].shape == (1, 5)
    assert dataset[0]["obs"].dtype == torch.float32


# ---- what can be wrong ---------------------------------------------------------------------------


def test_missing_data_name_both_ways_to_get_some(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error:
        PushTLowdimDataset("data/pusht/pusht_cchi_v7_replay.zarr")
    message = str(error.value)
    assert str(tmp_path / "data/pusht/pusht_cchi_v7_replay.zarr") in message
    assert "python -m diffusion_policy.scripts.download_data pusht" in message
    assert f"task.dataset.zarr_path={EMBEDDED}" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", ["keypoint", "state", "action"])
def test_a_number_that_is_not_finite_is_named_with_key_step_and_episode(tmp_path, key, value):
    def damage(array):
        array[19].flat[1] = value  # episode 2 starts at 17
        array[30].flat[1] = value

    store = make_store(tmp_path / "x.zarr", **{key: damage})
    with pytest.raises(DataError) as error:
        PushTLowdimDataset(store)
    assert f"{store}: '{key}' is not finite at step 2 of episode 2 (row 19), and in 2 rows" in str(
        error.value
    )


def test_a_horizon_longer_than_every_episode_is_explained(store):
    with pytest.raises(ConfigError, match=r"horizon=30 .*pad_after=3.*10 training.* has 20 steps"):
        PushTLowdimDataset(store, horizon=30, pad_before=1, pad_after=3)


def test_training_on_no_episode_is_explained(store):
    with pytest.raises(ConfigError, match="longest of the 0 training episodes"):
        PushTLowdimDataset(store, **WINDOW, max_train_episodes=0)


@pytest.mark.parametrize("val_ratio", [0.0, 0.1])
def test_data_without_episodes_are_named(tmp_path, val_ratio):
    root = {
        "data": {
            k: np.zeros((0, *s), np.float32)
            for k, s in {"keypoint": (9, 2), "state": (5,), "action": (2,)}.items()
        },
        "meta": {"episode_ends": np.zeros(0, np.int64)},
    }
    path = ReplayBuffer(root).save_to_path(tmp_path / "x.zarr")
    with pytest.raises(DataError, match="no episode"):
        PushTLowdimDataset(path, val_ratio=val_ratio)


def test_a_missing_array_is_named_with_those_there_are(store):
    with pytest.raises(DataError, match=r"no data \['pose'\].*'action', 'img', 'keypoint'"):
        PushTLowdimDataset(store, state_key="pose")


def test_a_state_without_a_position_is_refused(tmp_path):
    buffer = ReplayBuffer.create_empty_numpy()
    buffer.add_episode(
        {"keypoint": np.zeros((3, 9, 2)), "state": np.zeros(3), "action": np.ones((3, 2))}
    )
    with pytest.raises(DataError, match=r"'state' has shape \(3,\)"):
        PushTLowdimDataset(buffer.save_to_path(tmp_path / "x.zarr"))


# ---- real data -----------------------------------------------------------------------------------


def test_the_embedded_demonstrations_load_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = PushTLowdimDataset(EMBEDDED, horizon=16, pad_before=1, pad_after=7)
    assert dataset.replay_buffer.n_episodes >= 200
    assert dataset[0]["obs"].shape == (16, 20)


def test_the_human_demonstrations_are_split_as_published(human_pusht_zarr):
    settings = {"horizon": 16, "pad_before": 1, "pad_after": 7, "val_ratio": 0.02}
    dataset = PushTLowdimDataset(human_pusht_zarr, **settings)
    assert np.flatnonzero(~dataset.train_mask).tolist() == [18, 90, 134, 157]
    published = PushTLowdimDataset(human_pusht_zarr, **settings, max_train_episodes=90)
    assert (published.train_mask.sum(), len(published)) == (90, 10726)
    assert np.flatnonzero(published.train_mask)[:5].tolist() == [7, 9, 10, 11, 13]
    held_out = published.get_validation_dataset()
    assert held_out.train_mask.sum() == 116
    # the agent is where the published key points say the demonstrator's hand was: inside the table
    assert published.get_all_actions().min() > 0
    assert published.get_all_actions().max() <= 512


def test_data_of_the_original_recorder_load(golden):
    dataset = PushTLowdimDataset(golden / "k_data" / "pusht_tiny.zarr", **WINDOW)
    assert dataset.replay_buffer.n_episodes == 30
    assert dataset[0]["obs"].shape == (8, 20)


# ---- base classes --------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [BaseLowdimDataset, BaseImageDataset])
def test_a_base_data_set_is_empty_and_states_what_to_implement(base):
    dataset = base()
    assert len(dataset) == 0
    assert type(dataset.get_validation_dataset()) is base
    for call in (dataset.get_normalizer, dataset.get_all_actions, lambda: dataset[0]):
        with pytest.raises(NotImplementedError):
            call()


def test_a_data_set_of_ones_own_gets_batches_for_free():
    class Mine(BaseImageDataset):
        def __getitem__(self, idx):
            return {"obs": {"image": torch.full((2, 3), idx)}, "action": torch.tensor([idx])}

    batch = Mine().get_batch([4, 7])
    assert batch["obs"]["image"].shape == (2, 2, 3)
    assert batch["action"].tolist() == [[4], [7]]
