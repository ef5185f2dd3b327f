"""The numbers that sum up a sweep: equal to the reference, and defined where that one crashed."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import uniform_filter1d

from diffusion_policy.common.json_logger import read_json_log
from diffusion_policy.multirun.metrics import (
    aggregate_row,
    centred_moving_average,
    compute_metrics,
    compute_metrics_agg,
    get_indexed_window_average,
)

KEY = "test/mean_score"
NAMES = [
    "max",
    "k_around_max",
    "max_k_window",
    "min_train_loss",
    "min_val_loss",
    "k_min_train_loss",
    "k_min_val_loss",
    "last",
    "metric_global_step",
]
EXACT = {"rel": 1e-9, "abs": 1e-12}


@pytest.fixture
def reference(golden) -> dict:
    return json.loads((golden / "j_multirun_expected.json").read_text())


@pytest.fixture
def reference_logs(golden, reference) -> list[pd.DataFrame]:
    return [
        read_json_log(golden / "j_multirun" / f"train_{i}" / "logs.json.txt", reference["keys"])
        for i in range(3)
    ]


def table(scores, train_loss=None, val_loss=None, **columns) -> pd.DataFrame:
    columns = {KEY: scores, "train_loss": train_loss, "val_loss": val_loss, **columns}
    return pd.DataFrame({name: values for name, values in columns.items() if values is not None})


def test_every_row_of_the_reference_sweep_is_reproduced(reference, reference_logs):
    assert reference["n_rows"] == len(reference["end_steps"]) == 12
    for end_step, expected in enumerate(reference["end_steps"], start=1):
        row = aggregate_row(reference_logs, reference["keys"], end_step)
        assert list(row) == list(expected)
        assert row == pytest.approx(expected, **EXACT)
        integers = {name for name, value in expected.items() if isinstance(value, int)}
        assert integers == {name for name, value in row.items() if isinstance(value, int)}


def test_the_options_of_a_single_run_give_the_reference_numbers(reference, reference_logs):
    for kwargs, expected in zip(reference["single_kwargs"], reference["single"], strict=True):
        metrics = compute_metrics(reference_logs[0], KEY, **kwargs)
        assert list(metrics) == list(expected)
        assert metrics == pytest.approx(expected, **EXACT)


def test_window_averages_equal_the_reference(reference):
    for case in reference["window_average"]:
        averages = get_indexed_window_average(
            np.array(case["arr"]), case["idxs"], case["window_size"]
        )
        np.testing.assert_allclose(averages, case["out"], rtol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 3, 9, 10, 11])
@pytest.mark.parametrize("n", [1, 2, 9, 10, 30])
def test_the_moving_average_is_that_of_scipy(n, size):
    values = np.random.default_rng(n).random(n)
    expected = uniform_filter1d(values, size, mode="nearest")
    np.testing.assert_allclose(centred_moving_average(values, size), expected, rtol=1e-12)


def test_each_number_is_what_its_name_says():
    scores = [0.1, 0.9, 0.3, 0.5, 0.2]
    metrics = compute_metrics(
        table(scores, train_loss=[5, 4, 1, 2, 3], val_loss=[1, 2, 3, 4, 5]),
        KEY,
        k_min_loss=2,
        k_around_max=2,
        max_k_window=2,
        replace_slash=False,
    )
    expected = {
        "max": 0.9,
        "k_around_max": (0.1 + 0.9) / 2,  # one half of the window lies before, one from the maximum
        "max_k_window": (0.9 + 0.3) / 2,
        "min_train_loss": 0.3,
        "min_val_loss": 0.1,
        "k_min_train_loss": (0.3 + 0.5) / 2,
        "k_min_val_loss": (0.1 + 0.9) / 2,
        "last": 0.2,
        "metric_global_step": 4,
    }
    assert metrics == pytest.approx({f"{name}/{KEY}": v for name, v in expected.items()})


def test_rows_after_end_step_do_not_count():
    rows = table([0.1, 0.2, 0.9], train_loss=[3, 2, 1])
    assert compute_metrics(rows, KEY, end_step=2) == compute_metrics(rows[:2], KEY)
    assert compute_metrics(rows, KEY, end_step=2)["max/test_mean_score"] == 0.2


def test_one_seed_is_its_own_mean():
    rows = table([0.1, 0.4], train_loss=[2, 1], val_loss=[2, 1])
    assert compute_metrics_agg([rows], KEY, 2) == compute_metrics(rows, KEY)


def test_without_a_validation_loss_only_its_numbers_are_missing():
    rows = table([0.1, 0.4], train_loss=[2, 1])
    metrics = compute_metrics(rows, KEY)
    assert list(metrics) == [f"{n}/test_mean_score" for n in NAMES if "val_loss" not in n]
    with_nan = table([0.1, 0.4], train_loss=[2, 1], val_loss=[np.nan, np.nan])
    assert compute_metrics(with_nan, KEY) == metrics


def test_rows_without_a_validation_loss_are_not_among_the_best_by_it():
    rows = table([0.1, 0.4, 0.7], train_loss=[3, 2, 1], val_loss=[np.nan, 2.0, 1.0])
    metrics = compute_metrics(rows, KEY)
    assert metrics["min_val_loss/test_mean_score"] == 0.7
    assert metrics["k_min_val_loss/test_mean_score"] == pytest.approx((0.4 + 0.7) / 2)


def test_no_rollout_so_far_gives_no_numbers():
    assert compute_metrics(pd.DataFrame(), KEY) == {}
    assert compute_metrics(table([np.nan], train_loss=[1]), KEY) == {}
    assert compute_metrics(table([0.5], train_loss=[1]), KEY, end_step=0) == {}
    assert compute_metrics(table([0.5], train_loss=[1]), "another/key") == {}
    assert compute_metrics_agg([], KEY, 1) == {}
    assert compute_metrics_agg([pd.DataFrame(), table([0.5])], KEY, 1) == {}


def test_the_step_of_a_metric_is_its_row_in_the_table_of_rollouts():
    # Rows 1 and 3 are rollouts that have another key only.
    rows = table([0.1, np.nan, 0.3, np.nan], global_step=[0, 10, 20, 30])
    assert compute_metrics(rows, KEY)["metric_global_step/test_mean_score"] == 2


def test_the_mean_over_seeds_truncates_the_step_of_a_metric():
    logs = [table([0.1, 0.2]), table([0.3, np.nan])]
    metrics = compute_metrics_agg(logs, KEY, 2)
    assert metrics["last/test_mean_score"] == pytest.approx((0.2 + 0.3) / 2)
    step = metrics["metric_global_step/test_mean_score"]
    assert (step, type(step)) == (0, int)


def test_a_number_that_one_seed_lacks_is_not_averaged_over_the_others():
    logs = [table([0.1], train_loss=[1], val_loss=[1]), table([0.3], train_loss=[1])]
    names = list(compute_metrics_agg(logs, KEY, 1))
    assert names == [f"{n}/test_mean_score" for n in NAMES if "val_loss" not in n]


def test_a_row_says_where_the_first_seed_is():
    logs = [
        table([0.1, 0.2], global_step=[2, 8], epoch=[0, 2]),
        table([0.3, 0.4], global_step=[5, 11], epoch=[0, 2]),
    ]
    row = aggregate_row(logs, [KEY], 2)
    assert (row["global_step"], row["epoch"]) == (8, 2)
    assert row["max/test_mean_score"] == pytest.approx(0.3)
