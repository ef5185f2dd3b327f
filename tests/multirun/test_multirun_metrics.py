"""multirun_metrics.py as a process: how it ends, what it says, and kill -9 at any moment."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import yaml
from click.testing import CliRunner
from sweeps import wait_for

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.multirun import watch
from diffusion_policy.multirun.watch import last_rollout_epoch, run_monitor

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
KEY = "test/mean_score"
CONFIG = {
    "horizon": 16,
    "training": {"num_epochs": 6, "rollout_every": 2, "debug": False},
    "logging": {
        "project": "diffusion_policy_debug",
        "resume": True,
        "mode": "online",
        "name": "a_sweep",
        "tags": ["x"],
        "id": None,
        "group": None,
        "tensorboard": True,
    },
}


def start(sweep, *options) -> subprocess.Popen:
    command = [sys.executable, "multirun_metrics.py", "-i", sweep.folder, "--interval", "0.05"]
    return subprocess.Popen(
        [*map(str, command), *options],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def n_lines(sweep) -> int:
    path = sweep.folder / "metrics" / "logs.json.txt"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def messages(sweep) -> str:
    path = sweep.folder / "metrics" / "metrics.log"
    return path.read_text() if path.exists() else ""


@pytest.fixture
def configured(sweep):
    (sweep.folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return sweep


def test_until_done_ends_by_itself_and_reports(configured):
    for seed in range(3):
        configured.rollouts(seed, 0, 1)
    process = start(configured, "--until_done", "-k", KEY, "-k", "train/mean_score")
    wait_for(lambda: n_lines(configured) == 2, process)
    for seed in range(3):
        configured.rollouts(seed, 2)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "max/test_mean_score: " in output
    assert output.rstrip().endswith("metrics/metrics.json")
    assert n_lines(configured) == 3
    assert "All seeds have made their last rollout." in messages(configured)
    assert messages(configured) in errors
    assert errors.splitlines()[0][:2] == "20"
    assert " [INFO] " in errors.splitlines()[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_a_last_look(sweep, number):
    for seed in range(3):
        sweep.rollouts(seed, 0)
    process = start(sweep, "--interval", "100")
    wait_for(lambda: n_lines(sweep) == 1, process)
    for seed in range(3):
        sweep.rollouts(seed, 1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Stopped by a signal." in errors
    assert n_lines(sweep) == 2


def test_kill_9_at_any_moment_costs_nothing(make_sweep, sweep):
    uninterrupted = make_sweep("uninterrupted")
    process = None
    for number in range(6):
        for seed in range(3):
            sweep.rollouts(seed, number)
            uninterrupted.rollouts(seed, number)
        if number % 3 == 0:
            process = start(sweep)
        wait_for(lambda number=number: n_lines(sweep) > number, process)
        if number % 3 == 2:
            process.kill()
            process.communicate()
    run_to_the_end(sweep)
    run_to_the_end(uninterrupted)
    assert sweep.files() == uninterrupted.files()
    assert n_lines(sweep) == 6


def run_to_the_end(sweep) -> None:
    config = CONFIG | {"training": {"num_epochs": 11, "rollout_every": 2}}
    (sweep.folder / "config.yaml").write_text(yaml.safe_dump(config))
    run_monitor(sweep.folder, [KEY], until_done=True)


def test_a_folder_that_is_no_sweep_is_one_sentence(tmp_path):
    command = [sys.executable, "multirun_metrics.py", "-i", tmp_path]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "has no folders train_0" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_log_that_stays_damaged_is_reported_in_the_end(sweep):
    sweep.rollouts(0, 0)
    sweep.append(0, '{"test/mean_score": oops}\n')
    process = start(sweep)
    wait_for(lambda: "Trying again" in messages(sweep), process)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.count("Trying again") == 1, "once, not at every look"
    assert errors.splitlines()[-1].startswith("error: A line of ")


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"num_epochs": 3050, "rollout_every": 50}, 3000),
        ({"num_epochs": 3001, "rollout_every": 50}, 3000),
        ({"num_epochs": 1, "rollout_every": 50}, 0),
        ({"num_epochs": 3050, "rollout_every": 50, "debug": True}, 1),
    ],
)
def test_the_last_rollout_is_the_last_multiple_of_its_interval(training, expected):
    assert last_rollout_epoch({"training": training}) == expected


@pytest.mark.parametrize("config", [{}, {"training": {"num_epochs": 3, "rollout_every": None}}])
def test_until_done_needs_a_configuration_that_says_when(config):
    with pytest.raises(ConfigError, match=r"training\.rollout_every=None"):
        last_rollout_epoch(config)


def test_a_sweep_of_hydra_has_the_configuration_of_its_first_run(sweep):
    text = json.dumps({"training": {"num_epochs": 3, "rollout_every": 2}})
    folder = sweep.folder / "train_0" / ".hydra"
    folder.mkdir()
    (folder / "config.yaml").write_text(text)
    for seed in range(3):
        sweep.epochs(seed, 0, 1, 2)
    assert run_monitor(sweep.folder, [KEY], until_done=True) is not None


@pytest.mark.parametrize("content", [None, "[1, 2]", "a: {"])
def test_a_missing_or_damaged_configuration_is_one_sentence(sweep, content):
    if content is not None:
        (sweep.folder / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        run_monitor(sweep.folder, [KEY], until_done=True)


@pytest.fixture
def wandb_calls(monkeypatch) -> list:
    calls = []
    monkeypatch.setattr(watch, "start_wandb", lambda *args: calls.append(args))
    return calls


def finish(sweep) -> None:
    for seed in range(3):
        sweep.epochs(seed, 0, 1, 2, 3, 4, 5)


def test_wandb_gets_the_logging_block_with_what_was_given(configured, wandb_calls, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    finish(configured)
    given = {"project": "diffusion_policy_metrics", "name": None, "id": None, "group": "abcd"}
    run_monitor(configured.folder, [KEY], wandb_options=given, until_done=True)
    ((folder, mode, options, config),) = wandb_calls
    assert (folder, mode, config) == (configured.folder / "metrics", "online", CONFIG)
    assert options == {
        "project": "diffusion_policy_metrics",
        "name": "a_sweep",
        "group": "abcd",
        "id": None,
        "tags": ["x"],
        "resume": True,
    }


def test_wandb_is_left_alone_unless_asked_for(configured, wandb_calls, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    finish(configured)
    run_monitor(configured.folder, [KEY], until_done=True)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run_monitor(configured.folder, [KEY], wandb_options={}, until_done=True)
    assert wandb_calls == []


@pytest.fixture
def options_of(monkeypatch):
    """options_of(arguments): what the command line asks for, without doing it."""
    calls = []
    monkeypatch.setattr(watch, "run_monitor", lambda *args, **kwargs: calls.append((args, kwargs)))
    monkeypatch.syspath_prepend(REPOSITORY)
    from multirun_metrics import main

    def parse(*arguments):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        return calls.pop()

    return parse


def test_the_defaults_are_those_of_the_specification(options_of):
    expected = {
        "interval": 10.0,
        "replace_slash": True,
        "index_key": "global_step",
        "wandb_options": None,
        "until_done": False,
    }
    assert options_of("-i", "sweep") == (("sweep", ("test/mean_score",)), expected)


def test_every_option_of_the_specification_arrives(options_of):
    line = "--input s --key a --key b --interval 5 --replace_slash False --index_key epoch"
    line += " --use_wandb --project p --name n --id i --group g --until_done"
    expected = {
        "interval": 5.0,
        "replace_slash": False,
        "index_key": "epoch",
        "wandb_options": {"project": "p", "name": "n", "id": "i", "group": "g"},
        "until_done": True,
    }
    assert options_of(*line.split()) == (("s", ("a", "b")), expected)
    short = line.replace("--input", "-i").replace("--key", "-k").replace("--index_key", "-ik")
    assert options_of(*short.replace("--use_wandb", "-w").split()) == (("s", ("a", "b")), expected)
