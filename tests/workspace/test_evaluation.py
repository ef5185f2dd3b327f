"""From a checkpoint file to eval_log.json."""

import json

import dill
import pytest
import torch
from omegaconf import OmegaConf

from diffusion_policy.common.checkpoint_file import load_payload
from diffusion_policy.common.errors import CheckpointError, ConfigError, DiffusionPolicyError
from diffusion_policy.workspace.evaluation import evaluate
from diffusion_policy.workspace.train_diffusion_unet_lowdim_workspace import (
    TrainDiffusionUnetLowdimWorkspace as Workspace,
)

PUSHT = {
    "_target_": "diffusion_policy.env_runner.pusht_keypoints_runner.PushTKeypointsRunner",
    "n_train": 1,
    "n_train_vis": 0,
    "n_test": 2,
    "n_test_vis": 1,
    "legacy_test": True,
    "test_start_seed": 100000,
    "max_steps": 16,
    "n_obs_steps": 2,
    "n_action_steps": 8,
}


@pytest.fixture
def checkpoint(tiny_config, tmp_path):
    """A checkpoint of an untrained policy, whose configuration rolls out in Push-T."""
    cfg = tiny_config()
    cfg.task.env_runner = PUSHT
    workspace = Workspace(cfg, output_dir=str(tmp_path / "run"))
    from diffusion_policy.config.instantiate import instantiate

    for policy in (workspace.model, workspace.ema_model):
        policy.set_normalizer(instantiate(cfg.task.dataset).get_normalizer())
    return workspace.save_checkpoint(use_thread=False)


def test_evaluation_writes_metrics_and_videos(checkpoint, tmp_path):
    out = tmp_path / "eval"
    out.mkdir()
    log = evaluate(checkpoint, out, device="cpu")
    assert json.loads((out / "eval_log.json").read_text()) == log
    assert list(json.loads((out / "eval_log.json").read_text())) == sorted(log)
    assert {"train/mean_score", "test/mean_score", "test/sim_max_reward_100001"} <= log.keys()
    video = out / "media" / log["test/sim_video_100000"].split("/")[-1]
    assert video.stat().st_size > 500


def test_a_score_depends_on_weights_and_seeds_only(checkpoint, tmp_path):
    """Deterministic mode: the same for any number of environments and of processes."""
    scores = []
    for overrides in (["n_envs=1"], ["n_workers=1"], ["n_envs=2", "n_workers=2"]):
        log = evaluate(
            checkpoint,
            tmp_path,
            device="cpu",
            deterministic=True,
            overrides=[f"task.env_runner.{o}" for o in (*overrides, "n_test_vis=0")],
        )
        scores.append(log)
    assert scores[0] == scores[1] == scores[2]


def test_overrides_change_the_saved_configuration(checkpoint, tmp_path):
    log = evaluate(
        checkpoint, tmp_path, overrides=["task.env_runner.n_train=0", "+task.env_runner.n_test=1"]
    )
    assert "train/mean_score" not in log
    assert "test/sim_max_reward_100001" not in log


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "diffusion_policy.common.checkpoint_util.os.system",
        "diffusion_policy.workspace.base_workspace.BaseWorkspace.create_from_snapshot",
        "diffusion_policy.workspace.command_line.train",
        "torch.nn.modules.module.torch.hub.load",
        "torch.load",
    ],
)
def test_a_configuration_inside_a_checkpoint_cannot_name_arbitrary_code(
    checkpoint, tmp_path, target
):
    payload = torch.load(checkpoint, pickle_module=dill, weights_only=False)
    OmegaConf.set_struct(payload["cfg"], False)
    payload["cfg"].policy.model = {"_target_": target, "command": f"touch {tmp_path}/pwned"}
    torch.save(payload, tmp_path / "evil.ckpt", pickle_module=dill)
    with pytest.raises(CheckpointError, match=r"policy\.model.*--trust-checkpoint"):
        evaluate(tmp_path / "evil.ckpt", tmp_path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "hidden",
    [
        "${oc.create:{_target_: os.getcwd}}",
        "${oc.decode:'{_target_: os.getcwd}'}",
        "${oc.env:HOME}",
        "${oc.select:name}",
        "${hydra:runtime.cwd}",
        "${task.${name}}",
        "\\${oc.create:{_target_: os.getcwd}}",
    ],
)
def test_an_interpolation_cannot_hide_a_target_or_read_something(checkpoint, tmp_path, hidden):
    payload = torch.load(checkpoint, pickle_module=dill, weights_only=False)
    payload["cfg"].task.env_runner = hidden
    torch.save(payload, tmp_path / "evil.ckpt", pickle_module=dill)
    with pytest.raises(CheckpointError, match=r"uses (the resolver|a computed name)"):
        evaluate(tmp_path / "evil.ckpt", tmp_path)


def test_interpolations_cannot_grow_without_end(checkpoint, tmp_path):
    payload = torch.load(checkpoint, pickle_module=dill, weights_only=False)
    OmegaConf.set_struct(payload["cfg"], False)
    payload["cfg"].x0 = "x" * 10
    for i in range(1, 60):
        payload["cfg"][f"x{i}"] = f"${{x{i - 1}}}${{x{i - 1}}}"
    torch.save(payload, tmp_path / "evil.ckpt", pickle_module=dill)
    with pytest.raises(ConfigError, match="interpolations written out"):
        evaluate(tmp_path / "evil.ckpt", tmp_path)


