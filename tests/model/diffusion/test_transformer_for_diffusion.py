import copy
import json
import logging

import pytest
import torch
from gpu import needs_gpu, no_waiting
from reference_weights import fill, layout, statistics, wave
from torch import nn

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.diffusion.transformer_for_diffusion import (
    TransformerForDiffusion,
    _causal_mask,
)
from diffusion_policy.model.diffusion.transformer_layers import Attention, TransformerStack

SMALL = {"n_layer": 2, "n_head": 2, "n_emb": 16, "p_drop_emb": 0.0, "p_drop_attn": 0.0}
MODES = {
    "observations": {"cond_dim": 4},
    "observations, causal": {"cond_dim": 4, "causal_attn": True},
    "observations, encoded": {"cond_dim": 4, "causal_attn": True, "n_cond_layers": 1},
    "step only": {"causal_attn": True},
    "step only, encoded": {"n_cond_layers": 2},
    "encoder only": {"time_as_cond": False},
    "encoder only, causal": {"time_as_cond": False, "causal_attn": True},
}
all_modes = pytest.mark.parametrize("mode", MODES)


def make(mode="observations, causal", horizon=8, n_obs_steps=3, **options):
    torch.manual_seed(0)
    options = SMALL | MODES[mode] | options
    net = TransformerForDiffusion(3, 3, horizon, n_obs_steps, **options)
    with torch.no_grad():  # at their initial size, attention hardly matters
        for parameter in net.parameters():
            parameter.mul_(5)
    return net.eval()


def observations(net, batch=2, steps=3):
    return {"cond": wave(batch, steps, net.cond_dim, phase=1)} if net.obs_as_cond else {}


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


# ---- the original ----

GOLDEN_CASES = pytest.mark.parametrize("index", range(7))


@pytest.fixture(scope="module")
def reference_cases(golden):
    return torch.load(golden / "d_transformer_for_diffusion.pt", weights_only=True)


def test_no_reference_case_is_left_out(reference_cases):
    assert len(reference_cases) == 7


@GOLDEN_CASES
def test_outputs_and_gradients_of_the_original_are_reproduced(reference_cases, index):
    case = reference_cases[index]
    net = TransformerForDiffusion(**case["ctor"])
    net.load_state_dict(case["state_dict"])
    assert list(net.state_dict()) == case["state_dict_keys"]
    for name in ("T", "T_cond", "encoder_only"):
        assert getattr(net, name) == case[name], name
    for name in ("mask", "memory_mask"):
        expected = case[name]
        assert getattr(net, name) is None if expected is None else True
        assert expected is None or torch.equal(getattr(net, name), expected)

    net.eval()
    out = net(case["sample"], case["timestep"], case["cond"])
    (out**2).mean().backward()
    assert_close(out, case["out"])
    for name, gradient in case["grads"].items():
        assert_close(net.get_parameter(name).grad, gradient)
    with torch.no_grad():
        assert_close(net(case["sample"], 9, case["cond"]), case["out_int"])
        denoise = net.prepare_sampling(case["timestep"][:1], case["cond"])
        assert_close(denoise(case["sample"], 0)[0], case["out"][0])
    net.train()
    torch.manual_seed(5)  # dropout draws in the same order
    assert_close(net(case["sample"], case["timestep"], case["cond"]), case["out_train_seed5"])


@GOLDEN_CASES
def test_a_shorter_sequence_works_with_causal_attention_too(reference_cases, index):
    """The original failed: it did not cut its masks."""
    case = reference_cases[index]
    net = TransformerForDiffusion(**case["ctor"])
    net.load_state_dict(case["state_dict"])
    length = case.get("short_len", 5)
    out = net.eval()(case["sample"][:, :length], case["timestep"], case["cond"])
    if "out_short" in case:
        assert_close(out, case["out_short"])
    else:
        assert case["short_error"] == "RuntimeError"
        assert_close(out, case["out"][:, :length])  # later steps are not seen anyway


