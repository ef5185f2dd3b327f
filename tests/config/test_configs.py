"""The shipped configurations equal the published tables, key by key, interpolations included.

The tables are written out here once more, independently of how the YAML files share their blocks.
"""

import json

import hydra
import pytest
import torch
from hydra.core.utils import setup_globals
from omegaconf import OmegaConf

from diffusion_policy.config.checks import check_config
from diffusion_policy.workspace.command_line import CONFIG_DIR

NAMES = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))

# ---- blocks that configurations share ------------------------------------------------------------

RUN = "${now:%Y.%m.%d}/${now:%H.%M.%S}_${name}_${task_name}"
RUN_NAME = "${now:%Y.%m.%d-%H.%M.%S}_${name}_${task_name}"
N_ACTIONS = "${eval:'${n_action_steps}+${n_latency_steps}'}"

LOGGING = {
    "project": "diffusion_policy_debug",
    "resume": True,
    "mode": "online",
    "name": RUN_NAME,
    "tags": ["${name}", "${task_name}", "${exp_name}"],
    "id": None,
    "group": None,
}
CHECKPOINT = {
    "topk": {
        "monitor_key": "test_mean_score",
        "mode": "max",
        "k": 5,
        "format_str": "epoch={epoch:04d}-test_mean_score={test_mean_score:.3f}.ckpt",
    },
    "save_last_ckpt": True,
    "save_last_snapshot": False,
}
MULTI_RUN = {"run_dir": f"data/outputs/{RUN}", "wandb_name_base": RUN_NAME}
HYDRA = {
    "run.dir": f"data/outputs/{RUN}",
    "sweep.dir": f"data/outputs/{RUN}",
    "sweep.subdir": "${hydra.job.num}",
}
EMA = {
    "_target_": "diffusion_policy.model.diffusion.ema_model.EMAModel",
    "update_after_step": 0,
    "inv_gamma": 1.0,
    "power": 0.75,
    "min_value": 0.0,
    "max_value": 0.9999,
}
BETAS = {
    "num_train_timesteps": 100,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": True,
    "prediction_type": "epsilon",
}
DDPM = {
    "noise_scheduler": BETAS
    | {
        "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
        "variance_type": "fixed_small",
    },
    "num_inference_steps": 100,
}
DDIM = {
    "noise_scheduler": BETAS
    | {
        "_target_": "diffusers.schedulers.scheduling_ddim.DDIMScheduler",
        "set_alpha_to_one": True,
        "steps_offset": 0,
    },
    "num_inference_steps": 8,
}
ADAMW = {
    "_target_": "torch.optim.AdamW",
    "lr": 1e-4,
    "betas": [0.95, 0.999],
    "eps": 1e-8,
    "weight_decay": 1e-6,
}
TRAINING = {
    "device": "cuda:0",
    "seed": 42,
    "debug": False,
    "resume": True,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 500,
    "gradient_accumulate_every": 1,
    "use_ema": True,
    "rollout_every": 50,
    "checkpoint_every": 50,
    "val_every": 1,
    "sample_every": 5,
    "max_train_steps": None,
    "max_val_steps": None,
    "tqdm_interval_sec": 1.0,
}


def common(horizon, n_obs_steps, n_action_steps):
    return {
        "task_name": "${task.name}",
        "exp_name": "default",
        "horizon": horizon,
        "n_obs_steps": n_obs_steps,
        "n_action_steps": n_action_steps,
        "past_action_visible": False,
        "keypoint_visible_rate": 1.0,
        "logging": LOGGING,
        "ema": EMA,
        "optimizer": ADAMW,
    }


def references(*keys):
    return {key: f"${{{key}}}" for key in keys}


