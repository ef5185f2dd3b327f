import copy
import logging

import pytest
import torch
from gpu import needs_gpu, no_waiting
from reference_weights import fill, statistics, wave

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.diffusion.conditional_unet1d import (
    ConditionalResidualBlock1D,
    ConditionalUnet1D,
)

SMALL = {"diffusion_step_embed_dim": 16, "down_dims": [16, 32], "kernel_size": 3}
MODES = {
    "none": {},
    "global": {"global_cond_dim": 6},
    "local": {"local_cond_dim": 4},
    "both": {"global_cond_dim": 6, "local_cond_dim": 4},
}


def conditions(options, batch=3, length=8):
    cond = {}
    if "global_cond_dim" in options:
        cond["global_cond"] = wave(batch, options["global_cond_dim"], phase=1)
    if "local_cond_dim" in options:
        cond["local_cond"] = wave(batch, length, options["local_cond_dim"], phase=2)
    return cond


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


# ---- the original ----


@pytest.mark.parametrize("index", range(5))
def test_outputs_and_gradients_of_the_original_are_reproduced(golden, index):
    case = torch.load(golden / "d_conditional_unet1d.pt", weights_only=True)[index]
    unet = ConditionalUnet1D(**case["ctor"])
    unet.load_state_dict(case["state_dict"])
    assert list(unet.state_dict()) == list(case["state_dict"])
    cond = {"local_cond": case["local_cond"], "global_cond": case["global_cond"]}

    out = unet(case["sample"], case["timestep"], **cond)
    loss = (out**2).mean()
    loss.backward()
    assert_close(out, case["out"])
    assert_close(loss, case["loss"])
    for name, gradient in case["grads"].items():
        assert_close(unet.get_parameter(name).grad, gradient)
    without = [name for name, p in unet.named_parameters() if p.grad is None]
    assert without == case["params_without_grad"]

    assert_close(unet(case["sample"], 17, **cond), case["out_int17"])
    assert_close(unet(case["sample"], torch.tensor(17), **cond), case["out_0d17"])
    if case["out_without_local_cond"] is not None:
        cond.pop("local_cond")
        assert_close(unet(case["sample"], case["timestep"], **cond), case["out_without_local_cond"])


@pytest.mark.parametrize("index", range(5))
def test_initial_weights_and_parameter_order_are_those_of_the_original(golden, index):
    case = torch.load(golden / "d_conditional_unet1d.pt", weights_only=True)[index]
    torch.manual_seed(case["init_seed"])
    unet = ConditionalUnet1D(**case["ctor"])
    assert [name for name, _ in unet.named_parameters()] == case["param_order"]
    for name, parameter in unet.named_parameters():
        assert parameter.double().sum().item() == pytest.approx(case["init_sums"][name], abs=1e-6)


def test_numbers_of_the_specification_with_global_condition():
    unet = fill(ConditionalUnet1D(2, None, 40, 32, [16, 32, 64], 5, 8, True)).eval()
    out = unet(wave(3, 16, 2), torch.tensor([0, 5, 99]), global_cond=wave(3, 40, phase=1))
    expected = [0.06287709, 0.05389830, -0.0054286, 0.1275513, 0.0034887, 0.1199156]
    assert statistics(out) == pytest.approx(expected, abs=1e-5)


def test_numbers_of_the_specification_with_local_condition():
    unet = fill(ConditionalUnet1D(2, 20, None, 32, [16, 32], 3, 8, False)).eval()
    out = unet(wave(3, 8, 2), 7, local_cond=wave(3, 8, 20, phase=1))
    expected = [0.06024704, 0.05248780, 0.0041226, 0.1071412, 0.007083, 0.1133436]
    assert statistics(out) == pytest.approx(expected, abs=1e-5)


def test_the_stock_network_has_the_published_size(caplog):
    with torch.device("meta"), caplog.at_level(logging.INFO):
        unet = ConditionalUnet1D(2, None, 40, kernel_size=5, cond_predict_scale=True)
    # the policy around it adds two empty parameters
    assert sum(p.numel() for p in unet.parameters()) == 65_783_298
    assert len(list(unet.parameters())) == 148
    assert "number of parameters: 6.578330e+07" in caplog.text


