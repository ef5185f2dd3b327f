"""The shipped configurations equal the published tables, key by key, interpolations included."""

import json

import hydra
import pytest
import torch
from hydra.core.utils import setup_globals
from omegaconf import OmegaConf
from published_configs import HYDRA, LIFT_IMAGE_ABS, PUBLISHED, PUSHT_IMAGE
from reference_weights import layout

from diffusion_policy.config.checks import check_config
from diffusion_policy.workspace.command_line import CONFIG_DIR

NAMES = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))


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
def test_a_run_gets_a_directory_of_its_own(name):
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
    ("diffusion_transformer_lowdim", (), 8_961_538, 161, 163, None),
    ("diffusion_transformer_lowdim_pusht", (), 8_965_122, 161, 163, None),
    ("diffusion_transformer_lowdim_kitchen", (), 80_415_753, 161, 163, None),
    ("diffusion_transformer_hybrid", (), 31_391_818, 289, 427, 137),
    ("diffusion_transformer_real_hybrid", (), 31_387_458, 289, 427, 130),
    ("ibc_dfo_lowdim", (), 3_193_857, 11, 11, None),
    ("ibc_dfo_real_hybrid", (), 25_813_313, 139, 275, 130),
    ("ibc_dfo_hybrid", (), 14_485_153, 75, 143, 66),
    ("bet_lowdim", (), 259_344, 71, 75, None),
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
    ("diffusion_transformer_lowdim", ()),
    ("diffusion_transformer_lowdim_pusht", ()),
    ("diffusion_transformer_lowdim_kitchen", ()),
    ("diffusion_transformer_hybrid", ()),
    ("ibc_dfo_lowdim", ()),
    ("diffusion_transformer_real_hybrid", ()),
    ("ibc_dfo_hybrid", ()),
    ("ibc_dfo_real_hybrid", ()),
    ("bet_lowdim", ()),
]


@pytest.fixture(scope="module")
def stock_state_dicts(golden):
    return json.loads((golden / "e_stock_state_dicts.json").read_text())


@pytest.mark.parametrize(("name", "overrides"), STOCK)
def test_stock_state_dicts_equal_the_reference(compose_config, stock_state_dicts, name, overrides):
    entry = stock_state_dicts["+".join([workspace_config(name), *overrides])]
    policy = build_policy(compose_config, name, *overrides)
    ours = layout(policy)
    assert ours == entry["state_dict"]
    assert list(ours) == list(entry["state_dict"])
    assert sum(p.numel() for p in policy.parameters()) == entry["n_params"]
