"""What is asked of a run directory before Hydra writes there."""

import pytest
from omegaconf import OmegaConf

from diffusion_policy.workspace.run_directory import CheckRunDirectory
from diffusion_policy.workspace.run_lock import locked_run

check = CheckRunDirectory()


def config(run_dir, **training):
    values = {"training": {"seed": 42, "num_epochs": 3} | training, "name": "x"}
    return OmegaConf.create(values | {"hydra": {"run": {"dir": str(run_dir)}}})


def refusal(capsys, cfg):
    with pytest.raises(SystemExit) as end:
        check.on_run_start(cfg)
    assert end.value.code == 1
    [sentence] = capsys.readouterr().err.splitlines()
    return sentence


def record(run_dir, content):
    (run_dir / ".hydra").mkdir()
    (run_dir / ".hydra" / "config.yaml").write_text(content)
    (run_dir / "checkpoints").mkdir()


def test_a_new_directory_is_made_and_left_unlocked(tmp_path):
    check.on_run_start(config(tmp_path / "a" / "b"))
    with locked_run(tmp_path / "a" / "b", patience_s=0):
        pass


def test_a_directory_in_use_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("diffusion_policy.workspace.run_lock.GRACE_S", 0.0)
    with locked_run(tmp_path):
        assert "another process trains in" in refusal(capsys, config(tmp_path))


def test_the_record_of_another_run_is_not_replaced(tmp_path, capsys):
    record(tmp_path, "training: {seed: 41}\nname: ${now:%H}")
    (tmp_path / "checkpoints" / "latest.ckpt").touch()
    sentence = refusal(capsys, config(tmp_path))
    assert sentence.startswith(
        f"error: {tmp_path} holds another run: training.seed is 41 in config"
    )


@pytest.mark.parametrize("content", ["training: {seed: 42, num_epochs: 2}", "a: [", "- 1", ""])
def test_the_same_run_goes_on_and_a_damaged_record_is_no_obstacle(tmp_path, content):
    record(tmp_path, content)
    (tmp_path / "checkpoints" / "latest.ckpt").touch()
    check.on_run_start(config(tmp_path))


def test_a_record_without_checkpoints_obliges_to_nothing(tmp_path):
    record(tmp_path, "training: {seed: 41}")
    check.on_run_start(config(tmp_path))


def test_a_sweep_needs_a_folder(tmp_path, capsys):
    (tmp_path / "file").touch()
    cfg = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "file")}}})
    with pytest.raises(SystemExit):
        check.on_multirun_start(cfg)
    assert "cannot be used as a run directory" in capsys.readouterr().err
