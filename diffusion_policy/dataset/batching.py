"""Whole batches from a data set, with the indices they were made of.

A plain ``DataLoader`` collects a batch item by item and stacks the pieces. Data sets that can
gather a batch (``get_batch``) are asked for it whole; the order of the batches and the use of the
random generator stay those of a plain ``DataLoader``, so a seed means the same run.
"""

import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, default_collate

logger = logging.getLogger(__name__)


class IndexedBatch(NamedTuple):
    """A batch and where it comes from.

    Attributes:
        indices: i64 ``(B,)``, the items of the data set.
        batch: the collated items, every tensor ``(B, ...)``; of a :class:`PartialBatch`, those of
            this process only.
    """

    indices: Tensor
    batch: dict[str, Any]


class PartialBatch(list[int]):
    """Items of a batch that one of several processes reads.

    Attributes:
        whole: the items of the whole batch.
    """

    def __init__(self, whole: Sequence[int], rows: range):
        super().__init__(whole[i] for i in rows)
        self.whole = whole


def rows_of_process(n_rows: int, index: int, count: int) -> range:
    """The rows of a batch that process ``index`` of ``count`` computes: consecutive ones, at most
    one more than any other process; none where there are fewer rows than processes.
    """
    each, more = divmod(n_rows, count)
    start = index * each + min(index, more)
    return range(start, start + each + (index < more))


class PartialBatchSampler(BatchSampler):
    """The batches of another sampler, cut down to the rows of one process."""

    def __init__(self, whole: BatchSampler, index: int, count: int):
        super().__init__(whole.sampler, whole.batch_size, whole.drop_last)
        self.index, self.count = index, count

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            rows = rows_of_process(len(batch), self.index, self.count)
            yield PartialBatch(batch, rows or range(1))  # an empty batch has no loss


class BatchedDataset(Dataset):
    """Lets a ``DataLoader`` ask a data set for whole batches.

    Args:
        dataset: with ``get_batch(indices)``, or any map-style data set.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, idx: int) -> Any:
        return self.dataset[idx]

    def __getitems__(self, indices: Sequence[int]) -> IndexedBatch:
        """The hook by which torch's loaders fetch a batch."""
        if hasattr(self.dataset, "get_batch"):
            batch = self.dataset.get_batch(indices)
        else:
            batch = default_collate([self.dataset[idx] for idx in indices])
        return IndexedBatch(torch.as_tensor(getattr(indices, "whole", indices)), batch)


def make_dataloader(
    dataset: Any, process_index: int = 0, process_count: int = 1, **loader_kwargs: Any
) -> DataLoader:
    """A ``DataLoader`` that yields :class:`IndexedBatch`.

    Data sets in memory (``in_memory``) are read in this process, whatever ``num_workers`` says: a
    worker would spend more on sending a batch than on making it. Memory is pinned only where there
    is a GPU to send it to.

    Args:
        dataset: see :class:`BatchedDataset`.
        process_index: among ``process_count`` processes that share each batch. All of them have to
            start an epoch with the same global random numbers.
        **loader_kwargs: of ``torch.utils.data.DataLoader``.
    """
    if getattr(dataset, "in_memory", False) and loader_kwargs.get("num_workers", 0) > 0:
        _say_once(
            f"{type(dataset).__name__} is in memory: num_workers=0 is used instead of workers"
        )
        loader_kwargs["num_workers"] = 0
    if loader_kwargs.get("num_workers", 0) == 0:
        for option in ("persistent_workers", "prefetch_factor", "multiprocessing_context"):
            loader_kwargs.pop(option, None)  # torch refuses them without workers
    pin_memory = bool(loader_kwargs.pop("pin_memory", False)) and torch.cuda.is_available()
    loader_kwargs |= {"collate_fn": _identity, "pin_memory": pin_memory}
    loader = DataLoader(BatchedDataset(dataset), **loader_kwargs)
    if process_count == 1:
        return loader
    # torch has turned batch_size, shuffle and drop_last into a sampler of batches
    assert isinstance(loader.batch_sampler, BatchSampler)
    sampler = PartialBatchSampler(loader.batch_sampler, process_index, process_count)
    for option in ("batch_size", "shuffle", "drop_last", "sampler"):
        loader_kwargs.pop(option, None)
    return DataLoader(BatchedDataset(dataset), batch_sampler=sampler, **loader_kwargs)


def _identity(batch: Any) -> Any:
    return batch


@functools.cache
def _say_once(message: str) -> None:
    logger.info(message)
