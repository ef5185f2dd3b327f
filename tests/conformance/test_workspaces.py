"""A run of any method: what it leaves behind, that a kill costs nothing, that it evaluates."""

import json

import hydra
import pytest
import torch

from diffusion_policy.common.safe_pickle import load_payload, safe_loads
from diffusion_policy.workspace.evaluation import evaluate


class Killed(BaseException):
    """Ends a run as abruptly as an exception can; workspace/test_kill.py uses kill -9."""


def train_until(cfg, path, n_steps):
    workspace = hydra.utils.get_class(cfg._target_)(cfg, output_dir=str(path))
    train_step, steps = workspace.train_step, []

    def dying_step(batch):
        if len(steps) == n_steps:
            raise Killed
        steps.append(1)
        return train_step(batch)

    workspace.train_step = dying_step
    with pytest.raises(Killed):
        workspace.run()
    workspace.wait_for_checkpoints()


def read_log(path):
    return [json.loads(line) for line in (path / "logs.json.txt").read_text().splitlines()]


def read_state(path):
    payload = load_payload(path / "checkpoints" / "latest.ckpt", trust=True)
    pickles = {k: safe_loads(v) for k, v in payload["pickles"].items() if k != "_output_dir"}
    return payload["state_dicts"], pickles


def assert_equal(a, b, path=""):
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}/{i}")
    elif torch.is_tensor(a):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def test_every_epoch_is_logged_and_scored(run):
    log = read_log(run.path)
    epochs = [line for line in log if "test/mean_score" in line]
    assert [line["epoch"] for line in epochs] == [0, 1, 2, 3]
    steps = [line["global_step"] for line in log]
    assert steps == sorted(steps)
    for line in log:
        assert torch.isfinite(torch.tensor(line["train_loss"]))
    assert all("val_loss" in line for line in epochs)
    if run.cfg.training.get("sample_every") == 1:
        assert all("train_action_mse_error" in line for line in epochs)


def test_training_changes_the_weights(run):
    fresh = hydra.utils.get_class(run.cfg._target_)(run.cfg, output_dir=str(run.path))
    before = dict(fresh.get_eval_policy().named_parameters())
    after = dict(run.workspace.get_eval_policy().named_parameters())
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert changed


def test_the_best_checkpoints_are_kept_under_their_score(run):
    log = read_log(run.path)
    scores = {line["epoch"]: line["test/mean_score"] for line in log if "test/mean_score" in line}
    names = {path.name for path in (run.path / "checkpoints").glob("epoch=*.ckpt")}
    kept = run.cfg.checkpoint.topk.k
    best = sorted(scores, key=lambda epoch: -scores[epoch])[:kept]
    assert names == {
        run.cfg.checkpoint.topk.format_str.format(epoch=e, test_mean_score=scores[e]) for e in best
    }


def test_a_killed_run_continues_as_if_nothing_had_happened(run, tmp_path):
    """Killed in the middle of an epoch, resumed: weights, optimizer, counters and log are equal."""
    train_until(run.cfg, tmp_path, n_steps=5)
    workspace = hydra.utils.get_class(run.cfg._target_)(run.cfg, output_dir=str(tmp_path))
    workspace.run()
    assert_equal(read_state(run.path), read_state(tmp_path))
    ours, whole = read_log(tmp_path), read_log(run.path)
    for line in (*ours, *whole):  # files are named at random
        for key in [key for key in line if "sim_video" in key]:
            del line[key]
    assert ours == whole


def test_a_checkpoint_evaluates_to_the_score_of_its_epoch(case, run, tmp_path):
    trust = case.config_dir is not None
    log = evaluate(run.path / "checkpoints" / "latest.ckpt", tmp_path, device="cpu", trust=trust)
    assert log["test/mean_score"] == pytest.approx(
        read_log(run.path)[-1]["test/mean_score"], abs=1e-6
    )


def test_a_score_does_not_depend_on_how_many_environments_run_at_once(case, run, tmp_path):
    def score(n_envs):
        return evaluate(
            run.path / "checkpoints" / "latest.ckpt",
            tmp_path,
            device="cpu",
            overrides=[f"task.env_runner.n_envs={n_envs}", "task.env_runner.n_test_vis=0"],
            deterministic=True,
            trust=case.config_dir is not None,
        )

    assert score(1) == score(2)


def test_evaluation_uses_the_moving_average_where_there_is_one(run):
    state_dicts, _ = read_state(run.path)
    averaged = bool(run.cfg.training.get("use_ema"))
    assert ("ema_model" in state_dicts) == averaged
    if averaged:
        assert run.workspace.get_eval_policy() is run.workspace.ema_model
        assert any(
            not torch.equal(value, state_dicts["model"][key])
            for key, value in state_dicts["ema_model"].items()
        )
