import copy

import pytest
import torch
from gpu import needs_gpu, no_waiting
from torch import nn

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.common.dict_of_tensor_mixin import DictOfTensorMixin
from diffusion_policy.model.diffusion.ema_model import EMAModel


def network():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


@torch.no_grad()
def shift(model, amount=1.0):
    for parameter in model.parameters():
        parameter += amount


def values(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_twelve_steps_of_the_original_are_reproduced(golden):
    for case in torch.load(golden / "d_ema.pt", weights_only=True):
        model, averaged = network(), network()
        model.load_state_dict(case["initial"])
        averaged.load_state_dict(case["initial"])
        model.get_parameter(case["frozen_param"]).requires_grad_(False)
        ema = EMAModel(averaged, **case["kw"])
        for step in case["steps"]:
            model.load_state_dict(step["model"])
            ema.step(model)
            assert ema.decay == pytest.approx(step["decay"], abs=1e-12)
            assert ema.optimization_step == step["optimization_step"]
            torch.testing.assert_close(values(averaged), step["ema"], rtol=1e-5, atol=1e-6)
        for n, decay in case["decay_schedule"].items():
            assert ema.get_decay(int(n)) == pytest.approx(decay, abs=1e-12)
        assert averaged.training == case["ema_training"]
        assert [p.requires_grad for p in averaged.parameters()] == case["ema_requires_grad"]


def test_the_decay_of_the_specification():
    ema = EMAModel(network(), power=0.75)
    decays = {0: 0, 1: 0, 2: 0.405396, 3: 0.561309, 10: 0.822172, 1000: 0.994377, 10000: 0.999}
    for step, decay in decays.items():
        assert ema.get_decay(step) == pytest.approx(decay, abs=1e-6)
    assert ema.get_decay(10**7) == 0.9999
    late = EMAModel(network(), update_after_step=5, min_value=0.3)
    assert [late.get_decay(n) for n in (0, 6)] == [0, 0]
    assert late.get_decay(7) == pytest.approx(1 - 2 ** (-2 / 3))
    assert EMAModel(network(), min_value=0.5).get_decay(2) == 0.5


def test_the_given_object_itself_becomes_the_average():
    model = network().train()
    ema = EMAModel(model)
    assert ema.averaged_model is model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_weights_move_by_the_formula_and_the_first_two_steps_copy():
    model = nn.Linear(3, 2)
    ema = EMAModel(copy.deepcopy(model), power=0.75)
    average = None
    for n in range(5):
        shift(model)
        ema.step(model)
        decay = ema.get_decay(n)
        new = model.weight.detach()
        average = new.clone() if decay == 0 else decay * average + (1 - decay) * new
        torch.testing.assert_close(ema.averaged_model.weight, average, rtol=1e-6, atol=1e-6)
        assert ema.decay == decay
    assert ema.optimization_step == 5


def run_in(model, averaged=None):
    """An EMA whose next step averages."""
    ema = EMAModel(copy.deepcopy(model) if averaged is None else averaged)
    for _ in range(2):
        ema.step(model)
    return ema


def test_batch_norm_parameters_are_copied_and_buffers_left_alone():
    model = network().train()
    ema = run_in(model)
    shift(model)
    model(torch.randn(8, 4))  # moves the running statistics
    ema.step(model)
    averaged = ema.averaged_model
    assert torch.equal(averaged[1].weight, model[1].weight)
    assert torch.equal(averaged[1].running_mean, torch.zeros(6))
    assert averaged[1].num_batches_tracked == 0
    assert not torch.equal(averaged[0].weight, model[0].weight)


def test_freezing_between_steps_switches_from_average_to_copy_and_back():
    model = network()
    ema = run_in(model)
    for frozen in (True, False, True):
        model[0].requires_grad_(not frozen)
        shift(model)
        ema.step(model)
        assert torch.equal(ema.averaged_model[0].weight, model[0].weight) == frozen
        assert not torch.equal(ema.averaged_model[2].weight, model[2].weight)


def test_a_replaced_parameter_is_seen():
    model = nn.Linear(3, 2)
    ema = run_in(model)
    model.weight = nn.Parameter(torch.full((2, 3), 7.0), requires_grad=False)
    ema.step(model)
    assert torch.equal(ema.averaged_model.weight, model.weight)


def test_a_normalizer_loaded_before_the_first_step_is_copied():
    model = nn.ModuleDict({"net": nn.Linear(2, 2), "normalizer": DictOfTensorMixin()})
    ema = EMAModel(copy.deepcopy(model))
    state = {"params_dict.obs.scale": torch.full((2,), 3.0)}
    for policy in (model, ema.averaged_model):
        policy["normalizer"].load_state_dict(state)
    model["normalizer"].params_dict["obs"]["scale"].data.mul_(2)
    ema.step(model)
    scale = ema.averaged_model["normalizer"].params_dict["obs"]["scale"]
    assert scale.tolist() == [6, 6]


def test_another_model_object_can_take_over():
    model = nn.Linear(3, 2)
    ema = run_in(model)
    twin = copy.deepcopy(model)
    shift(twin)
    before = ema.averaged_model.weight.clone()
    ema.step(twin)
    assert (ema.averaged_model.weight > before).all()


def test_the_average_of_a_half_precision_model_stays_in_full_precision():
    model = nn.Linear(3, 2).to(torch.bfloat16)
    ema = run_in(model, nn.Linear(3, 2))
    shift(model)
    ema.step(model)
    assert ema.averaged_model.weight.dtype == torch.float32


def test_the_model_itself_is_not_touched():
    model = network()
    ema = run_in(model)
    shift(model)
    before = values(model)
    ema.step(model)
    assert all(torch.equal(before[name], value) for name, value in values(model).items())
    assert all(p.requires_grad for p in model.parameters())


def test_the_counter_travels_and_the_average_continues():
    model = network()
    ema = run_in(model)
    state = ema.state_dict()
    assert state == {"optimization_step": 2, "decay": 0.0}
    resumed = EMAModel(copy.deepcopy(ema.averaged_model))
    resumed.load_state_dict(state)
    for one in (ema, resumed):
        twin = copy.deepcopy(model)
        shift(twin)
        one.step(twin)
    assert resumed.decay == ema.decay > 0
    torch.testing.assert_close(values(resumed.averaged_model), values(ema.averaged_model))


def test_a_model_of_another_architecture_is_refused_by_name():
    ema = EMAModel(network())
    with pytest.raises(ConfigError, match=r"0\.weight .* deep copy"):
        ema.step(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)))
    with pytest.raises(ConfigError, match=r"3\.bias .* deep copy"):
        ema.step(nn.Sequential(*network(), nn.Linear(2, 2)))
    assert ema.optimization_step == 0


@needs_gpu
def test_on_a_gpu_a_step_does_not_wait_for_the_device():
    model = network().cuda()
    ema = EMAModel(copy.deepcopy(model))
    with no_waiting():
        for _ in range(4):
            shift(model)
            ema.step(model)
    assert ema.decay > 0
