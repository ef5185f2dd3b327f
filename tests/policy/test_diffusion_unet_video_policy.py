"""The U-Net policy on clips."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.normalize_util import get_image_range_normalizer
from diffusion_policy.model.common.normalizer import LinearNormalizer
from diffusion_policy.policy.diffusion_unet_video_policy import DiffusionUnetVideoPolicy

SHAPE_META = {
    "obs": {
        "front": {"shape": [3, 12, 12], "type": "rgb"},
        "wrist": {"shape": [3, 12, 12], "type": "rgb"},
        "pos": {"shape": [3]},  # low_dim by default: the original dropped those
        "grip": {"shape": [2]},
    },
    "action": {"shape": [2]},
}


class ToyRgbNet(nn.Module):
    """(B, T, C, H, W) to (B, 5); remembers the clips."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 5)
        self.clips: list[torch.Tensor] = []

    def forward(self, clip):
        self.clips.append(clip)
        weights = torch.arange(1.0, clip.shape[1] + 1, device=clip.device)
        return self.net((clip.mean((-2, -1)) * weights[:, None]).sum(1))


def make_policy(scheduler=None, shape_meta=None, **kwargs):
    torch.manual_seed(0)
    policy = DiffusionUnetVideoPolicy(
        shape_meta=shape_meta or SHAPE_META,
        noise_scheduler=scheduler or DDPMScheduler(num_train_timesteps=10),
        rgb_net=ToyRgbNet(),
        horizon=8,
        n_action_steps=3,
        n_obs_steps=4,
        diffusion_step_embed_dim=16,
        down_dims=[16, 24],
        ta_n_groups=1,
        **kwargs,
    )
    normalizer = LinearNormalizer()
    widths = {"pos": 3, "grip": 2, "action": 2}
    normalizer.fit({key: torch.rand(50, width) * 9 for key, width in widths.items()})
    normalizer["front"] = normalizer["wrist"] = get_image_range_normalizer()
    policy.set_normalizer(normalizer)
    for net in policy.rgb_nets_map.values():
        net.clips.clear()
    return policy.eval()


def observations(batch=2, steps=4):
    image = torch.randint(0, 256, (2, batch, steps, 3, 12, 12)).to(torch.uint8)
    return {
        "front": image[0],
        "wrist": image[1],
        "pos": torch.rand(batch, steps, 3) * 9,
        "grip": torch.rand(batch, steps, 2) * 9,
    }


def training_batch():
    return {"obs": observations(steps=8), "action": torch.rand(2, 8, 2) * 9}


def predict(policy, obs):
    torch.manual_seed(1)
    return policy.predict_action(obs)["action_pred"]


MODES = pytest.mark.parametrize("as_cond", [True, False], ids=["condition", "inpainting"])


@MODES
def test_execution_starts_behind_the_observations_unless_told_otherwise(as_cond):
    obs = observations()
    result = make_policy(lowdim_as_global_cond=as_cond).predict_action(obs)
    assert set(result) == {"action", "action_pred"}
    assert result["action_pred"].shape == (2, 8, 2)
    assert torch.equal(result["action"], result["action_pred"][:, 4:7])
    result = make_policy(oa_step_convention=True).predict_action(obs)
    assert torch.equal(result["action"], result["action_pred"][:, 3:6])


@MODES
@pytest.mark.parametrize("key", SHAPE_META["obs"])
def test_every_observation_counts(as_cond, key):
    policy = make_policy(lowdim_as_global_cond=as_cond)
    obs = observations()
    changed = obs | {key: torch.zeros_like(obs[key])}
    assert not torch.allclose(predict(policy, obs), predict(policy, changed))


@MODES
def test_training_sees_the_frames_that_inference_sees(as_cond):
    policy = make_policy(lowdim_as_global_cond=as_cond)
    batch = training_batch()
    policy.compute_loss(batch).backward()
    policy.predict_action(batch["obs"])
    trained, predicted = policy.rgb_nets_map["front"].clips
    assert torch.equal(trained, predicted)
    expected = batch["obs"]["front"][:, :4].float() / 255 * 2 - 1
    torch.testing.assert_close(trained, expected)


