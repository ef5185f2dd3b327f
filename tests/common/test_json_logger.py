"""The training log: what is kept, what is cut, and what is said about it."""

import json
import logging
import math
import os
import resource
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from runs import read_lines

from diffusion_policy.common.errors import DataError, DiffusionPolicyError
from diffusion_policy.common.json_logger import JsonLogger, read_json_log


def write_steps(path, n: int) -> None:
    with JsonLogger(path) as logger:
        for step in range(n):
            logger.log({"global_step": step, "train_loss": 1.0 / (step + 1)})


def test_resuming_equals_the_reference_log(golden, tmp_path):
    expected = json.loads((golden / "j_multirun_expected.json").read_text())["json_logger_resume"]
    path = tmp_path / "logs.json.txt"
    path.write_text('{"a": 1, "global_step": 0}\n{"a": 2, "global_step": 1}\n{"a": 3, "glob')
    with JsonLogger(path) as logger:
        assert logger.get_last_log() == expected["last_log"]
        logger.log({"a": 4.5, "b": np.int64(3), "name": "text", "global_step": 2})
    assert path.read_text() == expected["after"]


def test_reference_logs_are_read_as_pandas_reads_them(golden):
    for path in sorted((golden / "j_multirun").glob("*/logs.json.txt")):
        ours = read_json_log(path)
        theirs = pd.read_json(path, lines=True, precise_float=True)
        pd.testing.assert_frame_equal(ours, theirs, check_exact=False, rtol=1e-14)
        assert len(ours) > 0


def test_only_numbers_are_kept_and_numpy_numbers_become_plain_ones(tmp_path):
    path = tmp_path / "log"
    with JsonLogger(path) as logger:
        logger.log(
            {
                "int": 1,
                "float": 0.1,
                "bool": True,
                "np_int": np.int32(7),
                "np_float": np.float32(0.5),
                "tensor": torch.tensor(1.0),
                "array": np.ones(2),
                "text": "x",
                "none": None,
                "complex": 1j,
            }
        )
    (row,) = read_lines(path)
    assert row == {"int": 1, "float": 0.1, "bool": 1, "np_int": 7, "np_float": 0.5}
    assert [type(v) for v in row.values()] == [int, float, int, int, float]


def test_a_custom_filter_decides_by_key_and_value(tmp_path):
    path = tmp_path / "log"
    with JsonLogger(path, filter_fn=lambda k, v: k != "secret") as logger:
        logger.log({"name": "text", "secret": 1})
    assert read_lines(path) == [{"name": "text"}]


def test_nan_and_infinity_stay_readable(tmp_path):
    path = tmp_path / "log"
    with JsonLogger(path) as logger:
        logger.log({"a": float("nan"), "b": math.inf, "c": np.float64("-inf")})
    assert path.read_text() == '{"a": NaN, "b": Infinity, "c": -Infinity}\n'
    frame = read_json_log(path)
    assert math.isnan(frame["a"][0])
    assert frame["b"][0] == math.inf
    assert frame["c"][0] == -math.inf


def test_a_line_is_in_the_file_as_soon_as_it_is_logged(tmp_path):
    path = tmp_path / "log"
    with JsonLogger(path) as logger:
        logger.log({"a": 1})
        assert path.read_text() == '{"a": 1}\n'
        assert logger.tell() == len('{"a": 1}\n')
        logger.flush(durable=True)


def test_last_log_is_a_copy_and_none_for_an_empty_log(tmp_path):
    with JsonLogger(tmp_path / "log") as logger:
        assert logger.get_last_log() is None
        logger.log({"a": 1})
        last = logger.get_last_log()
        assert last == {"a": 1}
        last["a"] = 2
        assert logger.get_last_log() == {"a": 1}


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_a_log_killed_at_any_byte_continues_after_its_last_complete_line(tmp_path, cut):
    path = tmp_path / "log"
    write_steps(path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - cut])
    n_complete = path.read_bytes().count(b"\n")

    with JsonLogger(path) as logger:
        last = logger.get_last_log()
        assert (last["global_step"] if last else -1) == n_complete - 1
        logger.log({"global_step": n_complete})
    assert [row["global_step"] for row in read_lines(path)] == list(range(n_complete + 1))


def test_zeros_that_a_power_cut_leaves_are_removed_with_a_warning(tmp_path, caplog):
    path = tmp_path / "log"
    write_steps(path, 2)
    before = path.read_bytes()
    path.write_bytes(before + b"\0" * 50 + b"\n" + b"\0" * 10)
    with JsonLogger(path) as logger:
        assert logger.get_last_log()["global_step"] == 1
    assert path.read_bytes() == before
    assert "The last 1 lines" in caplog.text


def test_a_file_that_is_no_log_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\nnothing happened\n")
    with pytest.raises(DataError, match=r"notes\.txt exists but holds no JSON lines"):
        JsonLogger(path).start()
    assert path.read_text() == "dear diary\nnothing happened\n"


