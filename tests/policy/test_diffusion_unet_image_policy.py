"""The U-Net policies on images: any encoder, and robomimic's."""

import functools

import hydra
import pytest
import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from generators import seeded
from gpu import needs_gpu, no_waiting
from image_tasks import pusht, pusht_normalizer, pusht_observations
from omegaconf import OmegaConf
from reference_policies import (
    check_actions,
    check_features,
    check_losses,
    first_observations,
    load_weights,
)
from reference_weights import fill, wave
from torch import nn

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.normalize_util import get_image_range_normalizer
from diffusion_policy.common.pytorch_util import dict_apply
from diffusion_policy.model.common.normalizer import LinearNormalizer
from diffusion_policy.model.vision import image_transforms
from diffusion_policy.model.vision.model_getter import get_resnet
from diffusion_policy.model.vision.multi_image_obs_encoder import MultiImageObsEncoder
from diffusion_policy.policy.base_image_policy import _as_float
from diffusion_policy.policy.diffusion_unet_hybrid_image_policy import (
    DiffusionUnetHybridImagePolicy,
)
from diffusion_policy.policy.diffusion_unet_image_policy import DiffusionUnetImagePolicy

SHAPE_META = pusht(12)
SMALL_UNET = {"diffusion_step_embed_dim": 16, "down_dims": [16, 24], "kernel_size": 3}