def trained(workspace, epochs, batch_size, num_workers, **training):
    """What depends on the workspace, and the common blocks of all configurations but video."""
    loader = {"batch_size": batch_size, "num_workers": num_workers, "pin_memory": True}
    loader |= {"persistent_workers": False}
    module = f"train_diffusion_unet_{workspace}_workspace"
    class_name = "".join(part.capitalize() for part in module.split("_"))
    return {
        "name": f"train_diffusion_unet_{workspace}",
        "_target_": f"diffusion_policy.workspace.{module}.{class_name}",
        "n_latency_steps": 0,
        "checkpoint": CHECKPOINT,
        "multi_run": MULTI_RUN,
        "dataloader": loader | {"shuffle": True},
        "val_dataloader": loader | {"shuffle": False},
        "training": TRAINING | {"num_epochs": epochs} | training,
    }


# ---- tasks ---------------------------------------------------------------------------------------

EPISODES = {"n_train": 6, "n_train_vis": 2, "n_test": 50, "n_test_vis": 4}
RUNNER = (
    EPISODES
    | {"test_start_seed": 100000, "past_action": "${past_action_visible}"}
    | references("n_obs_steps", "n_action_steps")
)
PUSHT_RUNNER = RUNNER | {
    "train_start_seed": 0,
    "legacy_test": True,
    "max_steps": 300,
    "fps": 10,
    "n_envs": None,
}
DATASET = {
    "horizon": "${horizon}",
    "pad_after": "${eval:'${n_action_steps}-1'}",
    "seed": 42,
    "val_ratio": 0.02,
}
PAD_BEFORE = "${eval:'${n_obs_steps}-1'}"
PAD_BEFORE_LATENCY = "${eval:'${n_obs_steps}-1+${n_latency_steps}'}"

PUSHT_LOWDIM = {
    "name": "pusht_lowdim",
    "obs_dim": 20,
    "action_dim": 2,
    "keypoint_dim": 2,
    "env_runner": PUSHT_RUNNER
    | references("keypoint_visible_rate", "n_latency_steps")
    | {
        "_target_": "diffusion_policy.env_runner.pusht_keypoints_runner.PushTKeypointsRunner",
        "agent_keypoints": False,
    },
    "dataset": DATASET
    | {
        "_target_": "diffusion_policy.dataset.pusht_dataset.PushTLowdimDataset",
        "zarr_path": "data/pusht/pusht_cchi_v7_replay.zarr",
        "pad_before": PAD_BEFORE_LATENCY,
        "max_train_episodes": 90,
    },
}
PUSHT_IMAGE = {
    "name": "pusht_image",
    "image_shape": [3, 96, 96],
    "shape_meta": {
        "obs": {
            "image": {"shape": [3, 96, 96], "type": "rgb"},
            "agent_pos": {"shape": [2], "type": "low_dim"},
        },
        "action": {"shape": [2]},
    },
    "env_runner": PUSHT_RUNNER
    | {"_target_": "diffusion_policy.env_runner.pusht_image_runner.PushTImageRunner"},
    "dataset": DATASET
    | {
        "_target_": "diffusion_policy.dataset.pusht_image_dataset.PushTImageDataset",
        "zarr_path": "data/pusht/pusht_cchi_v7_replay.zarr",
        "pad_before": PAD_BEFORE,
        "max_train_episodes": 90,
    },
}
LIFT = {
    "dataset_path": (
        "data/robomimic/datasets/${task.task_name}/${task.dataset_type}/image_abs.hdf5"
    ),
    "shape_meta": {
        "obs": {
            "agentview_image": {"shape": [3, 84, 84], "type": "rgb"},
            "robot0_eye_in_hand_image": {"shape": [3, 84, 84], "type": "rgb"},
            "robot0_eef_pos": {"shape": [3]},
            "robot0_eef_quat": {"shape": [4]},
            "robot0_gripper_qpos": {"shape": [2]},
        },
        "action": {"shape": [10]},
    },
    "abs_action": True,
}
LIFT_IMAGE_ABS = LIFT | {
    "name": "lift_image",
    "task_name": "lift",
    "dataset_type": "ph",
    "env_runner": RUNNER
    | LIFT
    | {
        "_target_": "diffusion_policy.env_runner.robomimic_image_runner.RobomimicImageRunner",
        "train_start_idx": 0,
        "max_steps": '${eval:\'500 if "${task.dataset_type}" == "mh" else 400\'}',
        "render_obs_key": "agentview_image",
        "fps": 10,
        "crf": 22,
        "tqdm_interval_sec": 1.0,
        "n_envs": 28,
    },
    "dataset": DATASET
    | LIFT
    | {
        "_target_": (
            "diffusion_policy.dataset.robomimic_replay_image_dataset.RobomimicReplayImageDataset"
        ),
        "pad_before": PAD_BEFORE_LATENCY,
        "n_obs_steps": "${dataset_obs_steps}",
        "rotation_rep": "rotation_6d",
        "use_legacy_normalizer": False,
        "use_cache": True,
    },
}

