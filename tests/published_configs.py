"""The published configurations as tables, written out independently of how the YAML files share
their blocks; compared in config/test_configs.py.
"""

import copy

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
# Not as published, where two jobs of one second shared a directory (no published tree has it).
HYDRA = {
    "run.dir": f"data/outputs/{RUN}_seed${{training.seed}}_${{now:%f}}",
    "sweep.dir": f"data/outputs/{RUN}_${{now:%f}}",
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
    "rollout_every": 50,
    "checkpoint_every": 50,
    "val_every": 1,
    "sample_every": 5,
    "max_train_steps": None,
    "max_val_steps": None,
    "tqdm_interval_sec": 1.0,
}
SCHEDULE = {"lr_scheduler": "cosine", "lr_warmup_steps": 500, "gradient_accumulate_every": 1}


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
    }


def references(*keys):
    return {key: f"${{{key}}}" for key in keys}


def trained(workspace, class_name, epochs, batch_size, num_workers, **training):
    """What depends on the workspace, and the common blocks of all configurations but video."""
    loader = {"batch_size": batch_size, "num_workers": num_workers, "pin_memory": True}
    loader |= {"persistent_workers": False}
    module = f"train_{workspace}_workspace"
    return {
        "name": f"train_{workspace}",
        "_target_": f"diffusion_policy.workspace.{module}.Train{class_name}Workspace",
        "n_latency_steps": 0,
        "checkpoint": CHECKPOINT,
        "multi_run": MULTI_RUN,
        "dataloader": loader | {"shuffle": True},
        "val_dataloader": loader | {"shuffle": False},
        "training": TRAINING | {"num_epochs": epochs} | training,
    }


def trained_by_diffusion(*args, **training):
    return trained(*args, **SCHEDULE | {"use_ema": True} | training) | {"ema": EMA}


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


def lift(file, abs_action, action_dim, n_train_vis, n_test_vis):
    shared = {
        "dataset_path": (
            f"data/robomimic/datasets/${{task.task_name}}/${{task.dataset_type}}/{file}.hdf5"
        ),
        "shape_meta": {
            "obs": {
                "agentview_image": {"shape": [3, 84, 84], "type": "rgb"},
                "robot0_eye_in_hand_image": {"shape": [3, 84, 84], "type": "rgb"},
                "robot0_eef_pos": {"shape": [3]},
                "robot0_eef_quat": {"shape": [4]},
                "robot0_gripper_qpos": {"shape": [2]},
            },
            "action": {"shape": [action_dim]},
        },
        "abs_action": abs_action,
    }
    runner = {
        "_target_": "diffusion_policy.env_runner.robomimic_image_runner.RobomimicImageRunner",
        "n_train_vis": n_train_vis,
        "n_test_vis": n_test_vis,
        "train_start_idx": 0,
        "max_steps": '${eval:\'500 if "${task.dataset_type}" == "mh" else 400\'}',
        "render_obs_key": "agentview_image",
        "fps": 10,
        "crf": 22,
        "tqdm_interval_sec": 1.0,
        "n_envs": 28,
    }
    dataset = {
        "_target_": (
            "diffusion_policy.dataset.robomimic_replay_image_dataset.RobomimicReplayImageDataset"
        ),
        "pad_before": PAD_BEFORE_LATENCY,
        "n_obs_steps": "${dataset_obs_steps}",
        "rotation_rep": "rotation_6d",
        "use_legacy_normalizer": False,
        "use_cache": True,
    }
    return shared | {
        "name": "lift_image",
        "task_name": "lift",
        "dataset_type": "ph",
        "env_runner": RUNNER | shared | runner,
        "dataset": DATASET | shared | dataset,
    }


