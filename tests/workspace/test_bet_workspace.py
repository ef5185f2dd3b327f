"""Training a Behavior Transformer: bins once, a constant rate, clipped gradients."""

import json
import shutil

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.safe_pickle import load_payload, safe_loads
from diffusion_policy.workspace.evaluation import load_workspace
from diffusion_policy.workspace.train_bet_lowdim_workspace import (
    TrainBETLowdimWorkspace as Workspace,
)


@pytest.fixture
def bet_config(compose_config, tiny_pusht_zarr):
    """bet_config(*overrides): trains in a second; two of three steps are observed."""

    def compose(*overrides):
        return compose_config(
            "train_bet_lowdim_workspace",
            "task=pusht_lowdim",
            "n_obs_steps=2",
            "policy.action_ae.num_bins=5",
            "policy.state_prior.n_layer=1",
            "policy.state_prior.n_embd=16",
            "dataloader.batch_size=64",
            "val_dataloader.batch_size=64",
            "training.device=cpu",
            "training.num_epochs=4",
            "training.rollout_every=1",
            "training.checkpoint_every=1",
            "training.sample_every=1",
            "logging.mode=disabled",
            f"task.dataset.zarr_path={tiny_pusht_zarr}",
            "task.dataset.val_ratio=0.2",
            "task.dataset.max_train_episodes=null",
            "task.env_runner._target_=toys.ToyRunner",
            *overrides,
        )

    return compose


def train(cfg, run_dir):
    Workspace(cfg, output_dir=str(run_dir)).run()
    return load_payload(run_dir / "checkpoints" / "latest.ckpt")


def read_log(run_dir):
    return [json.loads(line) for line in (run_dir / "logs.json.txt").read_text().splitlines()]


def flat(value, prefix=""):
    """Nested state as {path: tensor or number}."""
    if not isinstance(value, dict | list):
        return {prefix: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for key, item in items for k, v in flat(item, f"{prefix}.{key}").items()}


def assert_same(a, b):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for key, value in a.items():
        same = torch.equal(value, b[key]) if torch.is_tensor(value) else value == b[key]
        assert same, key


def bins_of(payload):
    return payload["state_dicts"]["policy"]["action_ae.params_dict.bin_centers"]


def test_a_run_leaves_logs_and_checkpoints_under_the_published_names(bet_config, tmp_path):
    payload = train(bet_config("training.num_epochs=2"), tmp_path)
    assert set(payload["state_dicts"]) == {"policy", "optimizer"}
    assert set(payload["pickles"]) == {"global_step", "epoch", "resume_state", "_output_dir"}
    assert bins_of(payload).shape == (5, 2)
    log = read_log(tmp_path)
    assert [line["global_step"] for line in log] == list(range(len(log)))
    for line in log:
        assert "lr" not in line
        total = line["train_loss_offset"] + line["train_loss_class"]
        assert total == pytest.approx(line["train_loss"], rel=1e-5)
    ends = [line for line in log if "val_loss" in line]
    assert [line["epoch"] for line in ends] == [0, 1]
    assert all({"train_action_mse_error", "test/mean_score"} <= line.keys() for line in ends)


def test_it_learns(bet_config, tmp_path):
    train(bet_config("optimizer.learning_rate=1e-2", "training.num_epochs=6"), tmp_path)
    losses = [line["train_loss"] for line in read_log(tmp_path) if "val_loss" in line]
    assert losses[-1] < 0.8 * losses[0]


