"""Training implicit behaviour cloning: what differs from the common loop."""

import json

import hydra
import pytest
import torch
from runs import build, latest, read_log, train

from diffusion_policy.common.checkpoint_file import load_payload
from diffusion_policy.policy import base_ibc_dfo_policy

TINY = [
    "policy.train_n_neg=8",
    "policy.pred_n_samples=16",
    "policy.pred_n_iter=2",
    "training.device=cpu",
    "training.num_epochs=2",
    "training.lr_warmup_steps=1",
    "training.rollout_every=1",
    "training.checkpoint_every=1",
    "training.sample_every=1",
    "training.max_train_steps=2",
    "logging.mode=disabled",
    "task.dataset.val_ratio=0.2",
    "task.dataset.max_train_episodes=null",
    "task.env_runner._target_=toys.ToyRunner",
]


@pytest.fixture
def lowdim_config(compose_config, tiny_pusht_zarr):
    def compose(*overrides):
        return compose_config(
            "train_ibc_dfo_lowdim_workspace",
            *TINY,
            f"task.dataset.zarr_path={tiny_pusht_zarr}",
            "dataloader.batch_size=32",
            "val_dataloader.batch_size=32",
            *overrides,
        )

    return compose


class RecordingPolicy:
    """Predicts a constant and remembers what it was asked."""

    def __init__(self, value, n_action_steps):
        self.value, self.n_action_steps = value, n_action_steps

    def predict_action(self, obs):
        self.asked = obs
        batch = len(next(iter(obs.values())))
        return {"action": torch.full((batch, self.n_action_steps, 2), self.value)}


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(base_ibc_dfo_policy, "WIDTH", 32)


def test_a_run_logs_what_other_methods_log(lowdim_config, narrow, tmp_path):
    workspace = train(lowdim_config(), tmp_path)
    ends = [line for line in read_log(tmp_path) if "test/mean_score" in line]
    assert [line["epoch"] for line in ends] == [0, 1]
    for line in ends:
        assert {"train_loss", "val_loss", "train_action_mse_error", "lr"} <= line.keys()
    assert workspace.ema_model is None
    assert workspace.get_eval_policy() is workspace.model


def test_validation_and_sampling_use_the_model_without_dropout(lowdim_config, narrow, tmp_path):
    workspace = build(lowdim_config("training.num_epochs=1"), tmp_path)
    modes = []
    compute_loss, predict_action = workspace.model.compute_loss, workspace.model.predict_action

    def loss(batch):
        modes.append(("loss", workspace.model.training))
        return compute_loss(batch)

    def predict(*args, **kwargs):
        modes.append(("predict", workspace.model.training))
        return predict_action(*args, **kwargs)

    workspace.model.compute_loss, workspace.model.predict_action = loss, predict
    workspace.run()
    assert modes[:2] == [("loss", True)] * 2  # two training steps
    assert set(modes[2:]) == {("loss", False), ("predict", False)}


def test_the_action_error_looks_at_some_windows_and_the_executed_actions(
    lowdim_config, narrow, tmp_path
):
    """Also of the truth: the original's comparison failed for batches larger than the limit."""
    cfg = lowdim_config(
        "training.sample_max_batch=3", "horizon=5", "n_action_steps=2", "dataloader.batch_size=8"
    )
    workspace = build(cfg, tmp_path)
    policy = RecordingPolicy(value=4.0, n_action_steps=2)
    action = torch.full((8, 5, 2), 1000.0)
    action[:3, 1:3] = 1.0  # index To - 1, and the next one
    error = workspace.action_error(
        policy, {"obs": torch.arange(80.0).view(8, 5, 2), "action": action}
    )
    assert error.item() == 9.0
    assert torch.equal(policy.asked["obs"], torch.arange(30.0).view(3, 5, 2))


def test_the_action_error_of_a_small_batch_takes_all_of_it(lowdim_config, narrow, tmp_path):
    workspace = build(lowdim_config(), tmp_path)
    policy = RecordingPolicy(value=0.0, n_action_steps=1)
    batch = {"obs": torch.zeros(5, 2, 20), "action": torch.ones(5, 2, 2)}
    assert workspace.action_error(policy, batch).item() == 1.0
    assert len(policy.asked["obs"]) == 5


def test_the_action_error_of_images_is_the_same(compose_config, narrow, tmp_path):
    cfg = compose_config("train_ibc_dfo_hybrid_workspace", *TINY, "training.sample_max_batch=3")
    workspace = build(cfg, tmp_path)
    policy = RecordingPolicy(value=4.0, n_action_steps=1)
    obs = {"image": torch.zeros(8, 2, 3, 4, 4), "agent_pos": torch.zeros(8, 2, 2)}
    action = torch.full((8, 2, 2), 1000.0)
    action[:3, 1] = 1.0
    assert workspace.action_error(policy, {"obs": obs, "action": action}).item() == 9.0
    assert {key: len(value) for key, value in policy.asked.items()} == {"image": 3, "agent_pos": 3}


# ---- the original's checkpoints ------------------------------------------------------------------


def structure(golden, name):
    path = golden / "k_checkpoints" / name / "payload_structure.json"
    return json.loads(path.read_text())


def shapes_of(state):
    return {key: list(value.shape) for key, value in state.items()}


def assert_optimizer_fits(state, optimizer):
    """The n-th parameter that was stepped on has the n-th shape, in the original as here."""
    ours = {str(i): list(s["exp_avg"].shape) for i, s in optimizer["state"].items()}
    assert ours == {i: s["exp_avg"][1] for i, s in state["state"].items()}


def test_a_checkpoint_holds_what_the_reference_one_holds(golden, lowdim_config, tmp_path):
    train(lowdim_config("training.num_epochs=1", "training.max_train_steps=1"), tmp_path)
    payload = load_payload(latest(tmp_path))
    expected = structure(golden, "ibc_lowdim")
    state_dicts = expected["state_dicts"]
    assert set(payload["state_dicts"]) == set(state_dicts) == {"model", "optimizer"}
    assert set(expected["pickles"]) <= set(payload["pickles"])
    model = payload["state_dicts"]["model"]
    assert shapes_of(model) == {key: value[1] for key, value in state_dicts["model"].items()}
    assert list(model) == list(state_dicts["model"])
    assert_optimizer_fits(state_dicts["optimizer"], payload["state_dicts"]["optimizer"])


def test_the_optimizer_of_the_hybrid_policy_counts_as_the_reference_does(golden, compose_config):
    cfg = compose_config("train_ibc_dfo_hybrid_workspace")
    with torch.device("meta"):
        policy = hydra.utils.instantiate(cfg.policy)
    expected = structure(golden, "ibc_hybrid")["state_dicts"]
    ours = {str(i): list(p.shape) for i, p in enumerate(policy.parameters())}
    reference = {i: s["exp_avg"][1] for i, s in expected["optimizer"]["state"].items()}
    assert {i: ours[i] for i in reference} == reference
    model = {k: v[1] for k, v in expected["model"].items() if not k.startswith("normalizer.")}
    assert shapes_of(policy.state_dict()) == model
