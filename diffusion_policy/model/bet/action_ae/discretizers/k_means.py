"""Actions as the nearest of a few centres, and the offset from it (Shafiullah et al. 2022, 3.1)."""

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diffusion_policy.common.errors import ConfigError, DataError
from diffusion_policy.model.common.dict_of_tensor_mixin import DictOfTensorMixin

LLOYD_ITERATIONS = 50
ROWS_AT_A_TIME = 1 << 16  # bounds the table of distances


class KMeansDiscretizer(DictOfTensorMixin):
    """Splits the space of actions into bins by k-means.

    The centres travel in the checkpoint, as ``params_dict.bin_centers`` (num_bins, A). What a
    policy predicts is the *number* of a bin, so its discretizer must never be fitted again.

    Args:
        action_dim: A.
        num_bins: number of centres.
        predict_offsets: a latent is (bin, offset), which loses nothing; otherwise the bin alone.
    """

    def __init__(self, action_dim: int, num_bins: int = 100, predict_offsets: bool = False):
        super().__init__()
        self.action_dim = action_dim
        self.n_bins = num_bins
        self.predict_offsets = predict_offsets

    # ---- the bins --------------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        """Whether there are centres, from a fit or out of a checkpoint."""
        return "bin_centers" in self.params_dict

    @property
    def bin_centers(self) -> Tensor:
        """(num_bins, A), without gradient.

        Raises:
            ConfigError: there are none yet.
        """
        if not self.is_fitted:
            raise ConfigError(
                "the KMeansDiscretizer has no bins yet: fit it on the actions of the data set "
                "(policy.fit_action_ae), or load a checkpoint, before using it"
            )
        return self.params_dict["bin_centers"]  # pyright: ignore[reportReturnType]

    @property
    def suggested_actions(self) -> Tensor:
        """The centres, (num_bins, A)."""
        return self.bin_centers

    @property
    def discretized_space(self) -> int:
        """Number of bins."""
        return self.n_bins

    @property
    def num_latents(self) -> int:
        """Number of bins."""
        return self.n_bins

    @property
    def latent_dim(self) -> int:
        """Values of a latent: the number of its bin."""
        return 1

    @torch.no_grad()
    def fit_discretizer(self, input_actions: Tensor) -> None:
        """Places the centres, always on the CPU: one seed of torch's global generator gives the
        same centres on every machine.

        Args:
            input_actions: (..., A), all actions of the data set, normalised.

        Raises:
            ConfigError: the actions are not A wide.
            DataError: there are fewer actions than bins, or one is not finite.
        """
        self._check_width(input_actions)
        actions = input_actions.detach().cpu().reshape(-1, self.action_dim)
        if len(actions) < self.n_bins:
            raise DataError(
                f"k-means got {len(actions)} actions for num_bins={self.n_bins}; set "
                "policy.action_ae.num_bins to fewer, or use more data"
            )
        if not (finite := torch.isfinite(actions).all(dim=1)).all():
            raise DataError(
                f"k-means got {int((~finite).sum())} actions that are NaN or infinite, the first "
                f"is number {int((~finite).nonzero()[0])}; repair the data set"
            )
        centers = k_means(actions, self.n_bins).to(input_actions.device)
        self.params_dict = nn.ParameterDict({"bin_centers": centers}).requires_grad_(False)

    # ---- actions to latents and back -------------------------------------------------------------

    def encode_into_latent(
        self, input_action: Tensor, input_rep: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The bin of each action.

        Args:
            input_action: (..., A).
            input_rep: ignored; other auto-encoders look at the observations.

        Returns:
            Bins (..., 1) int64; with ``predict_offsets`` also offsets (..., A).

        Raises:
            ConfigError: there are no bins yet, or the actions are not A wide.
        """
        self._check_width(input_action)
        centers = self.bin_centers
        nearest = nearest_center(input_action.reshape(-1, self.action_dim), centers)
        nearest = nearest.view(input_action.shape[:-1])
        if not self.predict_offsets:
            return nearest.unsqueeze(-1)
        return nearest.unsqueeze(-1), input_action - centers[nearest]

    def decode_actions(
        self,
        latent_action_batch: Tensor | tuple[Tensor, Tensor],
        input_rep_batch: Tensor | None = None,
    ) -> Tensor:
        """Actions (..., A) of bins (..., 1): their centres, plus the offsets if there are any."""
        if isinstance(latent_action_batch, tuple):
            bins, offsets = latent_action_batch
            return self.bin_centers[bins.squeeze(-1)] + offsets
        return self.bin_centers[latent_action_batch.squeeze(-1)]

    def _check_width(self, actions: Tensor) -> None:
        if actions.shape[-1] != self.action_dim:
            raise ConfigError(
                f"the actions have {actions.shape[-1]} values, the KMeansDiscretizer was built "
                f"with action_dim={self.action_dim}; set task.action_dim to what the task delivers"
            )


def k_means(points: Tensor, n_clusters: int) -> Tensor:
    """Lloyd's algorithm (Lloyd 1982), from centres that are points drawn without replacement.

    A cluster that loses all its points starts again at a random point.

    Args:
        points: (N, D) on the CPU, N >= n_clusters.
        n_clusters: K.

    Returns:
        (K, D). Random draws: one permutation of the points, and one more per iteration.
    """
    centers = points[torch.randperm(len(points))[:n_clusters]]
    for _ in tqdm(range(LLOYD_ITERATIONS), desc="K-means of the actions", leave=False):
        nearest = nearest_center(points, centers)
        count = nearest.bincount(minlength=n_clusters)
        # Sums over a whole data set of float32 would lose digits.
        total = points.new_zeros(centers.shape, dtype=torch.float64)
        total.index_add_(0, nearest, points.double())
        centers = (total / count.unsqueeze(-1)).to(points.dtype)
        # Drawn also when nothing is empty, as published runs did: all later draws depend on it.
        order = torch.randperm(len(points))
        empty = count == 0
        centers[empty] = points[order[: int(empty.sum())]]
    return centers


def nearest_center(points: Tensor, centers: Tensor) -> Tensor:
    """Index (N,) int64 of the nearest of the centers (K, D), for points (N, D).

    Distances come from differences, not from |x|^2 - 2xc + |c|^2, which cancels near the border
    between two bins. A table of them is at most ROWS_AT_A_TIME x K, never N x K x D.
    """
    mode = "donot_use_mm_for_euclid_dist"
    parts = points.detach().split(ROWS_AT_A_TIME)
    return torch.cat([torch.cdist(part, centers, compute_mode=mode).argmin(1) for part in parts])
