"""Runs are found in the folders that people name: runs, sweeps, Hydra's multiruns."""

import json

import pytest

from diffusion_policy.common.errors import DataError
from diffusion_policy.report.sources import find_runs


def names(*folders) -> list[str]:
    return [place.name for place in find_runs(folders)]


def test_a_run_is_itself(make_run):
    assert names(make_run("mine", n_videos=0)) == ["mine"]


def test_a_sweep_has_its_runs_in_order_with_state_and_seed(make_sweep, write_status):
    sweep = make_sweep("sweep", seeds=range(3), evaluate=False)
    (sweep / "train_10").mkdir()
    write_status(sweep, train_0="finished", train_1="running", train_2="failed", train_10="waiting")
    tasks = [{"name": "train_10", "seed": 77, "command": []}]
    (sweep / "sweep.json").write_text(json.dumps({"tasks": tasks}))
    places = find_runs([sweep])
    assert [p.name for p in places] == [f"sweep/train_{i}" for i in (0, 1, 2, 10)]
    assert [p.state for p in places] == ["finished", "running", "failed", "waiting"]
    assert places[2].note == "on node-7, attempt 2, exit code -9"
    assert places[1].note == "on node-7, attempt 2"
    assert [p.seed for p in places] == [None, None, None, 77]


def test_a_sweep_without_status_has_no_states(make_sweep):
    sweep = make_sweep("sweep", evaluate=False)
    assert [place.state for place in find_runs([sweep])] == [None, None]
    (sweep / "status.json").write_text('{"tasks": {"train_0": {"state": "asleep"}}}')
    assert [place.state for place in find_runs([sweep])] == [None, None]


def test_a_multirun_of_hydra_has_its_jobs_in_order(make_run, tmp_path):
    for job in (10, 2, 0):
        make_run(f"multirun/{job}", evaluate=False)
    (tmp_path / "multirun" / "3" / ".hydra").mkdir(parents=True)
    (tmp_path / "multirun" / "3" / ".hydra" / "config.yaml").write_text("")  # no log yet
    (tmp_path / "multirun" / "notes").mkdir()
    assert names(tmp_path / "multirun") == [f"multirun/{job}" for job in (0, 2, 3, 10)]


def test_a_run_that_is_named_twice_is_there_once(make_sweep):
    sweep = make_sweep("sweep", evaluate=False)
    found = names(sweep, sweep / "train_1", sweep)
    assert found == ["sweep/train_0", "sweep/train_1"]


def test_what_is_no_run_is_one_sentence(make_run, tmp_path):
    run = make_run("mine", evaluate=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty/logs\.json\.txt: No such file, and no folder in"):
        find_runs([run, tmp_path / "empty"])
    with pytest.raises(DataError, match="nowhere is not a folder; name the output folder"):
        find_runs([run, tmp_path / "nowhere"])
