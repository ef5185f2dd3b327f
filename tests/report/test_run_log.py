"""Logs and times are read as they are, also when they are being written or were damaged."""

import json
import math
import os
import re

import pytest

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.json_lines import BLOCK_LINES, MAX_LINE_BYTES
from diffusion_policy.report.run_log import (
    MAX_METRICS,
    NothingLoggedError,
    OddLines,
    read_log,
    read_times,
    to_series,
)


def write(path, rows, end=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)


def odd(folder) -> OddLines:
    return OddLines(folder / "times.json.txt")


def steps(first, last):
    return [{"train_loss": 1.0 + i, "global_step": i, "epoch": i // 5} for i in range(first, last)]


@pytest.mark.parametrize("n", [1, BLOCK_LINES - 1, BLOCK_LINES, BLOCK_LINES + 1, 2 * BLOCK_LINES])
@pytest.mark.parametrize("end", ["", '{"train_loss": 0.0, "glob', "\n  \n", "\0\0\0\n", '[1]\n{"a'])
def test_every_complete_line_counts_and_a_damaged_end_does_not(tmp_path, n, end):
    write(tmp_path / "logs.json.txt", steps(0, n), end)
    log = read_log(tmp_path)
    assert log.values["train_loss"] == {i: 1.0 + i for i in range(n)}
    assert log.last["global_step"] == n - 1


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ("\0\0\0", "is not a JSON object but starts with"),
        ("[1]", "is not a JSON object but starts with"),
        ('{"a": 1}, {"b": 2}, 3', "is not a JSON object but starts with"),
        ("null", "is not a JSON object but starts with"),
        ("[" * 100_000, "is not a JSON object but starts with"),
        ('{"a": 1' + "0" * 5_000 + "}", "is not a JSON object but starts with"),
        ('{"a": "' + "x" * MAX_LINE_BYTES + '"}', "is longer than 4 MB"),
        (json.dumps(dict.fromkeys(map(str, range(30_000)), 1)), "has 30,000 entries"),
        ('{"global_step": "3"}', "has global_step='3', and a whole number is expected"),
        ('{"global_step": NaN}', "has global_step=nan, and a whole number is expected"),
        ('{"global_step": -1}', "has global_step=-1, and a whole number is expected"),
        ('{"global_step": 1e300}', r"has global_step=1e\+300, and a whole number is expected"),
        ('{"global_step": 1' + "0" * 4_000 + "}", "has global_step=1000"),
        ('{"epoch": [0]}', r"has epoch=\[0\], and a whole number is expected"),
        ('{"epoch": 0.5}', "has epoch=0.5, and a whole number is expected"),
        ('{"epoch": true}', "has epoch=True, and a whole number is expected"),
        ('{"epoch": null}', "has epoch=None, and a whole number is expected"),
    ],
)
def test_an_odd_line_is_left_out_and_told(tmp_path, odd, reason):
    path = tmp_path / "logs.json.txt"
    write(path, steps(0, 1500), odd + "\n")
    with path.open("a") as file:
        file.write(json.dumps(steps(1500, 1501)[0]) + "\n" + odd + "\n")
    log = read_log(tmp_path)
    assert log.values == {"train_loss": {i: 1.0 + i for i in range(1501)}}
    assert log.epoch_ends[300] == 1500
    [note] = log.notes
    assert re.fullmatch(
        rf"Line 1501 of \S+/logs\.json\.txt {reason}.*; it is left out, and so is another line\.",
        note,
    )
    assert len(note) < 300 + len(str(path))


def test_bytes_that_are_no_text_are_an_odd_line(tmp_path):
    path = tmp_path / "logs.json.txt"
    path.write_bytes(b"\xff\xfe{\n" + b'{"a": "\xff"}\n' + b'{"train_loss": 1.0}\n')
    log = read_log(tmp_path)
    assert log.values == {"train_loss": {0: 1.0}}
    assert "Line 1 of" in log.notes[0]


def test_further_metrics_than_a_page_can_show_are_left_out(tmp_path):
    rows = [{f"{i}/{j}": 1.0 for j in range(900)} for i in range(3)]
    write(tmp_path / "logs.json.txt", rows)
    log = read_log(tmp_path)
    assert len(log.values) == MAX_METRICS
    assert "the first 1,000 are shown" in log.notes[0]


def test_a_step_may_be_written_as_a_float(tmp_path):
    write(tmp_path / "logs.json.txt", [{"train_loss": 1.0, "global_step": 3.0, "epoch": 0.0}])
    assert read_log(tmp_path).epoch_ends == {0: 3}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_one_sentence_at_once(tmp_path, make):
    make(tmp_path / "logs.json.txt")
    with pytest.raises(DataError, match=r"is not a regular file|leads out of"):
        read_log(tmp_path)


def test_a_log_that_leads_out_of_the_run_is_not_read(tmp_path):
    (tmp_path / "secret").write_text("hunter2\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logs.json.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="is a link that leads out of") as error:
        read_log(tmp_path / "run")
    assert "hunter2" not in str(error.value)


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
    huge = to_series({0: 1e150, 1: -1e150, 2: 10**400, 3: 1e-300, 4: -5e-324, 5: [1], 6: {}})
    assert (huge.steps, huge.values) == ([3, 4], [0.0, 0.0])
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
    times = read_times(tmp_path, {0: 4, 1: 9, 2: 14, 3: 16}, odd(tmp_path))
    assert times is not None
    expected = {"rollout": 9.0, "step": 6.0, "data_wait": 0.5, "custom": 0.25}
    assert list(times.seconds.items()) == list(expected.items())
    assert times.n_steps == 15
    assert times.step_seconds == 6.0 / 15


def test_older_runs_have_no_times(tmp_path):
    assert read_times(tmp_path, {0: 4}, odd(tmp_path)) is None
    (tmp_path / "times.json.txt").touch()
    assert read_times(tmp_path, {0: 4}, odd(tmp_path)) is None


def test_odd_times_do_not_count(tmp_path):
    rows = [{"epoch": 0, "time/step": value} for value in (1.0, "x", math.nan, -1, 10**400, [1])]
    rows = [row | {"epoch": i} for i, row in enumerate(rows)] + [{"epoch": [0], "time/step": 1.0}]
    write(tmp_path / "times.json.txt", rows)
    left_out = odd(tmp_path)
    times = read_times(tmp_path, {0: 4, 1: 3}, left_out)
    assert times is not None
    assert times.seconds == {"step": 1.0}
    assert "Line 7 of" in left_out.sentences[0]


def test_steps_that_go_backwards_give_no_time_per_step(tmp_path):
    write(tmp_path / "times.json.txt", [{"epoch": 1, "time/step": 2.0}])
    times = read_times(tmp_path, {0: 9, 1: 4}, odd(tmp_path))
    assert times is not None
    assert times.step_seconds is None