@GOLDEN_CASES
def test_initial_weights_and_parameter_order_are_those_of_the_original(reference_cases, index):
    case = reference_cases[index]
    torch.manual_seed(case["init_seed"])
    net = TransformerForDiffusion(**case["ctor"])
    assert [name for name, _ in net.named_parameters()] == case["param_order"]
    for name, parameter in net.named_parameters():
        assert parameter.double().sum().item() == pytest.approx(case["init_sums"][name], abs=1e-5)


@GOLDEN_CASES
def test_optimizer_groups_are_those_of_the_original(reference_cases, index):
    case = reference_cases[index]
    net = TransformerForDiffusion(**case["ctor"])
    names = {parameter: name for name, parameter in net.named_parameters()}
    for group, expected in zip(net.get_optim_groups(), case["optim_groups"], strict=True):
        assert [names[p] for p in group["params"]] == expected["names"]
        assert group["weight_decay"] == expected["weight_decay"]
    optimizer = net.configure_optimizers(2e-4, 1e-2, [0.8, 0.97])
    assert type(optimizer).__name__ == case["optimizer"]["cls"]
    for group, expected in zip(optimizer.param_groups, case["optimizer"]["groups"], strict=True):
        assert {key: group[key] for key in expected} == expected | {
            "betas": tuple(expected["betas"])
        }


def test_numbers_of_the_specification_with_causal_attention():
    options = {"n_layer": 2, "n_head": 4, "n_emb": 32, "causal_attn": True}
    net = fill(TransformerForDiffusion(2, 2, 16, 2, 20, **options)).eval()
    out = net(wave(3, 16, 2), torch.tensor([0, 5, 99]), wave(3, 2, 20, phase=1))
    expected = [0.11231206, 0.06571616, 0.1762223, 0.0479138, 0.1960621, 0.030675]
    assert statistics(out) == pytest.approx(expected, abs=1e-5)


def test_numbers_of_the_specification_with_an_encoder_of_the_condition():
    options = {"n_layer": 2, "n_head": 4, "n_emb": 32, "causal_attn": True, "n_cond_layers": 2}
    net = fill(TransformerForDiffusion(2, 2, 8, 4, 10, **options)).eval()
    out = net(wave(3, 8, 2), 7, wave(3, 4, 10, phase=1))
    expected = [0.11230482, 0.06639934, 0.1759425, 0.0481083, 0.1960513, 0.0307035]
    assert statistics(out) == pytest.approx(expected, abs=1e-5)


def test_numbers_of_the_specification_of_the_encoder_alone():
    options = {"n_layer": 2, "n_head": 4, "n_emb": 32, "time_as_cond": False}
    net = fill(TransformerForDiffusion(2, 2, 8, 4, **options)).eval()
    expected = [0.10650034, 0.06360807, 0.1695292, 0.0431338, 0.1833077, 0.031563]
    assert statistics(net(wave(3, 8, 2), 7)) == pytest.approx(expected, abs=1e-5)


def stock_cases(golden):
    """(name, published entry, constructor arguments) of all published transformers."""
    published = json.loads((golden / "e_stock_state_dicts.json").read_text())
    for name, entry in published.items():
        if "transformer" not in name:
            continue
        shapes = {k: shape for k, (shape, _) in entry["state_dict"].items()}
        n_emb, input_dim = shapes["model.input_emb.weight"]
        yield (
            name,
            entry,
            {
                "input_dim": input_dim,
                "output_dim": input_dim,
                "horizon": shapes["model.pos_emb"][1],
                "n_obs_steps": shapes["model.cond_pos_emb"][1] - 1,
                "cond_dim": shapes["model.cond_obs_emb.weight"][1],
                "n_layer": 8,
                "n_head": 4,
                "n_emb": n_emb,
                "causal_attn": True,
            },
        )


def test_the_stock_networks_have_the_published_state(golden):
    cases = list(stock_cases(golden))
    assert len(cases) == 8
    for name, entry, options in cases:
        with torch.device("meta"):
            net = TransformerForDiffusion(**options)
        ours = {f"model.{key}": value for key, value in layout(net).items()}
        published = entry["state_dict"]
        assert ours == {k: v for k, v in published.items() if k in ours}, name
        assert list(ours) == [
            k for k in published if k.startswith("model.") and "mask_gen" not in k
        ], name