# ---- methods -------------------------------------------------------------------------------------


def unet_lowdim(epochs, scheduler, **top):
    modes = ("obs_as_local_cond", "obs_as_global_cond", "pred_action_steps_only")
    model = {
        "_target_": "diffusion_policy.model.diffusion.conditional_unet1d.ConditionalUnet1D",
        "input_dim": (
            "${eval: ${task.action_dim} if ${obs_as_local_cond} or ${obs_as_global_cond}"
            " else ${task.obs_dim} + ${task.action_dim}}"
        ),
        "local_cond_dim": "${eval: ${task.obs_dim} if ${obs_as_local_cond} else None}",
        "global_cond_dim": (
            "${eval: ${task.obs_dim}*${n_obs_steps} if ${obs_as_global_cond} else None}"
        ),
        "diffusion_step_embed_dim": 256,
        "down_dims": [256, 512, 1024],
        "kernel_size": 5,
        "n_groups": 8,
        "cond_predict_scale": True,
    }
    policy = {
        "_target_": (
            "diffusion_policy.policy.diffusion_unet_lowdim_policy.DiffusionUnetLowdimPolicy"
        ),
        "model": model,
        "n_action_steps": N_ACTIONS,
        "oa_step_convention": True,
    }
    return (
        common(16, 2, 8)
        | trained("lowdim", epochs, 256, 1)
        | {f"{key}_dim": f"${{task.{key}_dim}}" for key in ("obs", "action", "keypoint")}
        | dict(zip(modes, (False, True, False), strict=True))
        | {"task": PUSHT_LOWDIM}
        | {
            "policy": policy
            | references("horizon", "obs_dim", "action_dim", "n_obs_steps", *modes)
            | scheduler
        }
        | top
    )


def unet_on_images(policy, scheduler):
    """What the hybrid and the image family share."""
    shared = {
        "n_action_steps": N_ACTIONS,
        "diffusion_step_embed_dim": 128,
        "down_dims": [512, 1024, 2048],
        "kernel_size": 5,
        "n_groups": 8,
        "cond_predict_scale": True,
    }
    shared |= references("shape_meta", "horizon", "n_obs_steps", "obs_as_global_cond")
    return common(16, 2, 8) | {
        "shape_meta": "${task.shape_meta}",
        "dataset_obs_steps": "${n_obs_steps}",
        "obs_as_global_cond": True,
        "policy": shared | scheduler | policy,
        "task": LIFT_IMAGE_ABS,
    }


def unet_hybrid(epochs, scheduler, **policy):
    target = (
        "diffusion_policy.policy.diffusion_unet_hybrid_image_policy.DiffusionUnetHybridImagePolicy"
    )
    policy = {
        "_target_": target,
        "crop_shape": [76, 76],
        "obs_encoder_group_norm": True,
        "eval_fixed_crop": True,
    } | policy
    return unet_on_images(policy, scheduler) | trained("hybrid", epochs, 64, 8)