def evil(checkpoint, tmp_path, **pickles):
    payload = torch.load(checkpoint, pickle_module=dill, weights_only=False)
    payload["pickles"] |= {name: dill.dumps(value) for name, value in pickles.items()}
    torch.save(payload, tmp_path / "evil.ckpt", pickle_module=dill)
    return tmp_path / "evil.ckpt"


def test_values_of_a_checkpoint_do_not_replace_what_was_checked(checkpoint, tmp_path, caplog):
    """The configuration is read from `cfg`, and checked; a second one among the pickles must not
    take its place afterwards.
    """
    cfg = load_payload(checkpoint)["cfg"]
    cfg.task.env_runner = {"_target_": "os.system", "command": f"touch {tmp_path}/pwned"}
    path = evil(checkpoint, tmp_path, cfg=cfg, run="x", _writer=None, __class__=3)
    log = evaluate(path, tmp_path)
    assert "test/mean_score" in log
    assert not (tmp_path / "pwned").exists()
    assert "a value 'cfg', which TrainDiffusionUnetLowdimWorkspace does not have" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epoch", "x"),
        ("epoch", 1.5),
        ("epoch", True),
        ("global_step", None),
        ("global_step", [1]),
        ("global_step", {"_target_": "os.system"}),
        ("resume_state", 3),
        ("resume_state", "x"),
    ],
)
def test_values_of_a_checkpoint_have_the_types_that_they_had(checkpoint, tmp_path, name, value):
    with pytest.raises(CheckpointError, match=f"^{name} of the checkpoint is a "):
        evaluate(evil(checkpoint, tmp_path, **{name: value}), tmp_path)


@pytest.mark.parametrize("name", ["cfg", "run", "__class__", "_writer", "output_dir", "", 3, None])
def test_states_go_to_what_has_a_state(checkpoint, tmp_path, name):
    payload = torch.load(checkpoint, pickle_module=dill, weights_only=False)
    payload["state_dicts"][name] = {"x": torch.zeros(1)}
    torch.save(payload, tmp_path / "evil.ckpt", pickle_module=dill)
    with pytest.raises(CheckpointError, match="but TrainDiffusionUnetLowdimWorkspace with this"):
        evaluate(tmp_path / "evil.ckpt", tmp_path)


def test_one_s_own_classes_need_the_word_of_the_user(checkpoint, tmp_path):
    payload = torch.load(checkpoint, pickle_module=dill, weights_only=False)
    payload["cfg"].task.env_runner = {"_target_": "toys.ToyRunner"}
    torch.save(payload, tmp_path / "own.ckpt", pickle_module=dill)
    with pytest.raises(CheckpointError, match=r"toys\.ToyRunner"):
        evaluate(tmp_path / "own.ckpt", tmp_path)
    assert "test/mean_score" in evaluate(tmp_path / "own.ckpt", tmp_path, trust=True)


def test_one_s_own_classes_can_be_allowed_by_name(checkpoint, tmp_path):
    payload = torch.load(checkpoint, pickle_module=dill, weights_only=False)
    payload["cfg"].task.env_runner = {"_target_": "toys.ToyRunner"}
    torch.save(payload, tmp_path / "own.ckpt", pickle_module=dill)
    with pytest.raises(CheckpointError, match="repeat with --allow=toys"):
        evaluate(tmp_path / "own.ckpt", tmp_path)
    for allow in ("toys", "toys.ToyRunner"):
        assert "test/mean_score" in evaluate(tmp_path / "own.ckpt", tmp_path, allow=[allow])
    with pytest.raises(CheckpointError, match="repeat with --allow=toys"):
        evaluate(tmp_path / "own.ckpt", tmp_path, allow=["toy", "toys.Toy"])


def test_an_override_is_the_user_s_word(checkpoint, tmp_path):
    log = evaluate(checkpoint, tmp_path, overrides=["task.env_runner={_target_: toys.ToyRunner}"])
    assert "test/mean_score" in log
    with pytest.raises(CheckpointError, match="is a NotARunner, not a runner"):
        evaluate(checkpoint, tmp_path, overrides=["task.env_runner._target_=toys.NotARunner"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task.env_runner.n_tset=3", "n_tset"),
        ("policy.model.down_dims=[-1]", "down_dims=[-1]"),
        ("policy.model.down_dims=x", "ConditionalUnet1D"),
        ("training=null", "cannot be built or run"),
        ("_target_=torch.nn.Identity", "not a workspace"),
        ("_target_=diffusion_policy.nowhere.Nothing", "cannot be imported"),
    ],
)
def test_what_cannot_be_built_is_a_sentence(checkpoint, tmp_path, override, said):
    with pytest.raises(DiffusionPolicyError) as error:
        evaluate(checkpoint, tmp_path, overrides=[override])
    assert said in str(error.value)
    assert "\n" not in str(error.value)
