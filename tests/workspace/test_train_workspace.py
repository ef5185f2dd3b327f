"""The life of a run: logs, checkpoints, resume."""

import json
import math
import pathlib
import shutil

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_policy.common.errors import CheckpointError, ConfigError, NonFiniteLossError
from diffusion_policy.common.safe_pickle import load_payload
from diffusion_policy.workspace.train_diffusion_unet_lowdim_workspace import (
    TrainDiffusionUnetLowdimWorkspace as Workspace,
)


def read_log(run_dir):
    return [json.loads(line) for line in (run_dir / "logs.json.txt").read_text().splitlines()]


def train(cfg, run_dir):
    Workspace(cfg, output_dir=str(run_dir)).run()
    return load_payload(run_dir / "checkpoints" / "latest.ckpt")


def assert_same_state(a, b):
    """Bitwise: every tensor and number of the state dicts and the pickles."""
    assert a["pickles"] == b["pickles"]
    flat_a, flat_b = flatten(a["state_dicts"]), flatten(b["state_dicts"])
    assert flat_a.keys() == flat_b.keys()
    for key, value in flat_a.items():
        same = torch.equal(value, flat_b[key]) if torch.is_tensor(value) else value == flat_b[key]
        assert same, key


def flatten(value, prefix=""):
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {prefix: value}
    return {k: v for key, item in items for k, v in flatten(item, f"{prefix}.{key}").items()}


def test_a_run_leaves_logs_and_checkpoints(tiny_config, tmp_path):
    payload = train(tiny_config(), tmp_path)
    log = read_log(tmp_path)
    assert [line["global_step"] for line in log] == list(range(len(log)))
    ends = [line for line in log if "val_loss" in line]
    assert [line["epoch"] for line in ends] == [0, 1, 2]
    for line in ends:
        assert {"train_loss", "lr", "train_action_mse_error", "test/mean_score"} <= line.keys()
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
    whole = train(tiny_config(), tmp_path / "whole")
    cut = tiny_config()
    cut_workspace = Workspace(cut, output_dir=str(tmp_path / "cut"))
    stop_after(cut_workspace, killed_after)
    with pytest.raises(KeyboardInterrupt):
        cut_workspace.run()
    # a few lines more were written before it died, and half a line
    with (tmp_path / "cut" / "logs.json.txt").open("a") as file:
        file.write('{"train_loss": 1.0, "global_step": 99, "epoch": 9}\n{"train_lo')
    resumed = train(tiny_config(), tmp_path / "cut")
    whole["pickles"].pop("_output_dir"), resumed["pickles"].pop("_output_dir")
    assert_same_state(unpickled(whole), unpickled(resumed))
    assert (tmp_path / "whole/logs.json.txt").read_bytes() == (
        tmp_path / "cut/logs.json.txt"
    ).read_bytes()
    names = [
        sorted(p.name for p in (tmp_path / d / "checkpoints").iterdir()) for d in ("whole", "cut")
    ]
    assert names[0] == names[1]


def unpickled(payload):
    from diffusion_policy.common.safe_pickle import safe_loads

    pickles = {key: safe_loads(data) for key, data in payload["pickles"].items()}
    return payload | {"pickles": pickles}


def stop_after(workspace, epochs):
    """Stops a run in the middle of an epoch, as Ctrl-C does."""
    train_step = workspace.train_step

    def step(batch):
        if workspace.epoch == epochs and workspace.global_step % 3 == 2:
            raise KeyboardInterrupt
        return train_step(batch)

    workspace.train_step = step


def test_a_finished_run_stays_as_it_is_when_started_again(tiny_config, tmp_path):
    train(tiny_config(), tmp_path)
    before = (tmp_path / "logs.json.txt").read_bytes()
    train(tiny_config(), tmp_path)
    assert (tmp_path / "logs.json.txt").read_bytes() == before


