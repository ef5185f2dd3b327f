"""What the monitor makes of a sweep in any state, and what is left when it is killed anywhere."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from diffusion_policy.common.errors import CheckpointError, ConfigError, DataError
from diffusion_policy.multirun import monitor as monitor_module
from diffusion_policy.multirun.monitor import MetricsMonitor

KEYS = ["test/mean_score", "train/mean_score"]


def updated(sweep, **kwargs) -> MetricsMonitor:
    """A new monitor that has looked once."""
    monitor = MetricsMonitor(sweep.folder, KEYS, **kwargs)
    monitor.update()
    return monitor


def steps(sweep) -> list[int]:
    return [row["global_step"] for row in sweep.metrics()]


def mean_score(sweep, seeds, epoch) -> float:
    return sum(sweep.score(seed, epoch) for seed in seeds) / len(seeds)


class FakeTracker:
    name = "fake"

    def __init__(self, fails=False):
        self.rows, self.steps, self.exit_code, self.fails = [], [], None, fails

    def log(self, record, step):
        if self.fails:
            raise ConnectionResetError(104, "Connection reset by peer")
        self.rows.append(record)
        self.steps.append(step)

    def close(self, exit_code):
        self.exit_code = exit_code


def test_the_reference_sweep_gives_the_reference_metrics(golden, tmp_path):
    expected = json.loads((golden / "j_multirun_expected.json").read_text())
    shutil.copytree(golden / "j_multirun", tmp_path, dirs_exist_ok=True)
    last = MetricsMonitor(tmp_path, expected["keys"]).update()
    lines = (tmp_path / "metrics" / "logs.json.txt").read_text().splitlines()
    assert len(lines) == len(expected["end_steps"])
    for line, row in zip(lines, expected["end_steps"], strict=True):
        assert list(json.loads(line)) == list(row)
        assert json.loads(line) == pytest.approx(row, rel=1e-9, abs=1e-12)
    summary = (tmp_path / "metrics" / "metrics.json").read_text()
    assert json.loads(summary) == json.loads(lines[-1]) == last
    assert summary == json.dumps(last, indent=2, sort_keys=True)


def test_a_line_is_written_when_every_seed_has_that_rollout(sweep):
    monitor = MetricsMonitor(sweep.folder, KEYS)
    assert monitor.update() is None
    for seed in range(3):
        sweep.rollouts(seed, 0)
    assert monitor.update()["last/test_mean_score"] == pytest.approx(mean_score(sweep, range(3), 0))
    sweep.rollouts(0, 1, 2)
    sweep.rollouts(1, 1)
    assert monitor.update()["global_step"] == 2
    sweep.rollouts(2, 1)
    monitor.update()
    assert steps(sweep) == [2, 8]
    assert sweep.summary() == sweep.metrics()[-1]


def test_nothing_is_written_before_the_first_rollout(sweep):
    for seed in range(3):
        sweep.append(seed, sweep.lines(seed, 0)[0])
    assert MetricsMonitor(sweep.folder, KEYS).update(final=True) is None
    assert not (sweep.folder / "metrics").exists()


def test_seeds_that_have_not_started_are_waited_for_until_another_is_a_rollout_ahead(sweep):
    monitor = MetricsMonitor(sweep.folder, KEYS)
    sweep.rollouts(0, 0)
    sweep.append(1, sweep.lines(1, 0)[0])  # it trains, and seed 2 has not even a log
    assert monitor.update() is None
    sweep.rollouts(0, 1)
    assert monitor.update()["last/test_mean_score"] == pytest.approx(sweep.score(0, 2))


def test_at_the_end_nobody_is_waited_for(sweep):
    sweep.rollouts(1, 0)
    assert MetricsMonitor(sweep.folder, KEYS).update(final=True) is not None
    assert sweep.metrics()[0]["last/test_mean_score"] == sweep.score(1, 0)


def test_a_late_seed_joins_once_it_has_caught_up(sweep, caplog):
    caplog.set_level("INFO")
    for seed in (0, 1):
        sweep.rollouts(seed, 0, 1, 2)
    monitor = updated(sweep)
    before = sweep.files()
    assert "Averaging over train_0, train_1: 2 of 3 seeds have rollouts." in caplog.text
    sweep.rollouts(2, 0, 1)
    monitor.update()
    assert sweep.files() == before, "a finished result was given up for a shorter one"
    sweep.rollouts(2, 2)
    monitor.update()
    assert [row["last/test_mean_score"] for row in sweep.metrics()] == pytest.approx(
        [mean_score(sweep, range(3), epoch) for epoch in (0, 2, 4)]
    )


def test_a_seed_that_stopped_can_be_left_out_by_moving_its_folder(sweep):
    for seed, n in enumerate((3, 1, 3)):
        sweep.rollouts(seed, *range(n))
    monitor = updated(sweep)
    assert len(sweep.metrics()) == 1
    (sweep.folder / "train_1").rename(sweep.folder / "failed_train_1")
    monitor.update()
    assert len(sweep.metrics()) == 3
    assert sweep.summary()["last/test_mean_score"] == pytest.approx(mean_score(sweep, (0, 2), 4))


def test_one_seed_without_validation_is_a_sweep_too(make_sweep):
    sweep = make_sweep(n_seeds=1, val_loss=False)
    sweep.rollouts(0, 0, 1)
    updated(sweep)
    assert len(sweep.metrics()) == 2
    assert not any("val_loss" in name for name in sweep.summary())


def test_the_first_seed_is_the_one_with_the_smallest_number(make_sweep):
    sweep = make_sweep(n_seeds=11)
    for seed in range(11):
        sweep.append(seed, json.dumps({KEYS[0]: 0.5, "global_step": seed, "epoch": 0}) + "\n")
    (sweep.folder / "train_0").rename(sweep.folder / "away")
    (sweep.folder / "train_1").rename(sweep.folder / "away_too")
    updated(sweep)
    assert steps(sweep) == [2]


def test_names_can_keep_their_slash(sweep):
    for seed in range(3):
        sweep.rollouts(seed, 0)
    updated(sweep, replace_slash=False)
    assert "max/test/mean_score" in sweep.summary()


def test_a_resumed_seed_is_followed(sweep):
    for seed in range(3):
        sweep.rollouts(seed, 0, 1, 2)
    monitor = updated(sweep)
    first = sweep.files()
    text = sweep.log_path(1).read_text()
    sweep.log_path(1).write_text("".join(sweep.lines(1, 0)))  # resumed from its first checkpoint
    monitor.update()
    assert sweep.files() == first
    sweep.log_path(1).write_text(text)
    monitor.update()
    assert sweep.files() == first


def test_a_resumed_seed_with_other_numbers_replaces_the_lines(sweep):
    for seed in range(3):
        sweep.rollouts(seed, 0, 1)
    monitor = updated(sweep)
    row = sweep.row(1, 2) | {KEYS[0]: 1.0}  # a GPU does not repeat itself to the last bit
    sweep.append(1, json.dumps(row) + "\n")
    monitor.update()
    mean = (sweep.score(0, 2) + 1.0 + sweep.score(2, 2)) / 3
    assert len(sweep.metrics()) == 2
    assert sweep.summary()["last/test_mean_score"] == pytest.approx(mean)


@pytest.mark.parametrize("leftover", [None, "nothing", "half a line", "old summary", "garbage"])
def test_a_restarted_monitor_leaves_what_an_uninterrupted_one_leaves(make_sweep, leftover):
    uninterrupted, interrupted = make_sweep("a"), make_sweep("b")
    watching = MetricsMonitor(uninterrupted.folder, KEYS)
    for number in range(4):
        for seed in range(3):
            uninterrupted.rollouts(seed, number)
            interrupted.rollouts(seed, number)
        watching.update()
        if number == 1:
            updated(interrupted)
            metrics = interrupted.folder / "metrics"
            if leftover == "nothing":
                shutil.rmtree(metrics)
            elif leftover == "half a line":
                path = metrics / "logs.json.txt"
                os.truncate(path, path.stat().st_size - 30)
            elif leftover == "old summary":
                (metrics / "metrics.json").write_text("{}")
            elif leftover == "garbage":
                (metrics / "logs.json.txt").write_bytes(b"\0\n" * 9)
    updated(interrupted)
    assert interrupted.files() == uninterrupted.files()
    assert len(interrupted.metrics()) == 4


def test_a_restart_with_another_key_replaces_the_lines(sweep):
    for seed in range(3):
        sweep.rollouts(seed, 0, 1)
        sweep.append(seed, json.dumps(sweep.row(seed, 4) | {"new/score": 1.0}) + "\n")
    updated(sweep)
    assert len(sweep.metrics()) == 3
    MetricsMonitor(sweep.folder, ["new/score"]).update()
    assert [list(row)[2:3] for row in sweep.metrics()] == [["max/new_score"]]


def test_an_unchanged_sweep_is_not_written_again(sweep):
    for seed in range(3):
        sweep.rollouts(seed, 0)
    monitor = updated(sweep)
    paths = [sweep.folder / "metrics" / name for name in sweep.files()]
    before = [path.stat().st_ino for path in paths]
    monitor.update()
    updated(sweep)
    assert [path.stat().st_ino for path in paths] == before


KILLED = """
import os, signal, sys
from diffusion_policy.multirun import monitor
n, write = int(sys.argv[2]), monitor.atomic_write
def dying_write(path, write_fn):
    global n
    n -= 1
    def half(file):
        write_fn(file)
        file.truncate(file.tell() // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, half if n == 0 else write_fn)
monitor.atomic_write = dying_write
monitor.MetricsMonitor(sys.argv[1], ["test/mean_score", "train/mean_score"]).update()
"""


@pytest.mark.parametrize("dies_in_write", [1, 2])
def test_kill_9_while_a_file_is_written_leaves_the_one_before(make_sweep, dies_in_write):
    killed, uninterrupted = make_sweep("a"), make_sweep("b")
    for sweep in (killed, uninterrupted):
        for seed in range(3):
            sweep.rollouts(seed, 0, 1)
    updated(killed)
    before = killed.files()
    for seed in range(3):
        killed.rollouts(seed, 2)
        uninterrupted.rollouts(seed, 2)
    result = subprocess.run([sys.executable, "-c", KILLED, killed.folder, str(dies_in_write)])
    assert result.returncode == -signal.SIGKILL
    left = killed.files()
    assert left["metrics.json"] == before["metrics.json"]
    assert (left["logs.json.txt"] == before["logs.json.txt"]) == (dies_in_write == 1)
    updated(killed)
    updated(uninterrupted)
    assert killed.files() == uninterrupted.files(), "a partial file or an old summary is left"


def test_a_damaged_log_is_reported_and_nothing_is_lost(sweep):
    for seed in range(3):
        sweep.rollouts(seed, 0, 1)
    monitor = updated(sweep)
    before = sweep.files()
    text = sweep.log_path(1).read_text()
    sweep.append(1, '{"test/mean_score": oops}\n')
    with pytest.raises(DataError, match="train_1"):
        monitor.update()
    assert sweep.files() == before
    sweep.log_path(1).write_text(text)
    for seed in range(3):
        sweep.rollouts(seed, 2)
    monitor.update()
    assert steps(sweep) == [2, 8, 14]


def test_a_full_disk_is_reported_and_the_next_look_writes_all(sweep, monkeypatch):
    for seed in range(3):
        sweep.rollouts(seed, 0)
    monitor = MetricsMonitor(sweep.folder, KEYS)

    def full(path, write_fn):
        raise CheckpointError("cannot write: No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(monitor_module, "atomic_write", full)
        with pytest.raises(CheckpointError, match="No space left"):
            monitor.update()
    monitor.update()
    assert len(sweep.metrics()) == 1


def test_a_misspelt_key_is_said_once(sweep, caplog):
    for seed in range(3):
        sweep.rollouts(seed, 0)
    monitor = MetricsMonitor(sweep.folder, [*KEYS, "test/mean_scor"])
    monitor.update()
    assert not caplog.records, "the first rollout may still have the key"
    for seed in range(3):
        sweep.epochs(seed, 1)
    monitor.update()
    monitor.update()
    (record,) = caplog.records
    assert "'test/mean_scor'" in record.message
    assert "--key" in record.message


def test_an_index_that_the_rows_do_not_have_is_one_sentence(sweep):
    for seed in range(3):
        sweep.rollouts(seed, 0)
    with pytest.raises(ConfigError, match=r"no 'step'.*--index_key"):
        updated(sweep, index_key="step")


def test_the_tracker_gets_every_row_once(sweep):
    tracker = FakeTracker()
    monitor = MetricsMonitor(sweep.folder, KEYS, index_key="epoch", tracker=tracker)
    for number in range(3):
        for seed in range(3):
            sweep.rollouts(seed, number)
        monitor.update()
        monitor.update()
    monitor.close()
    assert tracker.steps == [0, 2, 4]
    assert tracker.rows == sweep.metrics()
    assert tracker.exit_code == 0


def test_a_tracker_that_fails_costs_one_warning(sweep, caplog):
    monitor = MetricsMonitor(sweep.folder, KEYS, tracker=FakeTracker(fails=True))
    for number in range(3):
        for seed in range(3):
            sweep.rollouts(seed, number)
        monitor.update()
    monitor.close()
    assert len(sweep.metrics()) == 3
    (record,) = caplog.records
    assert "Connection reset" in record.message


def test_a_sweep_is_done_when_no_seed_has_a_rollout_to_come(sweep):
    # Five epochs, rollouts in 0, 2 and 4.
    for seed in range(2):
        sweep.epochs(seed, 0, 1, 2, 3, 4)
    assert not updated(sweep).is_done(4), "train_2 has not started"
    sweep.epochs(2, 0, 1, 2, 3)
    sweep.append(2, sweep.lines(2, 4)[0])
    assert not updated(sweep).is_done(4), "train_2 is in its last epoch"
    sweep.append(2, "".join(sweep.lines(2, 4)[1:]))
    assert updated(sweep).is_done(4)


def test_a_sweep_is_done_when_the_last_rollout_is_past_even_if_it_gave_nothing(sweep):
    for seed in range(3):
        sweep.epochs(seed, 0, 1, 2, 3)
    monitor = MetricsMonitor(sweep.folder, ["another/key"])
    monitor.update()
    assert monitor.is_done(2)
    assert not monitor.is_done(3)
