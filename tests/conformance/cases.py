"""What is put through the suite: every shipped method at a tiny size, the two examples, one's own.

One's own, from the command line; make it tiny by overrides:

    PYTHONPATH=my_code pytest tests/conformance --config-dir=my_config \\
        --config-name=train_my_workspace --override=task=my_task --override=dataloader.batch_size=4
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.utils import setup_globals
from omegaconf import DictConfig, OmegaConf, open_dict

from diffusion_policy.workspace.command_line import CONFIG_DIR

EXAMPLE = Path(__file__).parent / "example"

# Four epochs of two batches, everything saved and evaluated after each of them.
RUN = (
    "training.device=cpu",
    "training.num_epochs=4",
    "training.max_train_steps=2",
    "training.max_val_steps=1",
    "training.rollout_every=1",
    "training.checkpoint_every=1",
    "training.val_every=1",
    "logging.mode=disabled",
    "dataloader.batch_size=4",
    "val_dataloader.batch_size=4",
)
PUSHT = (
    "task.dataset.val_ratio=0.3",
    "task.dataset.max_train_episodes=null",
    "task.env_runner.n_train=1",
    "task.env_runner.n_train_vis=0",
    "task.env_runner.n_test=2",
    "task.env_runner.n_test_vis=1",
    "task.env_runner.max_steps=9",
)
STATE = (*PUSHT, "task=pusht_lowdim", "task.dataset.zarr_path={state_data}")
IMAGES = (*PUSHT, "task=pusht_image", "task.dataset.zarr_path={image_data}")
DENOISING = ("policy.noise_scheduler.num_train_timesteps=10", "policy.num_inference_steps=3")
SAMPLED = ("training.sample_every=1",)
SCHEDULED = ("training.lr_warmup_steps=1", *SAMPLED)
DIFFUSION = (*DENOISING, *SCHEDULED)
TINY_UNET = ("policy.down_dims=[8,16]", "policy.diffusion_step_embed_dim=16")
TINY_TRANSFORMER = ("n_layer=2", "n_emb=16", "n_head=2")
ENERGY = (*SCHEDULED, "policy.train_n_neg=8", "policy.pred_n_samples=16")


@dataclass(frozen=True)
class Case:
    """A configuration with overrides that let it train in a second or two.

    Args:
        name: of the configuration.
        overrides: braces hold the paths of small data sets.
        config_dir: where it lies, if it is not shipped; its classes are then trusted.
        needs: an optional package, without which the case is skipped.
        label: what the tests call it; default: the name.
    """

    name: str
    overrides: Sequence[str] = ()
    config_dir: str | None = None
    needs: str | None = None
    label: str | None = None

    def __str__(self) -> str:
        short = self.name.removeprefix("train_").removesuffix("_workspace")
        return self.label or short

    def compose(self, data: dict[str, str], *more: str) -> DictConfig:
        """The resolved configuration, as train.py would get it."""
        setup_globals()
        overrides = [o.format(**data) for o in (*RUN, *self.overrides, *more)]
        if self.config_dir is not None:
            overrides.append(f"hydra.searchpath=[file://{CONFIG_DIR}]")
        directory = str(Path(self.config_dir or CONFIG_DIR).absolute())
        with hydra.initialize_config_dir(directory, version_base=None):
            cfg = hydra.compose(self.name, overrides=overrides)
        OmegaConf.resolve(cfg)
        with open_dict(cfg):
            cfg.task.env_runner.n_workers = 0  # fast; worker processes have tests of their own
        return cfg


def shipped(name: str, *overrides: str, **options) -> Case:
    return Case(f"train_{name}_workspace", overrides, **options)


CASES = [
    shipped(
        "diffusion_unet_lowdim",
        *STATE,
        *DIFFUSION,
        *(override.replace("policy.", "policy.model.") for override in TINY_UNET),
    ),
    shipped("diffusion_unet_hybrid", *IMAGES, *DIFFUSION, *TINY_UNET),
    shipped("diffusion_unet_image", *IMAGES, *DIFFUSION, *TINY_UNET),
    shipped(
        "diffusion_transformer_lowdim_pusht",
        *STATE,
        *DIFFUSION,
        *(f"policy.model.{override}" for override in TINY_TRANSFORMER),
    ),
    shipped(
        "diffusion_transformer_hybrid",
        *IMAGES,
        *DIFFUSION,
        *(f"policy.{override}" for override in TINY_TRANSFORMER),
    ),
    shipped("ibc_dfo_lowdim", *STATE, *ENERGY),
    shipped("ibc_dfo_hybrid", *IMAGES, *ENERGY),
    shipped(
        "bet_lowdim",
        *STATE,
        *SAMPLED,
        "policy.action_ae.num_bins=6",
        "policy.state_prior.n_layer=1",
        "policy.state_prior.n_embd=16",
    ),
    shipped("robomimic_lowdim", *STATE, needs="robomimic"),
    shipped("robomimic_image", *IMAGES, *SAMPLED, "horizon=3", needs="robomimic"),
    Case(
        "train_regression_workspace",
        ("task.dataset.zarr_path={reach_data}", *SCHEDULED),
        config_dir=str(EXAMPLE / "config"),
        label="example",
    ),
]
