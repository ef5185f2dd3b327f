"""Checkpoints of any workspace."""

import threading

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_policy.common.errors import CheckpointError, ConfigError
from diffusion_policy.workspace import base_workspace
from diffusion_policy.workspace.base_workspace import BaseWorkspace


class Tiny(BaseWorkspace):
    include_keys = ("step",)

    def __init__(self, cfg=None, output_dir=None):
        super().__init__(OmegaConf.create({"a": 1}) if cfg is None else cfg, output_dir)
        self.model = torch.nn.Linear(2, 2)
        self.ema_model = None
        self.step = 0


def test_a_checkpoint_brings_everything_back(tmp_path):
    saved = Tiny(output_dir=str(tmp_path))
    saved.step = 7
    path = saved.save_checkpoint(use_thread=False)
    assert path == str(tmp_path / "checkpoints" / "latest.ckpt")
    loaded = Tiny.create_from_checkpoint(path, output_dir="elsewhere")
    assert torch.equal(loaded.model.weight, saved.model.weight)
    assert loaded.step == 7
    assert loaded.output_dir == "elsewhere"
    assert loaded.cfg == {"a": 1}


def test_training_on_does_not_change_what_is_being_saved(tmp_path, monkeypatch):
    """The background write serialises a copy, not the live parameters."""
    workspace = Tiny(output_dir=str(tmp_path))
    before = workspace.model.weight.detach().clone()
    changed = threading.Event()
    write = base_workspace.write_payload
    monkeypatch.setattr(base_workspace, "write_payload", lambda *a: (changed.wait(10), write(*a)))
    path = workspace.save_checkpoint()
    torch.nn.init.zeros_(workspace.model.weight)
    changed.set()
    workspace.wait_for_checkpoints()
    assert torch.equal(Tiny.create_from_checkpoint(path).model.weight, before)


def test_an_error_in_the_background_is_not_lost(tmp_path, monkeypatch):
    workspace = Tiny(output_dir=str(tmp_path))

    def fail(*_):
        raise CheckpointError("no space")

    monkeypatch.setattr(base_workspace, "write_payload", fail)
    workspace.save_checkpoint()
    after = []
    workspace._in_background(lambda: after.append(1))
    with pytest.raises(CheckpointError, match="no space"):
        workspace.wait_for_checkpoints()
    assert after == [], "what builds on the file must not happen without it"


def test_excluded_and_included_keys(tmp_path):
    workspace = Tiny(output_dir=str(tmp_path))
    path = workspace.save_checkpoint(
        use_thread=False, exclude_keys=("model",), include_keys=(), tag="bare"
    )
    assert path.endswith("bare.ckpt")
    payload = Tiny().load_checkpoint(path)
    assert payload["state_dicts"] == {}
    assert set(payload["pickles"]) == {"_output_dir"}


def test_a_checkpoint_of_another_workspace_is_refused(tmp_path):
    workspace = Tiny(output_dir=str(tmp_path))
    workspace.critic = torch.nn.Linear(1, 1)
    path = workspace.save_checkpoint(use_thread=False)
    with pytest.raises(CheckpointError, match=r"holds 'critic', but Tiny .* has none"):
        Tiny.create_from_checkpoint(path)


def test_evaluation_prefers_the_averaged_weights():
    workspace = Tiny()
    assert workspace.get_eval_policy() is workspace.model
    workspace.ema_model = torch.nn.Linear(2, 2)
    assert workspace.get_eval_policy() is workspace.ema_model


def test_without_a_run_directory_the_error_says_what_to_pass():
    with pytest.raises(ConfigError, match="output_dir="):
        _ = Tiny().output_dir


def test_snapshots_hold_the_whole_workspace(tmp_path):
    workspace = Tiny(output_dir=str(tmp_path))
    workspace.step = 3
    again = Tiny.create_from_snapshot(workspace.save_snapshot())
    assert again.step == 3
    again.save_checkpoint(use_thread=False)