def test_the_last_epoch_is_saved_whenever_checkpoints_are_due(tiny_config, tmp_path, caplog):
    train(tiny_config("training.checkpoint_every=2", "training.num_epochs=2"), tmp_path)
    payload = unpickled(load_payload(tmp_path / "checkpoints" / "latest.ckpt"))
    assert payload["pickles"]["epoch"] == 1
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
    latest = tmp_path / "checkpoints" / "latest.ckpt"
    latest.write_bytes(latest.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"latest\.ckpt.*epoch="):
        train(tiny_config(), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(tiny_config, tmp_path):
    cfg = tiny_config("training.lr_warmup_steps=0")
    workspace = Workspace(cfg, output_dir=str(tmp_path))
    compute_loss = workspace.model.compute_loss

    def broken(batch):
        loss = compute_loss(batch)
        return loss * math.nan if workspace.epoch == 1 and workspace.global_step % 3 == 1 else loss

    workspace.model.compute_loss = broken
    with pytest.raises(
        NonFiniteLossError, match=r"step \d+ \(epoch 1, data set items .*latest\.ckpt"
    ):
        workspace.run()
    saved = load_payload(tmp_path / "checkpoints" / "latest.ckpt")
    assert all(torch.isfinite(v).all() for v in saved["state_dicts"]["model"].values())
    assert all(math.isfinite(line["train_loss"]) for line in read_log(tmp_path))


def test_gradient_accumulation_steps_every_nth_batch(tiny_config, tmp_path):
    cfg = tiny_config("training.gradient_accumulate_every=2", "training.num_epochs=1")
    workspace = Workspace(cfg, output_dir=str(tmp_path))
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
    latest = tmp_path / "checkpoints" / "latest.ckpt"
    before = latest.read_bytes()
    save = torch.save

    def disk_full(payload, file, **kwargs):
        file.write(b"x" * 1000)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(CheckpointError, match=r"latest\.ckpt.*space"):
        train(tiny_config("training.num_epochs=3"), tmp_path)
    monkeypatch.setattr(torch, "save", save)
    assert latest.read_bytes() == before
    assert [p.name for p in (tmp_path / "checkpoints").glob(".*")] == []


def test_the_original_can_read_what_is_in_our_checkpoints(tiny_config, tmp_path):
    """Only names it has attributes for in state_dicts; only plain Python values in pickles."""
    import dill

    payload = train(tiny_config("training.num_epochs=1"), tmp_path)
    for data in payload["pickles"].values():
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


def reference_run(golden, tmp_path, monkeypatch):
    shutil.copytree(golden / "k_data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)  # its configuration names data/pusht_tiny.zarr
    return golden / "k_checkpoints" / "unet_lowdim"


def test_a_reference_run_gives_the_reference_losses(golden, tmp_path, monkeypatch):
    """The same seed gives the loss curve, the scores and the errors that the original logged."""
    run = reference_run(golden, tmp_path, monkeypatch)
    cfg = load_payload(run / "checkpoints" / "latest.ckpt")["cfg"]
    OmegaConf.update(
        cfg, "task.env_runner.noise", "batch", force_add=True
    )  # rollouts draw from the global generator, as they did
    train(cfg, tmp_path / "run")
    expected = [json.loads(line) for line in (run / "logs.json.txt").read_text().splitlines()]
    ours = read_log(tmp_path / "run")
    assert len(ours) == len(expected)
    for line, reference in zip(ours, expected, strict=True):
        assert {k for k in line if "sim_video" not in k} == reference.keys()
        for key, value in reference.items():
            assert line[key] == pytest.approx(value, rel=1e-3, abs=1e-5), (key, reference["epoch"])


def test_a_reference_checkpoint_continues(golden, tmp_path, monkeypatch):
    run = reference_run(golden, tmp_path, monkeypatch)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.copy(run / "checkpoints" / "latest.ckpt", tmp_path / "run" / "checkpoints")
    shutil.copy(run / "logs.json.txt", tmp_path / "run")
    cfg = load_payload(run / "checkpoints" / "latest.ckpt")["cfg"]
    cfg.training.num_epochs = 3
    workspace = Workspace(cfg, output_dir=str(tmp_path / "run"))
    workspace.run()
    log = read_log(tmp_path / "run")
    assert [line["epoch"] for line in log if "val_loss" in line] == [0, 1, 2]
    assert log[26]["global_step"] == 26
    assert log[26]["train_loss"] < 1.2  # it did not start over
    assert workspace.ema.optimization_step > 26  # nor did the moving average


def test_a_reference_checkpoint_predicts_the_reference_actions(golden, tmp_path, monkeypatch):
    run = reference_run(golden, tmp_path, monkeypatch)
    workspace = Workspace.create_from_checkpoint(
        run / "checkpoints" / "latest.ckpt", output_dir=str(tmp_path)
    )
    expected = torch.load(run / "expected.pt", weights_only=True)
    policy = workspace.get_eval_policy().eval()
    torch.manual_seed(expected["seed_predict"])
    result = policy.predict_action(expected["obs"])
    for key, value in expected["predict"].items():
        torch.testing.assert_close(result[key], value, rtol=1e-3, atol=0.05)
    torch.manual_seed(expected["seed_loss"])
    loss = policy.compute_loss(expected["batch"])
    torch.testing.assert_close(loss, expected["loss_eval_mode"], rtol=1e-4, atol=1e-5)
    assert pathlib.Path(workspace.output_dir) == tmp_path
