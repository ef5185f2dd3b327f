import torch
from torch import nn

from diffusion_policy.model.common.module_attr_mixin import ModuleAttrMixin


class _Policy(ModuleAttrMixin):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)


def test_the_empty_dummy_comes_first_in_state_dict_and_parameters():
    policy = _Policy()
    assert list(policy.state_dict()) == ["_dummy_variable", "layer.weight", "layer.bias"]
    dummy = next(iter(policy.parameters()))
    assert dummy.shape == (0,)
    assert dummy.dtype == torch.float32


def test_device_and_dtype_follow_the_module():
    policy = _Policy()
    assert policy.device == torch.device("cpu")
    assert policy.dtype == torch.float32
    policy.to(device="meta", dtype=torch.float64)
    assert policy.device == torch.device("meta")
    assert policy.dtype == torch.float64
