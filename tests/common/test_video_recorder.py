"""VideoRecorder: frames in, a playable file out."""

from fractions import Fraction

import av
import numpy as np
import pytest

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.video_recorder import VideoRecorder


def frames(n, height=32, width=48):
    """Frames of one colour each, so that compression cannot blur which one is which."""
    return [np.full((height, width, 3), 40 * i, dtype=np.uint8) for i in range(n)]


def read(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        images = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
        return stream, images


def record(path, images, **kwargs):
    recorder = VideoRecorder.create_h264(fps=kwargs.pop("fps", 10), **kwargs)
    recorder.start(path)
    for image in images:
        recorder.write_frame(image)
    recorder.stop()
    return recorder


def test_every_frame_comes_back_in_order(tmp_path):
    record(tmp_path / "a.mp4", frames(5))
    stream, images = read(tmp_path / "a.mp4")
    assert len(images) == 5
    assert stream.average_rate == 10
    assert stream.codec_context.name == "h264"
    for expected, found in zip(frames(5), images, strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=6)


@pytest.mark.parametrize(
    ("fps", "expected"),
    [(12.5, Fraction(25, 2)), (Fraction(30000, 1001), Fraction(30000, 1001)), (30, 30)],
)
def test_fractional_frame_rates_are_kept(tmp_path, fps, expected):
    record(tmp_path / "a.mp4", frames(3), fps=fps)
    assert read(tmp_path / "a.mp4")[0].average_rate == expected


def test_a_recording_without_a_frame_leaves_no_file(tmp_path):
    record(tmp_path / "media" / "a.mp4", [])
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_are_made(tmp_path):
    record(tmp_path / "deep" / "media" / "a.mp4", frames(1))
    assert (tmp_path / "deep" / "media" / "a.mp4").exists()


def test_a_recorder_is_ready_between_start_and_stop(tmp_path):
    recorder = VideoRecorder.create_h264(fps=10)
    assert not recorder.is_ready()
    recorder.start(tmp_path / "a.mp4")
    assert recorder.is_ready()
    recorder.stop()
    assert not recorder.is_ready()
    recorder.stop()  # again: nothing happens


def test_a_second_start_finishes_the_first_file(tmp_path):
    recorder = VideoRecorder.create_h264(fps=10)
    for name, n in [("a.mp4", 2), ("b.mp4", 3)]:
        recorder.start(tmp_path / name)
        for image in frames(n, height=32 + 16 * n):  # the size may change between files
            recorder.write_frame(image)
    recorder.stop()
    assert len(read(tmp_path / "a.mp4")[1]) == 2
    assert len(read(tmp_path / "b.mp4")[1]) == 3


def test_a_recorder_that_is_dropped_finishes_its_file(tmp_path):
    recorder = VideoRecorder.create_h264(fps=10)
    recorder.start(tmp_path / "a.mp4")
    recorder.write_frame(frames(1)[0])
    del recorder
    assert len(read(tmp_path / "a.mp4")[1]) == 1


def test_a_frame_before_start_is_refused():
    with pytest.raises(RuntimeError, match="before start"):
        VideoRecorder.create_h264(fps=10).write_frame(frames(1)[0])


def test_an_odd_frame_size_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"47x32 pixels.*even width and height"):
        record(tmp_path / "a.mp4", frames(1, width=47))


def test_a_frame_of_another_size_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="first frame has shape"):
        record(tmp_path / "a.mp4", [frames(1)[0], frames(1, height=64)[0]])
