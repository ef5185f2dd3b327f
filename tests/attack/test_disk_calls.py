"""The tool of the attacks itself: it counts what it says, and kills where it says."""

import os
import pathlib

import pytest
from attack.disk_calls import Children


def write_files(folder: str) -> str:
    path = pathlib.Path(folder, "file")
    with open(path, "wb") as file:  # 1
        file.write(b"0123456789")  # 2
        file.flush()
        os.fsync(file.fileno())  # 3
    os.replace(path, path.with_name("moved"))  # 4
    path.with_name("text").write_text("abc")  # 5
    return "done"


def raise_error() -> None:
    raise ValueError("on purpose")


@pytest.fixture(scope="module")
def children():
    with Children() as children:
        yield children


def test_a_job_is_run_and_its_disk_calls_are_counted(children, tmp_path):
    outcome = children.run(write_files, str(tmp_path), watched=tmp_path)
    assert outcome.result == "done"
    assert outcome.n_calls == 5, outcome.trace
    assert sorted(p.name for p in tmp_path.iterdir()) == ["moved", "text"]


@pytest.mark.parametrize(
    ("call", "left"),
    [
        (1, {}),
        (2, {"file": b"01234"}),
        (3, {"file": b"0123456789"}),
        (4, {"file": b"0123456789"}),
        (5, {"moved": b"0123456789"}),
    ],
)
def test_it_dies_at_the_call_that_is_named(children, tmp_path, call, left):
    outcome = children.run(write_files, str(tmp_path), kill_at=call, watched=tmp_path)
    assert outcome.killed
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == left


def test_an_error_comes_back(children):
    outcome = children.run(raise_error)
    assert "ValueError: on purpose" in outcome.error
    assert not outcome.killed
