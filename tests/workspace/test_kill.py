"""kill -9 at any moment, also while a checkpoint is being written, then resume: nothing differs."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from omegaconf import OmegaConf
from runs import assert_same_outcome

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# Trains as train.py does. DIE_IN_SAVE=n: SIGKILL in the middle of the n-th checkpoint file.
TRAIN = """
import os, runpy, signal, sys
import torch
die_in = int(os.environ.get("DIE_IN_SAVE", "0"))
save, saves = torch.save, []
def dying_save(payload, file, **kwargs):
    saves.append(1)
    if len(saves) == die_in:
        file.write(b"PK" + bytes(5000))
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return save(payload, file, **kwargs)
torch.save = dying_save
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def start(config_dir, run_dir, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, f"--config-dir={config_dir}", "--config-name=published.yaml"]
        + [f"hydra.run.dir={run_dir}"],
        cwd=REPOSITORY,
        env=os.environ
        | {"PYTHONPATH": str(REPOSITORY / "tests"), "OMP_NUM_THREADS": "1"}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output


def wait_for_lines(run_dir, n, process):
    """Returns when the log has n lines (or the process ended)."""
    log = run_dir / "logs.json.txt"
    while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < n):
        time.sleep(0.005)


def test_killed_at_random_moments_and_in_the_middle_of_a_checkpoint(tiny_config, tmp_path):
    # a published configuration: fully resolved, no defaults, no hydra node
    cfg = tiny_config("training.num_epochs=12", "training.tqdm_interval_sec=0")
    OmegaConf.save(cfg, tmp_path / "published.yaml")
    whole = start(tmp_path, tmp_path / "whole")

    killed = tmp_path / "killed"
    process = start(tmp_path, killed, DIE_IN_SAVE="3")
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    assert list((killed / "checkpoints").glob(".*partial")), "it died elsewhere"
    rng = random.Random(0)
    for lines in (20, 45):
        process = start(tmp_path, killed)
        wait_for_lines(killed, lines, process)
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.communicate(timeout=60)
    finish(start(tmp_path, killed))
    finish(whole)

    assert_same_outcome(tmp_path / "whole", killed)
    assert not list((killed / "checkpoints").glob(".*partial")), "left-overs are cleaned up"