def test_the_stock_network_has_the_published_size(caplog):
    with torch.device("meta"), caplog.at_level(logging.INFO):
        net = TransformerForDiffusion(
            2, 2, 16, 2, 20, n_layer=8, n_head=4, n_emb=256, causal_attn=True
        )
    # the policy around it adds two empty parameters
    assert sum(p.numel() for p in net.parameters()) == 8_965_122
    assert len(list(net.parameters())) == 159
    assert "number of parameters: 8.965122e+06" in caplog.text


# ---- the layers are those of torch ----


def torch_layers(n_layer, n_emb, n_head, dropout, decoder):
    layer = nn.TransformerDecoderLayer if decoder else nn.TransformerEncoderLayer
    stack = nn.TransformerDecoder if decoder else nn.TransformerEncoder
    options = {"activation": "gelu", "batch_first": True, "norm_first": True}
    layer = layer(n_emb, n_head, 4 * n_emb, dropout, **options)
    return stack(layer, n_layer, **({} if decoder else {"enable_nested_tensor": False}))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("decoder", [True, False], ids=["decoder", "encoder"])
def test_a_stack_of_layers_equals_that_of_torch(decoder, train):
    sizes = (2, 16, 2, 0.2)
    reference, ours = torch_layers(*sizes, decoder), TransformerStack(*sizes, decoder)
    assert list(ours.state_dict()) == list(reference.state_dict())
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(reference.state_dict())
    ours.train(train), reference.train(train)
    x, memory = torch.randn(3, 5, 16), torch.randn(3, 4, 16)
    mask, memory_mask = _causal_mask(5, 5), _causal_mask(5, 4)
    torch.manual_seed(1)
    if decoder:
        expected = reference(x, memory, mask, memory_mask)
    else:
        expected = reference(x, mask)
    torch.manual_seed(1)
    known = ours.keys_values(memory) if decoder else None
    actual = ours(x, mask, known, memory_mask if decoder else None)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_torch_draws_initial_weights_in_the_same_order():
    for decoder in (True, False):
        torch.manual_seed(3)
        torch_layers(2, 16, 2, 0.0, decoder)
        expected = torch.rand(1)
        torch.manual_seed(3)
        TransformerStack(2, 16, 2, 0.0, decoder)
        assert torch.equal(torch.rand(1), expected)


def test_keys_and_values_ahead_of_the_queries_give_the_same_attention():
    attention, x = Attention(16, 4, 0.0), torch.randn(2, 5, 16)
    torch.testing.assert_close(attention(x, attention.keys_values(x)), attention(x))


# ---- what sees what ----


def influence(net, **cond):
    """(step of the output, step of the input): does the one change with the other?"""
    sample = torch.zeros(1, 8, 3, requires_grad=True)
    out = net(sample, 5, **cond)
    rows = [torch.autograd.grad(step.sum(), sample, retain_graph=True)[0] for step in out[0]]
    return torch.stack([row[0].abs().sum(-1) > 1e-9 for row in rows])


@all_modes
def test_causal_attention_sees_no_later_steps_and_other_attention_sees_all(mode):
    net = make(mode)
    seen = influence(net, **observations(net, batch=1))
    everything = torch.ones(8, 8, dtype=torch.bool)
    assert torch.equal(seen, everything.tril() if net.mask is not None else everything)


@pytest.mark.parametrize("causal", [True, False])
def test_a_step_sees_the_observations_up_to_its_own(causal):
    net = make("observations", causal_attn=causal)
    cond = torch.zeros(1, 3, 4, requires_grad=True)
    out = net(torch.zeros(1, 8, 3), 5, cond)
    rows = [torch.autograd.grad(step.sum(), cond, retain_graph=True)[0] for step in out[0]]
    seen = torch.stack([row[0].abs().sum(-1) > 1e-9 for row in rows])
    everything = torch.ones(8, 3, dtype=torch.bool)
    assert torch.equal(seen, everything.tril() if causal else everything)


