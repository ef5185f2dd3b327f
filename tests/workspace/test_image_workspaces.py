"""Training from images: whole runs, tiny."""

import hydra
import numpy as np
import pytest
import torch
from hydra.core.utils import setup_globals
from omegaconf import OmegaConf
from runs import assert_equal, build, latest, read_log, read_state, train, train_until

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.vision.multi_image_obs_encoder import MultiImageObsEncoder

# In place of a ResNet: 16 features in an instant, with a BatchNorm.
TINY_NET = (
    "{_target_: torch.nn.Sequential, _args_: ["
    "{_target_: torch.nn.Conv2d, in_channels: 3, out_channels: 4, kernel_size: 7, stride: 8},"
    "{_target_: torch.nn.BatchNorm2d, num_features: 4},"
    "{_target_: torch.nn.AdaptiveAvgPool2d, output_size: 2},"
    "{_target_: torch.nn.Flatten}]}"
)
TINY_CLIP_NET = "{_target_: torch.nn.Conv3d, in_channels: 3, out_channels: 4, kernel_size: 4}"


@pytest.fixture
def tiny(tiny_image_zarr):
    """Overrides that let a configuration train in a second or two."""
    return [
        "policy.down_dims=[8,16]",
        "policy.diffusion_step_embed_dim=16",
        "policy.noise_scheduler.num_train_timesteps=10",
        "policy.num_inference_steps=2",
        "dataloader.batch_size=2",
        "training.device=cpu",
        "training.num_epochs=2",
        "training.lr_warmup_steps=1",
        "logging.mode=disabled",
        f"task.dataset.zarr_path={tiny_image_zarr}",
        "task.dataset.val_ratio=0.3",
        "task.dataset.max_train_episodes=null",
        "task.env_runner.n_train=0",
        "task.env_runner.n_train_vis=0",
        "task.env_runner.n_test=1",
        "task.env_runner.n_test_vis=0",
        "task.env_runner.max_steps=8",
        "+task.env_runner.n_workers=0",
    ]


EVERY_EPOCH = [
    "val_dataloader.batch_size=2",
    "training.rollout_every=1",
    "training.checkpoint_every=1",
    "training.sample_every=1",
    "training.max_train_steps=1",
    "training.max_val_steps=1",
]


@pytest.fixture
def image_config(compose_config, tiny):
    """image_config(*overrides): the image configuration with a tiny network per camera."""

    def compose(*overrides):
        return compose_config(
            "train_diffusion_unet_image_workspace",
            "task=pusht_image",
            *tiny,
            *EVERY_EPOCH,
            "~policy.obs_encoder.rgb_model",
            f"+policy.obs_encoder.rgb_model={TINY_NET}",
            "policy.obs_encoder.use_group_norm=False",
            *overrides,
        )

    return compose


def test_a_run_from_images_logs_scores_and_saves(image_config, tmp_path):
    train(image_config(), tmp_path)
    ends = [line for line in read_log(tmp_path) if "val_loss" in line]
    assert [line["epoch"] for line in ends] == [0, 1]
    for line in ends:
        expected = {"train_loss", "val_loss", "train_action_mse_error", "lr", "test/mean_score"}
        assert expected <= line.keys()
    state_dicts, _ = read_state(tmp_path)
    assert set(state_dicts) == {"model", "ema_model", "optimizer"}
    assert len(list((tmp_path / "checkpoints").glob("epoch=*"))) == 2


def test_a_resumed_run_ends_bit_identical_to_an_uninterrupted_one(image_config, tmp_path):
    cfg = image_config("training.num_epochs=4")
    train(cfg, tmp_path / "whole")
    train_until(lambda workspace: workspace.epoch == 2, cfg, tmp_path / "cut")
    train(cfg, tmp_path / "cut")
    states = [read_state(tmp_path / name) for name in ("whole", "cut")]
    for _, pickles in states:
        # Training draws from torch only. Environments in this process (n_workers=0) draw from
        # numpy when they are built, which the resumed run did once more.
        pickles["resume_state"]["rng"].pop("numpy")
    assert_equal(*states)
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "cut")


@pytest.mark.parametrize("use_ema", [True, False])
def test_a_frozen_encoder_stays_as_it_is_and_the_rest_learns(image_config, tmp_path, use_ema):
    cfg = image_config(
        "training.freeze_encoder=True", "training.max_train_steps=2", f"training.use_ema={use_ema}"
    )
    workspace = build(cfg, tmp_path)
    before = {key: value.clone() for key, value in workspace.model.state_dict().items()}
    modes = []
    step = workspace.train_step
    workspace.train_step = lambda batch: (
        modes.append((workspace.model.obs_encoder.training, workspace.model.training))
        or step(batch)
    )
    workspace.run()
    assert modes == [(False, True)] * 4
    after = workspace.model.state_dict()
    # running statistics included
    assert all(torch.equal(after[k], before[k]) for k in before if k.startswith("obs_encoder."))
    weights = [k for k in before if k.startswith("model.") and k.endswith("weight")]
    assert any(not torch.equal(after[k], before[k]) for k in weights)


