"""train.py --multirun: Hydra's own sweeps, one job after the other, by joblib, and by submitit."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import psutil
import pytest
from omegaconf import OmegaConf
from runs import latest, read_log

from diffusion_policy.common.checkpoint_file import load_payload
from diffusion_policy.multirun.monitor import MetricsMonitor

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
# The tests may run in the background of a shell, where SIGINT is ignored, in all children too.
INTERRUPTIBLE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.fixture
def sweep(tiny_config, tmp_path):
    """sweep(*arguments, launcher=...): starts train.py --multirun in tmp_path, whose folder
    ``sweep`` gets train_0, train_1, ... The configuration is published: fully resolved."""
    OmegaConf.save(tiny_config("training.tqdm_interval_sec=60"), tmp_path / "published.yaml")
    started = []

    def start(*arguments, launcher="basic", **environment):
        command = ["train.py", "--multirun", f"--config-dir={tmp_path}"]
        command += ["--config-name=published.yaml", f"hydra/launcher={launcher}"]
        command += [
            f"hydra.sweep.dir={tmp_path}/sweep",
            "hydra.sweep.subdir=train_${hydra.job.num}",
        ]
        process = start_process([*command, *arguments], environment)
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def start_process(command, environment):
    paths = [environment.pop("PYTHONPATH", ""), str(REPOSITORY / "tests"), str(REPOSITORY)]
    return subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *command],
        cwd=REPOSITORY,
        env=os.environ
        | {"PYTHONPATH": ":".join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a group of its own, as a command in a terminal
    )


def finish(process):
    """(exit code, all that was printed)"""
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def wait_until(condition, process):
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def has_begun(run_dir):
    return latest(run_dir).exists()


def processes_of_group(group):
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def assert_all_end(group):
    deadline = time.monotonic() + 30
    while left := processes_of_group(group):
        assert time.monotonic() < deadline, [process.cmdline() for process in left]
        time.sleep(0.05)


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_every_job_trains_in_its_folder_and_one_that_fails_is_named(launcher, sweep, tmp_path):
    arguments = ["policy.n_action_steps=999,8,7", "exp_name='${now:%H:%M:%S.%j}'"]
    code, output = finish(sweep(*arguments, launcher=launcher))
    assert code == 1, output
    [failed, *trained] = [tmp_path / "sweep" / f"train_{i}" for i in range(3)]
    assert "error: job 0 (policy.n_action_steps=999 exp_name=" in output
    assert f"in {failed}: the actions do not fit" in output
    assert "Traceback" not in output
    assert f"{failed}: the actions do not fit" in (failed / "train.log").read_text()

    configs = [load_payload(latest(run_dir))["cfg"] for run_dir in trained]
    assert [cfg.policy.n_action_steps for cfg in configs] == [8, 7]
    assert [read_log(run_dir)[-1]["epoch"] for run_dir in trained] == [2, 2]
    # One after the other or at the same time: the start of the sweep is "now" for all.
    assert len({cfg.exp_name for cfg in configs}) == 1
    metrics = MetricsMonitor(tmp_path / "sweep", ["test/mean_score"]).update(final=True)
    assert metrics is not None, "the folders are not those that the monitor reads"


def test_jobs_of_joblib_can_start_workers_for_environments(sweep, tmp_path):
    code, output = finish(
        sweep(
            "task.env_runner._target_=diffusion_policy.env_runner.pusht_keypoints_runner"
            ".PushTKeypointsRunner",
            "task.env_runner.n_train=0",
            "task.env_runner.n_test=2",
            "task.env_runner.n_test_vis=0",
            "task.env_runner.max_steps=16",
            "training.num_epochs=1",
            launcher="joblib",
        )
    )
    assert code == 0, output
    assert "test/mean_score" in read_log(tmp_path / "sweep" / "train_0")[-1]


def test_every_job_may_be_several_processes(sweep, tmp_path):
    """The end of the processes of one job is not the end of the sweep."""
    arguments = ["training.seed=42,43", "training.num_processes=2", "training.num_epochs=1"]
    code, output = finish(sweep(*arguments))
    assert code == 0, output
    for i in (0, 1):
        assert read_log(tmp_path / "sweep" / f"train_{i}")[-1]["epoch"] == 0


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_ctrl_c_ends_all_jobs_and_says_how_to_go_on(launcher, sweep, tmp_path):
    arguments = ["training.seed=42,43", "training.num_epochs=100000"]
    process = sweep(*arguments, launcher=launcher)
    running = ["train_0", "train_1"] if launcher == "joblib" else ["train_0"]
    wait_until(lambda: all(has_begun(tmp_path / "sweep" / name) for name in running), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    code, output = finish(process)
    assert code == 130, output
    assert "this continues the sweep: python train.py --multirun" in output
    assert f"hydra.sweep.dir={tmp_path}/sweep" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert_all_end(process.pid)

    logs = [read_log(tmp_path / "sweep" / name) for name in running]
    n_epochs = max(lines[-1]["epoch"] for lines in logs) + 2
    arguments[1] = f"training.num_epochs={n_epochs}"
    code, output = finish(sweep(*arguments, launcher=launcher))
    assert code == 0, output
    for name, earlier in zip(running, logs, strict=True):
        lines = read_log(tmp_path / "sweep" / name)
        assert lines[:4] == earlier[:4], "it began anew, with the learning rates of a shorter run"
        assert lines[-1]["epoch"] == n_epochs - 1


def test_jobs_of_joblib_end_when_the_sweep_is_killed(sweep, tmp_path):
    process = sweep("training.seed=42,43", "training.num_epochs=100000", launcher="joblib")
    wait_until(lambda: all(has_begun(tmp_path / "sweep" / f"train_{i}") for i in (0, 1)), process)
    process.kill()
    process.wait(60)
    assert_all_end(process.pid)


@pytest.mark.parametrize("module", ["hydra_plugins/__init__.py", "hydra_plugins.py"])
def test_a_launcher_that_is_not_installed_is_one_sentence(module, sweep, tmp_path):
    hiding = tmp_path / "hiding" / module  # found first: Hydra has no plugins then
    hiding.parent.mkdir(parents=True)
    hiding.touch()
    code, output = finish(sweep(launcher="joblib", PYTHONPATH=str(tmp_path / "hiding")))
    assert code == 1
    assert output.startswith("error: hydra/launcher=joblib needs the package hydra-joblib-launcher")
    assert "[launchers]" in output
    assert len(output.splitlines()) == 1


def test_a_configuration_for_slurm_can_be_composed():
    command = ["train.py", "--config-name=demo_pusht", "hydra/launcher=submitit_slurm"]
    command += ["hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=2880", "--cfg", "hydra"]
    code, output = finish(start_process(command, {}))
    assert code == 0, output
    launcher = OmegaConf.create(output).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.partition, launcher.timeout_min) == ("gpu", 2880)