def test_masks_are_part_of_the_state_where_there_are_any():
    def masks(mode):
        return [key for key in make(mode).state_dict() if "mask" in key]

    assert masks("observations, causal") == ["mask", "memory_mask"]
    assert masks("step only") == masks("encoder only, causal") == ["mask"]
    assert masks("observations") == masks("encoder only") == []


def test_the_masks_of_the_specification():
    net = TransformerForDiffusion(2, 2, 16, 2, 20, n_head=2, n_emb=8, n_layer=1, causal_attn=True)
    inf = float("inf")
    assert net.mask[:3, :4].tolist() == [[0, -inf, -inf, -inf], [0, 0, -inf, -inf], [0, 0, 0, -inf]]
    assert net.memory_mask[:4].tolist() == [[0, 0, -inf], [0, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_the_observations_condition_the_network_whatever_obs_as_cond_says():
    for flag in (True, False):
        assert make("observations", obs_as_cond=flag).obs_as_cond
        assert not make("step only", obs_as_cond=flag).obs_as_cond


def test_the_position_of_a_lone_diffusion_step_starts_at_zero():
    assert (make("step only").cond_pos_emb == 0).all()
    assert (make("observations").cond_pos_emb != 0).all()
    assert (make("encoder only").pos_emb != 0).all()


# ---- behaviour ----


def test_every_form_of_timestep_is_accepted():
    net = make("step only")
    sample = wave(2, 8, 3)
    expected = net(sample, torch.tensor([7, 7]))
    for timestep in (7, 7.0, torch.tensor(7), torch.tensor([7])):
        assert_close(net(sample, timestep), expected)
    assert not torch.allclose(net(sample, 8), expected)


def test_unknown_arguments_are_ignored():
    net = make("step only")
    assert torch.equal(net(wave(1, 8, 3), 3, local_cond=None), net(wave(1, 8, 3), 3))


def test_fewer_observations_than_planned_are_accepted():
    net = make("observations, causal")
    assert net(wave(2, 8, 3), 5, wave(2, 1, 4)).shape == (2, 8, 3)


@pytest.mark.parametrize("length", [8, 5])
@pytest.mark.parametrize("batch", [1, 3])
@all_modes
def test_prepared_sampling_equals_the_plain_forward(mode, batch, length):
    net = make(mode)
    cond = observations(net, batch)
    timesteps = torch.tensor([99, 50, 3, 50, 0])
    with torch.no_grad():
        denoise = net.prepare_sampling(timesteps, **cond)
        for i, t in enumerate(timesteps):
            sample = torch.randn(batch, length, 3)
            expected = net(sample, t, **cond)
            torch.testing.assert_close(denoise(sample, i), expected, rtol=1e-5, atol=1e-5)


def test_prepared_sampling_encodes_the_condition_once():
    net, calls = make("observations"), []
    net.encoder.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape))
    with torch.no_grad():
        denoise = net.prepare_sampling(torch.arange(10), wave(2, 3, 4))
        for i in range(10):
            denoise(wave(2, 8, 3), i)
    assert calls == [(10, 1, 16), (2, 3, 16)]


def test_preparing_again_sees_changed_weights():
    net = make("observations")
    sample, steps, cond = wave(2, 8, 3), torch.tensor([5]), wave(2, 3, 4)
    with torch.no_grad():
        net.prepare_sampling(steps, cond)(sample, 0)
        for parameter in net.parameters():
            parameter.mul_(1.5)
        assert_close(net.prepare_sampling(steps, cond)(sample, 0), net(sample, 5, cond))


@pytest.mark.parametrize("drop", ["p_drop_emb", "p_drop_attn"])
def test_in_training_mode_prepared_sampling_draws_dropout_at_every_step(drop):
    net = make("observations", **{drop: 0.5}).train()
    sample, cond = wave(2, 8, 3), wave(2, 3, 4)
    denoise = net.prepare_sampling(torch.tensor([5, 5]), cond)
    torch.manual_seed(1)
    actual = [denoise(sample, i) for i in range(2)]
    torch.manual_seed(1)
    expected = [net(sample, 5, cond) for _ in range(2)]
    assert all(map(torch.equal, actual, expected))
    assert not torch.equal(*actual)


