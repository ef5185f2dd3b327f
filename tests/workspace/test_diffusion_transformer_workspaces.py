"""Training the transformer: its optimizer, and the original's own run."""

import json

import pytest
import torch
from runs import build, read_log, train

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.workspace.evaluation import open_workspace

SIZES = ("n_layer=2", "n_head=2", "n_emb=32")


@pytest.fixture
def lowdim_config(compose_config):
    def compose(*overrides):
        sizes = [f"policy.model.{size}" for size in SIZES]
        return compose_config(
            "train_diffusion_transformer_lowdim_pusht_workspace", *sizes, *overrides
        )

    return compose


@pytest.fixture
def hybrid_config(compose_config):
    def compose(*overrides):
        sizes = [f"policy.{size}" for size in SIZES]
        name = "train_diffusion_transformer_hybrid_workspace"
        return compose_config(name, "task=pusht_image", *sizes, *overrides)

    return compose


def test_the_optimizer_of_states_has_the_configured_groups(lowdim_config, tmp_path):
    cfg = lowdim_config("optimizer.weight_decay=0.2", "optimizer.learning_rate=3e-4")
    workspace = build(cfg, tmp_path)
    groups = workspace.optimizer.param_groups
    assert isinstance(workspace.optimizer, torch.optim.AdamW)
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0]
    assert all((g["lr"], g["betas"]) == (3e-4, (0.9, 0.95)) for g in groups)


def test_the_optimizer_of_images_covers_the_encoder(hybrid_config, tmp_path):
    cfg = hybrid_config("optimizer.obs_encoder_weight_decay=0.25")
    workspace = build(cfg, tmp_path)
    groups = workspace.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [1e-3, 0.0, 0.25]
    counted = sum(p.numel() for group in groups for p in group["params"])
    assert counted == sum(p.numel() for p in workspace.model.parameters())


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("+optimizer.lr=0.001", "learning_rate, weight_decay, betas, lr"),
        ("~optimizer.weight_decay", "learning_rate, betas"),
    ],
)
def test_options_of_another_optimizer_are_one_clear_sentence(
    lowdim_config, tmp_path, override, found
):
    expected = f"optimizer holds {found};.*the options weight_decay, learning_rate, betas$"
    with pytest.raises(ConfigError, match=expected):
        build(lowdim_config(override), tmp_path)


# ---- the original's own runs ---------------------------------------------------------------------


@pytest.fixture
def reference_run(open_reference_run):
    return open_reference_run("transformer_lowdim")


def test_a_reference_run_gives_the_reference_losses(reference_run, tmp_path):
    """The same seed gives the loss curve, the scores and the errors that the original logged."""
    train(reference_run.config(noise="batch", n_workers=0), tmp_path / "run")
    reference_run.check_log(tmp_path / "run")


def test_a_reference_checkpoint_predicts_the_reference_actions(reference_run, tmp_path):
    """The original's own eval.py could not read it."""
    with open_workspace(reference_run.checkpoint, tmp_path / "run") as workspace:
        pass
    reference_run.check_policy(workspace.get_eval_policy())


def test_a_reference_checkpoint_continues(reference_run, tmp_path):
    reference_run.copy_to(tmp_path / "run")
    cfg = reference_run.config(max_steps=2, n_workers=0)
    cfg.training.num_epochs = 3
    workspace = train(cfg, tmp_path / "run")
    log = read_log(tmp_path / "run")
    assert [line["epoch"] for line in log if "val_loss" in line] == [0, 1, 2]
    assert log[26]["global_step"] == 26
    steps = {int(state["step"]) for state in workspace.optimizer.state.values()}
    assert steps == {12 * 3}
    assert workspace.ema.optimization_step > 26  # the moving average did not start over


def test_the_state_of_images_is_laid_out_as_in_a_reference_checkpoint(
    golden, hybrid_config, tmp_path
):
    folder = golden / "k_checkpoints" / "transformer_hybrid"
    structure = json.loads((folder / "payload_structure.json").read_text())["state_dicts"]
    workspace = build(hybrid_config(), tmp_path)
    for name in ("model", "ema_model"):
        ours = {k: list(v.shape) for k, v in getattr(workspace, name).state_dict().items()}
        published = {k: shape for k, (_, shape, _) in structure[name].items()}
        assert list(ours) == [k for k in published if not k.startswith("normalizer.")]
        assert all(published[key] == shape for key, shape in ours.items())
    parameters = [p for group in workspace.optimizer.param_groups for p in group["params"]]
    states = structure["optimizer"]["state"]
    without_gradient = [i for i, p in enumerate(parameters) if p.numel() == 0]
    assert sorted(map(int, states)) == [
        i for i in range(len(parameters)) if i not in without_gradient
    ]
    for index, state in states.items():
        assert state["exp_avg"][1] == list(parameters[int(index)].shape)
    groups = structure["optimizer"]["param_groups"]
    firsts = [group["params"][0] for group in groups]
    lengths = [len(group["params"]) for group in workspace.optimizer.param_groups]
    assert firsts == [0, lengths[0], lengths[0] + lengths[1]]