def unet_image(freeze_encoder, weights, **encoder):
    encoder = {
        "_target_": "diffusion_policy.model.vision.multi_image_obs_encoder.MultiImageObsEncoder",
        "shape_meta": "${shape_meta}",
        "rgb_model": {
            "_target_": "diffusion_policy.model.vision.model_getter.get_resnet",
            "name": "resnet18",
            "weights": weights,
        },
        "imagenet_norm": True,
    } | encoder
    policy = {
        "_target_": "diffusion_policy.policy.diffusion_unet_image_policy.DiffusionUnetImagePolicy",
        "obs_encoder": encoder,
    }
    return unet_on_images(policy, DDPM) | trained(
        "image", 8000, 64, 4, freeze_encoder=freeze_encoder
    )


CORE = "diffusion_policy.model.obs_encoder.video_core"
VIDEO = common(16, 4, 8) | {
    "name": "train_diffusion_unet_video",
    "_target_": (
        "diffusion_policy.workspace.train_diffusion_unet_video_workspace"
        ".TrainDiffusionUnetVideoWorkspace"
    ),
    "shape_meta": "${task.shape_meta}",
    "lowdim_as_global_cond": True,
    # The published file lacks these two, so that it cannot be composed.
    "n_latency_steps": 0,
    "dataset_obs_steps": "${n_obs_steps}",
    "policy": {
        "_target_": "diffusion_policy.policy.diffusion_unet_video_policy.DiffusionUnetVideoPolicy",
        "rgb_net": {
            "_target_": f"{CORE}.VideoCore",
            "backbone": {
                "_target_": f"{CORE}.VideoResNet",
                "norm_groups": 8,
                "input_channel": 3,
                "model_depth": 50,
            },
            "pool": {
                "_target_": "diffusion_policy.model.ibc.global_avgpool.GlobalAvgpool",
                "dim": [2, 3, 4],
            },
        },
        "diffusion_step_embed_dim": 128,
        "down_dims": [512, 1024, 2048],
        "kernel_size": 5,
        "n_groups": 8,
        "cond_predict_scale": True,
        "channel_mults": [1, 1],
        "n_blocks_per_level": 1,
        "ta_kernel_size": 3,
        "ta_n_groups": 1,
    }
    | references("shape_meta", "horizon", "n_action_steps", "n_obs_steps", "lowdim_as_global_cond")
    | DDPM,
    "dataloader": {"batch_size": 32, "num_workers": 1, "shuffle": True, "pin_memory": True},
    "training": {
        "device": "cuda:0",
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 500,
        "num_epochs": 1500,
        "gradient_accumulate_every": 1,
        "eval_every": 5000,
        "eval_first": False,
        "val_every": 300,
        "use_ema": False,
        "tqdm_interval_sec": 1.0,
        "seed": 42,
    },
    "checkpoint": {
        "topk": {
            "monitor_key": "test_score",
            "mode": "max",
            "k": 5,
            "format_str": "epoch={epoch:03d}-test_score={test_score:.3f}.ckpt",
        },
        "save_last_ckpt": False,
        "save_last_snapshot": False,
    },
    "task": LIFT_IMAGE_ABS,
}

UNET_IMAGE = {
    "resize_shape": None,
    "crop_shape": [76, 76],
    "random_crop": True,
    "use_group_norm": True,
    "share_rgb_model": False,
}
UNET_IMAGE_PRETRAINED = {
    "resize_shape": [256, 256],
    "crop_shape": [224, 224],
    "random_crop": False,
    "use_group_norm": False,
    "share_rgb_model": True,
}
PUBLISHED = {
    "diffusion_unet_lowdim": unet_lowdim(5000, DDPM),
    "diffusion_unet_ddim_lowdim": unet_lowdim(8000, DDIM, obs_as_global_cond=False),
    "diffusion_unet_hybrid": unet_hybrid(3050, DDPM),
    "diffusion_unet_ddim_hybrid": unet_hybrid(
        3000, DDIM, crop_shape=None, down_dims=[256, 512, 1024]
    ),
    "diffusion_unet_image": unet_image(False, None, **UNET_IMAGE),
    "diffusion_unet_image_pretrained": unet_image(True, "IMAGENET1K_V1", **UNET_IMAGE_PRETRAINED),
    "diffusion_unet_video": VIDEO,
}


