"""Training of LSTM-GMM: the common loop around an optimizer that the policy steps itself."""

import shutil

import numpy as np
import pytest
import torch
from robomimic_stand_in import (
    backend,  # noqa: F401  a fixture
    needs_robomimic,
    replace_robomimic,
)
from runs import assert_same_outcome, build, latest, read_log, read_state, train

from diffusion_policy.common.checkpoint_file import load_payload
from diffusion_policy.workspace.base_workspace import write_payload
from diffusion_policy.workspace.evaluation import evaluate

TINY = [
    "dataloader.batch_size=4",
    "dataloader.num_workers=0",
    "val_dataloader.batch_size=4",
    "val_dataloader.num_workers=0",
    "training.device=cpu",
    "training.num_epochs=2",
    "training.rollout_every=1",
    "training.checkpoint_every=1",
    "training.max_train_steps=3",
    "training.max_val_steps=1",
    "logging.mode=disabled",
    "task.dataset.val_ratio=0.3",
    "task.dataset.max_train_episodes=null",
    "task.env_runner.n_train=0",
    "task.env_runner.n_train_vis=0",
    "task.env_runner.n_test=2",
    "task.env_runner.n_test_vis=0",
    "task.env_runner.max_steps=3",
    "+task.env_runner.n_workers=0",
]


@pytest.fixture
def lowdim(compose_config, tiny_pusht_zarr):
    """lowdim(*overrides): the published configuration on very few data."""

    def compose(*overrides):
        data = f"task.dataset.zarr_path={tiny_pusht_zarr}"
        return compose_config("train_robomimic_lowdim_workspace", *TINY, data, *overrides)

    return compose


@pytest.fixture
def image(compose_config, tiny_image_zarr):
    """image(*overrides): the published configuration on very few Push-T images."""

    def compose(*overrides):
        data = ["task=pusht_image", f"task.dataset.zarr_path={tiny_image_zarr}"]
        less = ["dataloader.batch_size=2", "val_dataloader.batch_size=2"]
        less += ["training.sample_every=1", "training.max_train_steps=2"]
        name = "train_robomimic_image_workspace"
        return compose_config(name, *data, *TINY, *less, *overrides)

    return compose


def test_a_run_on_states_logs_scores_and_saves_its_optimizer(backend, lowdim, tmp_path):  # noqa: F811
    workspace = train(lowdim(), tmp_path)
    ends = [line for line in read_log(tmp_path) if "val_loss" in line]
    assert [line["epoch"] for line in ends] == [0, 1]
    for line in ends:
        # no learning rate (robomimic's own), no action error (the published file does not ask)
        metrics = {key for key in line if "sim_" not in key}
        assert metrics == {"train_loss", "val_loss", "test/mean_score", "epoch", "global_step"}
    states, pickles = read_state(tmp_path)
    assert set(states) == {"model", "optimizer"}
    assert set(pickles) == {"global_step", "epoch", "resume_state"}
    assert {int(s["step"]) for s in states["optimizer"]["state"].values()} == {6}
    assert workspace.optimizer is workspace.model.get_optimizer()
    assert states["optimizer"]["param_groups"][0]["lr"] == 1e-4


def test_an_epoch_reaches_robomimic_by_its_number(monkeypatch, lowdim, tmp_path):
    replace_robomimic(monkeypatch)
    workspace = train(lowdim("training.val_every=5"), tmp_path)
    assert workspace.model.model.epochs == [0, 0, 0, 0, 1, 1, 1]  # the 4th is validation


@pytest.mark.parametrize("config", ["lowdim", "image"])
def test_a_resumed_run_ends_bit_identical_to_an_uninterrupted_one(
    request, monkeypatch, config, tmp_path
):
    replace_robomimic(monkeypatch)
    check_resume(request.getfixturevalue(config), tmp_path)


@needs_robomimic
def test_a_resumed_run_of_robomimic_ends_bit_identical(lowdim, tmp_path):
    check_resume(lowdim, tmp_path)


