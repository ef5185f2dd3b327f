"""Image codecs: what they write the implementation of 2022 reads, and the other way round."""

import json
import logging
import subprocess
import sys
from importlib.metadata import entry_points

import imagecodecs.numcodecs as upstream
import numpy as np
import pytest
import zarr
from numcodecs.abc import Codec
from numcodecs.registry import codec_registry, get_codec

from diffusion_policy.codecs import imagecodecs_numcodecs as codecs
from diffusion_policy.codecs.imagecodecs_numcodecs import (
    Jpeg2k,
    JpegXl,
    get_default_image_compressor,
    protective_squeeze,
    register_codecs,
)
from diffusion_policy.common.replay_buffer import ReplayBuffer

NINE_KEYS = {
    "id": "imagecodecs_jpeg2k",
    "level": 50,
    "codecformat": None,
    "colorspace": None,
    "tile": None,
    "reversible": None,
    "bitspersample": None,
    "resolutions": None,
    "numthreads": None,
    "verbose": 0,
}


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """A registry of codecs that forgets what a test does to it."""
    for key in ("imagecodecs_jpeg2k", "imagecodecs_jpegxl"):
        monkeypatch.delitem(codec_registry, key, raising=False)


def pictures(n=5, height=24, width=20, channels=3):
    """Smooth pictures, as JPEG expects them."""
    y, x, c, i = np.meshgrid(*map(np.arange, (height, width, channels, n)), indexing="ij")
    return np.moveaxis(100 + 80 * np.sin(x / 7 + i) * np.cos(y / 9 + c), -1, 0).astype(np.uint8)


def quality(decoded, images):
    """Peak signal-to-noise ratio, dB; above 40 the eye sees no difference."""
    return 20 * np.log10(255 / np.sqrt(np.mean((decoded.astype(float) - images) ** 2)))


def save(path, images, codec):
    buffer = ReplayBuffer.create_empty_numpy()
    buffer.add_episode({"camera": images})
    return buffer.save_to_path(
        path, chunks={"camera": (1, *images.shape[1:])}, compressors={"camera": codec}
    )


# ---- JPEG 2000 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".zarr", ".zarr.zip"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_come_back_from_a_store_with_little_loss(tmp_path, suffix, channels):
    register_codecs(verbose=False)
    images = pictures(channels=channels)
    path = save(tmp_path / f"x{suffix}", images, Jpeg2k(level=50))
    loaded = ReplayBuffer.copy_from_path(path)["camera"]
    assert loaded.shape == images.shape
    assert loaded.dtype == np.uint8
    assert 40 < quality(loaded, images) < 70


def test_without_a_level_nothing_is_lost():
    images = np.random.default_rng(0).integers(0, 256, (1, 24, 20, 3), dtype=np.uint8)
    codec = Jpeg2k()
    np.testing.assert_array_equal(codec.decode(codec.encode(images)), images[0])


def test_the_disk_carries_exactly_the_nine_settings_of_2022(tmp_path):
    path = save(tmp_path / "x.zarr", pictures(), Jpeg2k(level=50))
    described = json.loads((path / "data" / "camera" / ".zarray").read_text())
    assert described["compressor"] == NINE_KEYS
    assert described["chunks"] == [1, 24, 20, 3]
    assert described["zarr_format"] == 2


def test_a_class_with_the_signature_of_2022_accepts_our_settings():
    def jpeg2k_of_2022(
        level=None,
        codecformat=None,
        colorspace=None,
        tile=None,
        reversible=None,
        bitspersample=None,
        resolutions=None,
        numthreads=None,
        verbose=0,
    ):
        return level, tile

    config = Jpeg2k(level=50, tile=(8, 8)).get_config()
    del config["id"]
    assert jpeg2k_of_2022(**config) == (50, (8, 8))


def test_settings_may_be_given_by_position_as_in_2022():
    assert Jpeg2k(50, "j2k").get_config() == {**NINE_KEYS, "codecformat": "j2k"}


def test_zarr_alone_reads_our_stores(tmp_path):
    images = pictures()
    path = save(tmp_path / "x.zarr", images, Jpeg2k(level=50))
    script = (
        "import imagecodecs.numcodecs, zarr, numpy, sys; imagecodecs.numcodecs.register_codecs();"
        f"numpy.save({str(tmp_path / 'x.npy')!r}, zarr.open({str(path)!r})['data/camera'][:])"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    register_codecs(verbose=False)
    loaded = ReplayBuffer.copy_from_path(path)["camera"]
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), loaded)