def workspace_config(name):
    return f"train_{name}_workspace"


def composed(name, *overrides, with_hydra=False):
    """As written, interpolations unresolved."""
    setup_globals()
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base=None):
        return hydra.compose(name, overrides=list(overrides), return_hydra_config=with_hydra)


def flat(node, prefix=""):
    """{path: value}; empty containers count as values."""
    if isinstance(node, dict) and node:
        items = node.items()
        return {k: v for key, item in items for k, v in flat(item, f"{prefix}.{key}").items()}
    return {prefix.removeprefix("."): node}


def test_the_tables_hold_every_published_configuration_that_is_shipped():
    shipped = {name for name in NAMES if name.startswith("train_")}
    assert shipped == {workspace_config(name) for name in PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_configuration_has_the_published_keys_and_values_and_no_others(name):
    ours = flat(OmegaConf.to_container(composed(workspace_config(name)), resolve=False))
    published = flat(PUBLISHED[name])
    assert ours.keys() - published.keys() == set()
    assert published.keys() - ours.keys() == set()
    assert ours == published
    assert {k: type(v) for k, v in ours.items()} == {k: type(v) for k, v in published.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_run_gets_the_published_directory(name):
    cfg = composed(workspace_config(name), with_hydra=True)
    node = OmegaConf.to_container(cfg.hydra, resolve=False)
    assert {key: flat(node)[key] for key in HYDRA} == HYDRA


def test_the_name_of_the_overrides_is_the_published_one():
    """Hydra overwrites it whenever it composes."""
    shared = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "base/run.yaml"), resolve=False)
    assert flat(shared)["hydra.job.override_dirname"] == "${name}"


@pytest.mark.parametrize(("task", "published"), [("pusht_image", PUSHT_IMAGE)])
def test_a_task_that_is_no_default_has_the_published_values(task, published):
    cfg = composed("train_diffusion_unet_hybrid_workspace", f"task={task}")
    assert OmegaConf.to_container(cfg.task, resolve=False) == published


@pytest.mark.parametrize("overrides", [(), ("task=pusht_image",)])
@pytest.mark.parametrize("name", ["diffusion_unet_hybrid", "diffusion_unet_video"])
def test_the_order_of_the_observations_is_the_published_one(compose_config, name, overrides):
    """It is the order of the encoder's features, and the one thing that equality does not see."""
    cfg = compose_config(workspace_config(name), *overrides)
    published = (PUSHT_IMAGE if overrides else LIFT_IMAGE_ABS)["shape_meta"]["obs"]
    for shape_meta in (cfg.shape_meta, cfg.policy.shape_meta, cfg.task.shape_meta):
        assert list(shape_meta.obs) == list(published)


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_composes_and_passes_the_checks(compose_config, name):
    cfg = compose_config(name)
    check_config(cfg)
    assert hydra.utils.get_class(cfg._target_).__name__.startswith("Train")


@pytest.mark.parametrize(
    ("overrides", "input_dim", "local_dim", "global_dim"),
    [
        ([], 2, None, 40),
        (["obs_as_global_cond=False", "obs_as_local_cond=True"], 2, 20, None),
        (["obs_as_global_cond=False"], 22, None, None),
    ],
)
def test_the_network_fits_the_conditioning_mode(
    compose_config, overrides, input_dim, local_dim, global_dim
):
    model = compose_config("train_diffusion_unet_lowdim_workspace", *overrides).policy.model
    assert (model.input_dim, model.local_cond_dim, model.global_cond_dim) == (
        input_dim,
        local_dim,
        global_dim,
    )