def test_a_free_encoder_learns(image_config, tmp_path):
    cfg = image_config("training.max_train_steps=2")
    workspace = build(cfg, tmp_path)
    weight = workspace.model.obs_encoder.key_model_map["image"][0].weight
    before = weight.detach().clone()
    workspace.run()
    assert not torch.equal(weight, before)


def test_a_crop_larger_than_the_image_is_refused_before_anything_is_built(image_config, tmp_path):
    with pytest.raises(ConfigError, match=r"crop_shape is \[120, 76\].*'image'.*\[96, 96\]"):
        train(image_config("policy.obs_encoder.crop_shape=[120,76]"), tmp_path)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("task.shape_meta.obs.image.shape=[3,84,84]", r"image.*84, 84.*96, 96"),
        ("+task.shape_meta.obs.wrist={shape: [3,96,96], type: rgb}", r"'wrist'"),
        ("task.shape_meta.action.shape=[3]", r"action.*3"),
    ],
)
def test_a_shape_meta_that_does_not_fit_the_data_is_one_sentence(
    image_config, tmp_path, override, sentence
):
    with pytest.raises(ConfigError, match=sentence):
        train(image_config(override), tmp_path)
    assert not (tmp_path / "logs.json.txt").exists()


def test_a_checkpoint_evaluates(image_config, tmp_path):
    from diffusion_policy.workspace.evaluation import evaluate

    train(image_config("training.num_epochs=1"), tmp_path / "run")
    log = evaluate(latest(tmp_path / "run"), tmp_path / "eval", device="cpu")
    assert 0 <= log["test/mean_score"] <= 1


# ---- clips ---------------------------------------------------------------------------------------


@pytest.fixture
def video_config(compose_config, tiny):
    def compose(*overrides):
        return compose_config(
            "train_diffusion_unet_video_workspace",
            "task=pusht_image",
            *tiny,
            "~policy.rgb_net.backbone",
            f"+policy.rgb_net.backbone={TINY_CLIP_NET}",
            "training.eval_every=4",
            "training.val_every=2",
            "+training.max_train_steps=2",
            "+training.max_val_steps=1",
            *overrides,
        )

    return compose


def test_the_video_policy_trains_and_counts_in_steps(video_config, tmp_path):
    train(video_config("training.num_epochs=4"), tmp_path)
    ends = [line for line in read_log(tmp_path) if "val_loss" in line]
    assert [line["epoch"] for line in ends] == [0, 1, 2, 3]  # two steps each
    assert all("train_action_mse_error" in line for line in ends)
    scored = [line for line in ends if "test/mean_score" in line]
    assert [line["epoch"] for line in scored] == [1, 3]  # after 4 and after 8 steps
    assert all(line["test_score"] == line["test/mean_score"] for line in scored)
    names = {path.name.split("-")[0] for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"epoch=001", "epoch=003"}  # no latest.ckpt, as its configuration says


def test_the_video_policy_evaluates_the_first_epoch_when_asked(video_config, tmp_path):
    train(video_config("training.num_epochs=1", "training.eval_first=True"), tmp_path)
    assert "test_score" in read_log(tmp_path)[-1]


def test_a_cadence_shorter_than_an_epoch_means_every_epoch(video_config, tmp_path):
    train(video_config("training.num_epochs=2", "training.eval_every=1"), tmp_path)
    scored = [line["epoch"] for line in read_log(tmp_path) if "test_score" in line]
    assert scored == [0, 1]


def test_the_video_policy_resumes(video_config, tmp_path):
    options = ["checkpoint.save_last_ckpt=True", "training.use_ema=True", "training.eval_every=2"]
    train(video_config(*options, "training.num_epochs=1"), tmp_path)
    workspace = train(video_config(*options, "training.num_epochs=2"), tmp_path)
    assert workspace.epoch == 2
    assert [line["epoch"] for line in read_log(tmp_path)] == [0, 0, 0, 1, 1, 1]


# ---- the published configuration file ------------------------------------------------------------


def key_sorted(node):
    if isinstance(node, dict):
        return {key: key_sorted(node[key]) for key in sorted(node)}
    return node


