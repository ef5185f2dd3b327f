"""Shared fixtures. Reference data in ../shared exists for developers and CI, not for users."""

import os
import pathlib
import random
import sys

import numpy as np
import pytest
import torch

TESTS = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS))  # shared modules; configurations name classes of toys.py
pytest.register_assert_rewrite("reference_policies", "reference_runs", "runs")

# Windows are never opened by the tests: SDL draws into memory.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("WANDB_MODE", "disabled")

SHARED = TESTS.parents[1] / "shared"


@pytest.fixture(autouse=True)
def seeded_generators() -> None:
    """Every test starts from the same random numbers, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def _need(path: pathlib.Path) -> pathlib.Path:
    if not path.exists():
        pytest.skip(f"the reference data of the developers is not on this machine ({path.name})")
    return path


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """Folder with numbers computed by the original implementation; skips where it is absent."""
    return _need(SHARED / "golden")


@pytest.fixture(scope="session")
def human_pusht_zarr() -> pathlib.Path:
    """The published human Push-T demonstrations (zarr v2 directory); skips without them."""
    return _need(SHARED / "data" / "pusht" / "pusht_cchi_v7_replay.zarr")


@pytest.fixture(scope="session")
def tiny_pusht_zarr(tmp_path_factory) -> pathlib.Path:
    """A data set in the published Push-T layout: 8 episodes of 25 steps, smooth random motion."""
    from diffusion_policy.common.replay_buffer import ReplayBuffer

    rng = np.random.default_rng(0)
    buffer = ReplayBuffer.create_empty_numpy()
    for _ in range(8):
        path = np.clip(250 + np.cumsum(rng.normal(size=(25, 25)) * 9, axis=0), 0, 511)
        path = path.astype(np.float32)
        buffer.add_episode(
            {
                "action": path[:, :2] + 5,
                "state": path[:, :5],
                "keypoint": path[:, 5:23].reshape(25, 9, 2),
                "n_contacts": path[:, 24:] * 0,
            }
        )
    path = tmp_path_factory.mktemp("data") / "tiny.zarr"
    buffer.save_to_path(str(path))
    return path


@pytest.fixture(scope="session")
def tiny_image_zarr(tmp_path_factory):
    """Six episodes of 12 steps in the published layout, images included."""
    from diffusion_policy.common.replay_buffer import ReplayBuffer

    rng = np.random.default_rng(0)
    buffer = ReplayBuffer.create_empty_numpy()
    for _ in range(6):
        state = np.clip(250 + np.cumsum(rng.normal(size=(12, 5)) * 9, axis=0), 0, 511)
        images = rng.integers(0, 256, size=(12, 96, 96, 3))
        buffer.add_episode(
            {
                "img": images.astype(np.float32),
                "state": state.astype(np.float32),
                "action": state[:, :2].astype(np.float32) + 5,
                "keypoint": np.zeros((12, 9, 2), np.float32),
                "n_contacts": np.zeros((12, 1), np.float32),
            }
        )
    path = tmp_path_factory.mktemp("data") / "tiny_images.zarr"
    buffer.save_to_path(str(path))
    return path


@pytest.fixture
def tiny_overrides(tiny_pusht_zarr) -> list[str]:
    """Overrides that make a configuration train in a second on the tiny data set."""
    return [
        "policy.model.down_dims=[8,16]",
        "policy.model.diffusion_step_embed_dim=16",
        "policy.noise_scheduler.num_train_timesteps=10",
        "policy.num_inference_steps=4",
        "dataloader.batch_size=32",
        "val_dataloader.batch_size=32",
        "training.device=cpu",
        "training.num_epochs=3",
        "training.lr_warmup_steps=2",
        "training.rollout_every=1",
        "training.checkpoint_every=1",
        "training.sample_every=1",
        "training.max_train_steps=null",
        "logging.mode=disabled",
        f"task.dataset.zarr_path={tiny_pusht_zarr}",
        "task.dataset.val_ratio=0.2",
        "task.dataset.max_train_episodes=null",
        "task.env_runner._target_=toys.ToyRunner",
    ]


@pytest.fixture
def compose_config():
    """compose_config(name, *overrides): a resolved configuration, as train.py would get it."""
    import hydra
    from hydra.core.utils import setup_globals
    from omegaconf import OmegaConf

    from diffusion_policy.workspace.command_line import CONFIG_DIR

    def compose(name, *overrides):
        setup_globals()  # ${now:}, which Hydra registers when it runs a job
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base=None):
            cfg = hydra.compose(name, overrides=list(overrides))
        OmegaConf.resolve(cfg)
        return cfg

    return compose


@pytest.fixture
def tiny_config(compose_config, tiny_overrides):
    """tiny_config(*overrides): a small version of the published U-Net configuration."""

    def compose(*overrides):
        return compose_config(
            "train_diffusion_unet_ddim_lowdim_workspace",
            *tiny_overrides,
            "obs_as_global_cond=True",
            *overrides,
        )

    return compose
