"""Shared fixtures. Reference data in ../shared exists for developers and CI, not for users."""

import os
import pathlib

import pytest

# Windows are never opened by the tests: SDL draws into memory.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("WANDB_MODE", "disabled")

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def _need(path: pathlib.Path) -> pathlib.Path:
    if not path.exists():
        pytest.skip(f"the reference data of the developers is not on this machine ({path.name})")
    return path


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """Folder with numbers computed by the original implementation; skips where it is absent."""
    return _need(SHARED / "golden")


@pytest.fixture(scope="session")
def human_pusht_zarr() -> pathlib.Path:
    """The published human Push-T demonstrations (zarr v2 directory); skips without them."""
    return _need(SHARED / "data" / "pusht" / "pusht_cchi_v7_replay.zarr")
