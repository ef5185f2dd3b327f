"""Fixtures of whole runs."""

import shutil

import pytest
from reference_runs import ReferenceRun


@pytest.fixture
def open_reference_run(golden, tmp_path, monkeypatch):
    """open_reference_run(name): a run of the original, whose data are where it looks for them."""
    shutil.copytree(golden / "k_data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)  # configurations name data/pusht_tiny.zarr
    return lambda name: ReferenceRun(golden / "k_checkpoints" / name)
