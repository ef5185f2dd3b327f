"""The hybrid image policy of this project against the straightforward way of computing the same.

    python benchmarks/bench_image_policy.py           # about 3 minutes on 2 cores
    python benchmarks/bench_image_policy.py --full    # with the published U-Net, 251.5 M parameters
    python benchmarks/bench_image_policy.py --quick   # does it run? The numbers mean nothing
    python benchmarks/bench_image_policy.py --device cuda --full

Measured are a training step (batch 64) and ``predict_action`` (100-step DDPM and 16-step DDIM,
batch 1 and 28), from uint8 frames in memory to updated weights or actions. The two forms have the
same weights, draw the same random numbers, take turns, and their results are compared.

- straightforward: frames become floats on the CPU, one by one, of the whole horizon; crops by
  gathering with index tensors; ``forward`` of the U-Net at every denoising step, convolutions by
  the routines of torch, known values overwritten at every step although there are none; torch's
  default AdamW
- ours: frames become floats on the device, and only those that the policy looks at; crops are
  windows; what depends on the observation or the timestep alone is computed once; fused AdamW
"""

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from bench_sampling_unet import straightforward
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from timing import compare, make_parser, print_machine
from torch import Tensor

from diffusion_policy.common.normalize_util import get_image_range_normalizer
from diffusion_policy.common.shape_meta import parse_shape_meta
from diffusion_policy.model.common.normalizer import LinearNormalizer
from diffusion_policy.policy.diffusion_unet_hybrid_image_policy import (
    DiffusionUnetHybridImagePolicy,
)

HORIZON, N_OBS_STEPS, N_ACTION_STEPS = 16, 2, 8


@dataclass
class Sizes:
    """How much there is to compute; the defaults are those of the published DDIM config."""

    down_dims: tuple[int, ...] = (256, 512, 1024)
    step_embed_dim: int = 128
    image: int = 96
    crop: int = 84
    train_batch: int = 64
    predict_batches: tuple[int, ...] = (1, 28)
    ddpm_steps: int = 100
    ddim_steps: int = 16


FULL = Sizes(down_dims=(512, 1024, 2048))
QUICK = Sizes((16, 32), 16, 40, 34, train_batch=2, predict_batches=(1, 2))


def shape_meta(sizes: Sizes) -> dict[str, Any]:
    """Of Push-T from images."""
    image = {"shape": [3, sizes.image, sizes.image], "type": "rgb"}
    obs = {"image": image, "agent_pos": {"shape": [2], "type": "low_dim"}}
    return {"obs": obs, "action": {"shape": [2]}}


def make_batch(sizes: Sizes, batch_size: int, n_steps: int) -> dict[str, Any]:
    """What a data set or the environments deliver, on the CPU."""
    shape = (batch_size, n_steps, 3, sizes.image, sizes.image)
    return {
        "obs": {
            "image": torch.randint(256, shape, dtype=torch.uint8),
            "agent_pos": torch.rand(batch_size, n_steps, 2) * 512,
        },
        "action": torch.rand(batch_size, HORIZON, 2) * 512,
    }


def make_policy(sizes: Sizes, device: str) -> DiffusionUnetHybridImagePolicy:
    """Ours, with 100 training steps of diffusion."""
    policy = DiffusionUnetHybridImagePolicy(
        shape_meta=shape_meta(sizes),
        noise_scheduler=make_scheduler(DDPMScheduler, variance_type="fixed_small"),
        horizon=HORIZON,
        n_action_steps=N_ACTION_STEPS,
        n_obs_steps=N_OBS_STEPS,
        crop_shape=(sizes.crop, sizes.crop),
        diffusion_step_embed_dim=sizes.step_embed_dim,
        down_dims=sizes.down_dims,
        obs_encoder_group_norm=True,
        eval_fixed_crop=True,
    )
    normalizer = LinearNormalizer()
    normalizer.fit({key: torch.tensor([[0.0, 0.0], [512, 512]]) for key in ("agent_pos", "action")})
    normalizer["image"] = get_image_range_normalizer()
    policy.set_normalizer(normalizer)
    return policy.to(device)


def make_scheduler(scheduler_class: type, **options: Any) -> Any:
    """As the published configs have it."""
    return scheduler_class(
        num_train_timesteps=100,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=True,
        prediction_type="epsilon",
        **options,
    )


