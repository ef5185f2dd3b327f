"""How much a reverse process and a training step gain from what this project's U-Net does.

    python benchmarks/bench_sampling_unet.py                     # CPU, all cores
    OMP_NUM_THREADS=1 python benchmarks/bench_sampling_unet.py
    python benchmarks/bench_sampling_unet.py --device cuda

Sampling: 100 evaluations of the stock network (65.8 M parameters, 16 steps, global conditioning).

- straightforward: ``forward`` at every step, convolutions by the routines of torch
- matrix products: the same with short convolutions as matrix products (``ShortConv1d``; CPU only)
- prepared: the observation and timestep parts of every FiLM computed once (``prepare_sampling``)

Training: forward and backward pass, straightforward against matrix products.
"""

import argparse
import copy

import torch
from timing import compare, make_parser, print_machine, print_table, seconds
from torch import nn

from diffusion_policy.model.diffusion.conditional_unet1d import ConditionalUnet1D
from diffusion_policy.model.diffusion.conv1d_components import ShortConv1d, Upsample1d

HORIZON, ACTION_DIM, COND_DIM = 16, 2, 40


def straightforward(unet: ConditionalUnet1D) -> ConditionalUnet1D:
    """A copy that uses torch's convolution routines throughout."""
    unet = copy.deepcopy(unet)
    for module in unet.modules():
        if isinstance(module, ShortConv1d):
            module.__class__ = nn.Conv1d
        elif isinstance(module, Upsample1d):
            module.forward = module.conv.forward
    return unet


def bench_sampling(unet: ConditionalUnet1D, batch: int, args: argparse.Namespace) -> None:
    plain = straightforward(unet)
    timesteps = torch.arange(args.evaluations - 1, -1, -1, device=args.device)
    x = torch.randn(batch, HORIZON, ACTION_DIM, device=args.device)
    cond = torch.randn(batch, COND_DIM, device=args.device)

    def loop(model: ConditionalUnet1D) -> torch.Tensor:
        y = x
        for t in timesteps:
            y = 0.9 * y + 0.1 * model(y, t, global_cond=cond)
        return y

    def prepared() -> torch.Tensor:
        denoise = unet.prepare_sampling(timesteps, global_cond=cond)
        y = x
        for i in range(len(timesteps)):
            y = 0.9 * y + 0.1 * denoise(y, i)
        return y

    forms = {
        "straightforward": lambda: loop(plain),
        "matrix products": lambda: loop(unet),
        "prepared": prepared,
    }
    with torch.inference_mode():
        compare(f"sampling, {args.evaluations} evaluations, batch {batch}", forms, args)


def bench_training(unet: ConditionalUnet1D, batch: int, args: argparse.Namespace) -> None:
    x = torch.randn(batch, HORIZON, ACTION_DIM, device=args.device)
    cond = torch.randn(batch, COND_DIM, device=args.device)
    t = torch.randint(0, 100, (batch,), device=args.device)

    def step(model: ConditionalUnet1D) -> None:
        model.zero_grad(set_to_none=True)
        model(x, t, global_cond=cond).square().mean().backward()

    plain = straightforward(unet)
    functions = {"straightforward": lambda: step(plain), "matrix products": lambda: step(unet)}
    times = seconds(functions, args.repeats, args.device)
    print_table(f"training, down_dims={unet.down_dims}, batch {batch}", times)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--evaluations", type=int, default=100, help="of the network, per sample")
    args = parser.parse_args()

    def unet(down_dims: list[int], embed_dim: int) -> ConditionalUnet1D:
        net = ConditionalUnet1D(
            input_dim=ACTION_DIM,
            global_cond_dim=COND_DIM,
            diffusion_step_embed_dim=embed_dim,
            down_dims=down_dims,
            kernel_size=5,
            cond_predict_scale=True,
        )
        return net.to(args.device)

    torch.manual_seed(0)
    print_machine(args.device)
    stock, demo = unet([256, 512, 1024], 256), unet([64, 128, 256], 128)
    for batch in (1, 56):
        bench_sampling(stock, batch, args)
    bench_training(demo, 128, args)
    bench_training(stock, 256, args)


if __name__ == "__main__":
    main()
