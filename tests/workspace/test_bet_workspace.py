"""Training a Behavior Transformer: bins once, a constant rate, clipped gradients."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from reference_weights import layout
from runs import assert_same_outcome, build, latest, read_log, read_state, train

from diffusion_policy.common.checkpoint_file import load_payload
from diffusion_policy.common.errors import DataError
from diffusion_policy.workspace.evaluation import open_workspace


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


def bins_of(run_dir):
    """The centers in its last checkpoint."""
    state_dicts, _ = read_state(run_dir)
    return state_dicts["policy"]["action_ae.params_dict.bin_centers"]


def test_a_run_leaves_logs_and_checkpoints_under_the_published_names(bet_config, tmp_path):
    train(bet_config("training.num_epochs=2"), tmp_path)
    payload = load_payload(latest(tmp_path))
    assert set(payload["state_dicts"]) == {"policy", "optimizer"}
    assert set(payload["pickles"]) == {"global_step", "epoch", "resume_state", "_output_dir"}
    assert bins_of(tmp_path).shape == (5, 2)
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
    train(bet_config(), tmp_path / "whole")
    train(bet_config("training.num_epochs=2"), tmp_path / "cut")
    train(bet_config(), tmp_path / "cut")
    assert_same_outcome(tmp_path / "whole", tmp_path / "cut")


def test_the_bins_are_never_fitted_again(bet_config, tmp_path, monkeypatch):
    train(bet_config("training.num_epochs=1"), tmp_path)
    first = bins_of(tmp_path)
    workspace = build(bet_config("training.num_epochs=2"), tmp_path)
    monkeypatch.setattr(type(workspace.policy), "fit_action_ae", lambda *_: pytest.fail("a refit"))
    workspace.run()
    assert torch.equal(bins_of(tmp_path), first)


def test_a_seed_decides_the_bins(bet_config, tmp_path):
    short = ("training.num_epochs=1", "training.max_train_steps=1")
    for i, seed in enumerate((1, 1, 2)):
        train(bet_config(*short, f"training.seed={seed}"), tmp_path / str(i))
    bins = [bins_of(tmp_path / str(i)) for i in range(3)]
    assert torch.equal(bins[0], bins[1])
    assert not torch.equal(bins[0], bins[2])


def test_the_bins_are_fitted_to_normalised_actions(bet_config, tmp_path):
    train(bet_config("training.num_epochs=1"), tmp_path)
    assert bins_of(tmp_path).abs().max() <= 1


def test_without_a_normalizer_everything_stays_in_raw_units(bet_config, tmp_path):
    train(bet_config("training.enable_normalizer=False", "training.num_epochs=1"), tmp_path)
    policy = read_state(tmp_path)[0]["policy"]
    for field in ("obs", "action"):
        assert torch.equal(policy[f"normalizer.params_dict.{field}.scale"], torch.ones(1))
        assert torch.equal(policy[f"normalizer.params_dict.{field}.offset"], torch.zeros(1))
    assert bins_of(tmp_path).abs().max() > 10


def test_the_gradient_of_every_batch_is_clipped(bet_config, tmp_path):
    """Also where those of several batches accumulate; lr_* keys are without effect."""
    cfg = bet_config(
        "training.grad_norm_clip=0.01",
        "training.gradient_accumulate_every=2",
        "training.num_epochs=1",
        "training.lr_warmup_steps=3",
    )
    workspace = build(cfg, tmp_path)
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


def test_a_norm_for_all_gradients_counts_beside_that_of_the_prior(bet_config, tmp_path):
    options = [
        "training.num_epochs=1",
        "training.grad_norm_clip=100",
        "++training.max_grad_norm=1e-3",
    ]
    workspace = build(bet_config(*options), tmp_path)
    norms = []

    def before_the_step(*_):
        grads = [p.grad.norm() for p in workspace.policy.parameters() if p.grad is not None]
        norms.append(torch.stack(grads).norm().item())

    workspace.optimizer.register_step_pre_hook(before_the_step)
    workspace.run()
    assert norms == pytest.approx([1e-3] * len(norms), rel=1e-2)
    assert norms


def test_a_configuration_with_interpolations_is_saved_resolved(bet_config, tmp_path):
    cfg = bet_config("training.num_epochs=1", "training.max_train_steps=1")
    cfg.policy.horizon = "${horizon}"
    train(cfg, tmp_path)
    saved = load_payload(latest(tmp_path))["cfg"]
    assert OmegaConf.to_container(saved, resolve=False)["policy"]["horizon"] == 3


def test_more_bins_than_actions_is_one_sentence(bet_config, tmp_path):
    with pytest.raises(DataError, match=r"200 actions for num_bins=900"):
        train(bet_config("policy.action_ae.num_bins=900"), tmp_path)


@pytest.mark.parametrize("task", ["blockpush_lowdim_seed", "pusht_lowdim"])
def test_the_shipped_policy_has_the_published_parameters(compose_config, golden, task):
    stock = json.loads((golden / "e_stock_state_dicts.json").read_text())
    name = "train_bet_lowdim_workspace"
    expected = stock[name if task.startswith("blockpush") else f"{name}+task={task}"]
    policy = build(compose_config(name, f"task={task}"), "unused").policy
    ours = layout(policy)
    assert ours == expected["state_dict"]
    assert list(ours) == list(expected["state_dict"])
    assert sum(p.numel() for p in policy.parameters()) == expected["n_params"]


# ---- the original's own run ----------------------------------------------------------------------


@pytest.fixture
def reference_run(open_reference_run):
    return open_reference_run("bet_lowdim")


def test_a_reference_run_gives_the_reference_losses(reference_run, tmp_path):
    """The same seed gives the bins, the loss curve, the scores and the errors that the original
    logged."""
    train(reference_run.config(noise="batch", n_workers=0), tmp_path / "run")
    torch.testing.assert_close(
        bins_of(tmp_path / "run"), bins_of(reference_run.path), rtol=1e-4, atol=1e-5
    )

    def parts_of_the_last_batch(line):
        """In the record of an epoch, which has their means here."""
        return {"train_loss_offset", "train_loss_class"} if "val_loss" in line else set()

    reference_run.check_log(tmp_path / "run", leave_out=parts_of_the_last_batch)


def test_a_reference_checkpoint_continues(reference_run, tmp_path):
    reference_run.copy_to(tmp_path / "run")
    cfg = reference_run.config(noise="batch", n_workers=0)
    cfg.training.num_epochs = 3
    train(cfg, tmp_path / "run")
    log = read_log(tmp_path / "run")
    assert [line["epoch"] for line in log if "val_loss" in line] == [0, 1, 2]
    assert log[26]["global_step"] == 26
    assert log[26]["train_loss"] < 17  # it did not start over, at 31
    assert torch.equal(bins_of(tmp_path / "run"), bins_of(reference_run.path))
    state_dicts, _ = read_state(tmp_path / "run")
    steps = {int(s["step"]) for s in state_dicts["optimizer"]["state"].values()}
    assert steps == {36}


def test_a_reference_checkpoint_predicts_the_reference_actions(reference_run, tmp_path):
    with open_workspace(reference_run.checkpoint, tmp_path) as workspace:
        pass
    reference_run.check_policy(workspace.get_eval_policy())
