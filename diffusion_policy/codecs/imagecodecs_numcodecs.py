"""Images as JPEG 2000 or JPEG XL in the chunks of a zarr store, one image per chunk.

The codecs are those of ``imagecodecs.numcodecs``. Ours differ in two ways:

* **What they write, the original implementation reads.** It has the imagecodecs of 2022, which
  refuses settings that came later. So these are not written to ``.zarray`` unless they are used;
  stores in which newer versions wrote them are read.
* **Only leading axes of a chunk are dropped**, never the channel: a chunk ``(1, H, W, 1)`` is the
  image ``(H, W, 1)``.

zarr finds both without being asked, through the entry points of this package. For the other codecs
of imagecodecs call :func:`register_codecs`, as the image data sets do before they open a store
(:mod:`diffusion_policy.dataset.image_arrays`).
"""

import logging
import math
from collections.abc import Collection
from typing import Any

import imagecodecs
import imagecodecs.numcodecs as upstream
import numpy as np
from numcodecs.abc import Codec
from numcodecs.registry import codec_registry, register_codec

logger = logging.getLogger(__name__)


def protective_squeeze(images: np.ndarray) -> np.ndarray:
    """``(1, ..., 1, H, W, C)`` as ``(H, W, C)``, several images as ``(N, H, W, C)``."""
    if images.ndim <= 3:
        return images
    frame = images.shape[-3:]
    return images.reshape(frame if math.prod(images.shape[:-3]) == 1 else (-1, *frame))


class _ImageCodec(Codec):
    """What ours do differently; stands in front of a class of ``imagecodecs.numcodecs``."""

    _newer: dict[str, Any]  # settings that the version of 2022 does not have; their defaults

    def encode(self, buf: Any) -> Any:
        return super().encode(protective_squeeze(np.asarray(buf)))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        unused = {key for key, default in self._newer.items() if config[key] == default}
        return {key: value for key, value in config.items() if key not in unused}


class Jpeg2k(_ImageCodec, upstream.Jpeg2k):
    """JPEG 2000.

    Args:
        level: quality, as the signal-to-noise ratio in dB; data sets use 50. None: lossless.
        codecformat, colorspace, tile, reversible, bitspersample, resolutions, numthreads, verbose:
            see ``imagecodecs.jpeg2k_encode``.
        planar, mct: newer settings; likewise.
        squeeze: accepted because newer versions write it; which axes are dropped is decided here.

    Raises:
        ValueError: (encoding) when a chunk holds several images, which JPEG 2000 cannot.
    """

    codec_id = "imagecodecs_jpeg2k"
    _newer = {"planar": None, "mct": True, "squeeze": False}

    def __init__(
        self,
        level: int | None = None,
        codecformat: int | str | None = None,
        colorspace: int | str | None = None,
        tile: tuple[int, int] | None = None,
        reversible: bool | None = None,
        bitspersample: int | None = None,
        resolutions: int | None = None,
        numthreads: int | None = None,
        verbose: int | None = 0,
        *,
        planar: bool | None = None,
        mct: bool = True,
        squeeze: Any = None,
    ):
        super().__init__(
            level=level,
            codecformat=codecformat,
            colorspace=colorspace,
            tile=tile,
            reversible=reversible,
            bitspersample=bitspersample,
            resolutions=resolutions,
            numthreads=numthreads,
            verbose=verbose,
            planar=planar,
            mct=mct,
            squeeze=False,
        )

    def encode(self, buf: Any) -> Any:
        shape = np.shape(buf)
        if math.prod(shape[:-3]) != 1:
            raise ValueError(
                f"a JPEG 2000 chunk holds one image, not {shape}; use chunks (1, H, W, C)"
            )
        return super().encode(buf)


class JpegXl(_ImageCodec, upstream.Jpegxl):
    """JPEG XL.

    Args:
        level: None or less than 0: lossless unless ``lossless`` is False.
        effort, distance, lossless, decodingspeed, photometric, planar, usecontainer, index,
            keeporientation, numthreads: see ``imagecodecs.jpegxl_encode``.
        bitspersample: a newer setting; likewise.
        squeeze: accepted because newer versions write it; which axes are dropped is decided here.
    """

    codec_id = "imagecodecs_jpegxl"
    _newer = {"bitspersample": None, "squeeze": False}

    def __init__(
        self,
        level: int | None = None,
        effort: int | None = None,
        distance: float | None = None,
        lossless: bool | None = None,
        decodingspeed: int | None = None,
        photometric: int | str | None = None,
        planar: bool | None = None,
        usecontainer: bool | None = None,
        index: int | None = None,
        keeporientation: bool | None = None,
        numthreads: int | None = None,
        *,
        bitspersample: int | None = None,
        squeeze: Any = None,
    ):
        super().__init__(
            level=level,
            effort=effort,
            distance=distance,
            lossless=lossless,
            decodingspeed=decodingspeed,
            photometric=photometric,
            planar=planar,
            usecontainer=usecontainer,
            index=index,
            keeporientation=keeporientation,
            numthreads=numthreads,
            bitspersample=bitspersample,
            squeeze=False,
        )


def get_default_image_compressor(**kwargs: Any) -> Codec:
    """A good lossy codec: JPEG XL where this machine has it, else JPEG 2000.

    Args:
        **kwargs: settings of that codec to use instead of ours.
    """
    if imagecodecs.JPEGXL.available:
        # without lossless=False, distance would be ignored
        ours = {"effort": 3, "distance": 0.3, "decodingspeed": 1, "lossless": False}
        return JpegXl(**{**ours, **kwargs})
    return Jpeg2k(**{"level": 50, **kwargs})


def register_codecs(
    codecs: Collection[str] | None = None, force: bool = False, verbose: bool = True
) -> None:
    """Let zarr find the codecs of imagecodecs, with ours for JPEG 2000 and JPEG XL.

    Calling it again changes nothing.

    Args:
        codecs: ids (``imagecodecs_...``) to register. None: all.
        force: replace codecs that somebody else registered under the same id.
        verbose: warn about such codecs.
    """
    for codec in (*_upstream_codecs(), Jpeg2k, JpegXl):
        known: Any = codec_registry.get(str(codec.codec_id))
        if known is codec or (codecs is not None and codec.codec_id not in codecs):
            continue
        somebody_elses = known is not None and not issubclass(codec, known)
        if somebody_elses and verbose:
            logger.warning(
                "codec %s is registered already: %s %s",
                codec.codec_id,
                known,
                "is replaced" if force else "stays",
            )
        if force or not somebody_elses:
            register_codec(codec)


def _upstream_codecs() -> list[type[Codec]]:
    classes = [getattr(upstream, name) for name in upstream.__all__]
    classes = [
        c for c in classes if isinstance(c, type) and issubclass(c, Codec) and c is not Codec
    ]
    return [c for c in classes if c.codec_id not in (Jpeg2k.codec_id, JpegXl.codec_id)]
