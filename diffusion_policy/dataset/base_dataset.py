"""What every data set offers.

A data set is a task's demonstrations as windows of tensors, one window per item:

* low-dimensional: ``{'obs': (T, Do), 'action': (T, Da)}``
* images: ``{'obs': {key: (T, ...)}, 'action': (T, Da)}``
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from diffusion_policy.model.common.normalizer import LinearNormalizer


class BaseDataset(Dataset):
    """What both kinds have in common."""

    #: Whether items are cut from arrays in memory: worker processes would only cost time then.
    in_memory = False

    def get_normalizer(self, **kwargs: Any) -> LinearNormalizer:
        """A normalizer fitted to the data."""
        raise NotImplementedError

    def get_all_actions(self) -> Tensor:
        """The actions of all steps, ``(N, Da)``."""
        raise NotImplementedError

    def __len__(self) -> int:
        return 0

    def __getitem__(self, idx: int) -> dict[str, Any]:
        raise NotImplementedError

    def get_batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """Several items, stacked: every tensor gains a leading dimension B.

        Data sets that can gather a whole batch at once override this.
        """
        return default_collate([self[idx] for idx in indices])


class BaseLowdimDataset(BaseDataset):
    """Base of data sets with low-dimensional observations; itself an empty data set."""

    def get_validation_dataset(self) -> "BaseLowdimDataset":
        """The held-out episodes; empty unless overridden."""
        return BaseLowdimDataset()


class BaseImageDataset(BaseDataset):
    """Base of data sets with image observations; itself an empty data set."""

    def get_validation_dataset(self) -> "BaseImageDataset":
        """The held-out episodes; empty unless overridden."""
        return BaseImageDataset()
