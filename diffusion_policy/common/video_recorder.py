"""Writes frames into a video file, through PyAV."""

from __future__ import annotations

import pathlib
from fractions import Fraction
from typing import Any

import numpy as np

from diffusion_policy.common.errors import ConfigError

# Two by two pixels share one colour sample in these formats, so odd sizes do not exist.
_HALVED_CHROMA = ("yuv420p", "yuvj420p", "nv12")


class VideoRecorder:
    """Records one video file at a time: ``start``, any number of ``write_frame``, ``stop``.

    The file is opened by the first frame, which also fixes the frame size: a recording without a
        frame leaves no file.

    Args:
        fps: Frames per second; also fractions such as 12.5.
        codec: Name of a PyAV encoder.
        input_pix_fmt: Layout of the frames given to :meth:`write_frame`, for example ``rgb24``.
        **codec_context: Attributes set on the PyAV codec context, for example ``pix_fmt`` or
            ``thread_count``.
    """

    def __init__(self, fps: float | Fraction, codec: str, input_pix_fmt: str, **codec_context: Any):
        # PyAV takes no floats, and 29.97 as a float is a fraction of two 50-bit numbers.
        self.fps = Fraction(fps).limit_denominator(1001)
        self.codec = codec
        self.input_pix_fmt = input_pix_fmt
        self.codec_context = codec_context
        self._clear()

    @classmethod
    def create_h264(
        cls,
        fps: float | Fraction,
        codec: str = "h264",
        input_pix_fmt: str = "rgb24",
        output_pix_fmt: str = "yuv420p",
        crf: int = 18,
        profile: str = "high",
        **codec_context: Any,
    ) -> VideoRecorder:
        """A recorder whose files play everywhere.

        Args:
            fps: Frames per second.
            codec: Name of an H.264 encoder.
            input_pix_fmt: Layout of the frames that will be written.
            output_pix_fmt: Layout inside the file.
            crf: Constant rate factor: 18 looks lossless, 22 is fine for rollouts, larger is
                smaller.
            profile: H.264 profile.
            **codec_context: More attributes of the codec context, for example ``thread_count=1``.
        """
        return cls(
            fps,
            codec,
            input_pix_fmt,
            pix_fmt=output_pix_fmt,
            options={"crf": str(crf), "profile": profile},
            **codec_context,
        )

    def _clear(self) -> None:
        self._path: pathlib.Path | None = None
        self._container: Any = None  # of PyAV, like the stream; None until the first frame
        self._stream: Any = None
        self._frame_shape: tuple[int, ...] | None = None

    def __del__(self):
        self.stop()

    def is_ready(self) -> bool:
        """Whether a recording is running."""
        return self._path is not None

    def start(self, file_path: str | pathlib.Path) -> None:
        """Begin a recording; one that is still running is finished first."""
        self.stop()
        self._path = pathlib.Path(file_path)

    def write_frame(self, img: np.ndarray) -> None:
        """Append one frame.

        Args:
            img: (H, W, C) in the layout ``input_pix_fmt``; all frames of a recording have one
                shape.

        Raises:
            RuntimeError: No recording is running.
            ConfigError: The size cannot be encoded, or differs from the first frame's.
        """
        if self._path is None:
            raise RuntimeError("write_frame was called before start: there is no file to write to")
        import av

        if self._frame_shape is None:
            self._open(img.shape)
        if img.shape != self._frame_shape:
            raise ConfigError(
                f"a frame of shape {img.shape} was written to {self._path}, whose first frame has "
                f"shape {self._frame_shape}: all frames of a recording need the same size"
            )
        frame = av.VideoFrame.from_ndarray(img, format=self.input_pix_fmt)
        self._container.mux(self._stream.encode(frame))

    def _open(self, shape: tuple[int, ...]) -> None:
        import av

        height, width = shape[:2]
        if self.codec_context.get("pix_fmt") in _HALVED_CHROMA and (height % 2 or width % 2):
            raise ConfigError(
                f"{self._path}: frames are {width}x{height} pixels, but "
                f"{self.codec_context['pix_fmt']} needs an even width and height, choose another "
                "render size"
            )
        assert self._path is not None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._path), mode="w")
        self._stream = self._container.add_stream(self.codec, rate=self.fps)
        for name, value in self.codec_context.items():
            setattr(self._stream.codec_context, name, value)
        self._stream.width, self._stream.height = width, height
        self._frame_shape = shape

    def stop(self) -> None:
        """Finish the file; nothing happens when no recording is running."""
        container, stream = getattr(self, "_container", None), getattr(self, "_stream", None)
        self._clear()
        if container is None:
            return
        try:
            if stream is not None:
                container.mux(stream.encode())
        finally:
            container.close()
