"""Decoding: crop, colour modes, 16 bits, orientation, no foreign program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets import decoding


def test_pixels_are_the_central_square_in_rgb(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (30, 50, 3), dtype=np.uint8))
    file = tmp_path / "x.png"
    image.save(file)
    expected = np.asarray(image.resize((26, 16), Image.Resampling.BICUBIC).crop((5, 0, 21, 16))).transpose(2, 0, 1)
    assert np.array_equal(decoding.decode(file.read_bytes(), 16), expected)
    assert np.array_equal(decoding.decode(file.read_bytes()), np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA", "I;16"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new(mode, (4, 4)).save(file)
    pixels = decoding.decode(file.read_bytes(), 4)
    assert pixels.shape == (3, 4, 4)
    assert pixels.dtype == np.uint8
    if mode in ("RGBA", "LA"):
        assert (pixels == 255).all(), "transparent is white"


def test_sixteen_bit_grey_keeps_its_shades(tmp_path: Path) -> None:
    shades = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(shades).save(tmp_path / "x.png")
    pixels = decoding.decode((tmp_path / "x.png").read_bytes())
    assert np.array_equal(pixels, np.stack([shades // 256] * 3))


def test_exif_orientation_is_applied_unless_as_stored_and_the_first_frame_counts(tmp_path: Path) -> None:
    turned, frames = Image.Exif(), [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    turned[274] = 6
    Image.new("RGB", (9, 5)).save(tmp_path / "x.jpg", exif=turned)
    assert decoding.decode((tmp_path / "x.jpg").read_bytes()).shape == (3, 9, 5)
    assert decoding.upright((tmp_path / "x.jpg").read_bytes(), turn=False)[0].size == (9, 5)
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert decoding.decode((tmp_path / "x.webp").read_bytes())[:, 0, 0].tolist() == [255, 0, 0]


def test_no_program_is_run_on_a_postscript_file() -> None:
    with pytest.raises(decoding.ImageError, match="a PostScript file, not an image"):
        decoding.decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