def check_resume(config, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config("training.num_epochs=4"), whole)
    train(config("training.num_epochs=2"), parts)
    train(config("training.num_epochs=4"), parts)
    assert_same_outcome(parts, whole)


def test_a_checkpoint_of_the_original_has_no_optimizer_and_is_continued(
    backend,  # noqa: F811
    lowdim,
    tmp_path,
):
    train(lowdim(), tmp_path)
    payload = load_payload(latest(tmp_path))
    del payload["state_dicts"]["optimizer"]
    del payload["pickles"]["resume_state"]
    write_payload(payload, latest(tmp_path))
    shutil.copy(latest(tmp_path), tmp_path / "original.ckpt")
    train(lowdim("training.num_epochs=3"), tmp_path)
    states, pickles = read_state(tmp_path)
    assert {int(s["step"]) for s in states["optimizer"]["state"].values()} == {3}
    assert pickles["epoch"] == 2

    result = evaluate(tmp_path / "original.ckpt", tmp_path / "evaluation", device="cpu")
    assert 0 <= result["test/mean_score"] <= 1


def test_episodes_do_not_depend_on_how_many_environments_run_at_a_time(
    backend,  # noqa: F811
    monkeypatch,
    lowdim,
    tmp_path,
):
    train(lowdim("training.num_epochs=1"), tmp_path)
    actions_of = {}

    def record(actions, names, steps):
        for name, action, step in zip(names, actions, steps, strict=True):
            actions_of[n_envs, name, step] = action.tolist()

    monkeypatch.setattr("diffusion_policy.env_runner.rollout.require_finite", record)
    for n_envs in (1, 2, 3):
        overrides = ["task.env_runner.n_test=3", "task.env_runner.max_steps=12"]
        overrides.append(f"task.env_runner.n_envs={n_envs}")
        out = tmp_path / f"evaluation_{n_envs}"
        evaluate(latest(tmp_path), out, "cpu", overrides, deterministic=True)
    assert len(actions_of) == 3 * 3 * 12
    for (_, name, step), action in actions_of.items():
        assert action == actions_of[1, name, step]


@pytest.mark.parametrize("config", ["lowdim", "image"])
def test_debug_visits_everything(request, monkeypatch, config, tmp_path):
    replace_robomimic(monkeypatch)
    train(request.getfixturevalue(config)("training.debug=True"), tmp_path)
    ends = [line for line in read_log(tmp_path) if "val_loss" in line]
    assert len(ends) == 2
    assert all(np.isfinite(line["train_action_mse_error"]) for line in ends)


def test_the_action_error_is_that_of_an_episode_seen_step_by_step(monkeypatch, image, tmp_path):
    replace_robomimic(monkeypatch)
    workspace = build(image(), tmp_path)
    n, seen = 4, []
    actions = torch.randn(2, n, 2)

    class Policy:
        def reset(self):
            seen.append("reset")

        def predict_action(self, obs):
            assert {key: value.shape[1] for key, value in obs.items()} == {"pos": 1, "cam": 1}
            seen.append(int(obs["pos"][0, 0]))
            return {"action": actions[:, seen[-1], None] + 0.5}

    obs = {"pos": torch.arange(n).expand(2, n), "cam": torch.zeros(2, n, 3, 4, 4)}
    error = workspace.action_error(Policy(), {"obs": obs, "action": actions})
    assert error.item() == pytest.approx(0.25)
    assert seen == ["reset", *range(n), "reset"]


@needs_robomimic
def test_a_run_on_images_logs_scores_and_saves(image, tmp_path):
    train(image("training.num_epochs=1", "task.env_runner.n_test=1"), tmp_path)
    (end,) = [line for line in read_log(tmp_path) if "val_loss" in line]
    metrics = {key for key in end if "sim_" not in key}
    expected = {"train_loss", "val_loss", "train_action_mse_error", "test/mean_score"}
    assert metrics == expected | {"epoch", "global_step"}
    states, _ = read_state(tmp_path)
    assert set(states) == {"model", "optimizer"}
    assert {int(s["step"]) for s in states["optimizer"]["state"].values()} == {2}
