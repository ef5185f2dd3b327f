import logging

import pytest
import torch
from gpu import needs_gpu

from diffusion_policy.common.device import present_devices, resolve_device
from diffusion_policy.common.errors import DeviceError


@pytest.fixture
def machine(monkeypatch):
    """Pretends to have so many GPUs, and an Apple GPU or not."""

    def pretend(n_gpus=0, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("n_gpus", "mps", "best"), [(2, False, "cuda:0"), (0, True, "mps"), (0, False, "cpu")]
)
@pytest.mark.parametrize("name", [None, "auto"])
def test_without_a_name_the_best_device_present_is_taken(machine, caplog, name, n_gpus, mps, best):
    machine(n_gpus, mps)
    assert resolve_device(name) == torch.device(best)
    assert not caplog.records


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1", "cpu"])
def test_a_device_that_is_present_is_taken_as_named(machine, caplog, name):
    machine(n_gpus=2)
    assert resolve_device(name) == torch.device(name)
    assert not caplog.records


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
@pytest.mark.parametrize(("mps", "best"), [(False, "cpu"), (True, "mps")])
def test_the_default_of_published_configs_falls_back_with_one_warning(
    machine, caplog, name, mps, best
):
    machine(n_gpus=0, mps=mps)
    with caplog.at_level(logging.WARNING):
        assert resolve_device(name) == torch.device(best)
    [record] = caplog.records
    assert f"training.device={best}" in record.getMessage()
    assert name in record.getMessage()


@pytest.mark.parametrize(
    ("name", "n_gpus"),
    [("cuda:3", 1), ("cuda:1", 0), ("mps", 0), ("cuda:-1", 1), ("gpu", 1), ("", 0), ("meta", 0)],
)
def test_an_absent_device_is_an_error_that_lists_what_is_present(machine, name, n_gpus):
    machine(n_gpus)
    with pytest.raises(DeviceError) as error:
        resolve_device(name)
    assert repr(name) in str(error.value)
    assert f"one of {', '.join(present_devices())}" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_cpu_of_this_machine_computes():
    assert torch.ones(2, device=resolve_device("cpu")).sum() == 2


@needs_gpu
def test_the_gpu_of_this_machine_computes():
    device = resolve_device("auto")
    assert device == torch.device("cuda:0")
    assert torch.ones(2, device=device).sum() == 2
