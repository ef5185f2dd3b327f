"""Files and folders that replace others: complete at every instant, left-overs of nobody else."""

import errno
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest
from damage import tree

from diffusion_policy.storage import durable_files
from diffusion_policy.storage.durable_files import (
    exchange,
    finish_replacement,
    replacing,
    write_durably,
)


def write(path: pathlib.Path, text: str) -> None:
    """A file, or a folder with two."""
    if path.suffix == ".zip":
        path.write_text(text)
        return
    path.mkdir()
    (path / "a").write_text(text)
    (path / "b").write_text(text)


def replace(path: pathlib.Path, text: str) -> None:
    with replacing(path) as new:
        write(new, text)


def text_of(path: pathlib.Path) -> str:
    texts = {content.decode() for content in tree(path).values()}
    assert len(texts) == 1
    return texts.pop()


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["exchange", "aside"])
def either_way(request, monkeypatch):
    if request.param == "aside":  # as on systems and file systems that have no exchange
        monkeypatch.setattr(durable_files, "exchange", lambda one, other: False)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("name", ["x.zarr", "x.zarr.zip"])
def test_what_is_written_takes_the_place(tmp_path, name):
    path = tmp_path / "deep" / name
    for text in ("one", "two"):
        replace(path, text)
        assert text_of(path) == text
        assert names(path.parent) == [name]


def write_and_fail(path: pathlib.Path) -> None:
    with replacing(path) as new:
        write(new, "two")
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.usefixtures("either_way")
def test_a_failure_leaves_what_was_there(tmp_path):
    replace(tmp_path / "x", "one")
    with pytest.raises(OSError, match="No space left"):
        write_and_fail(tmp_path / "x")
    assert text_of(tmp_path / "x") == "one"
    assert names(tmp_path) == ["x"]


def test_a_move_that_fails_half_way_leaves_something_complete(tmp_path, monkeypatch):
    replace(tmp_path / "x", "one")
    monkeypatch.setattr(durable_files, "exchange", lambda one, other: False)
    rename, calls = os.rename, []

    def second_fails(one, other):
        calls.append(one)
        if len(calls) == 2:
            raise OSError(errno.EIO, "I/O error")
        rename(one, other)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OSError, match="I/O error"):
        replace(tmp_path / "x", "two")
    assert text_of(tmp_path / "x") in ("one", "two")
    assert names(tmp_path) == ["x"]


def test_a_link_stays_a_link(tmp_path):
    replace(tmp_path / "disk" / "x.zarr", "one")
    (tmp_path / "x.zarr").symlink_to(tmp_path / "disk" / "x.zarr")
    replace(tmp_path / "x.zarr", "two")
    assert (tmp_path / "x.zarr").is_symlink()
    assert text_of(tmp_path / "disk" / "x.zarr") == "two"


@pytest.mark.parametrize("name", ["x.zarr", "x.zarr.zip"])
def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch, name):
    replace(tmp_path / name, "one")
    synced, fsync = [], durable_files.fsync
    monkeypatch.setattr(durable_files, "fsync", lambda path: (synced.append(path), fsync(path)))
    with replacing(tmp_path / name) as new:
        write(new, "two")
        files = {new, *new.rglob("*")}
    assert files <= set(synced)
    assert synced[-1] == tmp_path


def test_a_single_file_is_synced_before_it_takes_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace_ = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("name"), replace_(a, b)))
    write_durably(tmp_path / "a" / "b", b"content")
    assert events == ["fsync", "name", "fsync"]
    assert (tmp_path / "a" / "b").read_bytes() == b"content"


# ---- left-overs ----------------------------------------------------------------------------------

WRITER = textwrap.dedent(
    """
    import pathlib, sys, time
    from diffusion_policy.storage.durable_files import replacing
    with replacing(pathlib.Path(sys.argv[1])) as new:
        new.mkdir()
        (new / "a").write_text("half")
        print("writing", flush=True)
        time.sleep(600)
    """
)


