"""What is opened is a file, in its place, and opening it never waits."""

import os

import pytest

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.regular_files import open_regular, read_regular


def test_a_file_is_read_also_through_a_link(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to("a")
    for name in ("a", "link"):
        assert read_regular(tmp_path / name, 7) == b"content"
        assert read_regular(tmp_path / name, 7, within=tmp_path) == b"content"
    with pytest.raises(DataError, match="is larger than"):
        read_regular(tmp_path / "a", 6)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_refused_at_once(tmp_path, make):
    make(tmp_path / "a")
    with pytest.raises(DataError, match="is not a regular file"):
        open_regular(tmp_path / "a")


def test_a_file_elsewhere_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in-side").write_text("x")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "in-side")
    (tmp_path / "in" / "up").symlink_to("..")
    for name in ("link", "up/in-side", "../in-side"):
        with pytest.raises(DataError, match="leads out of"):
            open_regular(tmp_path / "in" / name, within=tmp_path / "in")


def test_a_folder_may_be_a_link_itself(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_text("x")
    (tmp_path / "link").symlink_to("real")
    assert read_regular(tmp_path / "link" / "a", 1, within=tmp_path / "link") == b"x"
    assert read_regular(tmp_path / "link" / "a", 1, within=tmp_path / "real") == b"x"


@pytest.mark.parametrize("target", ["nowhere", "a"])
def test_a_link_that_leads_nowhere_is_the_error_of_the_system(tmp_path, target):
    (tmp_path / "a").symlink_to(target)
    with pytest.raises(OSError, match=r"No such file|Too many levels"):
        open_regular(tmp_path / "a", within=tmp_path)
