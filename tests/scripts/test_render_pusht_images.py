"""Images drawn from the states of demonstrations."""

import numpy as np
import pytest
from click.testing import CliRunner

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.env.pusht.pusht_env import PushTEnv
from diffusion_policy.scripts import render_pusht_images
from diffusion_policy.scripts.render_pusht_images import render_images


def make_store(path, lengths=(50, 40), **more):
    buffer, rng = ReplayBuffer.create_empty_numpy(), np.random.default_rng(0)
    for length in lengths:
        state = rng.uniform(100, 400, (length, 5)).astype(np.float32)
        action = rng.uniform(0, 512, (length, 2)).astype(np.float32)
        buffer.add_episode(
            {"state": state, "action": action, **{k: v[:length] for k, v in more.items()}}
        )
    return buffer.save_to_path(path)


@pytest.mark.parametrize("suffix", [".zarr", ".zarr.zip"])
def test_every_state_gets_its_picture_and_the_rest_is_kept(tmp_path, suffix):
    source = make_store(tmp_path / "a.zarr")
    render_images(source, tmp_path / f"b{suffix}")
    before = ReplayBuffer.copy_from_path(source)
    after = ReplayBuffer.copy_from_path(tmp_path / f"b{suffix}")
    assert after["img"].shape == (90, 96, 96, 3)
    assert after["img"].dtype == np.uint8
    assert after.episode_ends.tolist() == before.episode_ends.tolist()
    for key, array in before.items():
        np.testing.assert_array_equal(after[key], array)
    env = PushTEnv()
    for step in (0, 49, 50, 89):  # also across the chunk border at 73
        np.testing.assert_array_equal(after["img"][step], env.render_state(before["state"][step]))


def test_the_pictures_are_those_of_the_environment(tmp_path):
    buffer = ReplayBuffer.create_empty_numpy()
    env = PushTEnv(render_action=False)
    obs, _ = env.reset(seed=3)
    frames, states = [], []
    for target in ((200, 200), (250, 300), (300, 300)):
        frames.append(env.render())
        states.append(obs)
        obs, *_ = env.step(target)
    buffer.add_episode({"state": np.float32(states)})
    render_images(buffer.save_to_path(tmp_path / "a.zarr"), tmp_path / "b.zarr")
    images = ReplayBuffer.copy_from_path(tmp_path / "b.zarr", keys=["img"])["img"]
    different = (images != np.stack(frames)).any(axis=-1).mean()
    assert different < 0.002  # states are stored in single precision


def test_images_that_are_there_already_are_replaced(tmp_path):
    source = make_store(tmp_path / "a.zarr", img=np.zeros((50, 96, 96, 3), np.float32))
    render_images(source, source)
    images = ReplayBuffer.copy_from_path(source)["img"]
    assert images.dtype == np.uint8
    assert images.mean() > 100  # mostly white


def test_data_without_states_are_named(tmp_path):
    buffer = ReplayBuffer.create_empty_numpy()
    buffer.add_episode({"action": np.zeros((3, 2))})
    with pytest.raises(DataError, match=r"holds \['action'\]; 'state' with five"):
        render_images(buffer.save_to_path(tmp_path / "a.zarr"), tmp_path / "b.zarr")


def test_the_command_line_asks_before_it_replaces(tmp_path):
    source, target = make_store(tmp_path / "a.zarr", (3,)), tmp_path / "b.zarr"

    def run(*more):
        arguments = ["-i", str(source), "-o", str(target), "--render-size", "48", *more]
        return CliRunner().invoke(render_pusht_images.main, arguments)

    assert run().exit_code == 0
    assert ReplayBuffer.copy_from_path(target)["img"].shape == (3, 48, 48, 3)
    refused = run()
    assert refused.exit_code == 1
    assert "exists already" in refused.output
    assert run("--overwrite").exit_code == 0


def test_the_published_images_are_reproduced(human_pusht_zarr):
    published = ReplayBuffer.create_from_path(human_pusht_zarr)
    env = PushTEnv()
    for step in (0, 1000, 20000):
        ours = env.render_state(np.asarray(published["state"][step], np.float64))
        different = (ours != np.asarray(published["img"][step])).any(axis=-1).mean()
        assert different < 0.01  # golden/README: other versions of pygame draw circles otherwise