@pytest.fixture
def published_file(compose_config, tmp_path):
    """image_pusht_diffusion_policy_cnn.yaml, from its description: resolved and key-sorted, so
    that shape_meta.obs names agent_pos before image."""
    cfg = OmegaConf.to_container(
        compose_config(
            "train_diffusion_unet_hybrid_workspace", "task=pusht_image", "policy.crop_shape=[84,84]"
        )
    )
    assert isinstance(cfg, dict)
    run = "2023.01.16-20.20.06_train_diffusion_unet_hybrid_pusht_image"
    cfg["logging"]["name"] = cfg["multi_run"]["wandb_name_base"] = run
    cfg["multi_run"]["run_dir"] = f"data/outputs/{run.replace('-', '/', 1)}"
    path = tmp_path / "configs" / "image_pusht_diffusion_policy_cnn.yaml"
    path.parent.mkdir()
    OmegaConf.save(OmegaConf.create(key_sorted(cfg)), path)
    assert "${" not in path.read_text()
    return path


def load_published(path, *overrides):
    """As train.py loads it from its own directory: --config-dir=. --config-name=<file>."""
    setup_globals()
    with hydra.initialize_config_dir(str(path.parent), version_base=None):
        cfg = hydra.compose(path.stem, overrides=list(overrides))
    OmegaConf.resolve(cfg)
    return cfg


def test_the_published_configuration_file_trains_resumes_and_loads(
    published_file, tiny, tmp_path, monkeypatch
):
    overrides = [
        *tiny,
        *EVERY_EPOCH,
        "training.seed=42",
        "training.rollout_every=4",
        "training.checkpoint_every=4",
        "hydra.run.dir='data/outputs/${now:%Y.%m.%d}/${now:%H.%M.%S}_${name}_${task_name}'",
    ]
    cfg = load_published(published_file, *overrides)
    for shape_meta in (cfg.shape_meta, cfg.policy.shape_meta, cfg.task.shape_meta):
        assert list(shape_meta.obs) == ["agent_pos", "image"]
    assert cfg.policy.crop_shape == [84, 84]
    assert cfg.logging.tags == ["train_diffusion_unet_hybrid", "pusht_image", "default"]
    assert (cfg.task.dataset.pad_before, cfg.task.dataset.pad_after) == (1, 7)

    workspace = train(cfg, tmp_path / "run")
    assert workspace.model.obs_feature_dim == 66
    longer = load_published(published_file, *overrides, "training.num_epochs=4")
    workspace = train(longer, tmp_path / "run")
    log = read_log(tmp_path / "run")
    assert [line["epoch"] for line in log if "val_loss" in line] == [0, 1, 2, 3]
    assert all(np.isfinite(line["train_loss"]) for line in log)

    loaded = type(workspace).create_from_checkpoint(
        latest(tmp_path / "run"), output_dir=str(tmp_path)
    )
    obs = {
        "image": torch.randint(0, 256, (1, 2, 3, 96, 96), dtype=torch.uint8),
        "agent_pos": torch.full((1, 2, 2), 250.0),
    }
    features = loaded.get_eval_policy().eval().encoded_obs(obs, 2)
    position = loaded.ema_model.normalizer["agent_pos"].normalize(obs["agent_pos"])
    torch.testing.assert_close(features[..., :2], position)  # first, as the file's order says
    actions = [
        w.get_eval_policy().eval().predict_action(obs, torch.Generator().manual_seed(0))["action"]
        for w in (workspace, loaded)
    ]
    assert torch.equal(*actions)


# ---- the original's own run ----------------------------------------------------------------------


@pytest.fixture
def reference_run(open_reference_run):
    return open_reference_run("unet_image")


def test_a_reference_run_gives_the_reference_losses(reference_run, tmp_path, monkeypatch):
    """The same seed gives the loss curve that the original logged, crops and noise included."""
    output_shape = MultiImageObsEncoder.output_shape

    def with_a_random_crop(encoder):
        """The original asked its encoder in training mode: two draws before the U-Net's own."""
        torch.rand(1, 1), torch.rand(1, 1)
        return output_shape(encoder)

    def tolerance(key):
        # Pixels are drawn by another version of SDL: they move the score a little.
        return {"abs": 0.02} if "reward" in key or "score" in key else {"rel": 1e-3}

    monkeypatch.setattr(MultiImageObsEncoder, "output_shape", with_a_random_crop)
    train(reference_run.config(noise="batch", n_workers=0), tmp_path / "run")
    reference_run.check_log(tmp_path / "run", tolerance=tolerance)


def test_a_reference_checkpoint_predicts_the_reference_actions(reference_run, tmp_path):
    from diffusion_policy.dataset.pusht_image_dataset import PushTImageDataset
    from diffusion_policy.workspace.evaluation import open_workspace

    with open_workspace(reference_run.checkpoint, tmp_path) as workspace:
        pass
    expected = reference_run.expected
    options = {k: v for k, v in workspace.cfg.task.dataset.items() if k != "_target_"}
    dataset = PushTImageDataset(**options)
    assert len(dataset) == expected["dataset_len"]
    batch = dataset.get_batch(expected["dataset_idx"])
    reference_run.check_policy(workspace.get_eval_policy(), batch)
