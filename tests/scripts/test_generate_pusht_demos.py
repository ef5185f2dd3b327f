"""The generator of demonstrations, and the ones that come with the package."""

import importlib.resources
import os
import pathlib
import signal

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from diffusion_policy.common.errors import EnvWorkerError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.env.pusht.expert.episode import Recording, record_episode
from diffusion_policy.env.pusht.geometry import goal_coverage
from diffusion_policy.env.pusht.pusht_env import PushTEnv
from diffusion_policy.env.pusht.pusht_keypoints_env import BLOCK_KEYPOINTS
from diffusion_policy.env.pusht.pymunk_keypoint_manager import PymunkKeypointManager
from diffusion_policy.scripts import generate_pusht_demos as script

SMALL = ("-n", 2, "--n-recoveries", 1, "--seed", 5)


def run(*args):
    return CliRunner().invoke(script.main, [str(a) for a in args])


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("demos") / "one_worker.zarr.zip"
    result = run("-o", path, *SMALL, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "3 episodes kept, 0 failures dropped (success rate 100.0%)" in result.output
    return path


def check_layout(path: pathlib.Path) -> ReplayBuffer:
    with zarr.storage.ZipStore(path, mode="r") as store:
        root = zarr.open_group(store, mode="r")
        assert root.metadata.zarr_format == 2
        buffer = ReplayBuffer.copy_from_store(root.store)
        assert all(array.nchunks == 1 for array in root["data"].array_values())
    n = buffer.n_steps
    assert {key: (value.shape, value.dtype.str) for key, value in buffer.items()} == {
        "action": ((n, 2), "<f4"),
        "keypoint": ((n, 9, 2), "<f4"),
        "n_contacts": ((n, 1), "<f4"),
        "state": ((n, 5), "<f4"),
    }
    assert buffer.episode_ends[:].dtype == np.int64
    assert all(np.isfinite(value).all() for value in buffer.values())
    return buffer


def test_generated_stores_have_the_published_layout(generated):
    buffer = check_layout(generated)
    assert buffer.n_episodes == 3
    assert (
        goal_coverage(tuple(buffer.get_episode(2)["state"][0, 2:])) > 0.05
    )  # only to be put right
    for i in range(2):
        start, _ = PushTEnv(legacy=script.is_legacy(i)).reset(seed=i)
        first = buffer.get_episode(i)["state"][0]
        np.testing.assert_array_equal(first, start.astype(np.float32))


def test_two_workers_write_the_same_bytes_as_one(generated, tmp_path):
    path = tmp_path / "two_workers.zarr.zip"
    assert run("-o", path, *SMALL, "--workers", 2).exit_code == 0
    assert path.read_bytes() == generated.read_bytes()


def test_an_existing_output_is_not_overwritten_unasked(tmp_path):
    path = tmp_path / "demos.zarr.zip"
    path.write_text("precious")
    result = run("-o", path, "-n", 1)
    assert result.exit_code != 0
    assert "exists already; choose another name or pass --overwrite" in result.output
    assert path.read_text() == "precious"


def test_an_output_that_is_no_zip_is_refused(tmp_path):
    result = run("-o", tmp_path / "demos.zarr", "-n", 1)
    assert result.exit_code != 0
    assert "must end in .zarr.zip" in result.output


def test_starts_of_the_test_seeds_are_out_of_reach(tmp_path):
    result = run("-o", tmp_path / "demos.zarr.zip", "-n", script.FIRST_TEST_SEED + 1)
    assert result.exit_code != 0
    assert not list(tmp_path.iterdir())


def recording(success: bool, n: int = 4) -> Recording:
    shapes = {"state": 5, "keypoint": (9, 2), "action": 2, "n_contacts": 1}
    data = {k: np.ones((n, *np.atleast_1d(s)), np.float32) for k, s in shapes.items()}
    return Recording(data, success)


def test_failures_are_dropped_and_counted(tmp_path, monkeypatch):
    outcomes = [recording(True), recording(False), recording(True, 6)]
    monkeypatch.setattr(script, "record_all", lambda *_: iter(outcomes))
    path = tmp_path / "demos.zarr.zip"
    result = run("-o", path, "-n", 3, "--n-recoveries", 0)
    assert "2 episodes kept, 1 failures dropped (success rate 66.7%); 10 steps" in result.output
    assert check_layout(path).episode_ends[:].tolist() == [4, 10]


def test_nothing_is_written_when_nothing_was_solved(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "record_all", lambda *_: iter([recording(False)]))
    result = run("-o", tmp_path / "demos.zarr.zip", "-n", 1, "--n-recoveries", 0)
    assert result.exit_code != 0
    assert "none of the 1 starts was solved" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("No space left on device")])
