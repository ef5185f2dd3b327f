"""Data paths of configurations."""

import pathlib

import pytest

from diffusion_policy.common.assets import resolve_data_path
from diffusion_policy.common.errors import DataError


def test_a_plain_path_is_left_relative_to_the_working_directory():
    assert resolve_data_path("data/x.zarr") == pathlib.Path("data/x.zarr")
    assert resolve_data_path("~/x.zarr") == pathlib.Path.home() / "x.zarr"


def test_a_package_path_is_found_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = resolve_data_path("package://diffusion_policy/assets/pusht_demos.zarr.zip")
    assert path.is_file()
    assert path.is_absolute()


def test_a_package_path_to_nothing_says_what_is_there():
    with pytest.raises(DataError, match=r"nothing.zip does not exist.*pusht_demos.zarr.zip"):
        resolve_data_path("package://diffusion_policy/assets/nothing.zip")


@pytest.mark.parametrize("package", ["not_a_package_of_ours", ""])
def test_a_path_into_no_package_is_named(package):
    with pytest.raises(DataError, match="no Python package"):
        resolve_data_path(f"package://{package}/x.zarr")
