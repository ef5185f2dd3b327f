"""A recording that is killed at any disk call keeps every finished episode, and goes on.

So does a store that is being replaced: the old one or the new one is there, whole.
"""

import pathlib
import shutil

import pytest
from attack.disk_calls import Children
from attack.recording_jobs import (
    announce,
    check_reading,
    check_writing,
    drop_one,
    make_buffer,
    record,
    save,
)


@pytest.fixture(scope="module")
def children():
    with Children("attack.recording_jobs") as children:
        yield children


def finished_by_its_own_words(path: pathlib.Path) -> int:
    return max((int(p.suffix[1:]) for p in path.parent.glob(f"{path.name}.*")), default=0)


def is_begun(path: pathlib.Path) -> bool:
    """Whether a reader may expect a replay buffer there."""
    return (path / "data" / ".zgroup").exists()


def fresh_copy(base: pathlib.Path, path: pathlib.Path) -> None:
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    if base.exists():
        shutil.copytree(base, path)


@pytest.mark.parametrize("n_before", [0, 3], ids=["first-episodes", "more-episodes"])
def test_recording(attack, children, tmp_path, n_before):
    """3 to 5 episodes is also where ``episode_ends`` changes its chunk size."""
    base, path = tmp_path / "base.zarr", tmp_path / "work" / "demo.zarr"
    if n_before:
        record(str(base), n_before)
    fresh_copy(base, path)
    n_calls = children.run(record, str(path), n_before + 2).n_calls
    assert n_calls > 50
    failures, n = [], 0
    for call in attack.some_of(range(1, n_calls + 1)):
        fresh_copy(base, path)
        try:
            assert children.run(record, str(path), n_before + 2, kill_at=call).killed
            saved = max(finished_by_its_own_words(path), n_before)
            if is_begun(path):
                assert saved <= check_reading(path) <= n_before + 2
            again = attack.rng.randrange(1, n_calls)  # most often while it is being finished
            children.run(record, str(path), n_before + 2, kill_at=again)
            if path.exists():
                assert saved <= check_writing(path) <= n_before + 2
            record(str(path), n_before + 3)
            assert check_reading(path) == n_before + 3
            assert not list(path.rglob("*.partial"))
        except Exception as error:
            failures.append(f"kill at disk call {call} of {n_calls}, then {again}: {error!r}")
        n += 1
    attack.record(f"recording after {n_before} episodes, killed twice", n, failures)


@pytest.mark.parametrize("job", [drop_one, announce])
def test_editing(attack, children, tmp_path, job):
    base, path = tmp_path / "base.zarr", tmp_path / "work" / "demo.zarr"
    record(str(base), 4)
    fresh_copy(base, path)
    n_calls = children.run(job, str(path)).n_calls
    failures, n = [], 0
    for call in attack.some_of(range(1, n_calls + 1)):
        fresh_copy(base, path)
        try:
            assert children.run(job, str(path), kill_at=call).killed
            count = check_reading(path)
            assert count in ((3, 4) if job is drop_one else (4,))
            assert check_writing(path) == count
            record(str(path), 5)
            assert check_reading(path) == 5
        except Exception as error:
            failures.append(f"kill at disk call {call} of {n_calls}: {error!r}")
        n += 1
    attack.record(f"{job.__name__} of a recording, killed", n, failures)


@pytest.mark.parametrize(
    ("name", "can_exchange"), [("x.zarr", True), ("x.zarr", False), ("x.zarr.zip", True)]
)
def test_replacing_a_store(attack, children, tmp_path, name, can_exchange):
    """Without a system that exchanges two names, the path may be empty for an instant; whoever
    opens it next finds the new one there.
    """
    path = tmp_path / "work" / name
    fresh_copy(tmp_path / "nothing", path)
    make_buffer(2).save_to_path(path)
    n_calls = children.run(save, str(path), 4, can_exchange).n_calls
    assert n_calls > 5
    failures, n = [], 0
    for call in attack.some_of(range(1, n_calls + 1)):
        fresh_copy(tmp_path / "nothing", path)
        try:
            make_buffer(2).save_to_path(path)
            assert children.run(save, str(path), 4, can_exchange, kill_at=call).killed
            assert path.exists() or not can_exchange
            assert check_reading_or_finishing(path) in (2, 4)
            make_buffer(3).save_to_path(path)
            assert check_reading(path) == 3
            assert [p.name for p in path.parent.iterdir()] == [name]
        except Exception as error:
            failures.append(f"kill at disk call {call} of {n_calls}: {error!r}")
        n += 1
    how = "" if can_exchange else " where names cannot be exchanged"
    attack.record(f"replacing a .{name.partition('.')[2]}{how}, killed", n, failures)


def check_reading_or_finishing(path: pathlib.Path) -> int:
    if not path.exists():
        from diffusion_policy.common.replay_buffer import ReplayBuffer

        ReplayBuffer.copy_from_path(path)  # finishes what was begun
    return check_reading(path)