def test_settings_of_newer_versions_are_read(tmp_path):
    newer = upstream.Jpeg2k(level=50)
    assert {"planar", "mct", "squeeze"} <= newer.get_config().keys()
    upstream.register_codecs({"imagecodecs_jpeg2k"}, force=True, verbose=False)
    path = save(tmp_path / "x.zarr", pictures(), newer)
    register_codecs(verbose=False)
    array = zarr.open_group(path)["data/camera"]
    assert type(array.compressors[0]) is Jpeg2k
    assert array.compressors[0].get_config() == NINE_KEYS | {"verbose": None}
    assert quality(array[:], pictures()) > 40


def test_a_newer_setting_that_matters_is_kept():
    config = Jpeg2k(level=50, mct=False).get_config()
    assert config == {**NINE_KEYS, "mct": False}
    assert get_config_again(config) == config


def get_config_again(config):
    register_codecs(verbose=False)
    return get_codec(config).get_config()


def test_several_pictures_in_a_chunk_are_refused_with_the_chunks_to_use():
    with pytest.raises(ValueError, match=r"one image, not \(5, 24, 20, 3\); use chunks \(1, H, W"):
        Jpeg2k(level=50).encode(pictures())


# ---- JPEG XL -------------------------------------------------------------------------------------


def test_jpeg_xl_pictures_come_back(tmp_path):
    register_codecs(verbose=False)
    path = save(tmp_path / "x.zarr", pictures(), JpegXl())
    np.testing.assert_array_equal(ReplayBuffer.copy_from_path(path)["camera"], pictures())
    config = json.loads((path / "data" / "camera" / ".zarray").read_text())["compressor"]
    assert config["id"] == "imagecodecs_jpegxl"
    assert not {"squeeze", "bitspersample"} & config.keys()


def test_the_default_compressor_is_lossy_but_good():
    noisy = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    codec = get_default_image_compressor()
    assert isinstance(codec, JpegXl)
    assert len(codec.encode(noisy)) < 0.9 * noisy.size
    smooth = pictures(n=1)
    assert quality(codec.decode(codec.encode(smooth)), smooth[0]) > 40
    assert get_default_image_compressor(effort=1).get_config()["effort"] == 1


def test_without_jpeg_xl_the_default_is_jpeg_2000(monkeypatch):
    monkeypatch.setattr(codecs.imagecodecs, "JPEGXL", type("Absent", (), {"available": False}))
    assert get_default_image_compressor() == Jpeg2k(level=50)


# ---- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "squeezed"),
    [
        ((1, 24, 20, 3), (24, 20, 3)),
        ((1, 1, 24, 20, 3), (24, 20, 3)),
        ((1, 24, 20, 1), (24, 20, 1)),
        ((1, 1, 20, 3), (1, 20, 3)),
        ((4, 24, 20, 3), (4, 24, 20, 3)),
        ((2, 3, 24, 20, 1), (6, 24, 20, 1)),
        ((24, 20, 3), (24, 20, 3)),
        ((24, 20), (24, 20)),
    ],
)
def test_only_leading_axes_are_dropped(shape, squeezed):
    assert protective_squeeze(np.zeros(shape, np.uint8)).shape == squeezed


# ---- the registry --------------------------------------------------------------------------------


def test_registering_makes_every_codec_known_and_ours_in_front():
    register_codecs(verbose=False)
    assert codec_registry["imagecodecs_jpeg2k"] is Jpeg2k
    assert codec_registry["imagecodecs_jpegxl"] is JpegXl
    assert codec_registry["imagecodecs_png"] is upstream.Png


def test_registering_twice_says_nothing(caplog):
    register_codecs(verbose=False)
    with caplog.at_level(logging.INFO):
        register_codecs()
    assert caplog.text == ""


def test_only_the_codecs_named_are_registered():
    register_codecs({"imagecodecs_jpegxl"})
    assert "imagecodecs_jpeg2k" not in codec_registry
    assert codec_registry["imagecodecs_jpegxl"] is JpegXl


def test_a_codec_of_somebody_else_stays_unless_forced(caplog):
    class Mine(Codec):
        codec_id = "imagecodecs_jpeg2k"

    codec_registry["imagecodecs_jpeg2k"] = Mine
    register_codecs()
    assert codec_registry["imagecodecs_jpeg2k"] is Mine
    assert "registered already" in caplog.text
    register_codecs(force=True)
    assert codec_registry["imagecodecs_jpeg2k"] is Jpeg2k


@pytest.mark.parametrize("codec", [Jpeg2k, JpegXl])
def test_the_package_announces_its_codecs_to_whoever_opens_a_store(codec):
    announced = {entry.name: entry for entry in entry_points(group="numcodecs.codecs")}
    assert announced[codec.codec_id].load() is codec
