"""Following a log that a training run is writing, was killed writing, or has cut and continues."""

import json
import os

import pandas as pd
import pytest

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.json_logger import JsonLogger, read_json_log
from diffusion_policy.multirun.progress import describe_numbers
from diffusion_policy.multirun.rollout_log import RolloutLog

KEYS = ["test/mean_score"]


@pytest.fixture
def log(sweep) -> RolloutLog:
    return RolloutLog(sweep.log_path(0), KEYS, ["train_loss", "val_loss"])


def steps(log: RolloutLog) -> list[int]:
    return [row["global_step"] for row in log.rows]


def test_rollout_rows_are_those_of_the_whole_table(sweep, log):
    sweep.epochs(0, 0, 1, 2)
    log.update()
    sweep.epochs(0, 3, 4)
    log.update()
    expected = read_json_log(log.path, KEYS)[list(log.frame().columns)]
    pd.testing.assert_frame_equal(log.frame(), expected)
    assert set(log.frame().columns) == {"train_loss", "val_loss", "global_step", "epoch", *KEYS}
    assert (steps(log), log.last_epoch, log.generation) == ([2, 8, 14], 4, 0)


def test_a_log_that_does_not_exist_is_empty(log):
    log.update()
    assert (log.rows, log.last_epoch) == ([], -1)
    assert log.frame().empty


def test_half_a_line_is_read_when_it_is_complete(sweep, log):
    text = "".join(sweep.lines(0, 0))
    for start, end in ((0, 10), (10, len(text) - 30), (len(text) - 30, len(text) - 1)):
        sweep.append(0, text[start:end])
        log.update()
        assert log.rows == []
    sweep.append(0, "\n")
    log.update()
    assert steps(log) == [2]


def test_only_new_lines_are_read_again(sweep, log):
    sweep.epochs(0, 0, 1, 2)
    log.update()
    # What has been read may be damaged: nobody looks at it, but for its last line.
    with open(log.path, "r+b") as file:
        file.write(b"\0" * 20)
    sweep.epochs(0, 3, 4)
    log.update()
    assert steps(log) == [2, 8, 14]


def test_a_resumed_run_that_cuts_its_log_is_read_anew(sweep, log):
    sweep.epochs(0, 0, 1, 2, 3, 4)
    log.update()
    with JsonLogger(log.path) as logger:
        logger.truncate_to(len("".join(sweep.lines(0, 0, 1))))
    log.update()
    assert (steps(log), log.generation) == ([2], 1)


def test_a_log_that_was_cut_and_has_grown_again_is_read_anew(sweep, log):
    sweep.epochs(0, 0, 1, 2)
    log.update()
    os.truncate(log.path, len("".join(sweep.lines(0, 0, 1))))
    again = [sweep.row(0, epoch, i) for epoch in (2, 3, 4) for i in range(3)]
    for row in again:  # another machine, other numbers
        row["train_loss"] += 1e-3
        if KEYS[0] in row:
            row[KEYS[0]] += 0.001
    sweep.append(0, "".join(json.dumps(row) + "\n" for row in again))
    log.update()
    assert (steps(log), log.generation) == ([2, 8, 14], 1)
    assert log.rows[1][KEYS[0]] == pytest.approx(sweep.score(0, 2) + 0.001)


def test_of_repeated_steps_the_later_count(sweep, log):
    sweep.epochs(0, 0, 1, 2, 3, 4)
    log.update()
    repeated = sweep.row(0, 2) | {KEYS[0]: 0.5}
    sweep.append(0, json.dumps(repeated) + "\n")
    log.update()
    assert (steps(log), log.rows[-1][KEYS[0]]) == ([2, 8], 0.5)
    assert log.generation > 0


def test_a_key_in_a_text_does_not_make_a_rollout(sweep, log):
    sweep.append(0, json.dumps({"note": "about test/mean_score", "x": [KEYS[0]]}) + "\n")
    log.update()
    assert log.rows == []


@pytest.mark.parametrize(
    "line",
    [
        *('{"test/mean_score": 0.3,, "epoch": 0}\n', '["test/mean_score"]\n'),
        '{"test/mean_score": ' + "[" * 100_000 + "\n",
    ],
)
def test_a_damaged_rollout_is_reported_and_read_once_it_is_mended(sweep, log, line):
    sweep.epochs(0, 0)
    log.update()
    sweep.append(0, line)
    for _ in range(2):
        with pytest.raises(DataError, match=r"train_0.*logs\.json\.txt is not a JSON object"):
            log.update()
        assert log.rows == []
    log.path.write_text("".join(sweep.lines(0, 0, 1, 2)))
    log.update()
    assert steps(log) == [2, 8]


def test_damage_elsewhere_does_not_matter(sweep, log):
    sweep.epochs(0, 0)
    with open(log.path, "ab") as file:
        file.write(b"\0" * 40 + b"\n")
    log.update()
    assert (steps(log), log.last_epoch) == ([2], -1)


def test_a_log_that_cannot_be_read_is_named(sweep, log):
    log.path.mkdir()
    with pytest.raises(DataError, match=r"train_0\S+ is not a regular file"):
        log.update()


@pytest.mark.parametrize(
    "damage", [{"test/mean_score": "good"}, {"epoch": None}, {"train_loss": 10**400}]
)
def test_what_is_no_number_is_one_sentence(sweep, log, damage):
    sweep.append(0, json.dumps(sweep.row(0, 0) | damage) + "\n")
    with pytest.raises(DataError, match=r"has \S+=.*, and a number is expected"):
        log.update()


def test_a_pipe_in_the_place_of_a_log_is_not_waited_for(sweep, log):
    os.mkfifo(log.path)
    with pytest.raises(DataError, match="is not a regular file"):
        log.update()


@pytest.mark.parametrize("epoch", ["3", None, float("nan"), [1], 10**400, -1, True])
def test_an_odd_epoch_of_the_last_line_is_none(sweep, log, epoch):
    sweep.append(0, json.dumps({"train_loss": "x", "epoch": epoch}) + "\n")
    log.update()
    assert log.last_epoch == -1
    assert describe_numbers(log, KEYS[0]) == ""
