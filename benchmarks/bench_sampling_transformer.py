"""How much a reverse process gains from what this project's transformer does.

    python benchmarks/bench_sampling_transformer.py                     # CPU, all cores
    OMP_NUM_THREADS=1 python benchmarks/bench_sampling_transformer.py
    python benchmarks/bench_sampling_transformer.py --device cuda
    python benchmarks/bench_sampling_transformer.py --quick             # does it run at all?

Sampling: 100 evaluations of the stock network (9.0 M parameters, 16 steps, 2 observations).

- layers of torch: the network with ``torch.nn.TransformerDecoder``, everything anew at each step
- straightforward: ``forward`` at every step
- prepared: keys and values of the observations computed once, those of the diffusion step from a
  table (``prepare_sampling``)
"""

import argparse
from collections.abc import Callable
from typing import cast

import torch
from timing import compare, make_parser, print_machine
from torch import Tensor, nn

from diffusion_policy.model.diffusion.transformer_for_diffusion import TransformerForDiffusion

HORIZON, ACTION_DIM, N_OBS_STEPS, COND_DIM = 16, 2, 2, 20
N_LAYER, N_HEAD, N_EMB = 8, 4, 256


def decoder_of_torch(net: TransformerForDiffusion) -> nn.TransformerDecoder:
    """The network's decoder, in torch's own layers."""
    options = {"activation": "gelu", "batch_first": True, "norm_first": True}
    layer = nn.TransformerDecoderLayer(N_EMB, N_HEAD, 4 * N_EMB, 0.0, **options)
    decoder = nn.TransformerDecoder(layer, N_LAYER).to(net.device).eval()
    decoder.load_state_dict(net.decoder.state_dict())
    return decoder


def bench_sampling(net: TransformerForDiffusion, batch: int, args: argparse.Namespace) -> None:
    timesteps = torch.arange(args.evaluations - 1, -1, -1, device=args.device)
    x = torch.randn(batch, HORIZON, ACTION_DIM, device=args.device)
    cond = torch.randn(batch, N_OBS_STEPS, COND_DIM, device=args.device)
    decoder, embed_obs = decoder_of_torch(net), cast(nn.Linear, net.cond_obs_emb)

    def forward_with_layers_of_torch(y: Tensor, i: int) -> Tensor:
        time = net.time_emb(timesteps[i].expand(batch))[:, None]
        memory = net.encoder(torch.cat((time, embed_obs(cond)), dim=1) + net.cond_pos_emb)
        tokens = net.input_emb(y) + net.pos_emb
        return net.head(net.ln_f(decoder(tokens, memory, net.mask, net.memory_mask)))

    def loop(denoise) -> Tensor:
        y = x
        for i in range(len(timesteps)):
            y = 0.9 * y + 0.1 * denoise(y, i)
        return y

    forms: dict[str, Callable[[], Tensor]] = {
        "layers of torch": lambda: loop(forward_with_layers_of_torch),
        "straightforward": lambda: loop(lambda y, i: net(y, timesteps[i], cond)),
        "prepared": lambda: loop(net.prepare_sampling(timesteps, cond)),
    }
    with torch.inference_mode():
        compare(f"sampling, {args.evaluations} evaluations, batch {batch}", forms, args)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--evaluations", type=int, default=100, help="of the network, per sample")
    parser.add_argument("--quick", action="store_true", help="2 evaluations, once")
    args = parser.parse_args()
    if args.quick:
        args.evaluations, args.repeats = 2, 1

    torch.manual_seed(0)
    net = TransformerForDiffusion(
        input_dim=ACTION_DIM,
        output_dim=ACTION_DIM,
        horizon=HORIZON,
        n_obs_steps=N_OBS_STEPS,
        cond_dim=COND_DIM,
        n_layer=N_LAYER,
        n_head=N_HEAD,
        n_emb=N_EMB,
        causal_attn=True,
    )
    net = net.to(args.device).eval()
    print_machine(args.device)
    for batch in (1, 56):
        bench_sampling(net, batch, args)


if __name__ == "__main__":
    main()
