"""Any data set: windows of observations and actions, one at a time or in batches."""

import torch

from diffusion_policy.common.pytorch_util import dict_apply
from diffusion_policy.dataset.base_dataset import BaseImageDataset, BaseLowdimDataset


def flat(item):
    """{key: tensor} of an item or batch."""
    obs = item["obs"] if isinstance(item["obs"], dict) else {"obs": item["obs"]}
    return obs | {"action": item["action"]}


def test_an_item_is_a_window(run, dataset):
    assert isinstance(dataset, BaseLowdimDataset | BaseImageDataset)
    assert len(dataset) > 0
    item = dataset[0]
    assert item.keys() == {"obs", "action"}
    assert item["action"].shape[0] == run.cfg.horizon
    for key, value in flat(item).items():
        assert value.shape[0] >= run.cfg.n_obs_steps, key
        assert value.dtype in (torch.float32, torch.uint8), key
        assert torch.isfinite(value.float()).all(), key


def test_a_batch_is_its_items_stacked(dataset):
    indices = [0, len(dataset) - 1, 0, len(dataset) // 2]
    batch = flat(dataset.get_batch(indices))
    items = [flat(dataset[i]) for i in indices]
    for key, value in batch.items():
        assert torch.equal(value, torch.stack([item[key] for item in items])), key


def test_changing_an_item_does_not_change_the_data(dataset):
    before = dict_apply(dataset[0], torch.clone)
    dict_apply(dataset[0], lambda x: x.fill_(7))
    for key, value in flat(before).items():
        assert torch.equal(flat(dataset[0])[key], value), key


def test_an_item_knows_its_index_only(dataset):
    last = len(dataset) - 1
    first = flat(dataset[last])
    dataset[0]
    for key, value in flat(dataset[last]).items():
        assert torch.equal(value, first[key]), key


def test_held_out_windows_are_not_trained_on(dataset):
    held_out = dataset.get_validation_dataset()
    assert isinstance(held_out, BaseLowdimDataset | BaseImageDataset)
    trained = {flat(dataset[i])["action"].numpy().tobytes() for i in range(len(dataset))}
    validated = {flat(held_out[i])["action"].numpy().tobytes() for i in range(len(held_out))}
    assert len(validated - trained) > 0.5 * len(validated)


def test_the_normalizer_knows_every_key(dataset):
    normalizer = dataset.get_normalizer()
    for key, value in flat(dataset[0]).items():
        value = value / 255 if value.dtype == torch.uint8 else value
        normalized = normalizer[key].normalize(value)
        assert normalized.shape == value.shape, key
        assert normalized.abs().max() < 20, key
        torch.testing.assert_close(
            normalizer[key].unnormalize(normalized), value.float(), rtol=1e-4, atol=1e-2
        )


def test_all_actions_are_those_of_the_windows(dataset):
    actions = dataset.get_all_actions()
    known = {row.numpy().tobytes() for row in actions}
    assert {row.numpy().tobytes() for row in dataset[len(dataset) // 2]["action"]} <= known