LIFT_IMAGE = lift("image", abs_action=False, action_dim=7, n_train_vis=1, n_test_vis=3)
LIFT_IMAGE_ABS = lift("image_abs", abs_action=True, action_dim=10, n_train_vis=2, n_test_vis=4)
BLOCKPUSH_LOWDIM_SEED = {
    "name": "blockpush_lowdim_seed",
    "obs_dim": 16,
    "action_dim": 2,
    "keypoint_dim": 2,
    "obs_eef_target": True,
    "env_runner": RUNNER
    | {
        "_target_": "diffusion_policy.env_runner.blockpush_lowdim_runner.BlockPushLowdimRunner",
        "train_start_seed": 0,
        "max_steps": 350,
        "fps": 5,
        "abs_action": False,
        "obs_eef_target": "${task.obs_eef_target}",
        "n_envs": None,
    },
    "dataset": DATASET
    | {
        "_target_": ("diffusion_policy.dataset.blockpush_lowdim_dataset.BlockPushLowdimDataset"),
        "zarr_path": "data/block_pushing/multimodal_push_seed.zarr",
        "pad_before": PAD_BEFORE,
        "obs_eef_target": "${task.obs_eef_target}",
        "use_manual_normalizer": False,
    },
}
KITCHEN = {"abs_action": "${task.abs_action}", "robot_noise_ratio": "${task.robot_noise_ratio}"}
KITCHEN_LOWDIM_ABS = {
    "name": "kitchen_lowdim",
    "obs_dim": 60,
    "action_dim": 9,
    "keypoint_dim": 3,
    "abs_action": True,
    "robot_noise_ratio": 0.1,
    "env_runner": RUNNER
    | KITCHEN
    | {
        "_target_": "diffusion_policy.env_runner.kitchen_lowdim_runner.KitchenLowdimRunner",
        "dataset_dir": "data/kitchen",
        "train_start_seed": 0,
        "max_steps": 280,
        "render_hw": [240, 360],
        "fps": 12.5,
        "n_envs": None,
    },
    "dataset": DATASET
    | KITCHEN
    | {
        "_target_": ("diffusion_policy.dataset.kitchen_mjl_lowdim_dataset.KitchenMjlLowdimDataset"),
        "dataset_dir": "data/kitchen/kitchen_demos_multitask",
        "pad_before": PAD_BEFORE,
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
        | trained_by_diffusion("diffusion_unet_lowdim", "DiffusionUnetLowdim", epochs, 256, 1)
        | LOWDIM
        | {"optimizer": ADAMW, "keypoint_dim": "${task.keypoint_dim}"}
        | dict(zip(modes, (False, True, False), strict=True))
        | {"task": PUSHT_LOWDIM}
        | {
            "policy": policy
            | references("horizon", "obs_dim", "action_dim", "n_obs_steps", *modes)
            | scheduler
        }
        | top
    )


IMAGES = {"shape_meta": "${task.shape_meta}", "dataset_obs_steps": "${n_obs_steps}"}
HYBRID_ENCODER = {"crop_shape": [76, 76], "obs_encoder_group_norm": True, "eval_fixed_crop": True}
LOWDIM = {"obs_dim": "${task.obs_dim}", "action_dim": "${task.action_dim}"}


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
    return (
        common(16, 2, 8)
        | IMAGES
        | {
            "optimizer": ADAMW,
            "obs_as_global_cond": True,
            "policy": shared | scheduler | policy,
            "task": LIFT_IMAGE_ABS,
        }
    )


def unet_hybrid(epochs, scheduler, **policy):
    target = (
        "diffusion_policy.policy.diffusion_unet_hybrid_image_policy.DiffusionUnetHybridImagePolicy"
    )
    return unet_on_images(
        {"_target_": target} | HYBRID_ENCODER | policy, scheduler
    ) | trained_by_diffusion("diffusion_unet_hybrid", "DiffusionUnetHybrid", epochs, 64, 8)


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
    return unet_on_images(policy, DDPM) | trained_by_diffusion(
        "diffusion_unet_image",
        "DiffusionUnetImage",
        8000,
        64,
        4,
        freeze_encoder=freeze_encoder,
    )


TRANSFORMER = {
    "n_layer": 8,
    "n_head": 4,
    "n_emb": 256,
    "p_drop_emb": 0.0,
    "p_drop_attn": 0.3,
    "causal_attn": True,
    "time_as_cond": True,
    "obs_as_cond": "${obs_as_cond}",
    "n_cond_layers": 0,
}


def transformer_lowdim(steps, task, weight_decay, epochs=5000, **model):
    model = {
        "_target_": (
            "diffusion_policy.model.diffusion.transformer_for_diffusion.TransformerForDiffusion"
        ),
        "input_dim": "${eval:'${action_dim} if ${obs_as_cond} else ${obs_dim} + ${action_dim}'}",
        "output_dim": "${policy.model.input_dim}",
        "horizon": "${horizon}",
        "n_obs_steps": "${n_obs_steps}",
        "cond_dim": "${eval:'${obs_dim} if ${obs_as_cond} else 0'}",
        **TRANSFORMER,
        **model,
    }
    keys = ("horizon", "obs_dim", "action_dim", "n_obs_steps", "n_action_steps")
    keys += ("obs_as_cond", "pred_action_steps_only")
    policy = {
        "_target_": (
            "diffusion_policy.policy.diffusion_transformer_lowdim_policy"
            ".DiffusionTransformerLowdimPolicy"
        ),
        "model": model,
    }
    return (
        common(*steps)
        | LOWDIM
        | trained_by_diffusion(
            "diffusion_transformer_lowdim",
            "DiffusionTransformerLowdim",
            epochs,
            256,
            1,
            lr_warmup_steps=1000,
        )
        | {
            "obs_as_cond": True,
            "pred_action_steps_only": False,
            "policy": policy | references(*keys) | DDPM,
            "optimizer": {
                "learning_rate": 1e-4,
                "weight_decay": weight_decay,
                "betas": [0.9, 0.95],
            },
            "task": task,
        }
    )


TRANSFORMER_HYBRID = (
    common(10, 2, 8)
    | IMAGES
    | trained_by_diffusion(
        "diffusion_transformer_hybrid",
        "DiffusionTransformerHybrid",
        3050,
        64,
        8,
        lr_warmup_steps=1000,
    )
    | {
        "obs_as_cond": True,
        "policy": {
            "_target_": (
                "diffusion_policy.policy.diffusion_transformer_hybrid_image_policy"
                ".DiffusionTransformerHybridImagePolicy"
            ),
            "n_action_steps": N_ACTIONS,
        }
        | references("shape_meta", "horizon", "n_obs_steps")
        | DDPM
        | HYBRID_ENCODER
        | TRANSFORMER,
        "optimizer": {
            "transformer_weight_decay": 1e-3,
            "obs_encoder_weight_decay": 1e-6,
            "learning_rate": 1e-4,
            "betas": [0.9, 0.95],
        },
        "task": LIFT_IMAGE_ABS,
    }
)

IBC_DFO = {
    "n_action_steps": N_ACTIONS,
    "dropout": 0.1,
    "train_n_neg": 1024,
    "pred_n_iter": 5,
    "pred_n_samples": 1024,
    "kevin_inference": False,
    "andy_train": False,
} | references("horizon", "n_obs_steps")
IBC_DFO_LOWDIM = (
    common(2, 2, 1)
    | LOWDIM
    | trained("ibc_dfo_lowdim", "IbcDfoLowdim", 5000, 256, 1, sample_max_batch=128, **SCHEDULE)
    | {
        "optimizer": ADAMW,
        "keypoint_dim": "${task.keypoint_dim}",
        "policy": {
            "_target_": "diffusion_policy.policy.ibc_dfo_lowdim_policy.IbcDfoLowdimPolicy",
        }
        | IBC_DFO
        | references("obs_dim", "action_dim"),
        "task": PUSHT_LOWDIM,
    }
)
IBC_DFO_HYBRID = (
    common(2, 2, 1)
    | IMAGES
    | trained("ibc_dfo_hybrid", "IbcDfoHybrid", 3050, 128, 8, sample_max_batch=128, **SCHEDULE)
    | {
        "optimizer": ADAMW,
        "policy": {
            "_target_": (
                "diffusion_policy.policy.ibc_dfo_hybrid_image_policy.IbcDfoHybridImagePolicy"
            ),
        }
        | IBC_DFO
        | HYBRID_ENCODER
        | references("shape_meta")
        | {"crop_shape": [84, 84]},
        "task": PUSHT_IMAGE,
    }
)

BET_LOWDIM = (
    common(3, 3, 1)
    | LOWDIM
    | trained(
        "bet_lowdim",
        "BETLowdim",
        5000,
        256,
        1,
        grad_norm_clip=1.0,
        enable_normalizer=True,
        **SCHEDULE,
    )
    | {
        "keypoint_dim": "${task.keypoint_dim}",
        "obs_as_local_cond": False,
        "obs_as_global_cond": False,
        "pred_action_steps_only": False,
        "policy": {
            "_target_": "diffusion_policy.policy.bet_lowdim_policy.BETLowdimPolicy",
            "action_ae": {
                "_target_": (
                    "diffusion_policy.model.bet.action_ae.discretizers.k_means.KMeansDiscretizer"
                ),
                "num_bins": 24,
                "action_dim": "${action_dim}",
                "predict_offsets": True,
            },
            "obs_encoding_net": {"_target_": "torch.nn.Identity", "output_dim": "${obs_dim}"},
            "state_prior": {
                "_target_": "diffusion_policy.model.bet.latent_generators.mingpt.MinGPT",
                "discrete_input": False,
                "input_dim": "${obs_dim}",
                "vocab_size": "${policy.action_ae.num_bins}",
                "n_layer": 4,
                "n_head": 4,
                "n_embd": 72,
                "block_size": "${horizon}",
                "predict_offsets": True,
                "offset_loss_scale": 1000.0,
                "focal_loss_gamma": 2.0,
                "action_dim": "${action_dim}",
            },
        }
        | references("horizon", "n_obs_steps", "n_action_steps"),
        "optimizer": {"learning_rate": 0.0001, "weight_decay": 0.1, "betas": [0.9, 0.95]},
        "task": BLOCKPUSH_LOWDIM_SEED,
    }
)

LSTM_GMM = {
    "algo_name": "bc_rnn",
    "task_name": "${oc.select:task.task_name,lift}",
    "dataset_type": "${oc.select:task.dataset_type,ph}",
}
ROBOMIMIC_LOWDIM = (
    common(10, 1, 1)
    | LOWDIM
    | trained("robomimic_lowdim", "RobomimicLowdim", 5000, 256, 1)
    | {
        "transition_dim": "${eval: ${task.obs_dim} + ${task.action_dim}}",
        "policy": {
            "_target_": "diffusion_policy.policy.robomimic_lowdim_policy.RobomimicLowdimPolicy",
            "obs_type": "low_dim",
        }
        | LSTM_GMM
        | references("obs_dim", "action_dim"),
        "task": PUSHT_LOWDIM,
    }
)
del ROBOMIMIC_LOWDIM["training"]["sample_every"]
ROBOMIMIC_IMAGE = (
    common(10, 1, 1)
    | trained("robomimic_image", "RobomimicImage", 3050, 64, 16)
    | {
        "shape_meta": "${task.shape_meta}",
        "dataset_obs_steps": 10,
        "policy": {
            "_target_": "diffusion_policy.policy.robomimic_image_policy.RobomimicImagePolicy",
            "obs_type": "image",
            "crop_shape": [76, 76],
        }
        | LSTM_GMM
        | references("shape_meta"),
        "task": LIFT_IMAGE,
    }
)

CORE = "diffusion_policy.model.obs_encoder.video_core"
VIDEO = common(16, 4, 8) | {
    "ema": EMA,
    "optimizer": ADAMW,
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
REAL_PUSHT_SHAPES = {
    "obs": {
        "camera_1": {"shape": "${task.image_shape}", "type": "rgb"},
        "camera_3": {"shape": "${task.image_shape}", "type": "rgb"},
        "robot_eef_pose": {"shape": [2], "type": "low_dim"},
    },
    "action": {"shape": [2]},
}
REAL_PUSHT_IMAGE = {
    "name": "real_image",
    "image_shape": [3, 240, 320],
    "dataset_path": "data/pusht_real/real_pusht_20230105",
    "shape_meta": REAL_PUSHT_SHAPES,
    "env_runner": {
        "_target_": "diffusion_policy.env_runner.real_pusht_image_runner.RealPushTImageRunner",
    },
    "dataset": DATASET
    | {
        "_target_": ("diffusion_policy.dataset.real_pusht_image_dataset.RealPushTImageDataset"),
        "shape_meta": REAL_PUSHT_SHAPES,
        "dataset_path": "${task.dataset_path}",
        "pad_before": PAD_BEFORE_LATENCY,
        "n_obs_steps": "${dataset_obs_steps}",
        "n_latency_steps": "${n_latency_steps}",
        "use_cache": True,
        "val_ratio": 0.0,
        "max_train_episodes": None,
        "delta_action": False,
    },
}


def changed(published, **changes):
    """The table with other values; double underscores lead into it."""
    result = copy.deepcopy(published)
    for path, value in changes.items():
        *parents, key = path.split("__")
        node = result
        for parent in parents:
            node = node[parent]
        assert key in node
        node[key] = value
    return result


def smallest(key):
    """Checkpoints ranked by what training measures."""
    topk = {"monitor_key": key, "mode": "min", "k": 5}
    topk["format_str"] = f"epoch={{epoch:04d}}-{key}={{{key}:.3f}}.ckpt"
    return CHECKPOINT | {"topk": topk}


TRANSFORMER_REAL_HYBRID = changed(
    TRANSFORMER_HYBRID,
    task=REAL_PUSHT_IMAGE,
    horizon=16,
    policy__crop_shape=[216, 288],
    policy__noise_scheduler=DDIM["noise_scheduler"],
    policy__num_inference_steps=8,
    training__num_epochs=600,
    training__lr_warmup_steps=500,
    dataloader__persistent_workers=True,
    val_dataloader__persistent_workers=True,
    checkpoint=smallest("train_loss"),
)
IBC_DFO_REAL_HYBRID = changed(
    IBC_DFO_HYBRID,
    task=REAL_PUSHT_IMAGE,
    n_latency_steps=1,
    policy__n_action_steps="${n_action_steps}",
    policy__train_n_neg=256,
    policy__pred_n_iter=3,
    policy__crop_shape=[216, 288],
    val_dataloader__num_workers=1,
    training__num_epochs=1000,
    training__checkpoint_every=5,
    checkpoint=smallest("train_action_mse_error"),
)
ROBOMIMIC_REAL_IMAGE = changed(
    ROBOMIMIC_IMAGE,
    task=REAL_PUSHT_IMAGE,
    n_latency_steps=1,
    policy__task_name="${oc.select:task.task_name,tool_hang}",
    policy__crop_shape=[216, 288],
    dataloader__batch_size=32,
    dataloader__num_workers=8,
    dataloader__persistent_workers=True,
    val_dataloader__batch_size=32,
    val_dataloader__num_workers=1,
    training__num_epochs=1000,
    checkpoint=smallest("train_loss"),
)

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
    "diffusion_transformer_lowdim": transformer_lowdim((5, 3, 1), BLOCKPUSH_LOWDIM_SEED, 1e-3),
    "diffusion_transformer_lowdim_pusht": transformer_lowdim(
        (16, 2, 8), PUSHT_LOWDIM, 1e-1, epochs=8000, p_drop_attn=0.01
    ),
    "diffusion_transformer_lowdim_kitchen": transformer_lowdim(
        (16, 4, 8), KITCHEN_LOWDIM_ABS, 1e-3, n_emb=768, p_drop_attn=0.1
    ),
    "diffusion_transformer_hybrid": TRANSFORMER_HYBRID,
    "diffusion_transformer_real_hybrid": TRANSFORMER_REAL_HYBRID,
    "ibc_dfo_lowdim": IBC_DFO_LOWDIM,
    "ibc_dfo_hybrid": IBC_DFO_HYBRID,
    "ibc_dfo_real_hybrid": IBC_DFO_REAL_HYBRID,
    "bet_lowdim": BET_LOWDIM,
    "robomimic_lowdim": ROBOMIMIC_LOWDIM,
    "robomimic_image": ROBOMIMIC_IMAGE,
    "robomimic_real_image": ROBOMIMIC_REAL_IMAGE,
}
