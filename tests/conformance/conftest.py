"""Fixtures of the suite: `case` is one configuration, `run` what is left of training it."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).parent / "example"))
sys.path.insert(0, str(Path(__file__).parent))

from cases import CASES, Case
from runs import train


def pytest_addoption(parser):
    group = parser.getgroup("conformance", "put a configuration of your own through the suite")
    group.addoption("--config-name", help="name of the configuration")
    group.addoption("--config-dir", help="folder that it lies in")
    group.addoption("--override", action="append", default=[], help="key=value; repeatable")


def asked_for(config) -> list[Case]:
    name = config.getoption("--config-name", default=None)
    if name is None:
        return CASES
    overrides = config.getoption("--override")
    return [Case(name, tuple(overrides), config_dir=config.getoption("--config-dir"))]


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        # A group stays in one worker of pytest-xdist: its run is trained once.
        cases = [
            pytest.param(case, marks=pytest.mark.xdist_group(str(case)))
            for case in asked_for(metafunc.config)
        ]
        metafunc.parametrize("case", cases, ids=str, scope="session", indirect=True)


@pytest.fixture(scope="session")
def case(request) -> Case:
    """A configuration."""
    needs = request.param.needs
    if needs and importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    return request.param


@pytest.fixture(scope="session")
def data(tiny_pusht_zarr, tiny_image_zarr, tmp_path_factory) -> dict[str, str]:
    """Paths of small data sets."""
    from reach import record_demonstrations

    reach = str(tmp_path_factory.mktemp("data") / "reach.zarr")
    record_demonstrations(reach, n_episodes=20)
    return {
        "state_data": str(tiny_pusht_zarr),
        "image_data": str(tiny_image_zarr),
        "reach_data": reach,
    }


@dataclass(frozen=True)
class Run:
    """A finished run of four epochs."""

    cfg: DictConfig
    path: Path
    workspace: Any


@pytest.fixture(scope="session")
def run(case, data, tmp_path_factory) -> Run:
    """The configuration, trained without interruption."""
    cfg = case.compose(data)
    path = tmp_path_factory.mktemp("run")
    return Run(cfg, path, train(cfg, path))


@pytest.fixture
def policy(run):
    """The policy that evaluation uses."""
    return run.workspace.get_eval_policy().eval()


@pytest.fixture(scope="session")
def dataset(case, data):
    """The training data."""
    from diffusion_policy.config.instantiate import instantiate

    return instantiate(case.compose(data).task.dataset)