def test_an_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    path = tmp_path / "demos.zarr.zip"
    path.write_text("old")
    monkeypatch.setattr(script, "_zip", fail)
    with pytest.raises(type(error)):
        script.write_store([recording(True)], path)
    assert [p.name for p in tmp_path.iterdir()] == ["demos.zarr.zip"]
    assert path.read_text() == "old"


def _die(job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_reported_and_does_not_hang(monkeypatch):
    monkeypatch.setattr(script, "_record", _die)
    with pytest.raises(EnvWorkerError, match="died"):
        list(script.record_all(2, 0, 0, workers=2))


# ---------------------------------------------------------------------- the embedded demonstrations


@pytest.fixture(scope="module")
def embedded() -> ReplayBuffer:
    assets = importlib.resources.files("diffusion_policy") / "assets" / "pusht_demos.zarr.zip"
    path = pathlib.Path(str(assets))
    assert path.stat().st_size < 5e6
    return check_layout(path)


def test_the_embedded_demonstrations_are_many(embedded):
    assert embedded.n_episodes >= 200
    assert embedded.n_steps >= 25_650
    assert 60 < embedded.episode_lengths.mean() < 180
    assert embedded.episode_lengths.max() <= 300


def test_the_embedded_demonstrations_reach_the_goal(embedded):
    coverage = []
    for i in range(embedded.n_episodes):
        episode = embedded.get_episode(i)
        (before, state), action = episode["state"][-2:], episode["action"][-1]
        env = PushTEnv()
        env.reset(options={"reset_to_state": state})
        env.agent.velocity = tuple(((state - before)[:2] / 0.1).tolist())
        # The executed action was disturbed and the stored one is not, so it may take a moment more.
        reached = []
        for _ in range(3):
            env.step(action)
            reached.append(goal_coverage(env.step(None)[4]["block_pose"]))
        coverage.append(max(reached))
    assert np.mean(np.array(coverage) >= 0.95) >= 0.95
    assert min(coverage) > 0.9


def test_the_embedded_demonstrations_are_what_the_expert_does(embedded):
    stored = embedded.get_episode(1)
    again = record_episode(env_seed=1, expert_seed=0, legacy=script.is_legacy(1), max_steps=20)
    for key, values in again.data.items():
        np.testing.assert_allclose(values, stored[key][:20], atol=1e-3)


def test_the_embedded_recoveries_are_those_of_the_command(embedded):
    for number, job in enumerate(script.jobs_of(n_episodes=260, n_recoveries=2, seed=0)[260:]):
        again = record_episode(**job._asdict() | {"max_steps": 20})
        stored = embedded.get_episode(259 + number)  # one of the 260 whole ones failed
        for key, values in again.data.items():
            np.testing.assert_allclose(values, stored[key][: len(values)], atol=1e-3)


def test_the_embedded_key_points_belong_to_the_embedded_states(embedded):
    manager = PymunkKeypointManager({"block": np.array(BLOCK_KEYPOINTS)})
    for t in range(0, embedded.n_steps, 997):
        pose = embedded["state"][t, 2:]
        expected = manager.get_keypoints_global({"block": pose})["block"]
        np.testing.assert_allclose(embedded["keypoint"][t], expected, atol=1e-3)
    angles = embedded["state"][:, 4]
    assert 0 <= angles.min() <= angles.max() <= 2 * np.pi


def test_no_embedded_demonstration_starts_where_a_test_does(embedded):
    starts = embedded["state"][np.concatenate([[0], embedded.episode_ends[:-1]])]
    tests = [PushTEnv(legacy=True).reset(seed=100_000 + i)[0] for i in range(60)]
    distances = np.linalg.norm(starts[:, None, :4] - np.array(tests)[None, :, :4], axis=-1)
    assert distances.min() > 5


def test_the_embedded_demonstrations_stay_on_the_table(embedded):
    coverage = [goal_coverage(tuple(pose)) for pose in embedded["state"][::50, 2:]]
    assert 0.1 < np.mean(coverage) < 0.8
    for key in ("action", "keypoint"):
        assert embedded[key].min() > -20
        assert embedded[key].max() < 532
