"""Bins and offsets: losses and sampling, for both networks."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from generators import seeded
from omegaconf import OmegaConf

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.bet.latent_generators.latent_generator import (
    AbstractLatentGenerator,
    LatentGeneratorDataParallel,
)
from diffusion_policy.model.bet.latent_generators.mingpt import MinGPT

BINS, OBS, ACTION, STEPS = 5, 6, 2, 3


def make_mingpt(**changes):
    torch.manual_seed(0)
    options = {"predict_offsets": True, "offset_loss_scale": 10.0, "focal_loss_gamma": 2.0}
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": STEPS, "vocab_size": BINS}
    return MinGPT(OBS, **{**sizes, "action_dim": ACTION, **options, **changes}).eval()


def make_transformer():
    path = "diffusion_policy.model.bet.latent_generators.transformer"
    torch.manual_seed(0)
    return (
        importlib.import_module(path)
        .Transformer(
            input_dim=OBS,
            num_bins=BINS,
            action_dim=ACTION,
            horizon=STEPS,
            focal_loss_gamma=2.0,
            offset_loss_scale=10.0,
            n_layer=1,
            n_head=2,
            n_emb=8,
            causal_attn=True,
        )
        .eval()
    )


@pytest.fixture(params=[make_mingpt, make_transformer])
def generator(request):
    return request.param()


def targets(batch=4):
    return torch.randint(0, BINS, (batch, STEPS, 1)), torch.randn(batch, STEPS, ACTION)


def test_the_loss_is_that_of_the_true_bin_and_of_its_offset(generator):
    obs, (bins, true_offsets) = torch.randn(4, STEPS, OBS), targets()
    (logits, offsets), loss, parts = generator.get_latent_and_loss(
        obs, (bins, true_offsets), return_loss_components=True
    )
    assert logits.shape == (STEPS, 4, BINS)
    assert offsets.shape == (STEPS, 4, BINS, ACTION)
    class_loss, squares = [], []
    for t in range(STEPS):
        for b in range(4):
            p = logits[t, b].softmax(dim=0)[bins[b, t, 0]]
            class_loss.append(-((1 - p) ** 2) * p.log())
            squares.append((offsets[t, b, bins[b, t, 0]] - true_offsets[b, t]) ** 2)
    torch.testing.assert_close(parts["class"], torch.stack(class_loss).mean())
    torch.testing.assert_close(parts["offset"], 10 * torch.stack(squares).mean())
    torch.testing.assert_close(parts["total"], parts["class"] + parts["offset"])
    assert torch.equal(loss, parts["total"])
    assert list(parts) == ["offset", "class", "total"]
    assert len(generator.get_latent_and_loss(obs, (bins, true_offsets))) == 2


def test_a_drawn_latent_is_a_bin_and_the_offset_of_that_bin(generator):
    obs = torch.randn(4, STEPS, OBS)
    (logits, offsets), _ = generator.get_latent_and_loss(obs, targets())
    torch.manual_seed(1)
    bins, drawn_offsets = generator.generate_latents(obs)
    assert bins.shape == (4, STEPS, 1)
    expected = offsets.transpose(0, 1).take_along_dim(bins.unsqueeze(-1), 2).squeeze(2)
    torch.testing.assert_close(drawn_offsets, expected)
    torch.manual_seed(1)
    p = logits.transpose(0, 1).reshape(-1, BINS).softmax(dim=-1)
    assert torch.equal(bins.flatten(), torch.multinomial(p, 1).flatten())


def test_both_networks_learn_what_they_are_shown(generator):
    """Two modes of action, and which one it is can be seen."""
    optimizer = generator.get_optimizer(weight_decay=0.0, learning_rate=1e-2, betas=(0.9, 0.95))
    obs = torch.randn(32, STEPS, OBS)
    bins = (obs[..., :1] > 0).long()
    offsets = torch.where(bins == 1, 0.3, -0.2).expand(-1, -1, ACTION)
    for _ in range(60):
        loss = generator.get_latent_and_loss(obs, (bins, offsets))[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn, drawn_offsets = generator.generate_latents(obs)
    assert (drawn == bins).float().mean() > 0.85
    assert (drawn_offsets - offsets).abs().mean() < 0.1


def test_bins_are_drawn_as_often_as_they_are_likely():
    mingpt = make_mingpt(predict_offsets=False)
    with torch.no_grad():
        mingpt.model.head.weight.mul_(30)
    obs = torch.randn(1, 1, OBS)
    logits, _ = mingpt.get_latent_and_loss(obs, torch.zeros(1, 1, 1, dtype=torch.int64))
    drawn = mingpt.generate_latents(obs.expand(4000, -1, -1))
    frequency = drawn.flatten().bincount(minlength=BINS) / 4000
    torch.testing.assert_close(frequency, logits.flatten().softmax(dim=0), rtol=0, atol=0.03)


def test_a_row_is_drawn_with_its_own_generator(generator):
    obs = torch.randn(5, STEPS, OBS)

    def draw(rows):
        generators = seeded(*(100 + row for row in rows))
        return generator.generate_latents(obs[rows], generators)[0]

    together = draw([0, 1, 2, 3, 4])
    for rows in ([3], [4, 0, 2]):
        assert torch.equal(draw(rows), together[rows])
    state = torch.get_rng_state()
    draw([1, 2])
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


def test_one_generator_draws_for_the_whole_batch():
    mingpt, obs = make_mingpt(), torch.randn(4, STEPS, OBS)
    torch.manual_seed(8)
    expected = mingpt.generate_latents(obs)[0]
    drawn = mingpt.generate_latents(obs, torch.Generator().manual_seed(8))[0]
    assert torch.equal(drawn, expected)


def test_without_offsets_a_latent_is_a_bin():
    mingpt = make_mingpt(predict_offsets=False)
    obs, (bins, _) = torch.randn(4, STEPS, OBS), targets()
    logits, loss, parts = mingpt.get_latent_and_loss(obs, bins, return_loss_components=True)
    assert logits.shape == (STEPS, 4, BINS)
    assert list(parts) == ["class", "total"]
    assert torch.equal(loss, parts["class"])
    assert mingpt.generate_latents(obs).shape == (4, STEPS, 1)


def test_probabilities_are_targets_too():
    mingpt = make_mingpt(predict_offsets=False)
    obs, target = torch.randn(4, STEPS, OBS), torch.rand(4, STEPS, BINS).softmax(dim=-1)
    logits, loss = mingpt.get_latent_and_loss(obs, target)
    log_q = logits.transpose(0, 1).log_softmax(dim=-1)
    expected = F.kl_div(log_q, target, reduction="sum") / (4 * STEPS)
    torch.testing.assert_close(loss, expected)


def test_probabilities_with_offsets_are_refused():
    target = torch.rand(4, STEPS, BINS), torch.randn(4, STEPS, ACTION)
    with pytest.raises(ConfigError, match=r"float32.*\(4, 3, 5\).*predict_offsets"):
        make_mingpt().get_latent_and_loss(torch.randn(4, STEPS, OBS), target)


def test_further_options_of_mingpt_become_attributes():
    mingpt = make_mingpt(colour="red", latent_dim=3)
    assert (mingpt.colour, mingpt.latent_dim, mingpt.vocab_size) == ("red", 3, BINS)


def test_the_optimizer_takes_numbers_out_of_a_configuration(generator):
    betas = OmegaConf.create([0.8, 0.9])
    optimizer = generator.get_optimizer(weight_decay=0.1, learning_rate=1e-3, betas=betas)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert all(tuple(group["betas"]) == (0.8, 0.9) for group in optimizer.param_groups)
    count = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert count == sum(p.numel() for p in generator.parameters())


class ToyGenerator(AbstractLatentGenerator):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def get_latent_and_loss(self, obs_rep, target_latents, return_loss_components=False):
        return obs_rep, (obs_rep * self.weight).sum()

    def generate_latents(self, obs_rep, generator=None):
        return obs_rep * self.weight


def test_another_generator_gets_adam_and_works_in_a_data_parallel():
    parallel = LatentGeneratorDataParallel(ToyGenerator())
    optimizer = parallel.get_optimizer(weight_decay=0.1, learning_rate=1e-3, betas=[0.8, 0.9])
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert parallel.get_latent_and_loss(torch.ones(3, 2), None)[1].item() == 6
    assert torch.equal(parallel.generate_latents(torch.ones(3, 2)), torch.ones(3, 2))


# ---- the reference -------------------------------------------------------------------------------

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(params=range(2))
def reference(request, golden):
    case = torch.load(golden / "i_bet.pt", weights_only=True)["mingpt"][request.param]
    torch.manual_seed(case["init_seed"])
    return MinGPT(**case["kw"]).eval(), case


def test_a_seed_gives_the_reference_weights(reference):
    mingpt, case = reference
    assert list(mingpt.state_dict()) == list(case["state_dict"])
    for key, value in mingpt.state_dict().items():
        assert torch.equal(value, case["state_dict"][key]), key


def test_outputs_and_losses_are_those_of_the_reference(reference):
    mingpt, case = reference
    torch.testing.assert_close(mingpt.model(case["obs"])[0], case["raw"], **CLOSE)
    offsets = case["kw"]["predict_offsets"]
    target = (case["target"], case["target_offsets"]) if offsets else case["target"]
    prediction, loss, parts = mingpt.get_latent_and_loss(case["obs"], target, True)
    for ours, expected in zip(
        prediction if offsets else [prediction],
        case["logits"] if offsets else [case["logits"]],
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, **CLOSE)
    torch.testing.assert_close(loss, case["loss"], **CLOSE)
    assert list(parts) == list(case["components"])
    for key, expected in case["components"].items():
        torch.testing.assert_close(parts[key], expected, **CLOSE)


def test_latents_are_drawn_as_in_the_reference(reference):
    mingpt, case = reference
    torch.manual_seed(case["gen_seed"])
    drawn = mingpt.generate_latents(case["obs"])
    if not case["kw"]["predict_offsets"]:
        assert torch.equal(drawn, case["generated"])
        return
    assert torch.equal(drawn[0], case["generated"][0])
    torch.testing.assert_close(drawn[1], case["generated"][1], **CLOSE)


def test_optimizer_groups_are_those_of_the_reference(reference):
    mingpt, case = reference
    names = {id(p): name for name, p in mingpt.named_parameters()}
    optimizer = mingpt.get_optimizer(weight_decay=0.1, learning_rate=1e-3, betas=(0.9, 0.95))
    assert type(optimizer).__name__ == case["optimizer"]
    for group, expected in zip(optimizer.param_groups, case["optim_groups"], strict=True):
        assert group["weight_decay"] == expected["weight_decay"]
        assert [names[id(p)] for p in group["params"]] == expected["names"]