def test_the_order_of_children_is_that_of_published_optimizer_states():
    unet = ConditionalUnet1D(2, local_cond_dim=4, **SMALL)
    assert [name for name, _ in unet.named_children()] == [
        "mid_modules",
        "diffusion_step_encoder",
        "local_cond_encoder",
        "up_modules",
        "down_modules",
        "final_conv",
    ]


# ---- behaviour ----


@pytest.mark.parametrize("predict_scale", [True, False])
def test_film_shifts_and_scales_without_an_implicit_one(predict_scale):
    block = ConditionalResidualBlock1D(8, 16, 5, cond_predict_scale=predict_scale)
    with torch.no_grad():
        linear = block.cond_encoder[1]
        linear.weight.zero_()
        linear.bias.zero_()
        if predict_scale:
            linear.bias[:16] = 1
    x, cond = torch.randn(2, 8, 4), torch.randn(2, 5)
    expected = block.blocks[1](block.blocks[0](x)) + block.residual_conv(x)
    assert_close(block(x, cond), expected)


def test_every_form_of_timestep_is_accepted():
    unet = ConditionalUnet1D(2, **SMALL).eval()
    sample = wave(3, 8, 2)
    expected = unet(sample, torch.tensor([7, 7, 7]))
    for timestep in (7, 7.0, torch.tensor(7), torch.tensor([7])):
        assert_close(unet(sample, timestep), expected)
    assert not torch.allclose(unet(sample, 8), expected)


