"""A folder whose name means something to Hydra and to shells is a folder like any other."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from omegaconf import OmegaConf
from runs import LOG, read_log

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
NAME = "prüfung = 100% $HOME {a} [b] \"c\" 'd' 数据, #1: it"
# The tests may run in the background of a shell, where SIGINT is ignored, in all children too.
INTERRUPTIBLE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
TIMEOUT_S = 240
N_EPOCHS = 60


@pytest.fixture
def folder(tiny_config, tmp_path):
    """A folder with a published configuration of a run that takes some seconds."""
    folder = tmp_path / NAME
    folder.mkdir()
    short = ["training.rollout_every=1000", "training.checkpoint_every=1000"]
    short += ["training.sample_every=1000", "training.tqdm_interval_sec=60"]
    cfg = tiny_config(*short, f"training.num_epochs={N_EPOCHS}")
    cfg.multi_run.run_dir = str(folder / "run")
    cfg.name = NAME
    OmegaConf.save(cfg, folder / "published.yaml")
    return folder


def start(folder, command, **kwargs):
    paths = [str(REPOSITORY), str(REPOSITORY / "tests")]
    python = pathlib.Path(sys.executable).parent
    environment = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": os.pathsep.join([str(python), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
        "PYTHONUTF8": "1",
    }
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        **kwargs,
    )


def interrupt_when_it_trains(folder, log, script, *arguments) -> str:
    """What the command printed, interrupted in the middle of a training."""
    words = [sys.executable, "-c", INTERRUPTIBLE, str(REPOSITORY / script)]
    process = start(folder, [*words, f"--config-dir={folder}", *arguments])
    deadline = time.monotonic() + TIMEOUT_S
    while not log.exists() or log.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert 0 < read_log(log.parent)[-1]["epoch"] + 1 < N_EPOCHS
    return output


def paste(folder, command) -> None:
    """Runs a printed command as a user does."""
    process = start(folder, ["bash", "-c", command])
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output


def assert_complete(run_dir) -> None:
    steps = [row["global_step"] for row in read_log(run_dir)]
    assert steps == list(range(len(steps)))
    assert read_log(run_dir)[-1]["epoch"] == N_EPOCHS - 1
    assert (run_dir / "checkpoints" / "latest.ckpt").is_file()


@pytest.mark.parametrize("n_processes", [1, 2])
def test_a_training_is_interrupted_and_continued(folder, n_processes):
    # a relative run directory: the folder itself is part of the absolute one
    options = ["--config-name=published.yaml", "hydra.run.dir='run=ü'"]
    options = [f"training.num_processes={n_processes}", "exp_name=${name}", *options[::-1]]
    output = interrupt_when_it_trains(folder, folder / "run=ü" / LOG, "train.py", *options)
    paste(folder, output.rpartition("this continues the run: ")[2])
    assert_complete(folder / "run=ü")
    assert OmegaConf.load(folder / "run=ü" / ".hydra" / "config.yaml").exp_name == NAME


def test_a_sweep_is_interrupted_and_continued(folder):
    options = ["--config-name=published.yaml", "--seeds=7,8", "--backend=process"]
    options += ["--num_cpus=0.5", "--", "training.num_processes=1"]
    log = folder / "run" / "train_1" / LOG
    output = interrupt_when_it_trains(folder, log, "ray_train_multirun.py", *options)
    [command] = re.findall(r"^  python (ray_train_multirun\.py .*)$", output, re.MULTILINE)
    paste(folder, f"python {REPOSITORY}/{command}")
    for name in ("train_0", "train_1"):
        assert_complete(folder / "run" / name)
    [report] = re.findall(r"^  (python -m diffusion_policy\.report .*)$", output, re.MULTILINE)
    paste(folder, report)
    assert (folder / "run" / "report.html").is_file()
