"""Images drawn from the states of demonstrations."""

import os
import pathlib
import shutil
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from click.testing import CliRunner

from diffusion_policy.common.assets import resolve_data_path
from diffusion_policy.common.errors import DataError, EnvWorkerError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.dataset.pusht_dataset import EMBEDDED
from diffusion_policy.dataset.pusht_image_dataset import PushTImageDataset
from diffusion_policy.env.pusht.pusht_env import PushTEnv
from diffusion_policy.scripts import render_pusht_images, worker_pool
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
    render_images(source, source, force=True)
    images = ReplayBuffer.copy_from_path(source)["img"]
    assert images.dtype == np.uint8
    assert images.mean() > 100  # mostly white


def test_data_without_states_are_named(tmp_path):
    buffer = ReplayBuffer.create_empty_numpy()
    buffer.add_episode({"action": np.zeros((3, 2))})
    with pytest.raises(DataError, match=r"holds \['action'\] of 3 steps; 'state' with five"):
        render_images(buffer.save_to_path(tmp_path / "a.zarr"), tmp_path / "b.zarr")


def test_several_processes_draw_what_one_draws():
    states = np.random.default_rng(0).uniform(100, 400, (30, 5))
    blocks = [list(render_pusht_images.draw_all(states, 24, 8, workers)) for workers in (1, 2)]
    assert [len(block) for block in blocks[1]] == [8, 8, 8, 6]
    np.testing.assert_array_equal(np.concatenate(blocks[0]), np.concatenate(blocks[1]))


def test_a_process_that_dies_is_reported_and_nothing_is_written(tmp_path, monkeypatch):
    class Dying(ProcessPoolExecutor):
        def __init__(self, *args, **options):
            super().__init__(*args, **options | {"initializer": os._exit, "initargs": (3,)})

    monkeypatch.setattr(worker_pool, "ProcessPoolExecutor", Dying)
    source = make_store(tmp_path / "a.zarr", (100,))  # two blocks
    with pytest.raises(EnvWorkerError, match="a worker process died"):
        render_images(source, tmp_path / "b.zarr", workers=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "b.zarr.lock"]


# ---- an output is used again ---------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """Numbers of pictures that were drawn for outputs, one per output."""
    counts, draw_all = [], render_pusht_images.draw_all

    def counting(states, *args):
        counts.append(len(states))
        return draw_all(states, *args)

    monkeypatch.setattr(render_pusht_images, "draw_all", counting)
    return counts


@pytest.mark.parametrize("suffix", [".zarr", ".zarr.zip"])
def test_a_complete_output_is_left_alone(tmp_path, drawn, suffix):
    source, target = make_store(tmp_path / "a.zarr", (3,)), tmp_path / f"b{suffix}"
    for _ in range(2):
        render_images(source, target, 16)
    render_images(shutil.copytree(source, tmp_path / "copy.zarr"), target, 16)
    assert drawn == [3]
    render_images(source, target, 16, force=True)
    assert drawn == [3, 3]


def test_other_demonstrations_another_size_or_another_look_are_drawn_again(
    tmp_path, drawn, monkeypatch
):
    target = tmp_path / "b.zarr.zip"
    render_images(make_store(tmp_path / "a.zarr", (3,)), target, 16)
    other = make_store(tmp_path / "other.zarr", (4,))
    render_images(other, target, 16)
    render_images(other, target, 24)
    assert drawn == [3, 4, 4]
    assert ReplayBuffer.copy_from_path(target)["img"].shape == (4, 24, 24, 3)
    draw = render_pusht_images.draw
    monkeypatch.setattr(render_pusht_images, "draw", lambda *a, **k: 255 - draw(*a, **k))
    render_images(other, target, 24)
    assert drawn == [3, 4, 4, 4]


def test_an_output_with_missing_images_is_drawn_again_with_a_warning(tmp_path, drawn, caplog):
    source, target = make_store(tmp_path / "a.zarr", (3,)), tmp_path / "b.zarr"
    render_images(source, target, 16)
    (target / "data" / "img" / "0.0.0.0").unlink()
    render_images(source, target, 16)
    assert drawn == [3, 3]
    assert "does not hold all images" in caplog.text


def test_images_are_made_for_the_data_set_and_used_by_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "a.zarr")
    with pytest.raises(DataError) as error:
        PushTImageDataset("a.zarr")
    command, _, setting = str(error.value).partition("`")[2].partition("` and train with ")
    arguments = command.removeprefix("python -m diffusion_policy.scripts.render_pusht_images ")
    options = [*arguments.split(), "--render-size", "32", "--workers", "1"]
    result = CliRunner().invoke(render_pusht_images.main, options)
    assert result.exit_code == 0, result.output
    dataset = PushTImageDataset(setting.removeprefix("task.dataset.zarr_path="), horizon=4)
    assert dataset[0]["obs"]["image"].shape == (4, 3, 32, 32)


# ---- the command line ----------------------------------------------------------------------------


def run(*options):
    return CliRunner().invoke(render_pusht_images.main, [str(option) for option in options])


def test_the_command_line_replaces_no_demonstrations_unless_forced(tmp_path):
    source, target = make_store(tmp_path / "a.zarr", (3,)), make_store(tmp_path / "b.zarr", (4,))
    options = ["-i", source, "-o", target, "--render-size", 48]
    refused = run(*options)
    assert refused.exit_code == 1
    assert "was not made by this program as a cache" in refused.output
    assert ReplayBuffer.copy_from_path(target).n_steps == 4
    assert run(*options, "--force").exit_code == 0
    assert ReplayBuffer.copy_from_path(target)["img"].shape == (3, 48, 48, 3)
    assert run(*options).output.endswith(f"images are in {target}\n")


def test_an_output_must_be_called_a_store(tmp_path):
    source = make_store(tmp_path / "a.zarr", (3,))
    refused = run("-i", source, "-o", tmp_path / "images")
    assert refused.exit_code == 1
    assert "end it in .zarr or .zarr.zip" in refused.output


def test_a_damaged_input_is_one_sentence(tmp_path):
    (tmp_path / "a.zarr.zip").write_bytes(b"PK no")
    refused = run("-i", tmp_path / "a.zarr.zip", "-o", tmp_path / "b.zarr")
    assert refused.exit_code == 1
    assert refused.output.count("\n") == 1
    assert "a.zarr.zip is not a readable zip file" in refused.output


def test_without_options_the_embedded_demonstrations_are_drawn(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(render_pusht_images, "render_images", lambda *args: calls.append(args))
    monkeypatch.chdir(tmp_path)
    assert run().exit_code == 0
    ((source, target, size, workers, force),) = calls
    assert source == resolve_data_path(EMBEDDED)
    assert target == pathlib.Path("data/pusht/pusht_demos_with_images.zarr.zip")
    assert (size, force) == (96, False)
    assert workers >= 1


def test_the_published_images_are_reproduced(human_pusht_zarr):
    published = ReplayBuffer.create_from_path(human_pusht_zarr)
    env = PushTEnv()
    for step in (0, 1000, 20000):
        ours = env.render_state(np.asarray(published["state"][step], np.float64))
        different = (ours != np.asarray(published["img"][step])).any(axis=-1).mean()
        assert different < 0.01  # golden/README: other versions of pygame draw circles otherwise
