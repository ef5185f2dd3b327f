"""Sweeps in tests: making one, running it as a user does, reading what it left behind."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

from omegaconf import OmegaConf

TESTS = pathlib.Path(__file__).resolve().parent
REPOSITORY = TESTS.parent
DEADLINE_S = 240


def write_fake_sweep(folder, n_seeds=2, n_epochs=10, seconds=0.05, behaviours=()):
    """A sweep of fake_train.py that can be run with --resume --trust-config.

    behaviours: what each run does, beside the ordinary.
    """
    for i in range(n_seeds):
        (folder / f"train_{i}").mkdir(parents=True)
    behaviours = [*behaviours, *[""] * n_seeds]
    tasks = [
        {
            "name": f"train_{i}",
            "seed": 42 + i,
            "command": ["python", str(TESTS / "fake_train.py"), str(folder / f"train_{i}")]
            + [str(n_epochs), str(seconds), *behaviours[i].split()],
        }
        for i in range(n_seeds)
    ]
    record = {
        "folder": str(folder),
        "config_name": "fake",
        "config_dir": "nowhere",
        "overrides": [],
        "seeds": [42 + i for i in range(n_seeds)],
        "group": "abcdefgh",
        "name_base": "fake",
        "tasks": tasks,
    }
    (folder / "sweep.json").write_text(json.dumps(record))
    config = {
        "training": {"num_epochs": n_epochs, "rollout_every": 1},
        "logging": {"mode": "disabled"},
    }
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    return folder


def start(*arguments, script="ray_train_multirun.py", **environment) -> subprocess.Popen:
    """The command line as a process; its stdout and stderr are one text."""
    return subprocess.Popen(
        [sys.executable, script, *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def resume(folder, *arguments, **environment) -> subprocess.Popen:
    return start("--resume", folder, "--trust-config", *arguments, **environment)


def finish(process, exit_code=0) -> str:
    """What the process said, once it has ended as expected."""
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == exit_code, output
    return output


def wait_for(condition, process):
    """The first result of condition() that is true; fails when the process ends before."""
    deadline = time.monotonic() + DEADLINE_S
    while not (result := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


def status(folder) -> dict:
    return json.loads((folder / "status.json").read_text())["tasks"]


def states(folder) -> list[str]:
    return [task["state"] for task in status(folder).values()]


def attempts(folder) -> list[int]:
    return [task["attempts"] for task in status(folder).values()]


def n_epochs(run_dir) -> int:
    """Lines of the log of fake_train.py, complete or not."""
    log = run_dir / "logs.json.txt"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def epochs(run_dir) -> list[int]:
    lines = (run_dir / "logs.json.txt").read_text().splitlines()
    return [json.loads(line)["epoch"] for line in lines]


def n_interrupts(run_dir) -> int:
    signals = (run_dir / "signals").read_text().split()
    assert set(signals) == {str(int(signal.SIGINT))}
    return len(signals)


def pid(run_dir) -> int:
    """Of the fake_train.py that was started last."""
    return int((run_dir / "pid").read_text())


def printed_command(output) -> list[str]:
    """Arguments of the command that the text says continues the sweep."""
    line = re.search(r"^  python ray_train_multirun.py (.*)$", output, re.MULTILINE)
    assert line, output
    return shlex.split(line[1])
