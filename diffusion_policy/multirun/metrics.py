"""Numbers that sum up a training run, and several runs that differ in their seed.

All functions are pure: tables of rollout rows in, numbers out.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

LOSSES = ("train_loss", "val_loss")


def compute_metrics(
    log_df: pd.DataFrame,
    key: str,
    end_step: int | None = None,
    k_min_loss: int = 10,
    k_around_max: int = 10,
    max_k_window: int = 10,
    replace_slash: bool = True,
) -> dict[str, float]:
    """Sums up one metric of one training run.

    Args:
        log_df: The rollout rows of the run, in the order of training; ``train_loss`` and
            ``val_loss`` beside ``key``. Rows without ``key`` do not count.
        key: The metric, as ``test/mean_score``. Called K below, with values v.
        end_step: Use only so many rows of the table; None: all.
        k_min_loss: Rows that enter ``k_min_train_loss`` and ``k_min_val_loss``.
        k_around_max: Rows that enter ``k_around_max``.
        max_k_window: Length of the moving average behind ``max_k_window``.
        replace_slash: Write K as ``test_mean_score`` in the names.

    Returns:
        Empty if no row has K, else:

        - ``max/K``, ``last/K``: the largest and the last v.
        - ``k_around_max/K``: mean of the rows around the largest v, itself included.
        - ``max_k_window/K``: maximum of :func:`centred_moving_average`.
        - ``min_train_loss/K``, ``min_val_loss/K``: v where that loss is smallest. Left out, as the
          next two, if no row has that loss.
        - ``k_min_train_loss/K``, ``k_min_val_loss/K``: mean v of the rows of smallest loss.
        - ``metric_global_step/K``: label of the last row that has K. In a table of rollout rows
          that is the number of the rollout, in spite of the name, which published logs use.
    """
    if key not in log_df:
        return {}
    rows = log_df.iloc[:end_step]
    rows = rows[rows[key].notna()]
    if rows.empty:
        return {}
    values = rows[key].to_numpy(dtype=float)
    ranked = {loss: _best_loss_first(rows, loss, values) for loss in LOSSES}
    ranked = {loss: by_loss for loss, by_loss in ranked.items() if by_loss.size}
    metrics = {
        "max": values.max(),
        "k_around_max": _around_max(values, k_around_max).mean(),
        "max_k_window": centred_moving_average(values, max_k_window).max(),
        **{f"min_{loss}": by_loss[0] for loss, by_loss in ranked.items()},
        **{f"k_min_{loss}": by_loss[:k_min_loss].mean() for loss, by_loss in ranked.items()},
        "last": values[-1],
        "metric_global_step": rows.index[-1],
    }
    suffix = key.replace("/", "_") if replace_slash else key
    return {f"{name}/{suffix}": float(value) for name, value in metrics.items()}


def compute_metrics_agg(
    log_dfs: Sequence[pd.DataFrame], key: str, end_step: int | None, **kwargs: Any
) -> dict[str, float]:
    """Means over seeds of :func:`compute_metrics`, which takes ``kwargs``.

    A number that one of the seeds does not have is left out: a mean over some of the seeds would
    not be comparable with the others. The mean of ``metric_global_step`` is truncated to an int.
    """
    if not log_dfs:
        return {}
    seeds = [compute_metrics(log_df, key, end_step, **kwargs) for log_df in log_dfs]
    names = [name for name in seeds[0] if all(name in seed for seed in seeds)]
    means: dict[str, float] = {}
    for name in names:
        mean = float(np.mean([seed[name] for seed in seeds]))
        means[name] = int(mean) if name.startswith("metric_global_step/") else mean
    return means


def aggregate_row(
    log_dfs: Sequence[pd.DataFrame],
    keys: Sequence[str],
    end_step: int,
    axes: Sequence[str] = ("global_step", "epoch"),
    **kwargs: Any,
) -> dict[str, float]:
    """What is known after ``end_step`` rollouts: :func:`compute_metrics_agg` of every key.

    Args:
        log_dfs: The rollout rows of each seed, at least ``end_step`` of them.
        keys: The metrics.
        end_step: Number of rollouts, at least 1.
        axes: Columns of the first seed's last row that say where in training this is.
        kwargs: For :func:`compute_metrics`.
    """
    last = log_dfs[0].iloc[end_step - 1]
    known = [axis for axis in axes if axis in last and math.isfinite(last[axis])]
    row: dict[str, float] = {axis: int(last[axis]) for axis in known}
    for key in keys:
        row |= compute_metrics_agg(log_dfs, key, end_step, **kwargs)
    return row


def centred_moving_average(values: np.ndarray, size: int) -> np.ndarray:
    """Moving average as long as ``values`` (n,), whose ends are continued with the end values.

    The window of element i is ``[i - size // 2, i - size // 2 + size)``, as in
    ``scipy.ndimage.uniform_filter1d(values, size, mode="nearest")``.
    """
    before = size // 2
    padded = np.pad(values, (before, size - 1 - before), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, size).mean(axis=-1)


def get_indexed_window_average(
    arr: np.ndarray, idxs: Sequence[int] | np.ndarray, window_size: int
) -> np.ndarray:
    """For each index the mean of the ``window_size`` elements before it, or of the first ones.

    Part of the published interface; nothing here uses it.
    """
    starts = [max(int(idx) - window_size, 0) for idx in idxs]
    return np.array([arr[start : start + window_size].mean() for start in starts])


def _around_max(values: np.ndarray, k: int) -> np.ndarray:
    end = min(int(values.argmax()) + k // 2, len(values))
    return values[max(end - k, 0) : end]


def _best_loss_first(rows: pd.DataFrame, loss: str, values: np.ndarray) -> np.ndarray:
    """The values of the rows that have this loss, by rising loss."""
    if loss not in rows:
        return values[:0]
    losses = rows[loss].to_numpy(dtype=float)
    order = np.argsort(losses, kind="stable")  # NaN comes last
    return values[order[: np.count_nonzero(~np.isnan(losses))]]
