"""The simulated arm seen by one camera."""

import numpy as np
import pytest
import torch

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.dataset.mujoco_image_dataset import MujocoImageDataset

LENGTHS = [9, 14, 11]
WINDOW = {"horizon": 6, "pad_before": 1, "pad_after": 3}


def make_arrays():
    rng, n = np.random.default_rng(0), sum(LENGTHS)
    return {
        "robot_0_camera_images": rng.integers(0, 256, (n, 1, 7, 8, 3), dtype=np.uint8),
        "robot_0_tcp_xyz_wxyz": rng.normal(size=(n, 7)),
        "robot_0_gripper_width": rng.uniform(0, 0.1, (n, 1)),
        "action_0_tcp_xyz_wxyz": rng.normal(size=(n, 7)),
        "action_0_gripper_width": rng.uniform(0, 0.1, (n, 1)),
    }


def save(path, arrays):
    root = {"data": arrays, "meta": {"episode_ends": np.cumsum(LENGTHS)}}
    return ReplayBuffer(root).save_to_path(path)


@pytest.fixture
def store(tmp_path):
    return save(tmp_path / "arm.zarr", make_arrays())


def test_an_item_is_the_camera_the_gripper_and_where_it_is_sent(store):
    dataset, raw = MujocoImageDataset(store, **WINDOW), make_arrays()
    item = dataset[2]
    start = dataset.sampler.indices[2][0]
    steps = slice(start, start + 6)
    images = raw["robot_0_camera_images"][steps, 0]
    np.testing.assert_array_equal(item["obs"]["image"], np.moveaxis(images, -1, 1))
    assert item["obs"]["image"].dtype == torch.uint8
    for got, name in ((item["obs"]["agent_pos"], "robot_0"), (item["action"], "action_0")):
        pose, width = raw[f"{name}_tcp_xyz_wxyz"][steps], raw[f"{name}_gripper_width"][steps]
        np.testing.assert_array_equal(got[:, :7], pose.astype(np.float32))
        np.testing.assert_array_equal(got[:, 7:], width.astype(np.float32))


def test_positions_are_normalized_with_the_width(store):
    dataset = MujocoImageDataset(store, **WINDOW, n_obs_steps=2)
    normalizer = dataset.get_normalizer()
    batch = dataset.get_batch(list(range(len(dataset))))
    assert batch["obs"]["agent_pos"].shape == (len(dataset), 2, 8)
    normalized = normalizer["agent_pos"].normalize(batch["obs"]["agent_pos"])
    assert normalized.abs().max() <= 1 + 1e-5
    assert normalizer["agent_pos"].params_dict["scale"].shape == (8,)
    assert normalizer["action"].params_dict["scale"].shape == (8,)
    assert normalizer["image"].normalize(torch.tensor([0.0, 1.0])).tolist() == [-1, 1]


def test_episodes_are_split_as_everywhere(store):
    dataset = MujocoImageDataset(store, **WINDOW, val_ratio=0.4)
    held_out = dataset.get_validation_dataset()
    assert (dataset.train_mask.sum(), held_out.train_mask.sum()) == (2, 1)
    assert MujocoImageDataset(store, **WINDOW, max_train_episodes=1).train_mask.sum() == 1


def test_a_camera_array_without_its_axis_is_refused(tmp_path):
    arrays = make_arrays()
    arrays["robot_0_camera_images"] = arrays["robot_0_camera_images"][:, 0]
    with pytest.raises(DataError, match=r"\(steps, 1, height, width, 3\) were expected"):
        MujocoImageDataset(save(tmp_path / "x.zarr", arrays))


def test_a_missing_camera_and_missing_data_are_named(tmp_path):
    arrays = make_arrays()
    del arrays["robot_0_camera_images"]
    with pytest.raises(DataError, match=r"no data \['robot_0_camera_images'\]"):
        MujocoImageDataset(save(tmp_path / "x.zarr", arrays))
    with pytest.raises(DataError, match=r"nothing\.zarr does not exist"):
        MujocoImageDataset(tmp_path / "nothing.zarr")
