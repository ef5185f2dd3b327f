"""What a configuration may name in ``_target_`` without anybody's word for it.

Exact names of classes, and of the one function that builds networks. All of them only compute,
read data sets and roll out policies; none takes the name of something to call. A new policy,
network, data set or runner of this project is added here; one of yours needs no entry (see
:mod:`.targets`). Published configurations name some whose modules are still to come.
"""

_OURS = """
dataset.blockpush_lowdim_dataset.BlockPushLowdimDataset
dataset.kitchen_lowdim_dataset.KitchenLowdimDataset
dataset.kitchen_mjl_lowdim_dataset.KitchenMjlLowdimDataset
dataset.mujoco_image_dataset.MujocoImageDataset
dataset.pusht_dataset.PushTLowdimDataset
dataset.pusht_image_dataset.PushTImageDataset
dataset.real_pusht_image_dataset.RealPushTImageDataset
dataset.robomimic_replay_image_dataset.RobomimicReplayImageDataset
dataset.robomimic_replay_lowdim_dataset.RobomimicReplayLowdimDataset

env_runner.blockpush_lowdim_runner.BlockPushLowdimRunner
env_runner.kitchen_lowdim_runner.KitchenLowdimRunner
env_runner.pusht_image_runner.PushTImageRunner
env_runner.pusht_keypoints_runner.PushTKeypointsRunner
env_runner.real_pusht_image_runner.RealPushTImageRunner
env_runner.robomimic_image_runner.RobomimicImageRunner
env_runner.robomimic_lowdim_runner.RobomimicLowdimRunner

model.bet.action_ae.discretizers.k_means.KMeansDiscretizer
model.bet.latent_generators.mingpt.MinGPT
model.bet.latent_generators.transformer.Transformer
model.diffusion.conditional_unet1d.ConditionalUnet1D
model.diffusion.ema_model.EMAModel
model.diffusion.transformer_for_diffusion.TransformerForDiffusion
model.ibc.global_avgpool.GlobalAvgpool
model.obs_encoder.temporal_aggregator.TemporalAggregator
model.obs_encoder.video_core.VideoCore
model.obs_encoder.video_core.VideoResNet
model.vision.crop_randomizer.CropRandomizer
model.vision.model_getter.get_resnet
model.vision.multi_image_obs_encoder.MultiImageObsEncoder
model.vision.spatial_softmax_cnn.SpatialSoftmaxCNN

policy.bet_lowdim_policy.BETLowdimPolicy
policy.diffusion_transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy
policy.diffusion_transformer_lowdim_policy.DiffusionTransformerLowdimPolicy
policy.diffusion_unet_hybrid_image_policy.DiffusionUnetHybridImagePolicy
policy.diffusion_unet_image_policy.DiffusionUnetImagePolicy
policy.diffusion_unet_lowdim_policy.DiffusionUnetLowdimPolicy
policy.diffusion_unet_video_policy.DiffusionUnetVideoPolicy
policy.ibc_dfo_hybrid_image_policy.IbcDfoHybridImagePolicy
policy.ibc_dfo_lowdim_policy.IbcDfoLowdimPolicy
policy.robomimic_image_policy.RobomimicImagePolicy
policy.robomimic_lowdim_policy.RobomimicLowdimPolicy

workspace.train_bet_lowdim_workspace.TrainBETLowdimWorkspace
workspace.train_diffusion_transformer_hybrid_workspace.TrainDiffusionTransformerHybridWorkspace
workspace.train_diffusion_transformer_lowdim_workspace.TrainDiffusionTransformerLowdimWorkspace
workspace.train_diffusion_unet_hybrid_workspace.TrainDiffusionUnetHybridWorkspace
workspace.train_diffusion_unet_image_workspace.TrainDiffusionUnetImageWorkspace
workspace.train_diffusion_unet_lowdim_workspace.TrainDiffusionUnetLowdimWorkspace
workspace.train_diffusion_unet_video_workspace.TrainDiffusionUnetVideoWorkspace
workspace.train_ibc_dfo_hybrid_workspace.TrainIbcDfoHybridWorkspace
workspace.train_ibc_dfo_lowdim_workspace.TrainIbcDfoLowdimWorkspace
workspace.train_robomimic_image_workspace.TrainRobomimicImageWorkspace
workspace.train_robomimic_lowdim_workspace.TrainRobomimicLowdimWorkspace
"""

