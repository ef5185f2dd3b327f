"""Batches come whole, in the order of a plain DataLoader, and say where they come from."""

import logging

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from diffusion_policy.dataset import batching
from diffusion_policy.dataset.batching import (
    BatchedDataset,
    IndexedBatch,
    make_dataloader,
    rows_of_process,
)


class Plain(Dataset):
    """A data set of somebody else: items only."""

    def __len__(self):
        return 23

    def __getitem__(self, idx):
        return {"x": torch.tensor([idx, -idx]), "nested": {"y": torch.tensor(float(idx))}}


class Whole(Plain):
    in_memory = True
    calls: list = []

    def get_batch(self, indices):
        self.calls.append(list(indices))
        return default_collate([Plain.__getitem__(self, i) for i in indices])


def rows(batches):
    return [batch["x"][:, 0].tolist() for batch in batches]


LOADERS = [
    {"batch_size": 5, "shuffle": True},
    {"batch_size": 4, "shuffle": False, "drop_last": True},
    {"batch_size": 7, "shuffle": True, "num_workers": 1, "persistent_workers": False},
]


@pytest.mark.parametrize("dataset", [Plain(), Whole()], ids=["items", "whole"])
@pytest.mark.parametrize("options", LOADERS, ids=["shuffled", "in order", "worker"])
def test_order_and_random_state_equal_those_of_a_plain_dataloader(dataset, options):
    def two_epochs(loader, unpack):
        torch.manual_seed(7)
        torch.rand(3)
        epochs = [rows(map(unpack, loader)) for _ in range(2)]
        return epochs, torch.get_rng_state()

    expected, expected_state = two_epochs(DataLoader(Plain(), **options), lambda b: b)
    got, state = two_epochs(make_dataloader(dataset, **options), lambda b: b.batch)
    assert got == expected
    assert torch.equal(state, expected_state)


@pytest.mark.parametrize("dataset", [Plain(), Whole()], ids=["items", "whole"])
def test_a_batch_knows_its_indices(dataset):
    loader = make_dataloader(dataset, batch_size=6, shuffle=True)
    seen = []
    for indices, batch in loader:
        assert indices.dtype == torch.int64
        assert indices.tolist() == batch["x"][:, 0].tolist()
        assert torch.equal(batch["nested"]["y"], indices.float())
        seen += indices.tolist()
    assert sorted(seen) == list(range(23))
    assert len(loader) == 4


def test_a_batch_is_asked_for_once_and_whole():
    Whole.calls.clear()
    list(make_dataloader(Whole(), batch_size=10))
    assert [len(indices) for indices in Whole.calls] == [10, 10, 3]


def test_the_wrapper_is_still_a_data_set():
    dataset = BatchedDataset(Plain())
    assert len(dataset) == 23
    assert dataset[3]["x"].tolist() == [3, -3]
    assert isinstance(dataset.__getitems__([1, 2]), IndexedBatch)


def test_data_in_memory_get_no_workers_and_it_is_said_once(caplog):
    batching._say_once.cache_clear()
    options = {
        "num_workers": 2,
        "persistent_workers": True,
        "prefetch_factor": 4,
        "multiprocessing_context": "spawn",
    }
    with caplog.at_level(logging.INFO):
        loaders = [make_dataloader(Whole(), batch_size=2, **options) for _ in range(2)]
    assert {loader.num_workers for loader in loaders} == {0}
    assert not loaders[0].persistent_workers
    assert caplog.text.count("num_workers=0 is used") == 1


def test_data_on_disk_keep_their_workers():
    loader = make_dataloader(Plain(), batch_size=2, num_workers=2, persistent_workers=True)
    assert loader.num_workers == 2
    assert loader.persistent_workers


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU only")
def test_a_pinned_batch_is_still_an_indexed_batch():
    (batch, *_) = make_dataloader(Whole(), batch_size=4, pin_memory=True)
    assert isinstance(batch, IndexedBatch)
    assert batch.batch["x"].is_pinned()


@pytest.mark.parametrize("has_gpu", [False, True])
def test_memory_is_pinned_only_where_there_is_a_gpu(monkeypatch, has_gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert make_dataloader(Plain(), pin_memory=True).pin_memory is has_gpu
    assert make_dataloader(Plain()).pin_memory is False


# ---- batches that several processes share --------------------------------------------------------


@pytest.mark.parametrize("n_rows", [1, 2, 7, 64])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_processes_share_the_rows_of_a_batch_evenly(n_rows, count):
    parts = [rows_of_process(n_rows, index, count) for index in range(count)]
    assert [row for part in parts for row in part] == list(range(n_rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("options", LOADERS)
@pytest.mark.parametrize("dataset", [Plain(), Whole()])
def test_processes_together_read_the_batches_of_one(options, dataset):
    def batches(**processes):
        torch.manual_seed(3)
        return list(make_dataloader(dataset, **processes, **options))

    whole = batches()
    parts = [batches(process_index=index, process_count=2) for index in range(2)]
    assert len(parts[0]) == len(parts[1]) == len(whole)
    for one, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(first.indices, one.indices)  # each knows the whole batch
        assert torch.equal(second.indices, one.indices)
        together = torch.cat([first.batch["x"], second.batch["x"]])
        assert torch.equal(together[: len(one.indices)], one.batch["x"])


def test_a_process_without_rows_reads_one_that_does_not_count():
    options = {"batch_size": 22, "shuffle": False}
    last = list(make_dataloader(Plain(), process_index=1, process_count=2, **options))[-1]
    assert last.indices.tolist() == [22]
    assert last.batch["x"][:, 0].tolist() == [22]
    assert not rows_of_process(1, 1, 2)
