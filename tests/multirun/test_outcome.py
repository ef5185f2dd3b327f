"""What a sweep says about itself: its state on disk, its progress, its last words."""

import json

import pytest
import sweeps

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.config.targets import TargetPolicy, targets_allowed_by
from diffusion_policy.multirun.outcome import describe_outcome, last_lines
from diffusion_policy.multirun.progress import Progress
from diffusion_policy.multirun.status import State, SweepStatus
from diffusion_policy.multirun.sweep import load_sweep

KEY = "test/mean_score"


@pytest.fixture
def sweep(tmp_path):
    with targets_allowed_by(TargetPolicy(everything=True)):
        return load_sweep(sweeps.write_fake_sweep(tmp_path / "sweep", 3, n_epochs=50))


@pytest.fixture
def status(sweep):
    return SweepStatus(sweep.folder, "process", [task.name for task in sweep.tasks])


def log_epochs(sweep, task, n):
    rows = [{"train_loss": 0.5**i, "epoch": i, "global_step": i} for i in range(n)]
    rows[0][KEY] = 0.25
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (sweep.run_dir(task) / "logs.json.txt").write_text(text)


def test_the_status_is_on_disk_after_every_change(sweep, status):
    status.change("train_1", state=State.RUNNING, attempts=1, host="a")
    content = json.loads((sweep.folder / "status.json").read_text())
    assert content["backend"] == "process"
    assert content["updated"][:2] == "20"
    assert content["tasks"]["train_1"] == {
        "state": "running",
        "attempts": 1,
        "exit_code": None,
        "host": "a",
    }
    assert content["tasks"]["train_0"]["state"] == "waiting"


def test_another_session_continues_what_has_not_finished(sweep, status):
    names = list(status.tasks)
    for name, state in zip(names, (State.FINISHED, State.RUNNING, State.FAILED), strict=True):
        status.change(name, state=state, attempts=2)
    again = SweepStatus(sweep.folder, "ray", names)
    assert again.names(State.WAITING) == ["train_1", "train_2"]
    assert again["train_2"].attempts == 2
    again.restart()
    assert again.names(State.WAITING) == names


ODD = [
    {"state": "odd"},
    {"state": ["failed"]},
    {"state": "failed", "attempts": "x", "exit_code": None, "host": None},
    {"state": "failed", "attempts": 1, "exit_code": "x", "host": None},
    {"state": "failed", "attempts": 1, "exit_code": 1, "host": ["a"]},
    {"state": "failed", "attempts": 1, "exit_code": 1, "host": "a", "more": 1},
]


@pytest.mark.parametrize(
    "content",
    ["", "[]", "[" * 100_000, *(json.dumps({"tasks": {"train_0": task}}) for task in ODD)],
)
def test_a_damaged_status_is_one_sentence(sweep, content):
    (sweep.folder / "status.json").write_text(content)
    with pytest.raises(ConfigError, match=r"status\.json is not the status of a sweep"):
        SweepStatus(sweep.folder, "process", ["train_0"])


def test_a_disk_that_refuses_the_status_does_not_end_the_runs(sweep, status, caplog):
    (sweep.folder / "status.json").mkdir()
    status.change("train_1", state=State.RUNNING)
    assert status["train_1"].state == State.RUNNING
    assert "status.json" in caplog.text


def test_elsewhere_than_on_a_terminal_running_runs_get_a_line_of_text(sweep, status, caplog):
    caplog.set_level("INFO")
    log_epochs(sweep, "train_0", 3)
    log_epochs(sweep, "train_1", 3)
    status.change("train_0", state=State.RUNNING)
    progress = Progress(sweep, status, [KEY])
    progress.update()
    assert caplog.text == "", "not at once"
    progress.update(now=True)
    [record] = caplog.records
    line = "train_0: epoch 3 of 50, train_loss=0.25, test/mean_score=0.25"
    assert record.getMessage() == line


def test_a_terminal_shows_a_bar_for_every_run(sweep, status, capsys):
    log_epochs(sweep, "train_0", 3)
    status.change("train_0", state=State.RUNNING)
    progress = Progress(sweep, status, [KEY], use_bars=True)
    progress.update()
    log_epochs(sweep, "train_0", 5)
    progress.close()
    text = capsys.readouterr().err
    assert "train_0 (seed 42): epoch 3/50" in text
    last = "running, train_loss=0.0625, test/mean_score=0.25"
    assert "train_0 (seed 42): epoch 5/50" in text
    assert last in text
    assert "train_2 (seed 44): epoch 0/50" in text
    assert "waiting" in text


def test_a_damaged_training_log_does_not_end_the_sweep(sweep, status):
    (sweep.run_dir("train_0") / "logs.json.txt").write_text(f'{{"{KEY}": oops}}\n')
    Progress(sweep, status, [KEY]).update(now=True)


@pytest.mark.parametrize(
    "row",
    [{"train_loss": "x", "epoch": "y"}, {"train_loss": 10**400, "epoch": 10**400}, {"epoch": {}}],
)
def test_odd_values_of_a_training_log_do_not_end_the_sweep(sweep, status, row):
    (sweep.run_dir("train_0") / "logs.json.txt").write_text(json.dumps(row) + "\n")
    status.change("train_0", state=State.RUNNING)
    for use_bars in (False, True):
        progress = Progress(sweep, status, [KEY], use_bars=use_bars)
        progress.update(now=True)
        progress.close()


@pytest.mark.parametrize("content", ["[1]", "{}", '{"a": "x", "b": [1]}', "[" * 100_000, "\0"])
def test_odd_metrics_are_none(sweep, status, content):
    (sweep.folder / "metrics").mkdir(exist_ok=True)
    (sweep.folder / "metrics" / "metrics.json").write_text(content)
    assert "No metrics so far" in describe_outcome(sweep, status, {}, False, []).text


def test_failures_come_with_their_last_lines_and_how_to_go_on(sweep, status):
    status.change("train_0", state=State.FINISHED, attempts=1)
    status.change("train_1", state=State.FAILED, attempts=2)
    sweep.console("train_1").write_text("".join(f"line {i}\n" for i in range(100)))
    outcome = describe_outcome(sweep, status, {"train_1": "exit code 7"}, False, ["--backend", "x"])
    assert outcome.exit_code == 1
    assert "train_1 (seed 43) failed: exit code 7; its last lines" in outcome.text
    assert outcome.text.count("  | line") == 20
    assert "2 of 3 runs are not finished (train_1, train_2)" in outcome.text
    words = ["--resume", str(sweep.folder), "--backend", "x"]
    assert sweeps.printed_command(outcome.text) == words
    assert "No metrics so far" in outcome.text


def test_the_exit_code_of_an_interrupted_sweep_is_that_of_a_shell(sweep, status):
    assert describe_outcome(sweep, status, {}, True, []).exit_code == 130
    for name in status.tasks:
        status.change(name, state=State.FINISHED)
    outcome = describe_outcome(sweep, status, {}, True, [])
    assert outcome.exit_code == 0
    assert "--resume" not in outcome.text


def test_last_lines_show_progress_bars_as_they_were_seen(tmp_path):
    path = tmp_path / "console.log"
    assert last_lines(path) == []
    path.write_bytes(b"first\n" + b"x" * 50_000 + b"\nepoch 1\repoch 2\repoch 3\n\nend")
    assert last_lines(path, 2) == ["epoch 3", "end"]
