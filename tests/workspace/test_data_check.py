"""Data that do not fit the configuration are named before the first step."""

import pytest
import torch
from image_tasks import pusht
from omegaconf import OmegaConf

from diffusion_policy.common.errors import ConfigError, DataError
from diffusion_policy.dataset.base_dataset import BaseImageDataset, BaseLowdimDataset
from diffusion_policy.workspace.data_check import check_data
from diffusion_policy.workspace.train_diffusion_unet_lowdim_workspace import (
    TrainDiffusionUnetLowdimWorkspace,
)

SHAPE_META = pusht(96)


class Items(BaseImageDataset):
    """One item, with parts of it changed."""

    def __init__(self, action=None, **obs):
        image = torch.zeros(16, 3, 96, 96, dtype=torch.uint8)
        self.obs = {"image": image, "agent_pos": torch.full((16, 2), 300.0)} | obs
        self.action = torch.zeros(16, 2) if action is None else action

    def __len__(self):
        return 1

    def __getitem__(self, idx):
        return {"obs": self.obs, "action": self.action}


def config(**top):
    dataset = {"_target_": "some.Items", "zarr_path": "data/some.zarr"}
    return OmegaConf.create({"task": {"dataset": dataset}} | top)


def test_data_that_fit_pass():
    cfg = config(shape_meta=SHAPE_META)
    check_data(Items(), cfg)
    check_data(Items(image=torch.rand(2, 3, 96, 96)), cfg)  # observations may be fewer steps
    check_data(Items(unused=torch.zeros(16, 99)), cfg)
    check_data(Items(), config())  # nothing said, nothing checked


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"image": torch.zeros(16, 3, 64, 64, dtype=torch.uint8)},
            "shape_meta.obs.image.shape is [3, 96, 96], but items of Items (data/some.zarr) hold "
            "'image' of shape [3, 64, 64]: make shape_meta describe the data, or choose data",
        ),
        (
            {"agent_pos": torch.zeros(16, 7)},
            "shape_meta.obs.agent_pos.shape is [2], but items of Items (data/some.zarr) hold "
            "'agent_pos' of shape [7]: ",
        ),
        (
            {"image": torch.full((16, 3, 96, 96), 255.0)},
            "items of Items (data/some.zarr) hold 'image' as float32 from 255 to 255, expected "
            "uint8, or floats in [0, 1]: ",
        ),
        (
            {"action": torch.zeros(16, 7)},
            "shape_meta.action.shape is [2], but items of Items (data/some.zarr) hold 'action' of "
            "shape [7]: make shape_meta",
        ),
    ],
)
def test_each_part_that_does_not_fit_has_its_sentence(parts, message):
    with pytest.raises(ConfigError) as error:
        check_data(Items(**parts), config(shape_meta=SHAPE_META))
    assert str(error.value).startswith(message)


def test_a_missing_camera_is_named_with_what_there_is():
    wrist = {"wrist": {"shape": [3, 96, 96], "type": "rgb"}}
    meta = SHAPE_META | {"obs": SHAPE_META["obs"] | wrist}
    with pytest.raises(
        ConfigError,
        match=r"has the camera 'wrist', but items of Items \(data/some.zarr\) hold image, agent_p",
    ):
        check_data(Items(), config(shape_meta=meta))


def test_an_empty_data_set_is_called_so():
    with pytest.raises(DataError, match=r"BaseImageDataset \(data/some.zarr\) is empty"):
        check_data(BaseImageDataset(), config(shape_meta=SHAPE_META))


def test_items_without_observations_or_actions_are_refused():
    class Other(BaseLowdimDataset):
        def __len__(self):
            return 1

        def __getitem__(self, idx):
            return {"state": 1, "action": 2}

    with pytest.raises(ConfigError, match=r"hold state, action; expected obs and action"):
        check_data(Other(), config())


def test_a_data_set_without_a_path_is_named_by_its_class():
    cfg = OmegaConf.create({"shape_meta": SHAPE_META, "task": {"dataset": {"dataset_path": None}}})
    with pytest.raises(ConfigError, match="but items of Items hold 'action'"):
        check_data(Items(action=torch.zeros(16, 3)), cfg)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("task.obs_dim=19", r"PushTLowdimDataset \(.*\) hold 'obs' of 20 values .* obs_dim=19; se"),
        (
            "task.action_dim=3",
            r"hold 'action' of 2 values per step, but action_dim=3; set task",
        ),
        (
            "+shape_meta={obs:{eye:{shape:[3,9,9],type:rgb}},action:{shape:[2]}}",
            r"shape_meta.obs has eye, but items of .* hold one vector 'obs' per step",
        ),
    ],
)
def test_a_run_ends_before_its_first_step(tiny_config, tmp_path, change, message):
    workspace = TrainDiffusionUnetLowdimWorkspace(tiny_config(change), output_dir=str(tmp_path))
    workspace.train_step = pytest.fail
    with pytest.raises(ConfigError, match=message):
        workspace.run()