def test_unknown_arguments_are_ignored():
    unet = ConditionalUnet1D(2, **SMALL)
    assert_close(unet(wave(1, 8, 2), 3, cond=None), unet(wave(1, 8, 2), 3))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("predict_scale", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_prepared_sampling_equals_the_plain_forward(mode, predict_scale, batch):
    torch.manual_seed(0)
    unet = ConditionalUnet1D(2, cond_predict_scale=predict_scale, **SMALL, **MODES[mode]).eval()
    cond = conditions(MODES[mode], batch)
    timesteps = torch.tensor([99, 50, 3, 50, 0])
    with torch.no_grad():
        denoise = unet.prepare_sampling(timesteps, **cond)
        for i, t in enumerate(timesteps):
            sample = torch.randn(batch, 8, 2)
            expected = unet(sample, t, **cond)
            torch.testing.assert_close(denoise(sample, i), expected, rtol=1e-5, atol=1e-5)


def test_prepared_sampling_without_the_local_condition_equals_the_plain_forward():
    unet = ConditionalUnet1D(2, local_cond_dim=4, **SMALL).eval()
    with torch.no_grad():
        denoise = unet.prepare_sampling(torch.tensor([5]))
        assert_close(denoise(wave(2, 8, 2), 0), unet(wave(2, 8, 2), 5))


def test_preparing_again_sees_changed_weights():
    unet = ConditionalUnet1D(2, global_cond_dim=6, **SMALL).eval()
    cond, sample, steps = conditions(MODES["global"]), wave(3, 8, 2), torch.tensor([5])
    with torch.no_grad():
        unet.prepare_sampling(steps, **cond)(sample, 0)
        for parameter in unet.parameters():
            parameter.data.mul_(1.5)
        assert_close(unet.prepare_sampling(steps, **cond)(sample, 0), unet(sample, 5, **cond))


def test_a_condition_is_split_into_sums():
    block = ConditionalResidualBlock1D(8, 16, 4 + 3)
    steps, cond = torch.randn(5, 4), torch.randn(2, 3)
    step_half, cond_half = block.split_condition(steps, cond)
    for i in range(5):
        whole = block.cond_encoder(torch.cat((steps[i].expand(2, -1), cond), dim=1))
        assert_close((step_half[i] + cond_half)[..., None], whole)


def test_a_deep_copy_samples_alike():
    unet = ConditionalUnet1D(2, **SMALL).eval()
    assert torch.equal(copy.deepcopy(unet)(wave(1, 8, 2), 5), unet(wave(1, 8, 2), 5))


def test_plain_lists_of_a_config_are_accepted():
    from omegaconf import OmegaConf

    down_dims = OmegaConf.create([16, 32])
    unet = ConditionalUnet1D(2, **SMALL | {"down_dims": down_dims})
    assert unet(wave(1, 8, 2), 5).shape == (1, 8, 2)


# ---- one clear sentence for every bad input ----


@pytest.mark.parametrize("length", [1, 2, 15, 18])
def test_a_length_that_cannot_be_halved_names_the_rule_and_the_remedy(length):
    unet = ConditionalUnet1D(2, **SMALL | {"down_dims": [8, 16, 32]})
    remedy = {1: "use 4", 2: "use 4", 15: "use 12 or 16", 18: "use 16 or 20"}[length]
    rule = rf"T = {length} .* down_dims=\[8, 16, 32\] .* multiple of 4: {remedy}\.$"
    with pytest.raises(ConfigError, match=rule):
        unet(wave(1, length, 2), 0)
    with pytest.raises(ConfigError, match=rule):
        unet.prepare_sampling(torch.tensor([0]))(wave(1, length, 2), 0)
    assert unet.length_multiple == 4


@pytest.mark.parametrize(
    ("options", "cond", "sentence"),
    [
        ("global", {"global_cond": wave(1, 7)}, "global_cond has 7 .* global_cond_dim=6"),
        ("global", {}, "global_cond has 0 .* global_cond_dim=6"),
        ("none", {"global_cond": wave(1, 7)}, "global_cond has 7 .* global_cond_dim=None"),
        ("local", {"local_cond": wave(1, 8, 5)}, "local_cond has 5 .* local_cond_dim=4"),
        ("none", {"local_cond": wave(1, 8, 5)}, "local_cond has 5 .* local_cond_dim=None"),
    ],
)
def test_conditions_of_the_wrong_size_are_named(options, cond, sentence):
    unet = ConditionalUnet1D(2, **SMALL, **MODES[options])
    with pytest.raises(ConfigError, match=sentence):
        unet(wave(1, 8, 2), 0, **cond)
    with pytest.raises(ConfigError, match=sentence):
        unet.prepare_sampling(torch.tensor([0]), **cond)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"down_dims": []}, "down_dims is empty"),
        ({"kernel_size": 4}, "kernel_size is 4"),
        ({"down_dims": [16, 20]}, "n_groups=8"),
        ({"down_dims": [20, 40], "n_groups": 4}, "the first also of 8"),
        ({"diffusion_step_embed_dim": 15}, "15 dimensions"),
    ],
)
def test_impossible_architectures_are_refused(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ConditionalUnet1D(2, **SMALL | options)


@needs_gpu
@pytest.mark.parametrize("mode", MODES)
def test_on_a_gpu_results_agree_and_no_step_waits_for_the_device(mode):
    torch.manual_seed(0)
    unet = ConditionalUnet1D(2, cond_predict_scale=True, **SMALL, **MODES[mode]).eval()
    cond, sample = conditions(MODES[mode]), wave(3, 8, 2)
    timesteps = torch.tensor([99, 3])
    on_gpu = copy.deepcopy(unet).cuda()
    cond_gpu = {name: value.cuda() for name, value in cond.items()}
    sample_gpu, timesteps_gpu = sample.cuda(), timesteps.cuda()
    with no_waiting(), torch.no_grad():
        denoise = on_gpu.prepare_sampling(timesteps_gpu, **cond_gpu)
        outputs = [denoise(sample_gpu, i) for i in range(2)]
        plain = on_gpu(sample_gpu, 3, **cond_gpu)
    with torch.no_grad():
        for out, t in zip(outputs, timesteps, strict=True):
            # convolutions may use TF32 on the GPU
            torch.testing.assert_close(out.cpu(), unet(sample, t, **cond), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(plain, outputs[1], rtol=1e-2, atol=1e-2)
