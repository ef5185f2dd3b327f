"""A training is killed at a disk call, again and again: it ends as if it had never been killed.

For each option that adds to what a run leaves on the disk, a child is killed at its n-th disk call,
started again, killed once more perhaps, and let to its end.
"""

import os
import pathlib
import shutil

import pytest
from attack.disk_calls import Children
from omegaconf import OmegaConf
from runs import LOG, assert_equal, train

from diffusion_policy.common.checkpoint_file import load_payload
from diffusion_policy.common.safe_pickle import safe_loads

# Named in the checkpoint: what differs between two places, and nothing else may.
RUN_DIR = "run"

STATE = {
    "plain": [],
    "accumulation": ["training.gradient_accumulate_every=3", "training.max_train_steps=2"],
    "bf16, clipped": ["++training.mixed_precision=bf16", "++training.max_grad_norm=0.1"],
    "snapshots": ["checkpoint.save_last_snapshot=True"],
    "best checkpoints only": ["checkpoint.save_last_ckpt=False"],
    "no hard links": [],
    "one best": ["checkpoint.topk.k=1", "checkpoint.topk.mode=min"],
}


def train_here(config: str, place: str, links: bool) -> None:
    """The job of a child: trains in a folder, or goes on there."""
    if not links:
        os.link = _refuse_links
    train(OmegaConf.load(config), pathlib.Path(place))


def _refuse_links(*_args, **_kwargs):
    raise OSError(95, "Operation not supported")


@pytest.fixture(scope="module")
def children():
    imports = ("attack.test_training_kills", "toys", "accelerate", "scipy", "zarr")
    imports += ("diffusion_policy.workspace.train_diffusion_unet_lowdim_workspace",)
    imports += ("diffusion_policy.workspace.train_diffusion_unet_image_workspace",)
    imports += ("diffusion_policy.dataset.pusht_image_dataset", "diffusers")
    with Children(*imports, WANDB_MODE="disabled") as children:
        yield children


@pytest.fixture
def shortest(tiny_overrides):
    """Overrides of a run of four epochs of two batches."""
    return [
        *tiny_overrides,
        "training.num_epochs=4",
        "training.max_train_steps=2",
        "training.max_val_steps=1",
        "training.tqdm_interval_sec=0",
        "training.lr_warmup_steps=0",
        "checkpoint.topk.k=2",
        "dataloader.batch_size=4",
        "val_dataloader.batch_size=4",
        "policy.num_inference_steps=1",
    ]


@pytest.mark.parametrize("name", STATE)
def test_a_run_on_states(name, attack, children, compose_config, shortest, tmp_path):
    cfg = compose_config(
        "train_diffusion_unet_ddim_lowdim_workspace",
        *shortest,
        "obs_as_global_cond=True",
        *STATE[name],
    )
    check(f"training: {name}", attack, children, cfg, tmp_path, links=name != "no hard links")


def test_a_run_on_images(attack, children, compose_config, tiny_image_zarr, tmp_path):
    cfg = compose_config(
        "demo_pusht_image",
        f"task.dataset.zarr_path={tiny_image_zarr}",
        "task.dataset.val_ratio=0.3",
        "task.dataset.max_train_episodes=null",
        "task.env_runner._target_=toys.ToyImageRunner",
        "policy.down_dims=[8,16]",
        "policy.diffusion_step_embed_dim=8",
        "policy.noise_scheduler.num_train_timesteps=5",
        "policy.num_inference_steps=2",
        "policy.obs_encoder.rgb_model.channels=[8,8]",
        "training.lr_warmup_steps=0",
        "dataloader.batch_size=2",
        "val_dataloader.batch_size=2",
        "training.device=cpu",
        "training.num_epochs=2",
        "training.max_train_steps=1",
        "training.max_val_steps=1",
        "training.rollout_every=1",
        "training.checkpoint_every=1",
        "training.sample_every=1",
        "logging.mode=disabled",
    )
    check("training: images", attack, children, cfg, tmp_path, links=True)


def check(target, attack, children, cfg, tmp_path, links) -> None:
    config = tmp_path / "config.yaml"
    OmegaConf.save(cfg, config)
    whole = tmp_path / "whole" / RUN_DIR
    outcome = children.run(train_here, str(config), str(whole), links, watched=whole)
    assert not outcome.error, outcome.error
    expected = left_behind(whole)
    assert expected["files"], "nothing to compare"

    if not attack.is_long:
        attack.seconds /= 4  # there are many of these
    failures, n = [], 0
    for kill_at in attack.some_of(range(1, outcome.n_calls + 1)):
        # In the first case at the same place once more, or at any later one.
        again = attack.rng.choice([None, kill_at, attack.rng.randint(1, outcome.n_calls)])
        killed = tmp_path / f"killed_{kill_at}" / RUN_DIR
        n += 1
        for call in (kill_at, again, None):
            if call is None:
                result = children.run(train_here, str(config), str(killed), links)
            else:
                result = children.run(
                    train_here, str(config), str(killed), links, kill_at=call, watched=killed
                )
            if result.error:
                break
        problem = result.error or compare(expected, killed)
        if problem:
            at = outcome.trace[kill_at - 1]
            failures.append(f"killed at call {kill_at} ({at}), then {again}: {problem[-2000:]}")
        shutil.rmtree(killed.parent)
    attack.record(target, n, failures)


def left_behind(run_dir: pathlib.Path) -> dict:
    """All that a run ends with: what its checkpoints hold, its log, and the names of its files."""
    checkpoints = {}
    for path in sorted(run_dir.glob("checkpoints/*")):
        payload = load_payload(path)
        pickles = {k: safe_loads(v) for k, v in payload["pickles"].items() if k != "_output_dir"}
        checkpoints[path.name] = (payload["state_dicts"], pickles)
    files = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    # Logs of sessions that died before their first checkpoint are kept.
    files = {name for name in files if not name.startswith(f"{LOG}.")}
    snapshots = [path for path in files if path.startswith("snapshots/")]
    return {
        "log": (run_dir / LOG).read_bytes(),
        "checkpoints": checkpoints,
        "files": files,
        "snapshots": {path: snapshot_state(run_dir / path) for path in snapshots},
    }


def snapshot_state(path: pathlib.Path) -> dict:
    from diffusion_policy.workspace.base_workspace import BaseWorkspace

    snapshot = BaseWorkspace.create_from_snapshot(path)
    states = {name: getattr(snapshot, name) for name in ("model", "ema_model", "optimizer")}
    counters = {name: getattr(snapshot, name) for name in ("epoch", "global_step", "resume_state")}
    return {name: value.state_dict() for name, value in states.items()} | counters


def compare(expected: dict, run_dir: pathlib.Path) -> str:
    """What is different; nothing if nothing is."""
    try:
        found = left_behind(run_dir)
        for key in expected:
            assert_equal(found[key], expected[key], key) if key != "files" else None
        assert found["files"] == expected["files"], found["files"] ^ expected["files"]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    except AssertionError as error:
        return str(error)
    return ""
