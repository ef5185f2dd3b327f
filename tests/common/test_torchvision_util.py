"""torchvision can be had beside any build of torch, and nobody pays for it who does not use it."""

import pickle
import subprocess
import sys

import pytest
import torch

from diffusion_policy.common import torchvision_util
from diffusion_policy.common.torchvision_util import import_torchvision

MODULES = [
    "common.torchvision_util",
    "model.vision.crop_randomizer",
    "model.vision.image_transforms",
    "model.vision.model_getter",
    "model.vision.multi_image_obs_encoder",
    "model.vision.robomimic_obs_encoder",
    "model.vision.spatial_softmax_cnn",
]


@pytest.fixture
def fake_torchvision(tmp_path, monkeypatch):
    """fake_torchvision(message): a torchvision whose first import fails with this message."""

    def make(message):
        package = tmp_path / "torchvision"
        package.mkdir()
        (package / "half.py").write_text("")
        (package / "__init__.py").write_text(
            "import pathlib, torchvision.half\n"
            "tried = pathlib.Path(__file__).with_name('tried')\n"
            "if not tried.exists():\n"
            "    tried.touch()\n"
            f"    raise RuntimeError({message!r})\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            monkeypatch.delitem(sys.modules, name)
        declared = []
        monkeypatch.setattr(torchvision_util, "_declare_operators", lambda: declared.append(1))
        return declared

    before = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "torchvision"}
    yield make
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules.update(before)


def test_torchvision_is_imported_and_its_networks_run():
    torchvision = import_torchvision()
    assert import_torchvision() is torchvision
    with torch.device("meta"):
        network = torchvision.models.resnet18().eval()
    assert network(torch.zeros(1, 3, 32, 32, device="meta")).shape == (1, 1000)


def test_objects_of_torchvision_classes_survive_pickling():
    block = import_torchvision().models.resnet.BasicBlock(4, 4).eval()
    again = pickle.loads(pickle.dumps(block))
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(again(x), block(x))


def test_undeclared_operators_are_declared_and_the_import_repeated(fake_torchvision):
    declared = fake_torchvision("operator torchvision::nms does not exist")
    torchvision = import_torchvision()
    assert declared == [1]
    assert torchvision.tried.exists()
    assert sys.modules["torchvision"] is torchvision


def test_any_other_failure_of_the_import_is_not_touched(fake_torchvision):
    declared = fake_torchvision("the disk is on fire")
    with pytest.raises(RuntimeError, match="the disk is on fire"):
        import_torchvision()
    assert declared == []


def test_importing_our_vision_modules_does_not_import_torchvision():
    imports = "; ".join(f"import diffusion_policy.{name}" for name in MODULES)
    code = f"{imports}; import sys; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
