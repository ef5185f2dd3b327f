"""One run in two processes: the losses of one process, and a run that can be killed."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from child_processes import children, wait_until_gone
from omegaconf import OmegaConf
from runs import LOG, assert_same_outcome, latest, read_lines, read_log, read_state

from diffusion_policy.common.errors import ConfigError, DeviceError
from diffusion_policy.workspace import processes
from diffusion_policy.workspace.processes import Processes

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
ACCELERATE += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]


@pytest.fixture
def start(tmp_path):
    """start(cfg, run_dir, *overrides, launcher=[python]): ``train.py`` on a published-style
    configuration.
    """

    def start_run(cfg, run_dir, *overrides, launcher=(sys.executable,)):
        config_dir = tmp_path / f"config_{run_dir.name}"
        config_dir.mkdir(exist_ok=True)
        OmegaConf.save(cfg, config_dir / "published.yaml")
        command = [*launcher, "train.py", f"--config-dir={config_dir}"]
        command += ["--config-name=published.yaml", f"hydra.run.dir={run_dir}", *overrides]
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY / "tests"), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start_run


def finish(process, code=0):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


def wait_for_lines(run_dir, n, process):
    log = run_dir / LOG
    while not log.exists() or log.read_bytes().count(b"\n") < n:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.005)


def processes_of(launcher):
    """Process ids of the two that share the batches."""
    first, second = children(launcher, "diffusion_policy.workspace.rank")
    return first.pid, second.pid


def assert_close_losses(run_dir, other):
    """Line by line the same records, up to rounding."""
    ours, expected = read_log(run_dir), read_log(other)
    assert len(ours) == len(expected)
    for line, reference in zip(ours, expected, strict=True):
        assert line == pytest.approx(reference, rel=1e-4, abs=1e-5)


def test_two_processes_have_the_losses_of_one(tiny_config, start, tmp_path):
    # Batches of which one process has twice as many rows as the other, and steps that are large
    # enough to show it; a second epoch, whose random numbers follow those of the first one's
    # validation; and a third, after a resume
    options = ["dataloader.batch_size=3", "training.max_train_steps=8", "optimizer.lr=3e-3"]
    options += ["training.lr_warmup_steps=0", "training.num_epochs=2"]
    cfg = tiny_config(*options)
    one = start(cfg, tmp_path / "one")
    two = start(cfg, tmp_path / "two", "training.num_processes=2")
    finish(one)
    output = finish(two)
    assert_close_losses(tmp_path / "two", tmp_path / "one")
    assert "error" not in output

    alone, shared = (read_state(tmp_path / name)[1] for name in ("one", "two"))
    assert alone["resume_state"]["rng"] == shared["resume_state"]["rng"]
    # process 0 alone writes: one log, no folder of another process
    assert sorted(os.listdir(tmp_path / "one")) == sorted(os.listdir(tmp_path / "two"))
    assert (tmp_path / "two" / "train.log").read_text().count("Epochs 0 to 1") == 1

    # what one process began, two continue, and the other way round
    longer = tiny_config(*options[:-1], "training.num_epochs=3")
    one = start(longer, tmp_path / "one", "training.num_processes=2")
    two = start(longer, tmp_path / "two")
    finish(one)
    finish(two)
    assert_close_losses(tmp_path / "two", tmp_path / "one")


def test_with_fewer_rows_than_processes_in_the_last_batch(tiny_config, start, tmp_path):
    n_items = sum(1 for _ in iterate_items(tiny_config()))
    cfg = tiny_config(f"dataloader.batch_size={n_items - 1}", "training.num_epochs=1")
    one = start(cfg, tmp_path / "one")
    two = start(cfg, tmp_path / "two", "training.num_processes=2")
    finish(one)
    finish(two)
    assert_close_losses(tmp_path / "two", tmp_path / "one")


def iterate_items(cfg):
    from diffusion_policy.config.instantiate import instantiate

    return range(len(instantiate(cfg.task.dataset)))


def test_accelerate_launch_and_a_killed_process(tiny_config, start, tmp_path):
    # Gradients wait for their update at the end of most epochs
    accumulation = "training.gradient_accumulate_every=3"
    cfg = tiny_config("training.num_epochs=16", "training.tqdm_interval_sec=0", accumulation)
    port = ["--main_process_port=0", "--num_processes=2"]
    whole = start(cfg, tmp_path / "whole", launcher=[*ACCELERATE, *port])
    killed = tmp_path / "killed"

    process = start(cfg, killed, "training.num_processes=2")
    wait_for_lines(killed, 12, process)
    first, second = processes_of(process)
    os.kill(second, signal.SIGKILL)  # one of the two
    output = finish(process, code=128 + signal.SIGKILL)
    assert re.search(r"error: process \d of 2 was killed by SIGKILL; the run continues", output)
    wait_until_gone(first, second)

    process = start(cfg, killed, "training.num_processes=2")
    wait_for_lines(killed, 24, process)
    ranks = processes_of(process)
    process.kill()  # the launcher
    process.communicate(timeout=60)
    wait_until_gone(*ranks)

    finish(start(cfg, killed, "training.num_processes=2"))
    finish(whole)
    assert_same_outcome(tmp_path / "whole", killed)


def test_ctrl_c_ends_all_and_says_how_to_go_on(tiny_config, start, tmp_path):
    cfg = tiny_config("training.num_epochs=500", "training.tqdm_interval_sec=0")
    run_dir = tmp_path / "run"
    process = start(cfg, run_dir, "training.num_processes=2")
    wait_for_lines(run_dir, 12, process)
    ranks = processes_of(process)
    process.send_signal(signal.SIGINT)
    output = finish(process, code=130)
    assert output.count("interrupted") == 1
    assert output.splitlines()[-1].count(f"hydra.run.dir={run_dir}") == 1
    assert "Traceback" not in output
    wait_until_gone(*ranks)
    assert latest(run_dir).is_file()


STOPPED = r"pid \d+, which is stopped; `kill -CONT \d+` lets it go on"
IMPATIENT = ["training.num_processes=2", "training.process_timeout_s=4"]


def test_a_process_that_is_stopped_ends_the_run_and_is_named(tiny_config, start, tmp_path):
    cfg = tiny_config("training.num_epochs=500", "training.tqdm_interval_sec=0")
    run_dir = tmp_path / "run"
    process = start(cfg, run_dir, *IMPATIENT)
    wait_for_lines(run_dir, 12, process)
    ranks = processes_of(process)
    [first] = [pid for pid in ranks if psutil.Process(pid).environ()["RANK"] == "0"]
    os.kill(first, signal.SIGSTOP)
    output = finish(process, code=1)
    waits = rf"process 0 of the run \((training epoch \d+|evaluating); {STOPPED}\)"
    assert re.search(rf"error: {waits} did not give a sign of life within 4\.0 s; ", output), output
    assert re.search(rf"waiting for {waits}", output), output
    assert "Traceback" not in output
    wait_until_gone(*ranks)


def test_when_all_processes_are_stopped_the_launcher_says_so(tiny_config, start, tmp_path):
    cfg = tiny_config("training.num_epochs=500", "training.tqdm_interval_sec=0")
    run_dir = tmp_path / "run"
    process = start(cfg, run_dir, *IMPATIENT)
    wait_for_lines(run_dir, 12, process)
    ranks = processes_of(process)
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    output = finish(process, code=128 + signal.SIGKILL)
    assert re.search(rf"error: a process of the run \({STOPPED}\) and .* did not go on", output)
    assert "Traceback" not in output
    wait_until_gone(*ranks)


def test_a_run_that_was_stopped_as_a_whole_goes_on(tiny_config, start, tmp_path):
    cfg = tiny_config("training.num_epochs=30", "training.tqdm_interval_sec=0")
    run_dir = tmp_path / "run"
    process = start(cfg, run_dir, *IMPATIENT)
    wait_for_lines(run_dir, 6, process)
    everybody = [process.pid, *processes_of(process)]  # Ctrl-Z
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(8)
    for pid in reversed(everybody):
        os.kill(pid, signal.SIGCONT)
    output = finish(process)
    assert "error" not in output


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["training.num_processes=0"], "training.num_processes is 0"),
        (["training.num_processes=2", "horizon=7"], "horizon"),
    ],
)
def test_a_mistake_is_told_once(tiny_config, start, tmp_path, overrides, sentence):
    output = finish(start(tiny_config(), tmp_path / "run", *overrides), code=1)
    assert output.count("error: ") == 1, output
    assert sentence in output
    assert "Traceback" not in output


def test_a_launcher_and_another_number_in_the_configuration(tiny_config, start, tmp_path):
    launcher = [*ACCELERATE, "--main_process_port=0", "--num_processes=2"]
    process = start(tiny_config(), tmp_path / "r", "training.num_processes=3", launcher=launcher)
    output = finish(process, code=1)
    assert "training.num_processes is 3, but 2 processes were launched" in output


def test_more_processes_than_gpus_is_one_sentence(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "resolve_device", lambda name: torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match=r"2 processes .* 1 GPUs; set training.num_processes"):
        Processes(OmegaConf.create({"device": "cuda:0", "seed": 1}))


def test_a_process_that_sees_another_run_directory_says_so(monkeypatch):
    members = Processes(OmegaConf.create({"device": "cpu", "seed": 1}))
    members.check_agreement("the checkpoint", True, "share the folder")
    monkeypatch.setattr(processes, "exchange", lambda value: not value)  # process 0 differs
    with pytest.raises(ConfigError, match=r"the checkpoint is True .* but False .*; share the"):
        members.check_agreement("the checkpoint", True, "share the folder")


def test_times_are_kept_beside_the_log(tiny_config, start, tmp_path):
    finish(start(tiny_config("training.num_epochs=2"), tmp_path / "run"))
    lines = read_lines(tmp_path / "run" / "times.json.txt")
    assert [line["epoch"] for line in lines] == [0, 1]
    parts = ("data_wait", "step", "rollout", "validation", "sampling", "checkpoint")
    assert all(lines[0][f"time/{part}"] >= 0 for part in parts)
    assert not any(key.startswith("time/") for line in read_log(tmp_path / "run") for key in line)
