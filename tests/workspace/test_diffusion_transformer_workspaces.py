"""Training the transformer: its optimizer, and the original's own run."""

import json
import shutil

import hydra
import pytest
import torch
from omegaconf import OmegaConf

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.safe_pickle import load_payload
from diffusion_policy.workspace.evaluation import load_workspace
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)
from diffusion_policy.workspace.train_diffusion_transformer_lowdim_workspace import (
    TrainDiffusionTransformerLowdimWorkspace,
)

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
    workspace = TrainDiffusionTransformerLowdimWorkspace(cfg, output_dir=str(tmp_path))
    groups = workspace.optimizer.param_groups
    assert isinstance(workspace.optimizer, torch.optim.AdamW)
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0]
    assert all((g["lr"], g["betas"]) == (3e-4, (0.9, 0.95)) for g in groups)


def test_the_optimizer_of_images_covers_the_encoder(hybrid_config, tmp_path):
    cfg = hybrid_config("optimizer.obs_encoder_weight_decay=0.25")
    workspace = TrainDiffusionTransformerHybridWorkspace(cfg, output_dir=str(tmp_path))
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
        TrainDiffusionTransformerLowdimWorkspace(lowdim_config(override), str(tmp_path))


# ---- the original's own runs ---------------------------------------------------------------------


@pytest.fixture
def reference_run(golden, tmp_path, monkeypatch):
    shutil.copytree(golden / "k_data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)  # its configuration names data/pusht_tiny.zarr
    return golden / "k_checkpoints" / "transformer_lowdim"


def read_log(path):
    return [json.loads(line) for line in (path / "logs.json.txt").read_text().splitlines()]


def test_a_reference_run_gives_the_reference_losses(reference_run, tmp_path):
    """The same seed gives the loss curve, the scores and the errors that the original logged."""
    cfg = load_payload(reference_run / "checkpoints" / "latest.ckpt")["cfg"]
    for key, value in {"noise": "batch", "n_workers": 0}.items():  # draws as they were
        OmegaConf.update(cfg, f"task.env_runner.{key}", value, force_add=True)
    TrainDiffusionTransformerLowdimWorkspace(cfg, output_dir=str(tmp_path / "run")).run()
    expected, ours = read_log(reference_run), read_log(tmp_path / "run")
    assert len(ours) == len(expected)
    for line, reference in zip(ours, expected, strict=True):
        assert {k for k in line if "sim_video" not in k} == reference.keys()
        for key, value in reference.items():
            assert line[key] == pytest.approx(value, rel=1e-3, abs=1e-5), (key, reference["epoch"])


def test_a_reference_checkpoint_predicts_the_reference_actions(reference_run, tmp_path):
    """The original's own eval.py could not read it."""
    workspace = load_workspace(reference_run / "checkpoints" / "latest.ckpt", tmp_path / "run")
    expected = torch.load(reference_run / "expected.pt", weights_only=True)
    policy = workspace.get_eval_policy().eval()
    torch.manual_seed(expected["seed_predict"])
    result = policy.predict_action(expected["obs"])
    for key, value in expected["predict"].items():
        torch.testing.assert_close(result[key], value, rtol=1e-3, atol=0.05)
    torch.manual_seed(expected["seed_loss"])
    loss = policy.compute_loss(expected["batch"])
    torch.testing.assert_close(loss, expected["loss_eval_mode"], rtol=1e-4, atol=1e-5)


def test_a_reference_checkpoint_continues(reference_run, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.copy(reference_run / "checkpoints" / "latest.ckpt", tmp_path / "run" / "checkpoints")
    shutil.copy(reference_run / "logs.json.txt", tmp_path / "run")
    cfg = load_payload(reference_run / "checkpoints" / "latest.ckpt")["cfg"]
    cfg.training.num_epochs = 3
    for key, value in {"max_steps": 2, "n_workers": 0}.items():
        OmegaConf.update(cfg, f"task.env_runner.{key}", value, force_add=True)
    workspace = TrainDiffusionTransformerLowdimWorkspace(cfg, output_dir=str(tmp_path / "run"))
    workspace.run()
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
    cfg = hybrid_config()
    workspace = hydra.utils.get_class(cfg._target_)(cfg, output_dir=str(tmp_path))
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
