"""Sweeps on this machine without ray, as a user runs, kills and continues them."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import psutil
import pytest
import sweeps
from child_processes import children, is_alive, wait_until_gone
from omegaconf import OmegaConf
from runs import assert_same_outcome, read_log
from sweeps import attempts, epochs, finish, n_epochs, resume, start, states, wait_for

PROCESS = ["--backend=process", "--num_cpus=0.5"]


def start_by_hand(command, run_dir):
    """A run of a sweep as the sweep starts it, elsewhere."""
    command = [word for word in command[1:] if not word.startswith("hydra.run.dir=")]
    return subprocess.Popen(
        [sys.executable, *command, f"hydra.run.dir={run_dir}"],
        cwd=sweeps.REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(sweeps.TESTS), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_killed_training_is_tried_again_and_loses_nothing(tiny_config, tmp_path):
    # a published configuration: fully resolved, no defaults, no hydra node
    cfg = tiny_config("training.num_epochs=8", "training.tqdm_interval_sec=0")
    folder = tmp_path / "sweep"
    cfg.multi_run.run_dir = str(folder)
    OmegaConf.save(cfg, tmp_path / "published.yaml")
    words = [f"--config-dir={tmp_path}", "--config-name=published.yaml", "--seeds=7,8", *PROCESS]
    process = start(*words, "--max_retries=1", "--", "training.lr_warmup_steps=3")
    wait_for(lambda: n_epochs(folder / "train_0") > 12, process)
    [trainer] = children(process, "train.py", str(folder / "train_0"))
    trainer.kill()
    output = finish(process)

    assert f"Sweep: {folder}" in output
    assert "train_0 failed (killed by SIGKILL); it continues" in output
    assert states(folder) == ["finished", "finished"]
    assert attempts(folder) == [2, 1]
    console = (folder / "train_0" / "console.log").read_text()
    assert console.count("==== attempt ") == 2
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        *("config.yaml", "sweep.json", "status.json", "train_0", "train_1", "metrics"),
    }
    metrics = json.loads((folder / "metrics" / "metrics.json").read_text())
    assert metrics["epoch"] == 7
    assert f"max/test_mean_score                 {metrics['max/test_mean_score']:.6g}" in output
    written = OmegaConf.load(folder / "config.yaml")
    assert written.training.lr_warmup_steps == 3
    assert OmegaConf.to_yaml(written) == (folder / "config.yaml").read_text()
    for i, seed in enumerate((7, 8)):
        used = OmegaConf.load(folder / f"train_{i}" / ".hydra" / "config.yaml")
        assert (used.training.seed, used.training.lr_warmup_steps) == (seed, 3)
        assert used.task.env_runner.test_start_seed == (seed + 1) * 100_000

    tasks = json.loads((folder / "sweep.json").read_text())["tasks"]
    by_hand = [start_by_hand(task["command"], tmp_path / task["name"]) for task in tasks]
    for i, run in enumerate(by_hand):
        finish(run)
        assert_same_outcome(tmp_path / f"train_{i}", folder / f"train_{i}")

    # and further: finished runs go on when there is something to do
    output = finish(resume(folder, *PROCESS, "--", "training.num_epochs=10"))
    assert [read_log(folder / f"train_{i}")[-1]["epoch"] for i in (0, 1)] == [9, 9]
    assert attempts(folder) == [3, 2]


def test_a_run_that_keeps_failing_is_reported_and_the_others_finish(tmp_path):
    folder = sweeps.write_fake_sweep(tmp_path / "a sweep", 3, behaviours=["", "fails"])
    (folder / "train_1" / "broken").touch()
    output = finish(resume(folder, *PROCESS, "--max_retries=2"), exit_code=1)
    assert states(folder) == ["finished", "failed", "finished"]
    assert attempts(folder) == [1, 3, 1]
    assert "train_1 (seed 43) failed: exit code 3" in output
    assert str(folder / "train_1" / "console.log") in output
    assert "| line 29\n" in output
    assert "| line 10\n" in output
    assert "| line 9\n" not in output
    assert "1 of 3 runs are not finished (train_1)" in output
    assert f"diffusion_policy.report {shlex.quote(str(folder))}" in output
    # the means are those of the runs that there are
    assert json.loads((folder / "metrics" / "metrics.json").read_text())["epoch"] == 9

    (folder / "train_1" / "broken").unlink()
    words = sweeps.printed_command(output)
    assert words[:2] == ["--resume", str(folder)]
    assert {"--backend", "process", "--max_retries", "2", "--num_cpus", "0.5"} <= set(words)
    finish(start(*words))
    assert attempts(folder) == [1, 4, 1], "what had finished was run again"
    assert states(folder) == ["finished"] * 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_every_run_once_and_the_sweep_continues(tmp_path, number):
    folder = sweeps.write_fake_sweep(tmp_path / "sweep", 3, n_epochs=30, seconds=0.2)
    process = resume(folder, "--backend=process", "--num_cpus=1")  # two at a time
    wait_for(lambda: n_epochs(folder / "train_0") and n_epochs(folder / "train_1"), process)
    process.send_signal(number)
    output = finish(process, exit_code=130)
    assert "press Ctrl-C once more to kill" in output
    assert states(folder) == ["interrupted", "interrupted", "waiting"]
    assert [sweeps.n_interrupts(folder / f"train_{i}") for i in (0, 1)] == [1, 1]
    assert not (folder / "train_2" / "pid").exists()
    assert sweeps.status(folder)["train_0"]["exit_code"] == 130
    done = n_epochs(folder / "train_0")
    finish(start(*sweeps.printed_command(output)))
    assert states(folder) == ["finished"] * 3
    assert epochs(folder / "train_0") == list(range(30))
    assert 0 < done < 30


def test_a_second_signal_kills(tmp_path):
    folder = sweeps.write_fake_sweep(tmp_path / "sweep", 1, 10_000, behaviours=["stubborn"])
    process = resume(folder, *PROCESS)
    wait_for(lambda: n_epochs(folder / "train_0"), process)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: (folder / "train_0" / "signals").exists(), process)
    number = sweeps.pid(folder / "train_0")
    assert is_alive(number)
    process.send_signal(signal.SIGINT)
    finish(process, exit_code=130)
    assert not is_alive(number)
    assert states(folder) == ["interrupted"]


def test_a_killed_driver_leaves_no_orphans_and_the_sweep_continues(tmp_path):
    folder = sweeps.write_fake_sweep(tmp_path / "sweep", n_epochs=40, seconds=0.1)
    process = resume(folder, *PROCESS)
    wait_for(lambda: n_epochs(folder / "train_0") and n_epochs(folder / "train_1"), process)
    # two commands for one sweep would be in each other's way
    refusal = finish(resume(folder, *PROCESS), exit_code=1)
    assert f"error: another process runs the sweep in {folder}" in refusal
    descendants = children(process)
    assert len(descendants) == 3, "two runs and a monitor"
    process.kill()
    process.communicate()
    wait_until_gone(*(child.pid for child in descendants))
    assert states(folder) == ["running", "running"]
    finish(resume(folder, *PROCESS))
    assert states(folder) == ["finished", "finished"]
    assert epochs(folder / "train_0") == list(range(40))


@pytest.mark.parametrize("n_retries", [0, 1])
def test_the_monitor_is_started_again_and_the_runs_do_not_depend_on_it(tmp_path, n_retries):
    folder = sweeps.write_fake_sweep(tmp_path / "sweep", n_epochs=20, seconds=0.2)
    process = resume(folder, *PROCESS, f"--monitor_max_retires={n_retries}")
    [monitor] = wait_for(lambda: children(process, "multirun_metrics.py"), process)
    wait_for(lambda: n_epochs(folder / "train_0") > 2, process)
    monitor.kill()
    if n_retries:
        wait_for(lambda: children(process, "multirun_metrics.py"), process)
    output = finish(process)
    assert ("it is started again" in output) == (n_retries > 0)
    assert ("is not started again" in output) == (n_retries == 0)
    assert states(folder) == ["finished", "finished"]
    assert json.loads((folder / "metrics" / "metrics.json").read_text())["epoch"] == 19


def test_a_sweep_ends_where_sigint_is_ignored(tmp_path):
    """As in the background of a shell; its monitor must hear the end all the same."""
    folder = sweeps.write_fake_sweep(tmp_path / "sweep", n_epochs=2)
    finish(resume(folder, *PROCESS))
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = resume(folder, *PROCESS)
    finally:
        signal.signal(signal.SIGINT, earlier)
    finish(process)


def test_a_finished_sweep_has_nothing_to_do(tmp_path):
    folder = sweeps.write_fake_sweep(tmp_path / "sweep", n_epochs=2)
    finish(resume(folder, *PROCESS))
    assert "All runs have finished" in finish(resume(folder, *PROCESS))
    assert attempts(folder) == [1, 1]


def stopped_child(process):
    """Process id of the run that has stopped itself."""
    runs = children(process, "fake_train.py", "stops")
    return next((run.pid for run in runs if run.status() == psutil.STATUS_STOPPED), None)


def test_a_run_that_stopped_is_named_killed_and_tried_again(tmp_path):
    folder = sweeps.write_fake_sweep(tmp_path / "sweep", 2, behaviours=["", "stops"])
    (folder / "train_1" / "broken").touch()
    process = resume(folder, *PROCESS, "--run_timeout_s=6", "--max_retries=1")
    stopped = wait_for(lambda: stopped_child(process), process)
    (folder / "train_1" / "broken").unlink()
    output = finish(process)
    name = rf"train_1 \(pid {stopped}, which is stopped; `kill -CONT {stopped}` lets it go on\)"
    assert re.search(
        rf"waiting for {name}: it has yet to write anything to {folder}/train_1", output
    )
    assert re.search(rf"{name} did not write anything .* within 6\.0 s; it is killed", output)
    assert "train_1 failed (killed, since it wrote nothing any more); it continues" in output
    assert states(folder) == ["finished", "finished"]
    assert attempts(folder) == [1, 2]
    wait_until_gone(stopped)


def test_a_stopped_monitor_does_not_keep_a_sweep_from_its_end(tmp_path):
    folder = sweeps.write_fake_sweep(tmp_path / "sweep", 2, n_epochs=40)
    program = (
        "import diffusion_policy.multirun.monitor_process as m, runpy, sys;"
        "m.PATIENCE = m.Patience(2.0, 1.0);"
        "sys.argv = ['ray_train_multirun.py', *sys.argv[1:]];"
        "runpy.run_path('ray_train_multirun.py', run_name='__main__')"
    )
    process = start("-c", program, "--resume", folder, "--trust-config", *PROCESS, script="-B")
    wait_for(lambda: n_epochs(folder / "train_0"), process)
    [monitor] = children(process, "multirun_metrics.py")
    monitor.suspend()
    output = finish(process)
    assert f"the monitor of the metrics (pid {monitor.pid}, which is stopped" in output
    assert "did not end within 2.0 s" in output
    assert json.loads((folder / "metrics" / "metrics.json").read_text())["epoch"] == 39
    wait_until_gone(monitor.pid)
