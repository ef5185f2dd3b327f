import copy

import pytest
import torch
from torch import nn

from diffusion_policy.model.common.dict_of_tensor_mixin import DictOfTensorMixin

STATE = {
    "params_dict.obs.scale": torch.tensor([1.0, 2.0]),
    "params_dict.obs.input_stats.min": torch.tensor([-1.0, -2.0], dtype=torch.float64),
    "params_dict.centers": torch.arange(6.0).view(3, 2),
}


class _Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.normalizer = DictOfTensorMixin()


def test_an_empty_one_loads_any_tree_and_gives_it_back():
    module = DictOfTensorMixin()
    module.load_state_dict(STATE)
    loaded = module.state_dict()
    assert set(loaded) == set(STATE)
    for key, value in STATE.items():
        assert torch.equal(loaded[key], value)
        assert loaded[key].dtype == value.dtype, "the dtype is the one of the checkpoint"


def test_what_was_held_before_is_forgotten():
    module = DictOfTensorMixin(nn.ParameterDict({"old": torch.ones(1)}))
    module.load_state_dict(STATE)
    assert "old" not in module.params_dict
    module.load_state_dict({})
    assert len(module.params_dict) == 0


def test_loaded_tensors_are_copies_without_gradient():
    state = {"params_dict.a": nn.Parameter(torch.ones(2))}
    module = DictOfTensorMixin()
    module.load_state_dict(state)
    with torch.no_grad():
        state["params_dict.a"].zero_()
    assert torch.equal(module.params_dict["a"], torch.ones(2))
    assert not module.params_dict["a"].requires_grad


def test_inside_a_policy_strict_loading_accepts_its_keys_and_still_checks_the_others():
    policy = _Policy()
    state = {"normalizer." + key: value for key, value in STATE.items()}
    state |= {"layer.weight": torch.ones(1, 1), "layer.bias": torch.ones(1)}
    policy.load_state_dict(state)
    assert torch.equal(policy.normalizer.params_dict["centers"], STATE["params_dict.centers"])
    with pytest.raises(RuntimeError, match="unknown"):
        policy.load_state_dict(state | {"unknown": torch.ones(1)})


def test_a_deep_copy_is_independent():
    module = DictOfTensorMixin()
    module.load_state_dict(STATE)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.params_dict["centers"].zero_()
    assert torch.equal(module.params_dict["centers"], STATE["params_dict.centers"])


def test_the_device_is_that_of_the_tensors():
    module = DictOfTensorMixin()
    with pytest.raises(StopIteration):
        _ = module.device
    module.load_state_dict(STATE)
    assert module.device == torch.device("cpu")
    assert module.to("meta").device == torch.device("meta")
