"""Options that published configurations do not have: bfloat16, clipped gradients."""

import pytest
import torch
from omegaconf import open_dict
from runs import assert_same_outcome, build, read_log, read_state, train, train_until

from diffusion_policy.common.errors import ConfigError


def test_bf16_trains_nearly_the_same_and_resumes_identically(tiny_config, tmp_path):
    single = tiny_config("training.num_epochs=3")
    half = tiny_config("training.num_epochs=3", "++training.mixed_precision=bf16")
    train(single, tmp_path / "single")
    train(half, tmp_path / "half")
    losses = [[line["train_loss"] for line in read_log(tmp_path / n)] for n in ("single", "half")]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    state, _ = read_state(tmp_path / "half")
    assert all(value.dtype == torch.float32 for value in state["model"].values())

    train_until(lambda workspace: workspace.epoch == 2, half, tmp_path / "resumed")
    train(half, tmp_path / "resumed")
    assert_same_outcome(tmp_path / "half", tmp_path / "resumed")


def test_the_norm_of_a_gradient_is_clipped_before_an_update(tiny_config, tmp_path):
    def norms_at_updates(*overrides):
        cfg = tiny_config("training.num_epochs=1", "++training.gradient_accumulate_every=2")
        with open_dict(cfg):
            cfg.training.update(dict(overrides))
        workspace = build(cfg, tmp_path / str(len(overrides)))
        norms = []

        def measure(*_):
            gradients = [p.grad.norm() for p in workspace.model.parameters() if p.grad is not None]
            norms.append(torch.stack(gradients).norm().item())

        workspace.optimizer.register_step_pre_hook(measure)
        workspace.run()
        return norms

    free = norms_at_updates()
    clipped = norms_at_updates(("max_grad_norm", 0.01))
    assert len(free) == len(clipped) > 1
    assert min(free) > 0.02
    assert clipped == pytest.approx([0.01] * len(clipped), rel=1e-3)


@pytest.mark.parametrize(
    "override", ["mixed_precision=bf16", "max_grad_norm=1", "gradient_accumulate_every=2"]
)
def test_robomimic_policies_refuse_what_their_own_optimizer_cannot(
    override, compose_config, tiny_pusht_zarr, tmp_path, monkeypatch
):
    from robomimic_stand_in import replace_robomimic

    replace_robomimic(monkeypatch)
    cfg = compose_config(
        "train_robomimic_lowdim_workspace",
        f"task.dataset.zarr_path={tiny_pusht_zarr}",
        "training.device=cpu",
        f"++training.{override}",
    )
    with pytest.raises(ConfigError, match=f"training.{override.split('=')[0]}: robomimic's"):
        build(cfg, tmp_path).run()