class StraightforwardPolicy:
    """The same computation, line by line as the method is written down.

    Args:
        policy: whose weights it copies.
        crop: side of the crops, px.
    """

    def __init__(self, policy: DiffusionUnetHybridImagePolicy, meta: Any, crop: int):
        self.policy = copy.deepcopy(policy)
        self.policy.model = straightforward(policy.model)
        self.meta, self.crop = parse_shape_meta(meta), crop

    def compute_loss(self, batch: dict[str, Any]) -> Tensor:
        """The denoising loss."""
        policy = self.policy
        cond = self.encode(batch["obs"])
        action = policy.normalizer["action"].normalize(batch["action"].to(policy.device))
        noise = torch.randn(action.shape, device=action.device)
        n_train = policy.noise_scheduler.config.num_train_timesteps
        t = torch.randint(0, n_train, (len(action),), device=action.device).long()
        noisy = policy.noise_scheduler.add_noise(action, noise, t)
        known = policy.mask_generator(action.shape)
        noisy[known] = action[known]
        loss = F.mse_loss(policy.model(noisy, t, global_cond=cond), noise, reduction="none")
        return (loss * (~known).type(loss.dtype)).flatten(1).mean(dim=1).mean()

    @torch.no_grad()
    def predict_action(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Actions by the reverse process."""
        policy, scheduler = self.policy, self.policy.noise_scheduler
        cond = self.encode(obs)
        known_values = torch.zeros(len(cond), HORIZON, 2, device=cond.device)
        known = torch.zeros_like(known_values, dtype=torch.bool)
        x = torch.randn(known_values.shape, device=cond.device)
        scheduler.set_timesteps(policy.num_inference_steps)
        for t in scheduler.timesteps:
            x[known] = known_values[known]
            x = scheduler.step(policy.model(x, t, global_cond=cond), t, x).prev_sample
        x[known] = known_values[known]
        actions = policy.normalizer["action"].unnormalize(x)
        start = N_OBS_STEPS - 1
        return {"action": actions[:, start : start + N_ACTION_STEPS]}

    def encode(self, obs: dict[str, Tensor]) -> Tensor:
        """Features (B, To * F)."""
        images = [[frame.float() / 255 for frame in window] for window in obs["image"]]
        floats = obs | {"image": torch.stack([torch.stack(window) for window in images])}
        on_device = {key: value.to(self.policy.device) for key, value in floats.items()}
        normalized = self.policy.normalizer.normalize(on_device)
        features = []
        for key in self.meta.keys:
            x = normalized[key][:, :N_OBS_STEPS].flatten(0, 1)
            if key in self.meta.rgb:
                crops = gather_crops(x, self.corners(x), self.crop)
                x = F.relu(self.policy.obs_encoder.obs_nets[key](crops)).flatten(1)
            features.append(x)
        return torch.cat(features, dim=-1).reshape(len(obs["image"]), -1)

    def corners(self, images: Tensor) -> Tensor:
        """Row and column (N, 2) of the crops: random in training, else the center."""
        room = images.shape[-1] - self.crop
        if not self.policy.training:
            return torch.full((len(images), 2), round(room / 2), device=images.device)
        rows, columns = torch.rand(len(images)), torch.rand(len(images))
        return (torch.stack([rows, columns], dim=-1) * room).long().to(images.device)


def gather_crops(images: Tensor, corners: Tensor, size: int) -> Tensor:
    """Square crops of (N, C, H, W), each pixel by its index."""
    n, channels, height, width = images.shape
    assert (corners >= 0).all().item()
    assert (corners <= height - size).all().item()
    steps = torch.arange(size, device=images.device)
    rows = corners[:, 0, None, None] + steps[:, None]
    columns = corners[:, 1, None, None] + steps
    index = (rows * width + columns).reshape(n, 1, -1).expand(n, channels, -1)
    return images.flatten(2).gather(2, index).reshape(n, channels, size, size)


def training_step(
    compute_loss: Callable[[dict], Tensor], optimizer: torch.optim.Optimizer, batch: dict
) -> Tensor:
    """One update of the weights."""
    loss = compute_loss(batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def bench_training(
    ours: DiffusionUnetHybridImagePolicy, sizes: Sizes, args: argparse.Namespace
) -> None:
    """From a batch of the data set to updated weights; ``ours`` keeps its own."""
    ours = copy.deepcopy(ours).train()
    plain = StraightforwardPolicy(ours, shape_meta(sizes), sizes.crop)
    batch = make_batch(sizes, sizes.train_batch, HORIZON)
    options = {"lr": 1e-4, "betas": (0.95, 0.999), "weight_decay": 1e-6}
    default = torch.optim.AdamW(plain.policy.parameters(), **options)
    fused = torch.optim.AdamW(ours.parameters(), fused=True, **options)

    def on_device() -> dict[str, Any]:  # as the training loop does it
        obs = {key: value.to(args.device) for key, value in batch["obs"].items()}
        return {"obs": obs, "action": batch["action"].to(args.device)}

    forms = {
        "straightforward": lambda: training_step(plain.compute_loss, default, batch),
        "ours": lambda: training_step(ours.compute_loss, fused, on_device()),
    }
    compare(f"training step, batch {sizes.train_batch}", forms, args)


def bench_prediction(
    ours: DiffusionUnetHybridImagePolicy, sizes: Sizes, args: argparse.Namespace
) -> None:
    """From the environments' observations to actions."""
    ours.eval()
    for scheduler_class, n_steps in (
        (DDPMScheduler, sizes.ddpm_steps),
        (DDIMScheduler, sizes.ddim_steps),
    ):
        ours.noise_scheduler = make_scheduler(scheduler_class)
        ours.num_inference_steps = n_steps
        plain = StraightforwardPolicy(ours, shape_meta(sizes), sizes.crop)
        for batch_size in sizes.predict_batches:
            obs = make_batch(sizes, batch_size, N_OBS_STEPS)["obs"]
            forms: dict[str, Callable[[], Tensor]] = {
                "straightforward": lambda p=plain, o=obs: p.predict_action(o)["action"],
                "ours": lambda o=obs: ours.predict_action(o)["action"],
            }
            name = scheduler_class.__name__.removesuffix("Scheduler")
            title = f"predict_action, {n_steps}-step {name}, batch {batch_size}"
            compare(title, forms, args)


def main() -> None:
    """Command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--full", action="store_true", help="the published U-Net")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one repeat")
    args = parser.parse_args()
    sizes = QUICK if args.quick else FULL if args.full else Sizes()
    if args.quick:
        args.repeats = 1

    torch.manual_seed(0)
    policy = make_policy(sizes, args.device)
    n_unet, n_encoder = (
        sum(p.numel() for p in part.parameters()) / 1e6
        for part in (policy.model, policy.obs_encoder)
    )
    print_machine(args.device)
    print(f"U-Net {n_unet:.1f} M parameters, encoder {n_encoder:.1f} M")
    bench_training(policy, sizes, args)
    bench_prediction(policy, sizes, args)


if __name__ == "__main__":
    main()
