"""Image networks by name; what is missing is said, and how to get it."""

import sys
import types
import urllib.error

import hydra
import pytest
import torch
from torch import nn

from diffusion_policy.common.errors import ConfigError, DiffusionPolicyError
from diffusion_policy.common.torchvision_util import import_torchvision
from diffusion_policy.model.vision.model_getter import get_r3m, get_resnet


@pytest.fixture
def download(monkeypatch, tmp_path):
    """download(answer): what torchvision gets when it asks for weights (an error is raised)."""
    import_torchvision()
    import torchvision.models._api as api

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    urls = []

    def set_answer(answer):
        def load(url, *args, **kwargs):
            urls.append(url)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(api, "load_state_dict_from_url", load)
        return urls

    return set_answer


@pytest.mark.parametrize(
    ("name", "n_features"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)]
)
def test_a_resnet_ends_in_its_pooled_features(name, n_features):
    with torch.device("meta"):
        net = get_resnet(name).eval()
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, n_features)
    assert isinstance(net.fc, nn.Identity)
    assert not any(key.startswith("fc") for key in net.state_dict())


def test_a_configuration_can_name_it():
    node = {"_target_": "diffusion_policy.model.vision.model_getter.get_resnet"}
    with torch.device("meta"):
        net = hydra.utils.instantiate(node | {"name": "resnet18", "weights": None})
    assert net.layer4[1].conv2.weight.shape == (512, 512, 3, 3)


@pytest.mark.parametrize("identifier", ["IMAGENET1K_V1", "DEFAULT", "ResNet18_Weights.DEFAULT"])
def test_published_weights_are_asked_for_by_identifier_and_loaded(download, identifier):
    with torch.device("meta"):
        weights = import_torchvision().models.resnet18().state_dict()
    weights = {key: torch.full(value.shape, 0.25) for key, value in weights.items()}
    urls = download(weights)
    net = get_resnet("resnet18", weights=identifier)
    assert urls == ["https://download.pytorch.org/models/resnet18-f37072fd.pth"]
    assert all((p == 0.25).all() for p in net.parameters())


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("no route to host"),
        RuntimeError('invalid hash value (expected "f37072fd", got "00")'),
    ],
)
def test_weights_that_cannot_be_downloaded_are_named_with_url_and_place(download, error, tmp_path):
    download(error)
    with pytest.raises(DiffusionPolicyError) as caught:
        get_resnet("resnet18", weights="IMAGENET1K_V1")
    message = str(caught.value)
    assert str(error) in message
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message
    assert str(tmp_path / "cache" / "hub" / "checkpoints") in message
    assert "weights: null" in message


def test_unknown_names_and_weights_are_answered_with_those_that_exist():
    with pytest.raises(
        ConfigError, match=r"name is 'vgg16'; expected one of resnet101, .*resnet18"
    ):
        get_resnet("vgg16")
    with pytest.raises(
        ConfigError, match=r"weights is 'IMAGENET22K'.*for resnet18, one of IMAGENET"
    ):
        get_resnet("resnet18", weights="IMAGENET22K")


def test_r3m_that_is_not_installed_is_answered_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "r3m", None)
    with pytest.raises(DiffusionPolicyError, match=r"pip install git\+https://github\.com/.*/r3m"):
        get_resnet("resnet18", weights="R3M")


@pytest.fixture
def fake_r3m(monkeypatch):
    convnet = nn.Linear(1, 1)
    loaded = []

    def load_r3m(name):
        if name != "resnet18":
            raise NameError("Invalid Model ID")
        loaded.append((name, module.device))
        return types.SimpleNamespace(module=types.SimpleNamespace(convnet=convnet))

    module = types.ModuleType("r3m")
    module.device, module.load_r3m = "cuda", load_r3m
    monkeypatch.setitem(sys.modules, "r3m", module)
    return convnet, loaded


def test_r3m_is_loaded_on_the_cpu_and_reduced_to_its_resnet(fake_r3m):
    convnet, loaded = fake_r3m
    assert get_resnet("resnet18", weights="r3m") is convnet
    assert get_r3m("resnet18") is convnet
    assert loaded == [("resnet18", "cpu")] * 2


def test_r3m_weights_that_cannot_be_loaded_are_named(fake_r3m):
    with pytest.raises(DiffusionPolicyError, match=r"R3M weights of 'resnet9'.*Invalid Model ID"):
        get_r3m("resnet9")
