"""Sweeps on a real ray cluster of several nodes, of which parts are really killed."""

import json
import re
import signal

import psutil
import pytest
import ray_nodes
import sweeps
from child_processes import wait_until_gone
from sweeps import attempts, epochs, finish, n_epochs, resume, start, states, wait_for

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def nodes():
    with ray_nodes.cluster(n_nodes=2) as cluster:
        yield cluster


@pytest.fixture
def words(nodes, tmp_path) -> list[str]:
    """Options for runs of which each node can have one."""
    return [
        f"--ray_address={nodes.address}",
        "--num_cpus=1",
        "--num_gpus=0",
        f"--data_src={tmp_path}",
    ]


def trainer(run_dir) -> psutil.Process:
    return psutil.Process(sweeps.pid(run_dir))


def worker(run_dir) -> psutil.Process:
    """The ray worker whose task the run is."""
    return trainer(run_dir).parent()


def test_killed_trainings_and_workers_are_tried_again(nodes, words, tmp_path):
    folder = sweeps.write_fake_sweep(tmp_path / "sweep", n_epochs=40, seconds=0.2)
    process = resume(folder, *words, "--max_retries=1", **nodes.environment)
    runs = [folder / "train_0", folder / "train_1"]
    wait_for(lambda: all(n_epochs(run) > 1 for run in runs), process)
    trainer(runs[0]).kill()
    orphan = trainer(runs[1])
    worker(runs[1]).kill()
    wait_until_gone(orphan.pid)
    output = finish(process)
    assert states(folder) == ["finished", "finished"]
    assert attempts(folder) == [2, 2]
    assert "train_0 failed (killed by SIGKILL)" in output
    assert re.search(r"train_1 failed \(its worker or node was lost: .*died unexpectedly", output)
    assert [epochs(run) for run in runs] == [list(range(40))] * 2
    assert json.loads((folder / "metrics" / "metrics.json").read_text())["epoch"] == 39


def test_a_lost_node_costs_the_others_nothing(nodes, words, tmp_path):
    folder = sweeps.write_fake_sweep(tmp_path / "sweep", n_epochs=40, seconds=0.2)
    process = resume(folder, *words, "--max_retries=1", **nodes.environment)
    runs = [folder / "train_0", folder / "train_1"]
    wait_for(lambda: all(n_epochs(run) > 1 for run in runs), process)
    raylets = [worker(run).parent() for run in runs]
    assert raylets[0] != raylets[1], "not on two nodes"
    # All that a machine takes with it. Of a raylet that dies alone, the runs live on.
    for lost in [raylets[0], *raylets[0].children(recursive=True)]:
        lost.kill()
    output = finish(process)
    nodes.add()
    assert "train_0 failed (its worker or node was lost" in output
    assert states(folder) == ["finished", "finished"]
    assert attempts(folder) == [2, 1]
    assert [epochs(run) for run in runs] == [list(range(40))] * 2


def test_neither_a_killed_driver_nor_ctrl_c_ends_a_sweep_for_good(nodes, words, tmp_path):
    folder = sweeps.write_fake_sweep(tmp_path / "sweep", 3, n_epochs=25, seconds=0.3)
    runs = [folder / "train_0", folder / "train_1"]
    process = resume(folder, *words, **nodes.environment)
    wait_for(lambda: all(n_epochs(run) for run in runs), process)
    orphans = [sweeps.pid(run) for run in runs]
    process.kill()
    process.communicate()
    wait_until_gone(*orphans)
    assert states(folder) == ["running", "running", "waiting"]

    before = [n_epochs(run) for run in runs]
    process = resume(folder, *words, **nodes.environment)
    wait_for(lambda: all(map(lambda run, n: n_epochs(run) > n, runs, before)), process)
    process.send_signal(signal.SIGINT)
    output = finish(process, exit_code=130)
    assert states(folder) == ["interrupted", "interrupted", "waiting"]
    assert [sweeps.n_interrupts(run) for run in runs] == [1, 1]
    assert not (folder / "train_2" / "pid").exists()

    finish(start(*sweeps.printed_command(output), **nodes.environment))
    assert states(folder) == ["finished"] * 3
    assert [epochs(run) for run in runs] == [list(range(25))] * 2


def test_all_runs_can_be_kept_on_one_node(nodes, words, tmp_path):
    folder = sweeps.write_fake_sweep(tmp_path / "sweep", n_epochs=20, seconds=0.2)
    process = resume(folder, *words, "--num_cpus=0.5", "--single_node", **nodes.environment)
    runs = [folder / "train_0", folder / "train_1"]
    wait_for(lambda: all(n_epochs(run) for run in runs), process)
    assert worker(runs[0]).parent() == worker(runs[1]).parent()
    finish(process)
    assert states(folder) == ["finished", "finished"]


def test_what_no_node_has_is_said_at_once(nodes, words, tmp_path):
    folder = sweeps.write_fake_sweep(tmp_path / "sweep")
    asked = ["--num_cpus=3"], ["--single_node"], ["--ray_address=127.0.0.1:1"]
    processes = [resume(folder, *words, *more, **nodes.environment) for more in asked]
    sentences = [finish(process, exit_code=1).splitlines()[-1] for process in processes]
    assert sentences[0].startswith("error: every run asks for 3 CPUs and 0 GPUs, but the largest")
    assert sentences[0].endswith("has 1 CPU and 0 GPUs; pass --num_cpus 1 --num_gpus 0, or less")
    assert sentences[1].startswith("error: --single_node: 2 runs ask for 2 CPUs and 0 GPUs on one")
    assert sentences[2].startswith("error: no ray cluster answers at 127.0.0.1:1 ")


def test_one_command_runs_with_the_code_and_data_of_here(nodes, words, tmp_path):
    (tmp_path / "here").touch()
    code = "import os; print('data:', os.listdir('data'), os.path.exists('train.py'))"
    command = [*words, "--", "python", "-c", code]
    bad = [*words, "--", "python", "-c", "raise SystemExit('no luck')"]
    processes = [start(*line, script="ray_exec.py", **nodes.environment) for line in (command, bad)]
    output = finish(processes[0])
    assert "data: ['here'] True" in output
    assert output.endswith("\n0\n")
    output = finish(processes[1], exit_code=1)
    assert "no luck" in output
    assert output.splitlines()[-1].startswith("error: Failed execution. exit code 1: python -c")


def test_one_command_can_be_interrupted(nodes, words, tmp_path):
    code = "import pathlib, time; pathlib.Path('data/ready').touch(); time.sleep(600)"
    line = [*words, "--", "python", "-c", code]
    process = start(*line, script="ray_exec.py", **nodes.environment)
    wait_for((tmp_path / "ready").exists, process)
    process.send_signal(signal.SIGINT)
    assert finish(process, exit_code=130).endswith(f"\n{-signal.SIGINT}\n")
