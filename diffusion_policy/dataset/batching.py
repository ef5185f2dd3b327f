"""Whole batches from a data set, with the indices they were made of.

A plain ``DataLoader`` collects a batch item by item and stacks the pieces. Data sets that can
gather a batch (``get_batch``) are asked for it whole; the order of the batches and the use of the
random generator stay those of a plain ``DataLoader``, so a seed means the same run.
"""

import functools
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

logger = logging.getLogger(__name__)


class IndexedBatch(NamedTuple):
    """A batch and where it comes from.

    Attributes:
        indices: i64 ``(B,)``, the items of the data set.
        batch: the collated items, every tensor ``(B, ...)``.
    """

    indices: Tensor
    batch: dict[str, Any]


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
        return IndexedBatch(torch.as_tensor(indices), batch)


def make_dataloader(dataset: Any, **loader_kwargs: Any) -> DataLoader:
    """A ``DataLoader`` that yields :class:`IndexedBatch`.

    Data sets in memory (``in_memory``) are read in this process, whatever ``num_workers`` says: a
    worker would spend more on sending a batch than on making it. Memory is pinned only where there
    is a GPU to send it to.

    Args:
        dataset: see :class:`BatchedDataset`.
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
    return DataLoader(
        BatchedDataset(dataset), collate_fn=_identity, pin_memory=pin_memory, **loader_kwargs
    )


def _identity(batch: Any) -> Any:
    return batch


@functools.cache
def _say_once(message: str) -> None:
    logger.info(message)
