"""From encoded images to pixels: orientation, checksums, ranges, endings; and every data set under any processing."""

from __future__ import annotations

import io
import json
import pickle
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from benchmarks.datasets import decoding, image_cache
from benchmarks.datasets.decoding import ImageError, decode, readable_endings
from benchmarks.datasets.picto_domains import PictoDomains
from benchmarks.datasets.pixels import PixelCache
from methods.parts.feeding import unit_range
from methods.parts.preprocessing import ImageProcessing, ImageSize, read_processor


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


UPRIGHT = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)).resize((40, 24), 0)
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)

#: How an upright image is stored so that the EXIF orientation turns it back.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_images_are_turned_upright(kind: str, orientation: int) -> None:
    turn = STORED[orientation]
    stored = UPRIGHT if turn is None else UPRIGHT.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(stored, kind, exif=exif, **options)
    image, said = decoding.upright(data)
    assert said == orientation
    assert np.abs(np.asarray(image).astype(int) - np.asarray(UPRIGHT)).max() <= (12 if kind == "JPEG" else 0)
    if kind != "TIFF":  # Pillow turns it itself
        assert decoding.upright(data, turn=False)[0].size == stored.size
        as_stored = decode(data, ImageProcessing.clip(8).official())
        assert np.array_equal(as_stored, ImageProcessing.clip(8).official().apply(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_mean_nothing_are_left(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image, said = decoding.upright(encoded(UPRIGHT, "PNG", exif=exif))
    assert (image.size, said) == (UPRIGHT.size, 1)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_changed_byte_of_a_png_changes_a_pixel(place: int, change: int) -> None:
    data = bytearray(encoded(UPRIGHT, "PNG"))
    data[place % len(data)] ^= change
    try:
        pixels = decode(bytes(data))
    except ImageError:
        return
    assert np.array_equal(pixels, np.asarray(UPRIGHT).transpose(2, 0, 1))


def test_a_damaged_png_is_named_and_one_cut_behind_its_pixels_is_whole() -> None:
    data = bytearray(encoded(UPRIGHT, "PNG"))
    assert np.array_equal(decode(bytes(data[:-12])), decode(bytes(data)))
    with pytest.raises(ImageError, match="ends in its chunk IDAT"):
        decode(bytes(data[:-20]))
    data[60] ^= 1
    with pytest.raises(ImageError, match="checksum of its chunk IDAT is wrong"):
        decode(bytes(data))


def test_truncated_files_are_errors_whatever_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(UPRIGHT, "JPEG")
    with pytest.raises(ImageError, match=r"(?i)truncated"):
        decode(data[: len(data) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_what_was_set_is_put_back_after_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    before, inside, leave = list(warnings.filters), threading.Barrier(2), threading.Event()

    def first() -> None:
        with decoding._STRICT:
            inside.wait(20)
            leave.wait(20)

    thread = threading.Thread(target=first)
    with decoding._STRICT:
        thread.start()
        inside.wait(20)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False  # the other thread still decodes
    leave.set()
    thread.join()
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert list(warnings.filters) == before


RAMP = GREY.astype(np.float32)


@pytest.mark.parametrize(
    ("values", "tags"),
    [
        (RAMP / 255, {}),
        (RAMP, {}),
        (RAMP * 4 - 100, {340: -100.0, 341: 920.0}),
        (RAMP.astype(np.int32), {}),
        (RAMP.astype(np.int32) * 257, {}),
        (RAMP.astype(np.uint16) * 257, {}),
    ],
)
def test_grey_of_many_kinds_keeps_its_shades(values: np.ndarray, tags: dict[int, float]) -> None:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    info = ImageFileDirectory_v2()
    for tag, value in tags.items():
        info.tagtype[tag] = 11
        info[tag] = value
    data = encoded(Image.fromarray(values), "TIFF", tiffinfo=info)
    assert np.array_equal(decode(data)[0], GREY)


@pytest.mark.parametrize(
    ("values", "kind", "reason"),
    [
        (RAMP * 3, "TIFF", "reach 765, and the file does not say which value is white"),
        (RAMP / 100, "TIFF", "reach 2.55, and"),
        (RAMP - 1, "TIFF", "start at -1, below 0"),
        (np.where(GREY > 9, np.nan, RAMP / 255).astype(np.float32), "TIFF", "not finite"),
        (np.where(GREY > 9, np.inf, RAMP / 255).astype(np.float32), "TIFF", "not finite"),
        (GREY.astype(np.uint16) * 16, "PNG", "16 bits and no value above 4080"),
        (GREY.astype(np.uint16), "TIFF", "16 bits and no value above 255"),
        (GREY.astype(np.int32) * 10, "TIFF", "reach 2550, and"),
        (GREY.astype(np.int32) * 100000, "TIFF", "does not say which value is white"),
    ],
)
def test_grey_of_unknown_range_is_refused_by_name(values: np.ndarray, kind: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        decode(encoded(Image.fromarray(values), kind))
    assert "\n" not in str(caught.value)


def test_a_colour_image_of_twelve_bits_in_sixteen_is_refused() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    def png(values: np.ndarray) -> bytes:
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

    colours = np.asarray(UPRIGHT).astype(np.uint16)
    assert np.array_equal(decode(png(colours * 257)), np.asarray(UPRIGHT).transpose(2, 0, 1))
    assert decode(png(colours * 0)).max() == 0, "black is black at any depth"
    with pytest.raises(ImageError, match="12 bits or fewer stored in 16"):
        decode(png(colours * 16))


def test_what_pillow_writes_and_reads_is_among_the_endings() -> None:
    Image.init()
    kinds = Image.registered_extensions()
    unread = {"EPS", "MPEG", "HDF5", "GRIB", "BUFR", "WMF"}
    expected = {ending for ending, kind in kinds.items() if kind in Image.OPEN and kind not in unread}
    assert expected - set(readable_endings()) == set()
    for ending in (".tif", ".jfif", ".bmp", ".webp", ".gif", ".ppm", ".tga"):
        data = encoded(UPRIGHT, kinds[ending], **({"lossless": True} if ending == ".webp" else {}))
        assert np.abs(decode(data).astype(int) - np.asarray(UPRIGHT).transpose(2, 0, 1)).mean() < 30


def test_a_heic_file_says_what_it_needs() -> None:
    with pytest.raises(ImageError, match="HEIC image, which Pillow reads only with the package pillow-heif"):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 200)


# --- data sets under a processing -------------------------------------------------------------------------------------


def test_pixels_of_the_shipped_images_do_not_depend_on_how_a_square_is_named() -> None:
    dataset, rows = PictoDomains(), np.arange(0, 400, 7)
    plain = dataset.pixels(rows, 64).mul(255).round()
    square = {"height": 64, "width": 64}
    for config in ({"size": square, "do_center_crop": False}, {"size": 64, "crop_size": 64}):
        assert (dataset.processed(rows, read_processor(config, 64)) == plain).all()
    assert (dataset.processed(rows, ImageProcessing.clip(64).official()) == plain).all()
    cropped = dataset.processed(rows, read_processor({"size": 80, "crop_size": 64}, 64))
    assert cropped.shape == plain.shape
    inner = dataset.pixels(rows, 80)[:, :, 8:72, 8:72].mul(255)
    assert (cropped - inner).abs().mean() < 255 * 0.01
    assert (cropped - plain).abs().mean() > 255 * 0.01


def test_a_processing_has_its_own_cache(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    UPRIGHT.save(file)
    stamps = np.array([[file.stat().st_size, file.stat().st_mtime_ns]])

    def store(how: ImageProcessing) -> image_cache.ImageCache:
        return image_cache.ImageCache([str(file)], stamps, "one", how, tmp_path / "cache")

    clip = ImageProcessing.clip(8)
    squash = read_processor({"size": [8, 8], "do_center_crop": False}, 8)
    folders = {store(how).folder for how in (clip, squash, clip.official())}
    assert len(folders) == 3
    for how in (clip, squash, clip.official()):
        assert np.array_equal(store(how).pixels(np.array([0]))[0], how.apply(UPRIGHT))


def test_a_backbones_size_carries_its_processing_and_any_other_size_is_openais() -> None:
    data, squash = encoded(UPRIGHT, "PNG"), ImageProcessing(8, "height_width", (8, 8))
    size = pickle.loads(pickle.dumps(ImageSize(squash)))
    assert (size, size + 1, json.dumps({"size": size})) == (8, 9, '{"size": 8}')
    assert np.array_equal(decode(data, size), squash.apply(UPRIGHT))
    assert np.array_equal(decode(data, 8), ImageProcessing.clip(8).apply(UPRIGHT))
    assert not np.array_equal(decode(data, 8), decode(data, size))


def test_a_damaged_deflated_tiff_is_refused() -> None:
    data = bytearray(encoded(Image.fromarray(GREY.astype(np.uint8)), "TIFF", compression="tiff_adobe_deflate"))
    assert decode(bytes(data)).shape[0] == 3
    with Image.open(io.BytesIO(data)) as opened:
        start, size = opened.tag_v2[273][0], opened.tag_v2[279][0]
    data[start + size - 1] ^= 1  # its checksum
    with pytest.raises(ImageError, match=r"the TIFF is damaged: .*incorrect data check"):
        decode(bytes(data))


def test_signed_and_long_numbers_of_a_tiff_are_not_misread() -> None:
    def tiff(values: np.ndarray, kind: int) -> bytes:
        bits, (high, wide) = values.itemsize * 8, values.shape
        tags = {
            256: wide,
            257: high,
            258: bits,
            259: 1,
            262: 1,
            273: 8,
            277: 1,
            278: high,
            279: values.nbytes,
            339: kind,
        }
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        head = b"II*\0" + struct.pack("<I", 8 + values.nbytes)
        return head + values.tobytes() + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"

    whole = np.arange(0, 256, dtype=np.uint32).reshape(16, 16)
    assert (decode(tiff(whole, 1))[0] == whole).all()
    with pytest.raises(ImageError, match=r"reach 4\.27.*does not say which value is white"):
        decode(tiff(whole * 16777217, 1))
    with pytest.raises(ImageError, match="signed numbers of 8 bits"):
        decode(tiff((whole // 2).astype(np.int8), 2))


def test_decoded_images_are_kept_and_equal(tiny_dataset: Any) -> None:
    dataset = tiny_dataset()
    cache = PixelCache(dataset, 32)
    rows = np.array([5, 3, 5, 100])
    first, second = cache[rows], cache[rows]
    assert dataset.decoded == 3
    assert torch.equal(first, second)
    cache._kept = None
    assert torch.equal(cache[rows], first), "what is kept never changes a number"
    assert first.dtype is torch.uint8
    assert (unit_range(first) - dataset.pixels(rows, 32)).abs().max() <= 0.5 / 255 + 1e-6