def test_left_overs_are_removed_when_their_writer_is_dead_and_not_before(tmp_path):
    path = tmp_path / "x.zarr"
    replace(path, "one")
    root = pathlib.Path(durable_files.__file__).parents[2]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        replace(path, "two")
        (left_over,) = set(names(tmp_path)) - {"x.zarr"}
        assert (tmp_path / left_over / "new.zarr" / "a").read_text() == "half"
    finally:
        writer.kill()
        writer.wait()
    replace(path, "three")
    assert names(tmp_path) == ["x.zarr"]


def test_nothing_of_another_name_is_removed(tmp_path):
    others = [
        ".x.zarr.partial",
        ".x.zarr.1234.partial",
        ".y.x.zarr.0123456789abcdef.partial",
        ".x.zarr.0123456789abcdeg.partial",
        "x.zarr.0123456789abcdef.partial",
        ".xxzarr.0123456789abcdef.partial",
        ".x.zarr.0123456789abcdef.partial.bak",
    ]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".x.zarr.0123456789abcdef.partial").write_text("a file")
    (tmp_path / "mine").mkdir()
    (tmp_path / ".x.zarr.fedcba9876543210.partial").symlink_to(tmp_path / "mine")
    before = names(tmp_path)
    replace(tmp_path / "x.zarr", "one")
    assert names(tmp_path) == sorted([*before, "x.zarr"])


def interrupted(path: pathlib.Path, *parts: str) -> None:
    folder = path.with_name(f".{path.name}.0123456789abcdef.partial")
    folder.mkdir()
    for part in parts:
        write(folder / part, part)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [(("new.zarr", "old"), "new.zarr"), (("old",), "old"), (("new.zarr",), None)],
)
def test_a_replacement_that_was_cut_between_two_moves_is_finished(tmp_path, parts, expected):
    """Only where ``old`` was moved aside, ``new`` is known to be complete."""
    path = tmp_path / "x.zarr"
    interrupted(path, *parts)
    finish_replacement(path)
    assert names(tmp_path) == (["x.zarr"] if expected else [])
    assert expected is None or text_of(path) == expected


def test_what_is_at_the_path_is_never_replaced_by_a_left_over(tmp_path):
    path = tmp_path / "x.zarr"
    replace(path, "mine")
    interrupted(path, "new.zarr", "old")
    finish_replacement(path)
    assert text_of(path) == "mine"
    assert names(tmp_path) == ["x.zarr"]


def test_a_file_system_without_locks_keeps_left_overs(tmp_path, monkeypatch):
    """Nobody knows whether their writer is dead."""

    def no_locks(*_args):
        raise OSError(errno.ENOLCK, "No locks available")

    interrupted(tmp_path / "x.zarr", "new.zarr")
    monkeypatch.setattr(durable_files.fcntl, "flock", no_locks)
    replace(tmp_path / "x.zarr", "one")
    assert text_of(tmp_path / "x.zarr") == "one"
    assert names(tmp_path) == [".x.zarr.0123456789abcdef.partial", "x.zarr"]


# ---- exchanging names ----------------------------------------------------------------------------


def test_two_names_are_exchanged_in_one_step(tmp_path):
    write(tmp_path / "one", "1")
    write(tmp_path / "other", "2")
    if not exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this file system cannot exchange names")
    assert (text_of(tmp_path / "one"), text_of(tmp_path / "other")) == ("2", "1")
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "one", tmp_path / "nothing")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.ENOTSUP])
def test_a_system_that_cannot_exchange_names_says_so(tmp_path, monkeypatch, code):
    write(tmp_path / "one", "1")
    write(tmp_path / "other", "2")
    monkeypatch.setattr(durable_files, "_renameat2", lambda: lambda *args: -1)
    monkeypatch.setattr(durable_files.ctypes, "get_errno", lambda: code)
    assert exchange(tmp_path / "one", tmp_path / "other") is False
    monkeypatch.setattr(durable_files, "_renameat2", lambda: None)
    assert exchange(tmp_path / "one", tmp_path / "other") is False