def test_truncate_to_drops_the_lines_after_a_checkpoint(tmp_path, caplog):
    path = tmp_path / "log"
    with JsonLogger(path) as logger:
        logger.log({"global_step": 0})
        size = logger.tell()
        logger.log({"global_step": 1})
    with JsonLogger(path) as logger:
        logger.truncate_to(size)
        assert logger.get_last_log() == {"global_step": 0}
        logger.log({"global_step": 1, "again": 1})
        logger.truncate_to(logger.tell())
    assert read_lines(path) == [{"global_step": 0}, {"global_step": 1, "again": 1}]
    assert not caplog.records


def test_truncate_to_zero_empties_the_log(tmp_path, caplog):
    path = tmp_path / "log"
    write_steps(path, 3)
    with JsonLogger(path) as logger:
        logger.truncate_to(0)
        assert logger.get_last_log() is None
    assert path.read_bytes() == b""
    assert not caplog.records


def test_a_log_shorter_than_its_checkpoint_is_continued_with_one_warning(tmp_path, caplog):
    path = tmp_path / "log"
    write_steps(path, 2)
    size = path.stat().st_size
    with JsonLogger(path) as logger:
        logger.truncate_to(size + 17)
        assert logger.get_last_log()["global_step"] == 1
    assert path.stat().st_size == size
    assert len(caplog.records) == 1
    assert "17 bytes shorter" in caplog.text


def test_truncation_within_a_line_goes_back_to_the_line_before_with_a_warning(tmp_path, caplog):
    path = tmp_path / "log"
    write_steps(path, 3)
    first_line = path.read_bytes().index(b"\n") + 1
    with JsonLogger(path) as logger:
        logger.truncate_to(first_line + 5)
        assert logger.get_last_log()["global_step"] == 0
    assert path.stat().st_size == first_line
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert f"no line that ends at byte {first_line + 5}" in caplog.text


def test_a_full_disk_is_one_sentence_and_leaves_a_readable_log(tmp_path):
    path = tmp_path / "log"
    write_steps(path, 2)
    before = path.read_bytes()
    with JsonLogger(path) as logger:
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, old[1]))
        try:
            with pytest.raises(DiffusionPolicyError) as error:
                logger.log({"global_step": 2, "train_loss": 0.5})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            signal.signal(signal.SIGXFSZ, handler)
        message = str(error.value)
        assert str(path) in message
        assert "File too large (errno 27)" in message
        assert "free space" in message
        assert path.read_bytes() == before
        logger.log({"global_step": 2})
    assert [row["global_step"] for row in read_lines(path)] == [0, 1, 2]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_device_without_space_is_named_with_its_errno():
    message = r"No space left on device \(errno 28\)"
    with JsonLogger("/dev/full") as logger, pytest.raises(DiffusionPolicyError, match=message):
        logger.log({"a": 1})


def test_an_output_folder_that_is_missing_is_one_sentence(tmp_path):
    with pytest.raises(DiffusionPolicyError, match=r"Cannot write the training log .*nowhere"):
        JsonLogger(tmp_path / "nowhere" / "logs.json.txt").start()


def test_logging_to_a_closed_log_says_so(tmp_path):
    with pytest.raises(DiffusionPolicyError, match="is not open"):
        JsonLogger(tmp_path / "log").log({"a": 1})


def test_reading_without_required_keys_gives_every_line(tmp_path):
    path = tmp_path / "log"
    write_steps(path, 4)
    frame = read_json_log(path)
    assert list(frame["global_step"]) == [0, 1, 2, 3]
    assert list(frame["train_loss"]) == [1 / (i + 1) for i in range(4)]  # to the last bit


def test_required_keys_keep_lines_with_at_least_one_of_them(tmp_path):
    path = tmp_path / "log"
    with JsonLogger(path) as logger:
        logger.log({"global_step": 0, "train_loss": 1.0})
        logger.log({"global_step": 1, "val_loss": 0.5})
        logger.log({"global_step": 2, "test/mean_score": 0.9})
        logger.log({"global_step": 3, "test/mean_score_2": 0.9})
    frame = read_json_log(path, required_keys=["test/mean_score", "val_loss"])
    assert list(frame["global_step"]) == [1, 2]
    assert math.isnan(frame["test/mean_score"][0])
    assert frame["test/mean_score"][1] == 0.9


def test_a_run_in_progress_is_read_without_its_incomplete_line(tmp_path):
    path = tmp_path / "log"
    write_steps(path, 2)
    with path.open("a") as file:
        file.write('{"global_step": 2, "tr')
    assert len(read_json_log(path)) == 2
    assert list(read_json_log(path)["global_step"]) == [0, 1]


def test_an_empty_log_is_an_empty_table(tmp_path):
    path = tmp_path / "log"
    path.touch()
    assert read_json_log(path).empty


def test_a_missing_log_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="No such file or directory; name a training run"):
        read_json_log(tmp_path / "logs.json.txt")


@pytest.mark.parametrize("bad", ["[1, 2]", "hello", '{"a": }'])
def test_a_damaged_line_is_named_by_its_number(tmp_path, bad):
    path = tmp_path / "log"
    path.write_text('{"a": 1}\n' + bad + '\n{"a": 2}\n')
    with pytest.raises(DataError, match=r"Line 2 of .* is not a JSON object"):
        read_json_log(path)
