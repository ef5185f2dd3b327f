"""The life of a run: logs, checkpoints, resume."""

import math
import pathlib

import pytest
import torch
from runs import (
    assert_equal,
    assert_same_outcome,
    build,
    latest,
    read_log,
    read_state,
    train,
    train_until,
)

from diffusion_policy.common.checkpoint_file import load_payload
from diffusion_policy.common.errors import CheckpointError, ConfigError, NonFiniteLossError
from diffusion_policy.workspace.train_diffusion_unet_lowdim_workspace import (
    TrainDiffusionUnetLowdimWorkspace as Workspace,
)


def test_a_run_leaves_logs_and_checkpoints(tiny_config, tmp_path):
    train(tiny_config(), tmp_path)
    log = read_log(tmp_path)
    assert [line["global_step"] for line in log] == list(range(len(log)))
    ends = [line for line in log if "val_loss" in line]
    assert [line["epoch"] for line in ends] == [0, 1, 2]
    for line in ends:
        assert {"train_loss", "lr", "train_action_mse_error", "test/mean_score"} <= line.keys()
    payload = load_payload(latest(tmp_path))
    assert set(payload) == {"cfg", "state_dicts", "pickles"}
    assert set(payload["state_dicts"]) == {"model", "ema_model", "optimizer"}
    assert set(payload["pickles"]) == {"global_step", "epoch", "resume_state", "_output_dir"}
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names[-1] == "latest.ckpt"
    assert len(names) == 4
    assert names[0].startswith("epoch=0000-test_mean_score=")


def test_the_epoch_line_holds_the_mean_loss_of_its_steps(tiny_config, tmp_path):
    train(tiny_config("training.num_epochs=1", "training.max_train_steps=2"), tmp_path)
    *steps, end = read_log(tmp_path)
    assert [s["global_step"] for s in steps] == [0, 1]
    assert end["global_step"] == 1
    assert end["train_loss"] == pytest.approx(sum(s["train_loss"] for s in steps) / 2)


def test_the_first_step_has_warm_up_rate_zero_and_logs_the_next(tiny_config, tmp_path):
    train(tiny_config("training.num_epochs=1", "training.max_train_steps=1"), tmp_path)
    assert read_log(tmp_path)[0]["lr"] == pytest.approx(0.5e-4)


@pytest.mark.parametrize("killed_after", [1, 2])
def test_resuming_ends_bit_identical_to_an_uninterrupted_run(tiny_config, tmp_path, killed_after):
    train(tiny_config(), tmp_path / "whole")
    train_until(in_the_middle_of(killed_after), tiny_config(), tmp_path / "cut")
    # a few lines more were written before it died, and half a line
    with (tmp_path / "cut" / "logs.json.txt").open("a") as file:
        file.write('{"train_loss": 1.0, "global_step": 99, "epoch": 9}\n{"train_lo')
    train(tiny_config(), tmp_path / "cut")
    assert_same_outcome(tmp_path / "whole", tmp_path / "cut")
    names = [
        sorted(p.name for p in (tmp_path / d / "checkpoints").iterdir()) for d in ("whole", "cut")
    ]
    assert names[0] == names[1]


def in_the_middle_of(epoch):
    return lambda workspace: workspace.epoch == epoch and workspace.global_step % 3 == 2


def test_a_finished_run_stays_as_it_is_when_started_again(tiny_config, tmp_path):
    train(tiny_config(), tmp_path)
    before = (tmp_path / "logs.json.txt").read_bytes()
    train(tiny_config(), tmp_path)
    assert (tmp_path / "logs.json.txt").read_bytes() == before


def test_the_last_epoch_is_saved_whenever_checkpoints_are_due(tiny_config, tmp_path, caplog):
    train(tiny_config("training.checkpoint_every=2", "training.num_epochs=2"), tmp_path)
    _, pickles = read_state(tmp_path)
    assert pickles["epoch"] == 1
    assert len(list((tmp_path / "checkpoints").glob("epoch=*"))) == 1
    assert "monitor_key" not in caplog.text


def test_resuming_with_more_epochs_runs_the_remaining_ones(tiny_config, tmp_path):
    train(tiny_config(), tmp_path)
    train(tiny_config("training.num_epochs=5"), tmp_path)
    ends = [line["epoch"] for line in read_log(tmp_path) if "val_loss" in line]
    assert ends == [0, 1, 2, 3, 4]