# Modules of diffusers.schedulers, and their classes: those that sample with scalar time steps.
_SCHEDULERS = {
    "scheduling_ddim": "DDIMScheduler",
    "scheduling_ddim_inverse": "DDIMInverseScheduler",
    "scheduling_ddim_parallel": "DDIMParallelScheduler",
    "scheduling_ddpm": "DDPMScheduler",
    "scheduling_ddpm_parallel": "DDPMParallelScheduler",
    "scheduling_deis_multistep": "DEISMultistepScheduler",
    "scheduling_dpmsolver_multistep": "DPMSolverMultistepScheduler",
    "scheduling_dpmsolver_singlestep": "DPMSolverSinglestepScheduler",
    "scheduling_edm_euler": "EDMEulerScheduler",
    "scheduling_euler_ancestral_discrete": "EulerAncestralDiscreteScheduler",
    "scheduling_euler_discrete": "EulerDiscreteScheduler",
    "scheduling_flow_match_euler_discrete": "FlowMatchEulerDiscreteScheduler",
    "scheduling_flow_match_heun_discrete": "FlowMatchHeunDiscreteScheduler",
    "scheduling_heun_discrete": "HeunDiscreteScheduler",
    "scheduling_ipndm": "IPNDMScheduler",
    "scheduling_k_dpm_2_ancestral_discrete": "KDPM2AncestralDiscreteScheduler",
    "scheduling_k_dpm_2_discrete": "KDPM2DiscreteScheduler",
    "scheduling_lcm": "LCMScheduler",
    "scheduling_lms_discrete": "LMSDiscreteScheduler",
    "scheduling_pndm": "PNDMScheduler",
    "scheduling_sasolver": "SASolverScheduler",
    "scheduling_tcd": "TCDScheduler",
    "scheduling_unipc_multistep": "UniPCMultistepScheduler",
}

# Modules of torch.optim, and their classes.
_OPTIMIZERS = {
    "adadelta": "Adadelta",
    "adagrad": "Adagrad",
    "adam": "Adam",
    "adamax": "Adamax",
    "adamw": "AdamW",
    "nadam": "NAdam",
    "radam": "RAdam",
    "rmsprop": "RMSprop",
    "sgd": "SGD",
}

# Modules of torch.nn.modules, and their classes: what an encoder's head or activation may be.
_LAYERS = {
    "activation": "ELU GELU LeakyReLU Mish ReLU ReLU6 SiLU Sigmoid Softplus Tanh",
    "batchnorm": "BatchNorm1d BatchNorm2d BatchNorm3d",
    "container": "ModuleList Sequential",
    "conv": "Conv1d Conv2d Conv3d",
    "dropout": "Dropout Dropout1d Dropout2d",
    "flatten": "Flatten Unflatten",
    "linear": "Identity Linear",
    "normalization": "GroupNorm LayerNorm",
    "pooling": (
        "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AvgPool1d AvgPool2d AvgPool3d "
        "MaxPool1d MaxPool2d MaxPool3d"
    ),
}


def _names() -> frozenset[str]:
    names = {f"diffusion_policy.{name}" for name in _OURS.split()}
    for module, name in _SCHEDULERS.items():
        for package in ("diffusers", "diffusers.schedulers", f"diffusers.schedulers.{module}"):
            names.add(f"{package}.{name}")
    for module, name in _OPTIMIZERS.items():
        names |= {f"torch.optim.{name}", f"torch.optim.{module}.{name}"}
    for module, layers in _LAYERS.items():
        for name in layers.split():
            names |= {f"torch.nn.{name}", f"torch.nn.modules.{module}.{name}"}
    return frozenset(names)


ALLOWED_TARGETS = _names()
