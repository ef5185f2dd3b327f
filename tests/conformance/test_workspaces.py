"""A run of any method: what it leaves behind, that a kill costs nothing, that it evaluates."""

import contextlib
import itertools

import pytest
import torch
from runs import assert_equal, build, latest, read_log, read_state, train, train_until

from diffusion_policy.common.draws import PartOfBatch, get_generators
from diffusion_policy.workspace.evaluation import evaluate


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
    fresh = build(run.cfg, run.path)
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
    batches = itertools.count()
    train_until(lambda _: next(batches) == 5, run.cfg, tmp_path)
    train(run.cfg, tmp_path)
    assert_equal(read_state(run.path, trust=True), read_state(tmp_path, trust=True))
    ours, whole = read_log(tmp_path), read_log(run.path)
    for line in (*ours, *whole):  # files are named at random
        for key in [key for key in line if "sim_video" in key]:
            del line[key]
    assert ours == whole


def test_a_checkpoint_evaluates_to_the_score_of_its_epoch(case, run, tmp_path):
    trust = case.config_dir is not None
    log = evaluate(latest(run.path), tmp_path, device="cpu", trust=trust)
    assert log["test/mean_score"] == pytest.approx(
        read_log(run.path)[-1]["test/mean_score"], abs=1e-6
    )


def test_a_score_does_not_depend_on_how_many_environments_run_at_once(case, run, tmp_path):
    def score(n_envs):
        return evaluate(
            latest(run.path),
            tmp_path,
            device="cpu",
            overrides=[f"task.env_runner.n_envs={n_envs}", "task.env_runner.n_test_vis=0"],
            deterministic=True,
            trust=case.config_dir is not None,
        )

    assert score(1) == score(2)


def test_evaluation_uses_the_moving_average_where_there_is_one(run):
    state_dicts, _ = read_state(run.path, trust=True)
    averaged = bool(run.cfg.training.get("use_ema"))
    assert ("ema_model" in state_dicts) == averaged
    if averaged:
        assert run.workspace.get_eval_policy() is run.workspace.ema_model
        assert any(
            not torch.equal(value, state_dicts["model"][key])
            for key, value in state_dicts["ema_model"].items()
        )


def test_parts_of_a_batch_have_together_the_loss_of_the_whole(run, dataset, monkeypatch):
    """What several processes rely on; a loss draws its random numbers by ``draw_rows``."""
    if not hasattr(run.workspace.model, "compute_loss"):
        pytest.skip("its own optimizer makes it a matter of one process")
    model = run.workspace.model.train()
    for module in model.modules():  # each process has dropout of its own
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and (name == "p" or "drop" in name):
                monkeypatch.setattr(module, name, 0.0)
    indices = [0, 1, len(dataset) // 2, len(dataset) - 1, 2]

    def losses(rows, **part):
        torch.manual_seed(0)
        with PartOfBatch(**part).active() if part else contextlib.nullcontext():
            return run.workspace.losses(dataset.get_batch([indices[row] for row in rows]))

    whole = losses(range(5))
    together = dict.fromkeys(whole, 0.0)
    for rows in (range(3), range(3, 5)):
        own = get_generators(torch.device("cpu"))
        part = {"start": rows.start, "stop": rows.stop, "n_rows": 5, "own_stream": own}
        for key, value in losses(rows, **part, device=torch.device("cpu")).items():
            together[key] = together[key] + value * len(rows) / 5
    for key, value in whole.items():
        torch.testing.assert_close(together[key], value, rtol=1e-3, atol=1e-4)
