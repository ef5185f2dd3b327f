"""A report shows the videos of a run, and no other file, whatever the log of the run names."""

import json
import os
import pathlib
import shutil

import pytest

from diffusion_policy.report import videos
from diffusion_policy.report.build import build_report
from diffusion_policy.report.videos import find_video


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "run"
    (run / "media").mkdir(parents=True)
    (run / "media" / "a.mp4").write_bytes(b"mine")
    (tmp_path / "b.mp4").write_bytes(b"hunter2")
    return run


@pytest.mark.parametrize(
    "written", ["media/a.mp4", "gone/media/a.mp4", "/gone/a.mp4", "{}/media/a.mp4"]
)
def test_a_video_of_the_run_is_found(run, written):
    video = find_video(written.format(run), run)
    assert video is not None
    assert video.read() == b"mine"


def test_a_video_is_found_from_where_the_run_was_started(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_video("run/media/a.mp4", run) is not None
    (tmp_path / "link").symlink_to(run)
    assert find_video("media/a.mp4", pathlib.Path("link")) is not None


def link_to_a_file(run):
    (run / "media" / "x.mp4").symlink_to("../../b.mp4")


def link_to_a_folder(run):
    (run / "x.mp4").mkdir()
    (run / "link").symlink_to(run.parent)


def chain_of_links(run):
    (run / "media" / "y").symlink_to("/")
    (run / "media" / "x.mp4").symlink_to("y/" + str(run.parent / "b.mp4").lstrip("/"))


def pipe(run):
    os.mkfifo(run / "media" / "x.mp4")


def folder(run):
    (run / "media" / "x.mp4").mkdir()


def loop(run):
    (run / "media" / "x.mp4").symlink_to("x.mp4")


def device(run):
    (run / "media" / "x.mp4").symlink_to("/dev/zero")


def nothing(run):
    pass


WRITTEN = ["media/x.mp4", "../b.mp4", "media/../../b.mp4", "{}/b.mp4", "link/b.mp4"]
WRITTEN += ["/proc/self/environ", "media/a.mp4/", "", "a\0.mp4", "\ud800.mp4", "x" * 5000 + ".mp4"]
WRITTEN += ["/" * 5000 + ".mp4", "~/b.mp4", "file://{}/b.mp4", "media/a.MP4", ".mp4", "..mp4"]


@pytest.mark.parametrize(
    "make",
    [nothing, link_to_a_file, link_to_a_folder, chain_of_links, pipe, folder, loop, device],
)
def test_what_is_no_file_of_the_run_is_no_video(run, make):
    make(run)
    for written in [text.format(run.parent) for text in WRITTEN] + [None, 1, ["media/a.mp4"], {}]:
        assert find_video(written, run) is None, written


def test_a_video_that_is_exchanged_after_it_was_found_is_not_read(run, monkeypatch):
    video = find_video("media/a.mp4", run)
    assert video is not None
    monkeypatch.setattr(videos, "MAX_VIDEO_BYTES", 3)
    assert video.read() == b""
    monkeypatch.undo()
    video.path.unlink()
    assert (video.read(), video.size) == (b"", 0)
    video.path.symlink_to("../../b.mp4")
    assert video.read() == b""


def test_a_page_has_no_video_from_elsewhere(make_run, tmp_path):
    folder = make_run(n_videos=1)
    shutil.copy(folder / "media" / "0_10000.mp4", tmp_path / "secret.mp4")
    row = {"global_step": 99, "test/mean_score": 0.5}
    names = ["../secret.mp4", str(tmp_path / "secret.mp4"), "media/link.mp4", "media/3_10000.mp4"]
    (folder / "media" / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    row |= {f"test/sim_max_reward_{i}": 0.5 for i in range(len(names))}
    media = {f"test/sim_video_{i}": name for i, name in enumerate(names)}
    with (folder / "logs.json.txt").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with (folder / "media.json.txt").open("a") as file:
        file.write(json.dumps(media | {"global_step": 99}) + "\n")
    for max_videos in (12, 0):
        page = build_report(folder, folder / "r.html", max_videos=max_videos).read_text()
        assert page.count("data:video/mp4") == (1 if max_videos else 0)
        assert "secret" not in page