def test_a_run_killed_before_its_first_checkpoint_starts_its_log_again(tiny_config, tmp_path):
    (tmp_path / "logs.json.txt").write_text('{"train_loss": 1.0, "global_step": 0, "epoch": 0}\n')
    train(tiny_config("training.num_epochs=1"), tmp_path)
    assert [line["global_step"] for line in read_log(tmp_path)][:2] == [0, 1]


def test_a_run_is_never_overwritten_by_a_fresh_one(tiny_config, tmp_path):
    train(tiny_config("training.num_epochs=1"), tmp_path)
    with pytest.raises(ConfigError, match=r"already holds a run.*training\.resume=True.*run\.dir"):
        train(tiny_config("training.resume=False"), tmp_path)


def test_a_top_k_file_that_a_kill_prevented_is_kept_on_resume(tiny_config, tmp_path):
    train(tiny_config("training.num_epochs=1"), tmp_path)
    (kept,) = (tmp_path / "checkpoints").glob("epoch=*")
    kept.unlink()
    train(tiny_config("training.num_epochs=1"), tmp_path)
    assert kept.exists()


def test_only_the_best_k_checkpoints_stay(tiny_config, tmp_path):
    train(tiny_config("checkpoint.topk.k=1", "training.num_epochs=4"), tmp_path)
    (kept,) = (tmp_path / "checkpoints").glob("epoch=*")
    best = max(line["test/mean_score"] for line in read_log(tmp_path) if "val_loss" in line)
    assert f"{best:.3f}" in kept.name


def test_a_resumed_run_with_another_network_is_refused(tiny_config, tmp_path):
    train(tiny_config("training.num_epochs=1"), tmp_path)
    with pytest.raises(CheckpointError, match=r"'model' of the checkpoint does not fit.*run\.dir"):
        train(tiny_config("policy.model.down_dims=[16,32]"), tmp_path)


def test_a_damaged_checkpoint_is_one_sentence_that_names_another(tiny_config, tmp_path):
    train(tiny_config(), tmp_path)
    checkpoint = latest(tmp_path)
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"latest\.ckpt.*epoch="):
        train(tiny_config(), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(tiny_config, tmp_path):
    cfg = tiny_config("training.lr_warmup_steps=0")
    workspace = build(cfg, tmp_path)
    compute_loss = workspace.model.compute_loss

    def broken(batch):
        loss = compute_loss(batch)
        return loss * math.nan if workspace.epoch == 1 and workspace.global_step % 3 == 1 else loss

    workspace.model.compute_loss = broken
    with pytest.raises(
        NonFiniteLossError, match=r"step \d+ \(epoch 1, data set items .*latest\.ckpt"
    ):
        workspace.run()
    saved = load_payload(latest(tmp_path))
    assert all(torch.isfinite(v).all() for v in saved["state_dicts"]["model"].values())
    assert all(math.isfinite(line["train_loss"]) for line in read_log(tmp_path))


def test_gradient_accumulation_steps_every_nth_batch(tiny_config, tmp_path):
    cfg = tiny_config("training.gradient_accumulate_every=2", "training.num_epochs=1")
    workspace = build(cfg, tmp_path)
    steps = []
    workspace.optimizer.register_step_post_hook(lambda *_: steps.append(workspace.global_step))
    workspace.run()
    assert steps == [s for s in range(len(read_log(tmp_path))) if s % 2 == 0]


def test_debug_mode_visits_everything_in_two_epochs(tiny_config, tmp_path):
    cfg = tiny_config("training.debug=True", "training.num_epochs=100", "training.rollout_every=50")
    train(cfg, tmp_path)
    ends = [line for line in read_log(tmp_path) if "val_loss" in line]
    assert [line["epoch"] for line in ends] == [0, 1]
    assert all("test/mean_score" in line for line in ends)


def test_validation_uses_the_raw_model_and_is_left_out_without_data(tiny_config, tmp_path):
    train(tiny_config("task.dataset.val_ratio=0", "training.num_epochs=1"), tmp_path)
    assert not any("val_loss" in line for line in read_log(tmp_path))


def test_a_score_that_is_not_measured_skips_the_top_k(tiny_config, tmp_path, caplog):
    train(tiny_config("training.rollout_every=2", "training.num_epochs=2"), tmp_path)
    assert len(list((tmp_path / "checkpoints").glob("epoch=*"))) == 1
    assert "test_mean_score" in caplog.text


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("task.obs_dim=19", r"obs.*20 values per step.*obs_dim=19"),
        ("task.action_dim=3", r"action.*2 values per step.*action_dim=3"),
        ("horizon=15", r"horizon"),
        ("n_action_steps=30", r"horizon"),
        ("task.env_runner._target_=toys.NotARunner", r"env_runner is a NotARunner"),
        ("task.dataset._target_=torch.nn.Identity", r"dataset is a Identity"),
        (
            "policy._target_=diffusion_policy.policy.nothing.Here",
            r"diffusion_policy\.policy\.nothing",
        ),
        ("+policy.model.colour=red", r"colour"),
    ],
)
def test_a_configuration_that_cannot_work_is_one_sentence(
    tiny_config, tmp_path, override, sentence
):
    with pytest.raises(ConfigError, match=sentence):
        train(tiny_config(override), tmp_path)


