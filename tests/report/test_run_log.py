"""Logs and times are read as they are, also when they are being written or were damaged."""

import json

import pytest

from diffusion_policy.common.errors import DataError
from diffusion_policy.report.run_log import (
    BLOCK_LINES,
    NothingLoggedError,
    read_log,
    read_times,
    to_series,
)


def write(path, rows, end=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)


def steps(first, last):
    return [{"train_loss": 1.0 + i, "global_step": i, "epoch": i // 5} for i in range(first, last)]


@pytest.mark.parametrize("n", [1, BLOCK_LINES - 1, BLOCK_LINES, BLOCK_LINES + 1, 2 * BLOCK_LINES])
@pytest.mark.parametrize("end", ["", '{"train_loss": 0.0, "glob', "\n  \n", "\0\0\0\n", '[1]\n{"a'])
def test_every_complete_line_counts_and_a_damaged_end_does_not(tmp_path, n, end):
    write(tmp_path / "logs.json.txt", steps(0, n), end)
    log = read_log(tmp_path)
    assert log.values["train_loss"] == {i: 1.0 + i for i in range(n)}
    assert log.last["global_step"] == n - 1


@pytest.mark.parametrize("damage", ["\0\0\0", "[1]", '{"a": 1}, {"b": 2}, 3', "null"])
def test_damage_in_the_middle_is_an_error_that_names_the_line(tmp_path, damage):
    path = tmp_path / "logs.json.txt"
    write(path, steps(0, 1500), damage + "\n")
    with path.open("a") as file:
        file.write(json.dumps(steps(1500, 1501)[0]) + "\n")
    with pytest.raises(DataError, match=r"Line 1501 of .*logs\.json\.txt is not a JSON object"):
        read_log(tmp_path)


def test_of_repeated_steps_the_later_ones_count(tmp_path):
    again = [row | {"train_loss": 0.0} for row in steps(3, 6)]
    write(tmp_path / "logs.json.txt", [*steps(0, 10), *again])
    values = read_log(tmp_path).values["train_loss"]
    assert values == {0: 1, 1: 2, 2: 3, 3: 0, 4: 0, 5: 0, 6: 7, 7: 8, 8: 9, 9: 10}


def test_a_log_that_is_missing_or_empty_has_nothing_yet(tmp_path):
    with pytest.raises(NothingLoggedError, match="has no complete line yet"):
        read_log(tmp_path)
    (tmp_path / "logs.json.txt").touch()
    with pytest.raises(NothingLoggedError, match="has no complete line yet"):
        read_log(tmp_path)


def test_series_are_the_finite_numbers_by_step():
    values = {3: 1.0, 1: float("nan"), 0: 2, 2: float("inf"), 4: True}
    series = to_series(values)
    assert (series.steps, series.values) == ([0, 3, 4], [2.0, 1.0, 1.0])
    words = to_series({0: 1.5, 1: "word", 2: None, 3: 2.5})
    assert (words.steps, words.values) == ([0, 3], [1.5, 2.5])
    assert to_series({}).steps == []


def test_times_add_up_and_of_repeated_epochs_the_later_line_counts(tmp_path):
    rows = [
        {"epoch": 0, "global_step": 4, "time/step": 2.0, "time/rollout": 9.0},
        {"epoch": 1, "global_step": 9, "time/step": 100.0},
        {"epoch": 1, "global_step": 9, "time/step": 1.0, "time/data_wait": 0.5},
        {"epoch": 2, "global_step": 14, "time/step": 3.0, "time/custom": 0.25},
    ]
    write(tmp_path / "times.json.txt", rows, '{"epoch": 3, "time/step": 1')
    times = read_times(tmp_path, {0: 4, 1: 9, 2: 14, 3: 16})
    assert times is not None
    expected = {"rollout": 9.0, "step": 6.0, "data_wait": 0.5, "custom": 0.25}
    assert list(times.seconds.items()) == list(expected.items())
    assert times.n_steps == 15
    assert times.step_seconds == 6.0 / 15


def test_older_runs_have_no_times(tmp_path):
    assert read_times(tmp_path, {0: 4}) is None
    (tmp_path / "times.json.txt").touch()
    assert read_times(tmp_path, {0: 4}) is None
