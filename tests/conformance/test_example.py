"""The example of the README: it is printed there as it is here, and it learns."""

import json
import pathlib
import subprocess
import sys

import pytest
from cases import EXAMPLE
from runs import latest, read_log

REPOSITORY = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    "name",
    [
        "reach.py",
        "regression.py",
        "config/task/reach.yaml",
        "config/train_regression_workspace.yaml",
    ],
)
def test_the_readme_shows_the_example_in_full(name):
    assert (EXAMPLE / name).read_text().strip() in (REPOSITORY / "README.md").read_text()


def test_the_example_learns_from_the_command_line(tmp_path):
    def run(*command):
        environment = {"PYTHONPATH": str(EXAMPLE), "OMP_NUM_THREADS": "1", "PATH": ""}
        process = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr[-2000:]

    run("-c", "import reach; reach.record_demonstrations('data/reach.zarr', n_episodes=200)")
    run(
        str(REPOSITORY / "train.py"),
        f"--config-dir={EXAMPLE / 'config'}",
        "--config-name=train_regression_workspace",
        "hydra.run.dir=run",
        "logging.mode=disabled",
        "training.device=cpu",
        "training.num_epochs=41",
        "training.rollout_every=40",
        "training.checkpoint_every=40",
    )
    log = read_log(tmp_path / "run")
    first, last = (line["test/mean_score"] for line in log if "test/mean_score" in line)
    assert first < 0.4
    assert last > 0.8
    out = tmp_path / "eval"
    checkpoint = str(latest(tmp_path / "run"))
    run(
        str(REPOSITORY / "eval.py"),
        "-c",
        checkpoint,
        "-o",
        str(out),
        "--allow=reach",
        "--allow=regression",
    )
    assert json.loads((out / "eval_log.json").read_text())["test/mean_score"] == pytest.approx(last)
