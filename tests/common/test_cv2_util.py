"""Drawing, covering resizes, tiling, and pictures of recorded states."""

import numpy as np
import pytest

from diffusion_policy.common.cv2_util import (
    draw_reticle,
    draw_text,
    get_image_transform,
    optimal_row_cols,
)
from diffusion_policy.common.env_util import render_env_video


def test_a_reticle_has_three_rings_and_four_ticks():
    img = np.zeros((41, 41, 3), np.uint8)
    draw_reticle(img, 20, 20, (10, 200, 30))
    assert img[20, 30].tolist() == [10, 200, 30]
    assert img[20, 31].tolist() == [255, 255, 255]
    assert img[20, 32].tolist() == [10, 200, 30]
    assert img[20, 20].tolist() == [0, 0, 0]
    for offset in (1, 2, 3):
        for at in ((20, 20 + offset), (20, 20 - offset), (20 + offset, 20), (20 - offset, 20)):
            assert img[at].tolist() == [255, 255, 255]
    assert img[20, 24].tolist() == [0, 0, 0]


def test_text_lines_are_stacked_below_each_other_and_outlined():
    one, two, bare = (np.full((80, 120, 3), 128, np.uint8) for _ in range(3))
    draw_text(one, text="AB", uv_top_left=(10, 10))
    draw_text(two, text="AB\nAB", uv_top_left=(10, 10))
    draw_text(bare, text="AB", uv_top_left=(10, 10), outline_color=None)
    rows = [np.nonzero(np.any(img != 128, axis=(1, 2)))[0] for img in (one, two)]
    assert rows[0].min() >= 5
    assert rows[1].min() == rows[0].min()
    assert rows[1].max() > rows[0].max() + 10
    assert (one < 60).any()
    assert not (bare < 100).any()


@pytest.mark.parametrize(
    ("input_res", "output_res"),
    [
        ((1280, 720), (640, 480)),
        ((640, 480), (96, 96)),
        ((480, 640), (320, 240)),
        ((9, 7), (33, 30)),
    ],
)
def test_resized_images_have_the_size_asked_for(input_res, output_res):
    transform = get_image_transform(input_res, output_res)
    img = np.zeros((*input_res[::-1], 3), np.uint8)
    assert transform(img).shape == (*output_res[::-1], 3)


def test_the_center_of_the_image_is_kept():
    img = np.zeros((72, 128, 3), np.uint8)
    img[:, 60:68] = (1, 2, 3)  # a stripe down the middle
    out = get_image_transform((128, 72), (64, 72))(img)
    np.testing.assert_array_equal(np.nonzero(out[0, :, 0])[0], np.arange(28, 36))
    flipped = get_image_transform((128, 72), (64, 72), bgr_to_rgb=True)(img)
    np.testing.assert_array_equal(flipped, out[..., ::-1])


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(72, 128, 3\), got \(128, 72, 3\)"):
        get_image_transform((128, 72), (64, 72))(np.zeros((128, 72, 3), np.uint8))


@pytest.mark.parametrize(
    ("n", "ratio", "expected"),
    [(1, 16 / 9, (1920, 1080, 1, 1)), (4, 16 / 9, (960, 540, 2, 2)), (5, 4 / 3, (640, 480, 3, 2))],
)
def test_pictures_fill_the_screen_as_a_grid(n, ratio, expected):
    assert optimal_row_cols(n, ratio) == expected


def test_recorded_states_become_frames_with_their_actions():
    class Blank:
        def render_state(self, state):
            return np.full((96, 96, 3), int(state[0]), np.uint8)

    states = np.array([[1.0], [2.0]])
    frames = render_env_video(Blank(), states)
    assert frames.shape == (2, 96, 96, 3)
    assert frames[:, 0, 0, 0].tolist() == [1, 2]
    marked = render_env_video(Blank(), states, np.array([[256.0, 128.0], [0.0, 0.0]]))
    assert marked[0, 24, 48].tolist() == [255, 0, 0]