def test_gradients_flow_through_prepared_sampling():
    net, sample = make("observations"), wave(1, 8, 3).requires_grad_()
    net.prepare_sampling(torch.tensor([5]), wave(1, 3, 4))(sample, 0).sum().backward()
    assert sample.grad.abs().sum() > 0


@all_modes
def test_all_parameters_are_in_one_group_and_learn(mode):
    net = make(mode)
    groups = net.get_optim_groups(0.5)
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    names = {parameter: name for name, parameter in net.named_parameters()}
    decay, no_decay = ([names[p] for p in group["params"]] for group in groups)
    assert sorted(decay + no_decay) == sorted(names.values())
    assert decay == sorted(decay)
    assert no_decay == sorted(no_decay)
    assert all(name.endswith("weight") and "norm" not in name for name in decay)
    weights = [n for n in no_decay if n.endswith("weight")]
    assert all("norm" in n or n.startswith("ln_f") for n in weights)
    optimizer = net.configure_optimizers(1e-2)
    before = {name: p.clone() for name, p in net.named_parameters()}
    net(wave(2, 8, 3), 5, **observations(net)).square().mean().backward()
    optimizer.step()
    same = [n for n, p in net.named_parameters() if p.numel() and torch.equal(p, before[n])]
    assert same == []


def test_a_deep_copy_works_alike():
    net = make()
    args = (wave(1, 8, 3), 5, wave(1, 3, 4))
    assert torch.equal(copy.deepcopy(net)(*args), net(*args))


# ---- one clear sentence for every bad input ----


@pytest.mark.parametrize(
    ("shape", "cond_shape", "sentence"),
    [
        ((1, 9, 3), (1, 3, 4), r"T = 9 steps .* horizon=8"),
        ((1, 8, 5), (1, 3, 4), r"sequence of 5 values .* input_dim=3"),
        ((1, 8, 3), (1, 3, 6), r"observations of 6 values .* cond_dim=4"),
        ((1, 8, 3), None, r"observations of 0 values .* cond_dim=4"),
        ((1, 8, 3), (1, 4, 4), r"4 observations, .* n_obs_steps=3"),
    ],
)
def test_shapes_that_do_not_fit_are_named(shape, cond_shape, sentence):
    net = make()
    cond = None if cond_shape is None else wave(*cond_shape)
    with pytest.raises(ConfigError, match=sentence):
        net(wave(*shape), 0, cond)
    with pytest.raises(ConfigError, match=sentence):
        net.prepare_sampling(torch.tensor([0]), cond)(wave(*shape), 0)


def test_observations_that_the_network_cannot_see_are_refused():
    with pytest.raises(ConfigError, match=r"observations of 4 values .* cond_dim=0"):
        make("step only")(wave(1, 8, 3), 0, wave(1, 3, 4))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n_emb": 18, "n_head": 4}, "n_emb is 18 and n_head 4"),
        ({"n_head": 0}, "n_head 0"),
        ({"n_emb": 15, "n_head": 3}, "15 dimensions"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"cond_dim": 4, "time_as_cond": False}, "cond_dim is 4 but time_as_cond is False"),
    ],
)
def test_impossible_architectures_are_refused(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        TransformerForDiffusion(3, 3, 8, **SMALL | options)


@needs_gpu
@all_modes
def test_on_a_gpu_results_agree_and_no_step_waits_for_the_device(mode):
    net = make(mode)
    cond, sample, timesteps = observations(net), wave(2, 8, 3), torch.tensor([99, 3])
    on_gpu = copy.deepcopy(net).cuda()
    cond_gpu = {name: value.cuda() for name, value in cond.items()}
    sample_gpu, timesteps_gpu = sample.cuda(), timesteps.cuda()
    with no_waiting(), torch.no_grad():
        denoise = on_gpu.prepare_sampling(timesteps_gpu, **cond_gpu)
        outputs = [denoise(sample_gpu, i) for i in range(2)]
    with torch.no_grad():
        for out, t in zip(outputs, timesteps, strict=True):
            torch.testing.assert_close(out.cpu(), net(sample, t, **cond), rtol=1e-2, atol=1e-2)