def test_every_camera_has_a_network_of_its_own():
    policy = make_policy()
    first, second = policy.rgb_nets_map["front"], policy.rgb_nets_map["wrist"]
    assert first is not second
    assert first.net.weight is not second.net.weight
    assert torch.equal(first.net.weight, second.net.weight)  # they start equal


def test_low_dimensional_values_are_features_or_part_of_the_trajectory():
    assert make_policy().lowdim_net.output_dim == 5 * 2
    assert make_policy().model.input_dim == 2
    inpainting = make_policy(lowdim_as_global_cond=False)
    assert inpainting.lowdim_net is None
    assert inpainting.model.input_dim == 2 + 5
    with pytest.raises(ConfigError, match="dataset_obs_steps"):
        inpainting.compute_loss({"obs": observations(steps=4), "action": torch.rand(2, 8, 2)})


def test_cameras_alone_are_enough_and_without_one_it_is_refused():
    cameras = {"obs": {"front": SHAPE_META["obs"]["front"]}, "action": {"shape": [2]}}
    policy = make_policy(shape_meta=cameras)
    obs = {"front": observations()["front"]}
    assert policy.predict_action(obs)["action"].shape == (2, 3, 2)
    blind = {"obs": {"pos": {"shape": [3]}}, "action": {"shape": [2]}}
    with pytest.raises(ConfigError, match=r"no image.*needs one"):
        make_policy(shape_meta=blind)


def test_a_missing_camera_or_another_size_is_one_sentence():
    policy, obs = make_policy(), observations()
    with pytest.raises(ConfigError, match="'wrist'"):
        policy.predict_action({key: value for key, value in obs.items() if key != "wrist"})
    with pytest.raises(ConfigError, match=r"front.*12, 12"):
        policy.predict_action(obs | {"front": torch.zeros(2, 4, 3, 9, 9)})


@pytest.mark.parametrize(
    ("prediction_type", "predict_epsilon", "expected"),
    [
        ("epsilon", None, "epsilon"),
        ("sample", None, "sample"),
        ("epsilon", False, "sample"),
        ("sample", True, "epsilon"),
    ],
)
def test_the_scheduler_says_what_is_predicted_and_the_old_name_still_works(
    prediction_type, predict_epsilon, expected
):
    scheduler = DDPMScheduler(10, prediction_type=prediction_type)
    old_name = {} if predict_epsilon is None else {"predict_epsilon": predict_epsilon}
    policy = make_policy(scheduler, **old_name)
    assert policy.forward_process.prediction_type == expected
    assert policy.noise_scheduler.config.prediction_type == expected
    policy.predict_action(observations())


def test_it_learns_from_the_order_of_the_frames():
    """The clip lights up or goes dark: single frames are the same."""
    scheduler = DDIMScheduler(10, beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    policy = make_policy(scheduler).train()
    brighter = torch.arange(16) % 2 == 1
    ramp = torch.linspace(0, 1, 4).view(1, 4, 1, 1, 1)
    clip = torch.where(brighter.view(16, 1, 1, 1, 1), ramp, ramp.flip(1)).expand(16, 4, 3, 12, 12)
    obs = {"front": clip, "wrist": clip, "pos": torch.ones(16, 4, 3), "grip": torch.ones(16, 4, 2)}
    action = torch.where(brighter, 8.0, 1.0).view(16, 1, 1).expand(16, 8, 2)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        policy.compute_loss({"obs": obs, "action": action}).backward()
        optimizer.step()
    predicted = policy.eval().predict_action(obs)["action"].mean((1, 2))
    assert (predicted[brighter] > 6).all()
    assert (predicted[~brighter] < 3).all()
