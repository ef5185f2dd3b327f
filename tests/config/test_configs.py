"""The shipped configurations compose to the published values."""

import json

import hydra
import pytest
from omegaconf import OmegaConf

from diffusion_policy.workspace.command_line import CONFIG_DIR

NAMES = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_composes_and_passes_the_horizon_check(compose_config, name):
    from diffusion_policy.config.checks import check_horizon

    cfg = compose_config(name)
    check_horizon(cfg)
    assert hydra.utils.get_class(cfg._target_).__name__.startswith("Train")


def test_unet_lowdim_has_the_published_values(compose_config):
    plain = OmegaConf.to_container(compose_config("train_diffusion_unet_lowdim_workspace"))
    assert plain["name"] == "train_diffusion_unet_lowdim"
    assert (plain["horizon"], plain["n_obs_steps"], plain["n_action_steps"]) == (16, 2, 8)
    assert plain["n_latency_steps"] == 0
    assert plain["past_action_visible"] is False
    assert plain["keypoint_visible_rate"] == 1.0
    assert plain["exp_name"] == "default"
    assert plain["task_name"] == "pusht_lowdim"
    assert plain["obs_as_global_cond"] is True
    assert plain["policy"]["noise_scheduler"] == {
        "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
        "num_train_timesteps": 100,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "squaredcos_cap_v2",
        "variance_type": "fixed_small",
        "clip_sample": True,
        "prediction_type": "epsilon",
    }
    assert plain["policy"]["num_inference_steps"] == 100
    assert plain["policy"]["n_action_steps"] == 8
    assert plain["training"] == {
        "device": "cuda:0",
        "seed": 42,
        "debug": False,
        "resume": True,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 500,
        "num_epochs": 5000,
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
    loader = {"batch_size": 256, "num_workers": 1, "pin_memory": True, "persistent_workers": False}
    assert plain["dataloader"] == loader | {"shuffle": True}
    assert plain["val_dataloader"] == loader | {"shuffle": False}
    assert plain["optimizer"] == {
        "_target_": "torch.optim.AdamW",
        "lr": 1e-4,
        "betas": [0.95, 0.999],
        "eps": 1e-8,
        "weight_decay": 1e-6,
    }
    assert plain["ema"]["power"] == 0.75
    assert plain["ema"]["max_value"] == 0.9999
    assert plain["logging"]["tags"] == [
        "train_diffusion_unet_lowdim",
        "pusht_lowdim",
        "default",
    ]
    assert plain["checkpoint"]["topk"]["k"] == 5
    assert plain["task"]["dataset"]["max_train_episodes"] == 90
    assert plain["task"]["env_runner"]["test_start_seed"] == 100000


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


def test_unet_ddim_lowdim_differs_from_it_as_published(compose_config):
    cfg = compose_config("train_diffusion_unet_ddim_lowdim_workspace")
    assert cfg.training.num_epochs == 8000
    assert cfg.obs_as_global_cond is False
    assert cfg.policy.num_inference_steps == 8
    assert dict(cfg.policy.noise_scheduler) == {
        "_target_": "diffusers.schedulers.scheduling_ddim.DDIMScheduler",
        "num_train_timesteps": 100,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "squaredcos_cap_v2",
        "clip_sample": True,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "prediction_type": "epsilon",
    }


def test_latency_steps_lengthen_the_padding_and_the_predicted_chunk(compose_config):
    cfg = compose_config("train_diffusion_unet_lowdim_workspace", "n_latency_steps=2")
    assert cfg.policy.n_action_steps == 10
    assert cfg.task.dataset.pad_before == 3
    assert cfg.task.dataset.pad_after == 7


@pytest.mark.parametrize(
    ("name", "n_parameters", "n_keys"),
    [
        ("train_diffusion_unet_lowdim_workspace", 65_783_298, 150),
        ("train_diffusion_unet_ddim_lowdim_workspace", 65_245_718, 150),
    ],
)
def test_published_networks_have_their_published_size(compose_config, name, n_parameters, n_keys):
    policy = hydra.utils.instantiate(compose_config(name).policy)
    assert sum(p.numel() for p in policy.parameters()) == n_parameters
    assert len(list(policy.parameters())) == n_keys
    assert len(policy.state_dict()) == n_keys


@pytest.mark.parametrize(
    "name",
    ["train_diffusion_unet_lowdim_workspace", "train_diffusion_unet_ddim_lowdim_workspace"],
)
def test_stock_state_dicts_equal_the_reference(compose_config, golden, name):
    entry = json.loads((golden / "e_stock_state_dicts.json").read_text())[name]
    policy = hydra.utils.instantiate(compose_config(name).policy)
    ours = {
        k: [list(v.shape), str(v.dtype).removeprefix("torch.")]
        for k, v in policy.state_dict().items()
    }
    assert ours == entry["state_dict"]