def test_latency_steps_lengthen_the_padding_and_the_predicted_chunk(compose_config):
    cfg = compose_config("train_diffusion_unet_lowdim_workspace", "n_latency_steps=2")
    assert cfg.policy.n_action_steps == 10
    assert cfg.task.dataset.pad_before == 3
    assert cfg.task.dataset.pad_after == 7


# ---- networks ------------------------------------------------------------------------------------


def build_policy(compose_config, name, *overrides):
    """The policy at full size, without memory for its weights."""
    with torch.device("meta"):
        return hydra.utils.instantiate(compose_config(workspace_config(name), *overrides).policy)


CROP_84 = ("task=pusht_image", "policy.crop_shape=[84,84]")
NO_DOWNLOAD = ("policy.obs_encoder.rgb_model.weights=null",)
SIZES = [  # parameters, entries of parameters(), entries of state_dict(), features
    ("diffusion_unet_lowdim", (), 65_783_298, 150, 150, None),
    ("diffusion_unet_ddim_lowdim", (), 65_245_718, 150, 150, None),
    ("diffusion_unet_hybrid", (), 278_006_218, 278, 414, 137),
    ("diffusion_unet_hybrid", CROP_84, 262_709_026, 214, 282, 66),
    ("diffusion_unet_ddim_hybrid", (), 89_317_578, 278, 414, 137),
    ("diffusion_unet_image", (), 329_345_290, 271, 271, 1033),
    ("diffusion_unet_image", ("task=pusht_image",), 288_378_562, 211, 211, 514),
    ("diffusion_unet_image_pretrained", NO_DOWNLOAD, 318_168_778, 211, 271, 1033),
]


@pytest.mark.parametrize(
    ("name", "overrides", "n_values", "n_parameters", "n_keys", "n_features"), SIZES
)
def test_published_networks_have_their_published_size(
    compose_config, name, overrides, n_values, n_parameters, n_keys, n_features
):
    policy = build_policy(compose_config, name, *overrides)
    assert sum(p.numel() for p in policy.parameters()) == n_values
    assert len(list(policy.parameters())) == n_parameters
    assert len(policy.state_dict()) == n_keys
    if n_features is not None:
        assert policy.obs_feature_dim == n_features


def test_the_video_network_can_be_built_as_configured(compose_config):
    policy = build_policy(compose_config, "diffusion_unet_video")
    assert policy.model.global_cond_dim == 2 * 2048 + 9 * 2
    assert len(policy.rgb_nets_map) == 2


STOCK = [
    ("diffusion_unet_lowdim", ()),
    ("diffusion_unet_ddim_lowdim", ()),
    ("diffusion_unet_hybrid", ()),
    ("diffusion_unet_hybrid", ("task=pusht_image",)),
    ("diffusion_unet_ddim_hybrid", ()),
    ("diffusion_unet_image", ()),
    ("diffusion_unet_image", ("task=pusht_image",)),
]


@pytest.fixture(scope="module")
def stock_state_dicts(golden):
    return json.loads((golden / "e_stock_state_dicts.json").read_text())


@pytest.mark.parametrize(("name", "overrides"), STOCK)
def test_stock_state_dicts_equal_the_reference(compose_config, stock_state_dicts, name, overrides):
    entry = stock_state_dicts["+".join([workspace_config(name), *overrides])]
    policy = build_policy(compose_config, name, *overrides)
    ours = {
        k: [list(v.shape), str(v.dtype).removeprefix("torch.")]
        for k, v in policy.state_dict().items()
    }
    assert ours == entry["state_dict"]
    assert list(ours) == list(entry["state_dict"])
    assert sum(p.numel() for p in policy.parameters()) == entry["n_params"]