def test_resuming_ends_bit_identical_to_an_uninterrupted_run(bet_config, tmp_path):
    whole = train(bet_config(), tmp_path / "whole")
    train(bet_config("training.num_epochs=2"), tmp_path / "cut")
    resumed = train(bet_config(), tmp_path / "cut")
    assert_same(whole["state_dicts"], resumed["state_dicts"])
    states = [safe_loads(p["pickles"]["resume_state"]) for p in (whole, resumed)]
    assert states[0] == states[1]
    logs = [(tmp_path / d / "logs.json.txt").read_bytes() for d in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_the_bins_are_never_fitted_again(bet_config, tmp_path, monkeypatch):
    first = train(bet_config("training.num_epochs=1"), tmp_path)
    workspace = Workspace(bet_config("training.num_epochs=2"), output_dir=str(tmp_path))
    monkeypatch.setattr(type(workspace.policy), "fit_action_ae", lambda *_: pytest.fail("a refit"))
    workspace.run()
    second = load_payload(tmp_path / "checkpoints" / "latest.ckpt")
    assert torch.equal(bins_of(first), bins_of(second))


def test_a_seed_decides_the_bins(bet_config, tmp_path):
    short = ("training.num_epochs=1", "training.max_train_steps=1")
    runs = [
        bins_of(train(bet_config(*short, f"training.seed={seed}"), tmp_path / str(i)))
        for i, seed in enumerate((1, 1, 2))
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_the_bins_are_fitted_to_normalised_actions(bet_config, tmp_path):
    centers = bins_of(train(bet_config("training.num_epochs=1"), tmp_path))
    assert centers.abs().max() <= 1


def test_without_a_normalizer_everything_stays_in_raw_units(bet_config, tmp_path):
    payload = train(
        bet_config("training.enable_normalizer=False", "training.num_epochs=1"), tmp_path
    )
    policy = payload["state_dicts"]["policy"]
    for field in ("obs", "action"):
        assert torch.equal(policy[f"normalizer.params_dict.{field}.scale"], torch.ones(1))
        assert torch.equal(policy[f"normalizer.params_dict.{field}.offset"], torch.zeros(1))
    assert bins_of(payload).abs().max() > 10


def test_the_gradient_of_every_batch_is_clipped(bet_config, tmp_path):
    """Also where those of several batches accumulate; lr_* keys are without effect."""
    cfg = bet_config(
        "training.grad_norm_clip=0.01",
        "training.gradient_accumulate_every=2",
        "training.num_epochs=1",
        "training.lr_warmup_steps=3",
    )
    workspace = Workspace(cfg, output_dir=str(tmp_path))
    norms, rates, steps = [], [], []

    def before_the_step(optimizer, *_):
        grads = [p.grad.norm() for p in workspace.policy.state_prior.parameters()]
        norms.append(torch.stack(grads).norm().item())
        rates.append(optimizer.param_groups[0]["lr"])
        steps.append(workspace.global_step)

    workspace.optimizer.register_step_pre_hook(before_the_step)
    workspace.run()
    assert steps == [s for s in range(len(read_log(tmp_path))) if s % 2 == 0]
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-3)
    assert rates == [1e-4] * len(rates)


def test_a_configuration_with_interpolations_is_saved_resolved(bet_config, tmp_path):
    cfg = bet_config("training.num_epochs=1", "training.max_train_steps=1")
    cfg.policy.horizon = "${horizon}"
    saved = train(cfg, tmp_path)["cfg"]
    assert OmegaConf.to_container(saved, resolve=False)["policy"]["horizon"] == 3


def test_more_bins_than_actions_is_one_sentence(bet_config, tmp_path):
    with pytest.raises(DataError, match=r"200 actions for num_bins=900"):
        train(bet_config("policy.action_ae.num_bins=900"), tmp_path)


@pytest.mark.parametrize("task", ["blockpush_lowdim_seed", "pusht_lowdim"])
def test_the_shipped_policy_has_the_published_parameters(compose_config, golden, task):
    stock = json.loads((golden / "e_stock_state_dicts.json").read_text())
    name = "train_bet_lowdim_workspace"
    expected = stock[name if task.startswith("blockpush") else f"{name}+task={task}"]
    policy = Workspace(compose_config(name, f"task={task}"), output_dir="unused").policy
    ours = {k: [list(v.shape), str(v.dtype).split(".")[1]] for k, v in policy.state_dict().items()}
    assert ours == expected["state_dict"]
    assert list(ours) == list(expected["state_dict"])
    assert sum(p.numel() for p in policy.parameters()) == expected["n_params"]


# ---- the original's own run ----------------------------------------------------------------------


@pytest.fixture
def reference_run(golden, tmp_path, monkeypatch):
    shutil.copytree(golden / "k_data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)  # its configuration names data/pusht_tiny.zarr
    return golden / "k_checkpoints" / "bet_lowdim"


def reference_config(run):
    cfg = load_payload(run / "checkpoints" / "latest.ckpt")["cfg"]
    for key, value in {"noise": "batch", "n_workers": 0}.items():  # draws as they were
        OmegaConf.update(cfg, f"task.env_runner.{key}", value, force_add=True)
    return cfg


def test_a_reference_run_gives_the_reference_losses(reference_run, tmp_path):
    """The same seed gives the bins, the loss curve, the scores and the errors that the original
    logged."""
    payload = train(reference_config(reference_run), tmp_path / "run")
    reference = load_payload(reference_run / "checkpoints" / "latest.ckpt")
    torch.testing.assert_close(bins_of(payload), bins_of(reference), rtol=1e-4, atol=1e-5)
    lines = (reference_run / "logs.json.txt").read_text().splitlines()
    expected = [json.loads(line) for line in lines]
    ours = read_log(tmp_path / "run")
    assert len(ours) == len(expected)
    for line, other in zip(ours, expected, strict=True):
        assert {k for k in line if "sim_video" not in k} == other.keys()
        if "val_loss" in other:  # at the end of an epoch, the original left the last batch's parts
            del other["train_loss_offset"], other["train_loss_class"]
        for key, value in other.items():
            assert line[key] == pytest.approx(value, rel=1e-3, abs=1e-5), (key, other["epoch"])


def test_a_reference_checkpoint_continues(reference_run, tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    shutil.copy(reference_run / "checkpoints" / "latest.ckpt", checkpoints)
    shutil.copy(reference_run / "logs.json.txt", tmp_path / "run")
    before = load_payload(checkpoints / "latest.ckpt")
    cfg = reference_config(reference_run)
    cfg.training.num_epochs = 3
    after = train(cfg, tmp_path / "run")
    log = read_log(tmp_path / "run")
    assert [line["epoch"] for line in log if "val_loss" in line] == [0, 1, 2]
    assert log[26]["global_step"] == 26
    assert log[26]["train_loss"] < 17  # it did not start over, at 31
    assert torch.equal(bins_of(before), bins_of(after))
    steps = {int(s["step"]) for s in after["state_dicts"]["optimizer"]["state"].values()}
    assert steps == {36}


def test_a_reference_checkpoint_predicts_the_reference_actions(reference_run, tmp_path):
    workspace = load_workspace(reference_run / "checkpoints" / "latest.ckpt", tmp_path)
    expected = torch.load(reference_run / "expected.pt", weights_only=True)
    policy = workspace.get_eval_policy().eval()
    torch.manual_seed(expected["seed_predict"])
    result = policy.predict_action(expected["obs"])
    for key, value in expected["predict"].items():
        torch.testing.assert_close(result[key], value, rtol=1e-3, atol=0.05)
    torch.manual_seed(expected["seed_loss"])
    loss, parts = policy.compute_loss(expected["batch"])
    expected_loss, expected_parts = expected["loss_eval_mode"]
    torch.testing.assert_close(loss, expected_loss, rtol=1e-4, atol=1e-5)
    for key, value in expected_parts.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-5)
