"""Drawing on images, resizing them to cover a given size, and tiling camera pictures."""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

_WHITE = (255, 255, 255)


def draw_reticle(img: np.ndarray, u: int, v: int, label_color: Sequence[int]) -> None:
    """Draw a cross-hair at column ``u``, row ``v``, in place."""
    u, v = int(u), int(v)
    for radius, color in ((10, label_color), (11, _WHITE), (12, label_color)):
        cv2.circle(img, (u, v), radius, color, 1)
    for dx, dy in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        cv2.line(img, (u + dx, v + dy), (u + 3 * dx, v + 3 * dy), _WHITE, 1)


def draw_text(
    img: np.ndarray,
    *,
    text: str,
    uv_top_left: Sequence[float],
    color: Sequence[int] = _WHITE,
    fontScale: float = 0.5,
    thickness: int = 1,
    fontFace: int = cv2.FONT_HERSHEY_SIMPLEX,
    outline_color: Sequence[int] | None = (0, 0, 0),
    line_spacing: float = 1.5,
) -> None:
    """Draw text of one or more lines, with an outline to stay readable on any background, in place.

    Args:
        img: Image of shape (H, W, 3), uint8.
        text: Lines separated by newlines.
        uv_top_left: Column and row of the first line's upper left corner, px.
        color: Of the letters.
        fontScale, thickness, fontFace: See ``cv2.putText``.
        outline_color: Of the outline; None draws none.
        line_spacing: Distance of lines in units of their height.
    """
    u, v = (float(x) for x in uv_top_left)
    for line in text.splitlines():
        (_, height), _ = cv2.getTextSize(line, fontFace, fontScale, thickness)
        baseline = (round(u), round(v + height))
        strokes = [(color, thickness)]
        if outline_color is not None:
            strokes.insert(0, (outline_color, thickness * 3))
        for stroke_color, width in strokes:
            cv2.putText(img, line, baseline, fontFace, fontScale, stroke_color, width, cv2.LINE_AA)
        v += height * line_spacing


def draw_action_marker(img: np.ndarray, action: np.ndarray, window_size: float = 512) -> None:
    """Draw a position target as a red cross, in place.

    Args:
        img: Square RGB image.
        action: x and y, in px of a window of ``window_size``.
        window_size: Side of the window the image shows.
    """
    size = img.shape[0]
    x, y = (np.asarray(action) / window_size * size).astype(np.int32).tolist()
    cv2.drawMarker(
        img,
        (x, y),
        color=(255, 0, 0),
        markerType=cv2.MARKER_CROSS,
        markerSize=max(1, int(8 / 96 * size)),
        thickness=max(1, int(1 / 96 * size)),
    )


def get_image_transform(
    input_res: tuple[int, int] = (1280, 720),
    output_res: tuple[int, int] = (640, 480),
    bgr_to_rgb: bool = False,
) -> Callable[[np.ndarray], np.ndarray]:
    """A function that scales an image until it covers ``output_res`` and cuts out its center.

    Args:
        input_res: Width and height of the images to come.
        output_res: Width and height wanted.
        bgr_to_rgb: Reverse the channels.

    Returns:
        Function from (ih, iw, 3) to (oh, ow, 3); raises ValueError for other shapes.
    """
    iw, ih = input_res
    ow, oh = output_res
    if iw / ih >= ow / oh:
        rw, rh = math.ceil(oh / ih * iw), oh
    else:
        rw, rh = ow, math.ceil(ow / iw * ih)
    interpolation = cv2.INTER_LINEAR if (ow > iw or oh > ih) else cv2.INTER_AREA
    left, top = (rw - ow) // 2, (rh - oh) // 2
    channels = slice(None, None, -1) if bgr_to_rgb else slice(None)

    def transform(img: np.ndarray) -> np.ndarray:
        if img.shape != (ih, iw, 3):
            raise ValueError(f"this transform takes images of shape {(ih, iw, 3)}, got {img.shape}")
        resized = cv2.resize(img, (rw, rh), interpolation=interpolation)
        return resized[top : top + oh, left : left + ow, channels]

    return transform


def optimal_row_cols(
    n_cameras: int, in_wh_ratio: float, max_resolution: tuple[int, int] = (1920, 1080)
) -> tuple[int, int, int, int]:
    """The grid that shows ``n_cameras`` pictures largest on a screen.

    Args:
        n_cameras: How many pictures.
        in_wh_ratio: Their width / height.
        max_resolution: Width and height of the screen, px.

    Returns:
        Cell width, cell height, number of columns, number of rows.
    """
    width, height = max_resolution
    screen_ratio = width / height
    grids = [(math.ceil(n_cameras / rows), rows) for rows in range(1, n_cameras + 1)]
    n_col, n_row = min(grids, key=lambda g: abs(in_wh_ratio * g[0] / g[1] - screen_ratio))
    if in_wh_ratio * n_col / n_row > screen_ratio:
        cell_width = math.floor(width / n_col)
        cell_height = math.floor(cell_width / in_wh_ratio)
    else:
        cell_height = math.floor(height / n_row)
        cell_width = math.floor(cell_height * in_wh_ratio)
    return cell_width, cell_height, n_col, n_row
