"""Continuing a run: which checkpoint, what is compared, and that a step leaves nothing behind."""

import itertools
import logging
import os
import shutil

import pytest
from omegaconf import OmegaConf
from runs import (
    LOG,
    assert_same_outcome,
    build,
    latest,
    read_lines,
    read_log,
    read_state,
    train,
    train_until,
)

from diffusion_policy.common.checkpoint_file import load_payload
from diffusion_policy.common.errors import CheckpointError, ConfigError
from diffusion_policy.common.safe_pickle import safe_loads
from diffusion_policy.workspace import resume
from diffusion_policy.workspace.base_workspace import write_payload


def at_batch(n):
    """Stops before the n-th batch of this session."""
    batches = itertools.count()
    return lambda _: next(batches) == n


def checkpoint_names(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def assert_same_run(run_dir, other):
    assert_same_outcome(run_dir, other)
    assert checkpoint_names(run_dir) == checkpoint_names(other)


def rewrite(path, **pickles):
    """Replaces values of a checkpoint; None removes one."""
    import dill

    payload = load_payload(path)
    for name, value in pickles.items():
        if value is None:
            del payload["pickles"][name]
        else:
            payload["pickles"][name] = dill.dumps(value)
    write_payload(payload, path)


def state_of(path):
    return safe_loads(load_payload(path)["pickles"]["resume_state"])


# ---- what a step leaves behind -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("killed_at", "options"),
    [
        (5, ["gradient_accumulate_every=2"]),
        (5, ["gradient_accumulate_every=3", "max_train_steps=2"]),
        (5, ["gradient_accumulate_every=4", "max_grad_norm=0.1"]),
        (9, ["gradient_accumulate_every=3", "mixed_precision=bf16"]),
        (5, ["gradient_accumulate_every=7"]),
    ],
    ids=str,
)
def test_gradients_that_wait_for_their_update_survive(tiny_config, tmp_path, killed_at, options):
    changes = [f"++training.{option}" for option in options]
    cfg = tiny_config("training.lr_warmup_steps=0", "optimizer.lr=1e-2", *changes)
    train(cfg, tmp_path / "whole")
    train_until(at_batch(killed_at), cfg, tmp_path / "cut")
    assert state_of(latest(tmp_path / "cut"))["gradients"]
    train(cfg, tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_without_accumulation_no_gradient_waits(tiny_config, tmp_path):
    workspace = train(tiny_config("training.num_epochs=1"), tmp_path)
    assert state_of(latest(tmp_path))["gradients"] == {}
    assert "gradients" not in workspace.resume_state, "they are as large as the weights"


def test_a_checkpoint_without_gradients_is_continued_with_a_warning(tiny_config, tmp_path, caplog):
    cfg = tiny_config("training.gradient_accumulate_every=2", "training.num_epochs=1")
    train(cfg, tmp_path)
    state = state_of(latest(tmp_path))
    del state["gradients"]
    rewrite(latest(tmp_path), resume_state=state)
    cfg.training.num_epochs = 2
    train(cfg, tmp_path)
    assert "the next update is made without them" in caplog.text
    assert read_log(tmp_path)[-1]["epoch"] == 1


def test_workers_that_live_on_draw_the_same_numbers_after_a_resume(tiny_config, tmp_path):
    """Torch draws a seed for new workers, and none for those that are there."""
    loaders = [
        f"{name}.{option}"
        for name in ("dataloader", "val_dataloader")
        for option in ("num_workers=1", "persistent_workers=True")
    ]
    cfg = tiny_config(*loaders, "task.dataset._target_=toys.StoredDataset")
    train(cfg, tmp_path / "whole")
    assert state_of(latest(tmp_path / "whole"))["workers"] == ["train_loader", "val_loader"]
    train_until(at_batch(4), cfg, tmp_path / "cut")
    train(cfg, tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("stage", ["before the name", "before the deletion"])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_kill_between_a_checkpoint_and_its_place_among_the_best(
    tiny_config, tmp_path, monkeypatch, stage, mode
):
    """The file that was to go, goes; no epoch of later ones has to come for it."""
    cfg = tiny_config(
        "training.num_epochs=4", "checkpoint.topk.k=1", f"checkpoint.topk.mode={mode}"
    )
    train(cfg, tmp_path / "whole")
    [best] = (tmp_path / "whole" / "checkpoints").glob("epoch=*")
    killed_after = int(best.name[6:10])

    workspace = build(cfg, tmp_path / "cut")
    in_background = workspace._in_background
    survivors = {"before the name": 1, "before the deletion": 2}[stage]
    jobs = itertools.count()

    def until_the_kill(job):
        if workspace.epoch < killed_after or next(jobs) < survivors:
            in_background(job)

    monkeypatch.setattr(workspace, "_in_background", until_the_kill)
    step = workspace.train_step

    def dying_step(batch):
        if workspace.epoch > killed_after:
            raise KeyboardInterrupt
        return step(batch)

    workspace.train_step = dying_step
    if killed_after == 3:  # its last act
        workspace.run()
    else:
        with pytest.raises(KeyboardInterrupt):
            workspace.run()
    workspace.wait_for_checkpoints()
    train(cfg, tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


# ---- which checkpoint ----------------------------------------------------------------------------


@pytest.mark.parametrize("keep_dates", [True, False])
def test_without_the_last_checkpoint_the_newest_other_one_continues(
    tiny_config, tmp_path, caplog, keep_dates
):
    """It is the newest by its content: a copied folder has other dates."""
    train(tiny_config(), tmp_path / "whole")
    train_until(at_batch(8), tiny_config(), tmp_path / "cut")
    latest(tmp_path / "cut").unlink()
    if not keep_dates:
        oldest = min((tmp_path / "cut" / "checkpoints").glob("epoch=*"))
        os.utime(oldest, (2e9, 2e9))
    train(tiny_config(), tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    assert "There is no latest.ckpt: the newest checkpoint is epoch=0001" in caplog.text
    assert not list((tmp_path / "cut").glob(f"{LOG}.*")), "the log is continued"


def test_the_sentence_about_a_damaged_checkpoint_works_when_it_is_followed(tiny_config, tmp_path):
    train(tiny_config(), tmp_path / "whole")
    train_until(at_batch(8), tiny_config(), tmp_path / "cut")
    damaged = latest(tmp_path / "cut")
    damaged.write_bytes(damaged.read_bytes()[:5000])
    log = (tmp_path / "cut" / LOG).read_bytes()
    with pytest.raises(
        CheckpointError,
        match=r"breaks off after 5000 bytes; delete it: the newest other checkpoint there is "
        r".*epoch=0001.*, and a training that is started again continues from the newest one that "
        "is left",
    ):
        train(tiny_config(), tmp_path / "cut")
    assert (tmp_path / "cut" / LOG).read_bytes() == log
    damaged.unlink()
    train(tiny_config(), tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_the_sentence_about_an_only_checkpoint_works_when_it_is_followed(tiny_config, tmp_path):
    cfg = tiny_config("checkpoint.topk.k=0", "training.num_epochs=1")
    train(cfg, tmp_path)
    log = (tmp_path / LOG).read_bytes()
    latest(tmp_path).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"delete it: there is no other .* old log is kept"):
        train(cfg, tmp_path)
    latest(tmp_path).unlink()
    train(cfg, tmp_path)
    assert (tmp_path / f"{LOG}.1").read_bytes() == log
    assert (tmp_path / LOG).read_bytes() == log, "the same run once more"


def test_a_damaged_other_checkpoint_is_passed_over_by_name(tiny_config, tmp_path, caplog):
    train(tiny_config(), tmp_path / "whole")
    train_until(at_batch(8), tiny_config(), tmp_path / "cut")
    latest(tmp_path / "cut").unlink()
    newest = max((tmp_path / "cut" / "checkpoints").glob("epoch=*"))
    newest.write_bytes(newest.read_bytes()[:3000])
    train(tiny_config(), tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    assert f"Not continued from: checkpoint {newest} is incomplete" in caplog.text


@pytest.mark.parametrize("content", ["of the original", "something else", "empty", "dangling"])
def test_other_checkpoints_that_cannot_continue_stop_the_run(tiny_config, tmp_path, content):
    train(tiny_config("training.num_epochs=1", "checkpoint.topk.k=0"), tmp_path)
    log = (tmp_path / LOG).read_bytes()
    other = tmp_path / "checkpoints" / "epoch=0000-test_mean_score=0.500.ckpt"
    if content == "of the original":
        rewrite(latest(tmp_path), resume_state=None)
        latest(tmp_path).rename(other)
    elif content == "dangling":
        other.symlink_to(tmp_path / "nowhere")
    else:
        other.write_text("weights" if content == "something else" else "")
    latest(tmp_path).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"no latest\.ckpt, and none .*epoch=0000.*rename"):
        train(tiny_config(), tmp_path)
    assert (tmp_path / LOG).read_bytes() == log
    if content == "of the original":  # what the sentence says
        other.rename(latest(tmp_path))
        train(tiny_config("training.num_epochs=2"), tmp_path)
        assert read_log(tmp_path)[-1]["epoch"] == 1


def test_a_run_with_other_checkpoints_only_is_not_overwritten_by_a_fresh_one(tiny_config, tmp_path):
    train(tiny_config("training.num_epochs=1"), tmp_path)
    latest(tmp_path).unlink()
    with pytest.raises(ConfigError, match=r"already holds a run \(epoch=0000.*training\.resume"):
        train(tiny_config("training.resume=False"), tmp_path)


@pytest.mark.parametrize("resume_option", [True, False])
def test_the_log_of_a_run_killed_before_its_first_checkpoint_is_kept(
    tiny_config, tmp_path, caplog, resume_option
):
    cfg = tiny_config("training.num_epochs=1", f"training.resume={resume_option}")
    cfg.training.tqdm_interval_sec = 0  # every line at once
    train_until(at_batch(2), cfg, tmp_path)
    before = read_lines(tmp_path / LOG)
    assert len(before) == 2
    train(cfg, tmp_path)
    assert read_lines(tmp_path / f"{LOG}.1") == before
    assert read_log(tmp_path)[:2] == before
    assert "the old log is kept as" in caplog.text


@pytest.mark.parametrize("what", ["checkpoints/latest.ckpt", "checkpoints"])
def test_a_link_that_leads_nowhere_is_one_sentence(tiny_config, tmp_path, what):
    train(tiny_config("training.num_epochs=1"), tmp_path)
    moved = tmp_path / "scratch"
    (tmp_path / what).rename(moved)
    (tmp_path / what).symlink_to(moved)
    train(tiny_config("training.num_epochs=2"), tmp_path)  # a link is as good as a file
    log = (tmp_path / LOG).read_bytes()
    if what == "checkpoints/latest.ckpt":  # the new checkpoint has replaced the link
        (tmp_path / what).unlink()
        (tmp_path / what).symlink_to(tmp_path / "gone")
    else:
        moved.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=rf"{what} is a link to .*, which does not exist"):
        train(tiny_config(), tmp_path)
    assert (tmp_path / LOG).read_bytes() == log


def test_a_file_where_the_checkpoints_should_be_is_one_sentence(tiny_config, tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(CheckpointError, match="checkpoints is a file, but the folder"):
        train(tiny_config(), tmp_path)


def test_checkpoints_that_cannot_be_read_are_one_sentence(tiny_config, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    train(tiny_config("training.num_epochs=1"), tmp_path)
    monkeypatch.setattr(resume, "_other_checkpoints", refuse)
    with pytest.raises(CheckpointError, match=r"checkpoints cannot be read \(Permission denied\)"):
        train(tiny_config(), tmp_path)


# ---- other promises ------------------------------------------------------------------------------


def test_without_a_last_checkpoint_the_best_ones_continue(tiny_config, tmp_path, caplog):
    cfg = tiny_config("checkpoint.save_last_ckpt=False", "training.num_epochs=4")
    cfg.checkpoint.topk.k = 2
    train(cfg, tmp_path / "whole")
    assert "after a kill, training continues from the newest of its best 2" in caplog.text
    train_until(at_batch(10), cfg, tmp_path / "cut")
    train(cfg, tmp_path / "cut")
    assert checkpoint_names(tmp_path / "cut") == checkpoint_names(tmp_path / "whole")
    for name in checkpoint_names(tmp_path / "cut"):
        states = []
        for run in ("whole", "cut"):
            shutil.copy(tmp_path / run / "checkpoints" / name, latest(tmp_path / run))
            states.append(read_state(tmp_path / run))
        assert_same_outcome(tmp_path / "cut", tmp_path / "whole")


def test_a_run_that_saves_nothing_says_so(tiny_config, tmp_path, caplog):
    cfg = tiny_config("checkpoint.save_last_ckpt=False", "training.num_epochs=1")
    cfg.checkpoint.topk.k = 0
    train(cfg, tmp_path)
    assert "no checkpoint is written, so after a kill training begins anew" in caplog.text


def test_a_run_with_the_usual_options_has_nothing_to_warn_of(tiny_config, tmp_path, caplog):
    train(tiny_config("training.num_epochs=1"), tmp_path)
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_a_kill_in_the_last_snapshot_repeats_it(tiny_config, tmp_path, monkeypatch):
    cfg = tiny_config("checkpoint.save_last_snapshot=True", "training.num_epochs=2")
    workspace = build(cfg, tmp_path)
    save_snapshot = workspace.save_snapshot

    def die():
        if workspace.epoch == 1:
            raise KeyboardInterrupt
        return save_snapshot()

    monkeypatch.setattr(workspace, "save_snapshot", die)
    with pytest.raises(KeyboardInterrupt):
        workspace.run()
    workspace.wait_for_checkpoints()
    train(cfg, tmp_path)
    snapshot = type(workspace).create_from_snapshot(tmp_path / "snapshots" / "latest.pkl")
    assert snapshot.epoch == 1
    assert read_state(tmp_path)[1]["epoch"] == 1


# ---- what is compared ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.seed=43", r"training\.seed is 42 in latest\.ckpt, but 43 here"),
        ("task.name=other", r"task\.name is pusht_lowdim in latest\.ckpt, but other here"),
        ("task.dataset.zarr_path=data/other.zarr", r"task\.dataset\.zarr_path is .*other\.zarr"),
        ("training.use_ema=False", r"training\.use_ema is True in latest\.ckpt, but False"),
        (
            "_target_=diffusion_policy.workspace.train_diffusion_transformer_lowdim_workspace"
            ".TrainDiffusionTransformerLowdimWorkspace",
            r"_target_ is .*TrainDiffusionUnetLowdimWorkspace in latest\.ckpt",
        ),
    ],
    ids=lambda value: value.partition("=")[0],
)
def test_another_experiment_is_refused_also_by_a_finished_run(
    tiny_config, tmp_path, override, sentence
):
    train(tiny_config("training.num_epochs=1"), tmp_path)
    before = latest(tmp_path).read_bytes(), (tmp_path / LOG).read_bytes()
    cfg = tiny_config("training.num_epochs=1")
    key, _, value = override.partition("=")
    OmegaConf.update(cfg, key, OmegaConf.create(f"v: {value}").v)
    workspace = build(tiny_config("training.num_epochs=1"), tmp_path)
    workspace.cfg = cfg
    with pytest.raises(ConfigError, match=f"{tmp_path} holds another run: {sentence}.*choose"):
        workspace.run()
    assert (latest(tmp_path).read_bytes(), (tmp_path / LOG).read_bytes()) == before


def test_moved_data_and_more_epochs_are_the_same_run(tiny_config, tiny_pusht_zarr, tmp_path):
    train(tiny_config("training.num_epochs=1"), tmp_path)
    moved = tmp_path / "moved" / tiny_pusht_zarr.name
    shutil.copytree(tiny_pusht_zarr, moved)
    train(tiny_config(f"task.dataset.zarr_path={moved}", "training.num_epochs=2"), tmp_path)
    assert read_log(tmp_path)[-1]["epoch"] == 1


# ---- odd checkpoints -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pickles", "sentence"),
    [
        ({"resume_state": [1]}, "resume_state of the checkpoint is a list"),
        ({"resume_state": {"log_bytes": "x", "rng": 3}}, "odd log_bytes and rng"),
        ({"resume_state": {"rng": {}}}, "about the running epoch does not fit"),
        ({"resume_state": {"rng": {"torch": b"", "cuda": []}}}, "does not fit"),
        ({"resume_state": {"gradients": {"nothing": b""}}}, "does not fit"),
        ({"resume_state": {"gradients": {"model.final_conv.1.bias": b"123"}}}, "does not fit"),
        ({"resume_state": {"sampling_indices": [10**9]}}, "does not fit"),
        ({"resume_state": {"topk": {"files": [1, 2]}}}, "does not fit"),
    ],
    ids=str,
)
def test_an_odd_checkpoint_is_one_sentence(tiny_config, tmp_path, pickles, sentence):
    train(tiny_config("training.num_epochs=1"), tmp_path)
    rewrite(latest(tmp_path), **pickles)
    with pytest.raises(CheckpointError, match=sentence):
        train(tiny_config("training.num_epochs=2"), tmp_path)