class ToyEncoder(nn.Module):
    """Four numbers per image and the position; remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 4)
        self.shown: list[dict[str, torch.Tensor]] = []

    def output_shape(self):
        return [6]

    def forward(self, obs):
        self.shown.append(obs)
        return torch.cat([self.net(obs["image"].mean((-2, -1))), obs["agent_pos"]], dim=-1)


def make_policy(global_cond=True, scheduler=None, **kwargs):
    torch.manual_seed(0)
    policy = DiffusionUnetImagePolicy(
        shape_meta=kwargs.pop("shape_meta", SHAPE_META),
        noise_scheduler=scheduler or DDPMScheduler(num_train_timesteps=10),
        obs_encoder=kwargs.pop("obs_encoder", None) or ToyEncoder(),
        horizon=8,
        n_action_steps=4,
        n_obs_steps=2,
        obs_as_global_cond=global_cond,
        **SMALL_UNET,
        **kwargs,
    )
    policy.set_normalizer(pusht_normalizer())
    return policy.eval()


def observations(batch=3, steps=2, seed=1):
    return pusht_observations(12, batch, steps, torch.Generator().manual_seed(seed))


def training_batch(batch=3, steps=8):
    return {"obs": observations(batch, steps), "action": torch.rand(batch, 8, 2) * 500}


def as_floats(obs):
    return obs | {"image": obs["image"].float() / 255}


def predict(policy, obs, seed=1):
    torch.manual_seed(seed)
    return policy.predict_action(obs)["action_pred"]


def loss(policy, batch, seed=1):
    torch.manual_seed(seed)
    return policy.compute_loss(batch)


BOTH = pytest.mark.parametrize("global_cond", [True, False], ids=["global", "inpainting"])


@BOTH
def test_the_executed_actions_start_at_the_newest_observation(global_cond):
    result = make_policy(global_cond).predict_action(observations())
    assert set(result) == {"action", "action_pred"}
    assert result["action_pred"].shape == (3, 8, 2)
    assert torch.equal(result["action"], result["action_pred"][:, 1:5])
    assert not result["action"].requires_grad


@BOTH
def test_bytes_and_floats_give_identical_numbers(global_cond):
    policy = make_policy(global_cond)
    obs, batch = observations(), training_batch()
    assert torch.equal(predict(policy, obs), predict(policy, as_floats(obs)))
    floats = batch | {"obs": as_floats(batch["obs"])}
    assert torch.equal(loss(policy, batch), loss(policy, floats))


@needs_gpu
def test_on_a_gpu_bytes_become_the_same_floats_and_nothing_waits_for_it():
    every_byte = torch.arange(256).to(torch.uint8)
    assert torch.equal(_as_float(every_byte.cuda()).cpu(), _as_float(every_byte))
    policy = make_policy().cuda()
    batch = dict_apply(training_batch(), lambda x: x.cuda())
    policy.compute_loss(batch)
    with no_waiting():
        policy.compute_loss(batch).backward()


def test_the_encoder_sees_normalised_floats_of_the_first_observations_only():
    policy = make_policy()
    batch = training_batch()
    policy.compute_loss(batch)
    [shown] = policy.obs_encoder.shown
    assert shown["image"].shape == (6, 3, 12, 12)
    expected = batch["obs"]["image"][:, :2].flatten(0, 1).float() / 255 * 2 - 1
    torch.testing.assert_close(shown["image"], expected)
    assert shown["agent_pos"].abs().max() < 1.2


def test_frames_behind_the_observations_are_never_converted(monkeypatch):
    """All others of a window of T frames: seven eighths of the work in the published settings."""
    from diffusion_policy.policy import base_image_policy

    converted = []
    as_float = base_image_policy._as_float
    monkeypatch.setattr(
        base_image_policy, "_as_float", lambda x: converted.append(x.shape) or as_float(x)
    )
    make_policy().compute_loss(training_batch())
    assert converted == [(3, 2, 3, 12, 12)]


def test_it_can_denoise_the_executed_actions_only():
    policy = make_policy(pred_action_steps_only=True)
    result = policy.predict_action(observations())
    assert result["action"].shape == (3, 4, 2)
    assert torch.equal(result["action"], result["action_pred"])
    batch = training_batch()
    torch.manual_seed(0)
    loss = policy.compute_loss(batch)
    batch["action"][:, 0] = batch["action"][:, 5:] = 0  # behind and ahead of them
    torch.manual_seed(0)
    assert torch.equal(policy.compute_loss(batch), loss)
    with pytest.raises(ConfigError, match="needs obs_as_global_cond=True"):
        make_policy(pred_action_steps_only=True, global_cond=False)


def test_inpainting_trains_on_the_observations_of_all_steps():
    policy = make_policy(global_cond=False)
    policy.compute_loss(training_batch())
    assert len(policy.obs_encoder.shown[0]["image"]) == 3 * 8
    short = training_batch()
    short["obs"] = {key: value[:, :2] for key, value in short["obs"].items()}
    with pytest.raises(ConfigError, match=r"2 steps but actions of 8.*dataset_obs_steps"):
        policy.compute_loss(short)


def test_inpainting_teaches_the_encoder_through_the_visible_features_only():
    """Those behind To are noised and carry no gradient."""
    policy = make_policy(global_cond=False)
    batch = training_batch()
    features = []

    def remember(module, inputs, output):
        output.retain_grad()
        features.append(output)

    policy.obs_encoder.register_forward_hook(remember)
    loss(policy, batch).backward()
    gradient = features[0].grad.unflatten(0, (3, 8)).abs().sum((0, 2))
    assert (gradient[:2] > 0).all()
    assert (gradient[2:] == 0).all()


def test_only_the_first_observation_steps_matter():
    policy = make_policy()
    obs = observations(steps=5)
    first = {key: value[:, :2] for key, value in obs.items()}
    assert torch.equal(predict(policy, obs), predict(policy, first))
    shifted = {key: value[:, 1:] for key, value in obs.items()}
    assert not torch.allclose(predict(policy, obs), predict(policy, shifted))


@BOTH
def test_one_generator_per_row_makes_rows_independent(global_cond):
    policy = make_policy(global_cond)
    obs = observations(batch=3)

    def run(rows):
        generators = seeded(*(10 + row for row in rows))
        chosen = {key: value[rows] for key, value in obs.items()}
        return policy.predict_action(chosen, generator=generators)["action"]

    together = run([0, 1, 2])
    torch.testing.assert_close(run([1]), together[[1]], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(run([2, 0]), together[[2, 0]], rtol=1e-4, atol=1e-2)


def test_one_generator_replaces_the_global_one():
    policy, obs = make_policy(), observations()
    expected = predict(policy, obs, seed=5)
    actual = policy.predict_action(obs, generator=torch.Generator().manual_seed(5))
    assert torch.equal(actual["action_pred"], expected)


def test_random_draws_come_in_the_published_order():
    """The encoder first (crops), then noise, then timesteps."""

    class Drawing(ToyEncoder):
        def forward(self, obs):
            self.drawn = torch.rand(1)
            return super().forward(obs)

    policy = make_policy(obs_encoder=Drawing())
    seen = []
    policy.model.register_forward_pre_hook(lambda module, args: seen.append(args))
    batch = training_batch()
    loss(policy, batch, seed=3)
    normalised_actions = policy.normalizer["action"].normalize(batch["action"])
    torch.manual_seed(3)
    assert torch.equal(policy.obs_encoder.drawn, torch.rand(1))
    noise = torch.randn(3, 8, 2)
    t = torch.randint(0, 10, (3,))
    x_t = policy.forward_process.add_noise(normalised_actions, noise, t)
    assert torch.equal(seen[0][1], t)
    torch.testing.assert_close(seen[0][0], x_t)


def test_modules_are_registered_in_the_order_of_published_optimizer_states():
    policy = make_policy()
    assert next(iter(policy._parameters)) == "_dummy_variable"
    registered = [name for name, _ in policy.named_children()]
    expected = ["obs_encoder", "model", "mask_generator", "normalizer"]
    assert [name for name in registered if name in expected] == expected
    assert not any("forward_process" in key for key in policy.state_dict())


def test_attributes_that_robot_scripts_overwrite_are_read_at_call_time():
    policy = make_policy(legacy_ddpm_steps=False)
    calls = []
    step = policy.noise_scheduler.step
    policy.noise_scheduler.step = lambda *a, **k: calls.append(1) or step(*a, **k)
    policy.num_inference_steps, policy.n_action_steps = 3, 5
    assert policy.predict_action(observations())["action"].shape == (3, 5, 2)
    assert len(calls) == 3


def test_unknown_arguments_go_to_the_scheduler_as_far_as_it_knows_them():
    plain = predict(make_policy(scheduler=DDIMScheduler(10)), observations())
    noisy = predict(make_policy(scheduler=DDIMScheduler(10), eta=1.0), observations())
    assert not torch.allclose(plain, noisy)
    make_policy(scheduler=DDPMScheduler(10), eta=1.0).predict_action(observations())


def test_configuration_containers_are_accepted():
    policy = make_policy(shape_meta=OmegaConf.create(SHAPE_META))
    assert policy.predict_action(observations())["action"].shape == (3, 4, 2)
    assert policy.shape_meta == SHAPE_META


def test_the_normalizer_is_copied_without_gradient():
    policy, normalizer = make_policy(), pusht_normalizer()
    policy.set_normalizer(normalizer)
    assert set(policy.normalizer.params_dict) == {"agent_pos", "action", "image"}
    assert not any(p.requires_grad for p in policy.normalizer.parameters())


def test_past_actions_and_masks_are_refused():
    policy = make_policy()
    with pytest.raises(AssertionError):
        policy.predict_action(observations() | {"past_action": torch.zeros(1)})
    with pytest.raises(AssertionError):
        policy.compute_loss(training_batch() | {"valid_mask": torch.ones(1)})


def test_an_observation_that_shape_meta_does_not_name_is_left_out():
    policy, obs = make_policy(), observations()
    torch.manual_seed(0)
    expected = policy.predict_action(obs)["action"]
    torch.manual_seed(0)
    found = policy.predict_action(obs | {"depth": torch.zeros(3, 2, 1)})["action"]
    assert torch.equal(found, expected)


def test_an_action_that_is_not_a_vector_is_refused():
    with pytest.raises(ConfigError, match=r"action\.shape is \[2, 2\].*one vector"):
        make_policy(shape_meta=SHAPE_META | {"action": {"shape": [2, 2]}})


def test_it_learns_where_a_bright_spot_tells_it_to_go():
    """A white image means 450, a black one 50: only pixels can tell."""
    scheduler = DDIMScheduler(10, beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    policy = make_policy(scheduler=scheduler).train()
    white = torch.arange(16) % 2
    obs = observations(batch=16)
    obs["image"] = (white * 255).to(torch.uint8).view(16, 1, 1, 1, 1).expand(16, 2, 3, 12, 12)
    batch = {"obs": obs, "action": (50 + 400 * white).float().view(16, 1, 1).expand(16, 8, 2)}
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        policy.compute_loss(batch).backward()
        optimizer.step()
    action = policy.eval().predict_action(obs)["action"].mean((1, 2))
    assert (action[white == 1] > 400).all()
    assert (action[white == 0] < 100).all()


# ---- with robomimic's encoder --------------------------------------------------------------------


def make_hybrid(**kwargs):
    torch.manual_seed(0)
    policy = DiffusionUnetHybridImagePolicy(
        shape_meta=OmegaConf.create(pusht(40)),
        noise_scheduler=DDPMScheduler(num_train_timesteps=4),
        horizon=8,
        n_action_steps=4,
        n_obs_steps=2,
        **SMALL_UNET,
        **({"crop_shape": OmegaConf.create([36, 36]), "obs_encoder_group_norm": True} | kwargs),
    )
    policy.set_normalizer(pusht_normalizer())
    return policy


def hybrid_observations():
    return pusht_observations(40, batch=1, steps=2)


def test_the_hybrid_policy_is_an_image_policy_with_robomimics_encoder():
    policy = make_hybrid(eval_fixed_crop=True)
    assert policy.obs_feature_dim == 66
    assert "obs_encoder.obs_nets.image.nets.3.weight" in policy.state_dict()
    obs = hybrid_observations()
    policy.compute_loss({"obs": obs, "action": torch.rand(1, 8, 2)}).backward()
    backbone = policy.get_parameter("obs_encoder.obs_nets.image.backbone.nets.0.weight")
    assert backbone.grad is not None
    assert policy.eval().predict_action(obs)["action"].shape == (1, 4, 2)


@pytest.mark.parametrize("fixed", [True, False])
def test_crops_in_evaluation_are_fixed_only_where_the_flag_says_so(fixed):
    policy = make_hybrid(eval_fixed_crop=fixed).eval()
    obs = hybrid_observations()
    features = [policy.encoded_obs(obs, 2) for _ in range(4)]
    assert all(torch.equal(features[0], f) for f in features) == fixed


def test_random_crops_in_evaluation_depend_on_the_episode_only():
    policy, obs = make_hybrid(eval_fixed_crop=False).eval(), hybrid_observations()

    def predict(seeds):
        batch = {key: value.repeat_interleave(len(seeds), 0) for key, value in obs.items()}
        return policy.predict_action(batch, generator=seeded(*seeds))["action"]

    together = predict([3, 4])
    torch.testing.assert_close(predict([4]), together[1:])
    assert not torch.allclose(together[0], together[1])


# ---- the original's numbers ----------------------------------------------------------------------


def build_reference_policy(case):
    scheduler = DDPMScheduler(**case["scheduler_kw"])
    common = {"shape_meta": case["shape_meta"], "noise_scheduler": scheduler}
    if "encoder_kw" not in case:
        return DiffusionUnetHybridImagePolicy(**common, **case["policy_kw"])
    encoder = MultiImageObsEncoder(
        shape_meta=case["shape_meta"], rgb_model=get_resnet("resnet18"), **case["encoder_kw"]
    )
    return DiffusionUnetImagePolicy(**common, obs_encoder=encoder, **case["policy_kw"])


VARIANTS = ["image0", "image1", "image2", "hybrid", "hybrid_nogn", "hybrid_nocrop"]


@pytest.fixture(scope="module")
def reference_cases(golden):
    return {c["variant"]: c for c in torch.load(golden / "e_policy_image.pt", weights_only=True)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_reference_policies(reference_cases, variant, monkeypatch):
    """Features, losses, gradients, random draws and actions of the original."""
    case = reference_cases[variant]
    if case.get("encoder_kw", {}).get("resize_shape"):
        # These numbers were made with a torchvision that smooths when it shrinks an image. The
        # version of the published results did not, so neither do we.
        smooth = functools.partial(F.interpolate, mode="bilinear", antialias=True)
        monkeypatch.setattr(image_transforms.Resize, "forward", lambda m, x: smooth(x, m.size))
    policy = build_reference_policy(case)
    load_weights(policy, case)
    check_features(policy, case)
    check_losses(policy, case, rel=2e-3)
    check_actions(policy, case, first_observations(case))


def test_a_published_configuration_gives_the_published_numbers(compose_config):
    """Case 17 of the specification: the configuration itself, with weights made of sines."""
    cfg = compose_config(
        "train_diffusion_unet_ddim_hybrid_workspace",
        "task=pusht_image",
        "policy.crop_shape=[84,84]",
        "policy.down_dims=[16,32]",
        "policy.diffusion_step_embed_dim=32",
    )
    policy = fill(hydra.utils.instantiate(cfg.policy))
    normalizer = LinearNormalizer()
    ends = torch.tensor([[0.0, 0.0], [512.0, 512.0]])
    normalizer.fit({"agent_pos": ends, "action": ends})
    normalizer["image"] = get_image_range_normalizer()
    policy.set_normalizer(normalizer)
    obs = {
        "image": wave(2, 16, 3, 96, 96).abs(),
        "agent_pos": (200 * wave(2, 16, 2, phase=0.5)).abs(),
    }
    batch = {"obs": obs, "action": (200 * wave(2, 16, 2, phase=0.9)).abs()}

    policy.eval()
    assert loss(policy, batch, seed=0).item() == pytest.approx(1.1024666, rel=1e-5)
    assert torch.rand(1).item() == pytest.approx(0.519091, abs=1e-6)
    torch.manual_seed(0)
    action = policy.predict_action({key: value[:, :2] for key, value in obs.items()})["action"]
    assert action.mean().item() == pytest.approx(282.906036, rel=1e-4)
    assert action.std().item() == pytest.approx(245.414472, rel=1e-4)
    first = torch.tensor([1.5158234, 0.0001068, 511.99957, 511.99966])
    torch.testing.assert_close(action.flatten()[:4], first, rtol=1e-3, atol=1e-2)
    assert loss(policy.train(), batch, seed=0).item() == pytest.approx(0.8833565, rel=1e-5)