def test_a_full_disk_ends_the_run_and_keeps_the_previous_checkpoint(
    tiny_config, tmp_path, monkeypatch
):
    import errno

    train(tiny_config("training.num_epochs=1"), tmp_path)
    before = latest(tmp_path).read_bytes()
    save = torch.save

    def disk_full(payload, file, **kwargs):
        file.write(b"x" * 1000)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(CheckpointError, match=r"latest\.ckpt.*space"):
        train(tiny_config("training.num_epochs=3"), tmp_path)
    monkeypatch.setattr(torch, "save", save)
    assert latest(tmp_path).read_bytes() == before
    assert [p.name for p in (tmp_path / "checkpoints").glob(".*")] == []


def test_a_snapshot_of_a_running_training_can_be_built_again(tiny_config, tmp_path):
    cfg = tiny_config("checkpoint.save_last_snapshot=True")
    workspace = train(cfg, tmp_path)
    again = type(workspace).create_from_snapshot(tmp_path / "snapshots" / "latest.pkl")
    assert (again.epoch, again.global_step) == (workspace.epoch - 1, workspace.global_step - 1)
    for name in ("model", "ema_model", "optimizer"):
        assert_equal(getattr(again, name).state_dict(), getattr(workspace, name).state_dict())
    again.save_checkpoint(use_thread=False)


def test_the_original_can_read_what_is_in_our_checkpoints(tiny_config, tmp_path):
    """Only names it has attributes for in state_dicts; only plain Python values in pickles."""
    import dill

    train(tiny_config("training.num_epochs=1"), tmp_path)
    for data in load_payload(latest(tmp_path))["pickles"].values():
        only_plain(dill.loads(data))


def only_plain(value):
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        for item in value:
            only_plain(item)
    else:
        assert value is None or type(value) in (int, float, str, bytes, bool), type(value)


# ---- the original's own runs ---------------------------------------------------------------------


@pytest.fixture
def reference_run(open_reference_run):
    return open_reference_run("unet_lowdim")


def test_a_reference_run_gives_the_reference_losses(reference_run, tmp_path):
    """The same seed gives the loss curve, the scores and the errors that the original logged."""
    train(reference_run.config(noise="batch"), tmp_path / "run")
    reference_run.check_log(tmp_path / "run")


def test_a_reference_checkpoint_continues(reference_run, tmp_path):
    reference_run.copy_to(tmp_path / "run")
    cfg = reference_run.config()
    cfg.training.num_epochs = 3
    workspace = train(cfg, tmp_path / "run")
    log = read_log(tmp_path / "run")
    assert [line["epoch"] for line in log if "val_loss" in line] == [0, 1, 2]
    assert log[26]["global_step"] == 26
    assert log[26]["train_loss"] < 1.2  # it did not start over
    assert workspace.ema.optimization_step > 26  # nor did the moving average


def test_a_reference_checkpoint_predicts_the_reference_actions(reference_run, tmp_path):
    workspace = Workspace.create_from_checkpoint(reference_run.checkpoint, output_dir=str(tmp_path))
    assert pathlib.Path(workspace.output_dir) == tmp_path
    reference_run.check_policy(workspace.get_eval_policy())
