"""From an encoded image to RGB pixels.

An image is opened with Pillow, put on white where it is transparent, converted to RGB, turned upright as its EXIF data
say (not under the official rules, whose loaders do not), then resized and cropped as the backbone's processor says
(:class:`methods.parts.preprocessing.ImageProcessing`). Grey of 16 bits, whole or floating-point numbers is scaled to 8
bits where its range is known, else refused. Of several frames the first is used; the checksums of a PNG are checked.
Nothing here imports torch or pandas, so that worker processes start quickly.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import struct
import threading
import warnings
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from methods.parts.preprocessing import ImageProcessing

if TYPE_CHECKING:
    from PIL import Image

#: Raised when the way from file to pixels changes; part of every cache key.
RECIPE = "processor-exif-white-4"

#: Endings that Pillow reads wherever it is installed; :func:`readable_endings` adds what depends on the installation.
_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".icb", ".vda", ".vst", ".ico", ".cur", ".icns", ".pcx", ".dcx"),
    *(".psd", ".sgi", ".rgb", ".rgba", ".bw", ".ras", ".qoi", ".dds", ".blp", ".xbm", ".xpm", ".msp", ".im", ".fits"),
    *(".fit", ".fli", ".flc", ".ftc", ".ftu", ".gbr", ".iim", ".pcd", ".pxr"),
)

_JPEG_2000 = (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx")

_AVIF = (".avif", ".avifs")

HEIF_ENDINGS = (".heic", ".heif", ".hif", ".heics", ".heifs")


@functools.cache
def readable_endings() -> tuple[str, ...]:
    """Endings (lower case, with the dot) of files that Pillow reads as images on this machine, the usual ones first.

    Formats that need another program (PostScript, PDF, Windows metafiles) or are not images (MPEG, HDF5) are left out.
    HEIC is among them only where the package ``pillow_heif`` is installed.
    """
    from PIL import features

    endings: tuple[str, ...] = _ENDINGS
    endings += _JPEG_2000 if features.check("jpg_2000") else ()
    endings += _AVIF if features.check("avif") else ()
    return endings + (HEIF_ENDINGS if importlib.util.find_spec("pillow_heif") else ())


class ImageError(ValueError):
    """An image that cannot be read or decoded; the message is the reason, without the file's name."""


def decode(data: bytes, how: int | ImageProcessing | None = None) -> NDArray[np.uint8]:
    """RGB pixels of an encoded image: uint8 ``[3, size, size]``, or ``[3, H, W]`` as it is without ``how``.

    ``how``: the processing of a backbone, or a size in pixels for OpenAI's (the central square, bicubic). The image is
    turned as its EXIF data say, unless the processing says "as stored".

    Raises :class:`ImageError` with the reason in one line.
    """
    how = None if how is None else ImageProcessing.at(how)
    image, _ = upright(data, turn=how is None or how.orientation == "exif")
    try:
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)) if how is None else how.apply(image)
    except Exception as error:  # MemoryError and what Pillow raises for absurd sizes
        raise ImageError(error_reason(error)) from error


def upright(data: bytes, *, turn: bool = True) -> tuple[Image.Image, int]:
    """The RGB image in an encoded image, turned as its EXIF data say, and that orientation: 1 (upright) to 8.

    ``turn=False`` leaves it as it is stored (a TIFF is turned by Pillow all the same).
    Raises :class:`ImageError` with the reason in one line.
    """
    from PIL import Image

    _refuse_by_content(data)
    try:
        with _STRICT, Image.open(io.BytesIO(data)) as opened:
            if opened.format in ("ICO", "ICNS"):
                _check_png_inside(data)
            if opened.format == "TIFF":
                _check_tiff(opened, data)
            before = _orientation(opened) if opened.format == "TIFF" else 1  # Pillow turns it while it loads
            opened.load()
            orientation = before if opened.format == "TIFF" else _orientation(opened)
            image = _rgb(opened, data)
            return (
                image.transpose(_TURNS[orientation]) if turn and _turns(opened, orientation) else image
            ), orientation
    except ImageError:
        raise
    except Exception as error:  # Pillow raises almost anything on damaged files
        raise ImageError(error_reason(error, data)) from error


#: EXIF orientation to Pillow's ``Image.Transpose``, by number.
_TURNS: Any = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


def _turns(opened: Image.Image, orientation: int) -> bool:
    return orientation in _TURNS and opened.format != "TIFF"


def _orientation(opened: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where the file has none or it cannot be read."""
    try:
        orientation = opened.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF data do not make the pixels wrong
        return 1
    return orientation if orientation in _TURNS else 1


def _rgb(opened: Image.Image, data: bytes) -> Image.Image:
    """8-bit RGB, transparent parts on white."""
    from PIL import Image

    image = opened
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_eight_bits(opened))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    image = image.convert("RGB")
    if _bits(opened, data) == 16 and opened.mode in ("RGB", "RGBA", "LA"):
        _refuse_dark(256 * max(top for _, top in opened.convert("RGB").getextrema()))  # type: ignore[misc]
    return image


def _bits(opened: Image.Image, data: bytes) -> int:
    """Bits of a sample as the file states them; 0 where it does not."""
    if opened.format == "PNG":
        return data[24]
    tags = getattr(opened, "tag_v2", {}) if opened.format == "TIFF" else {}
    bits = tags.get(258, 0)
    return int(bits[0] if isinstance(bits, tuple) else bits)


def _eight_bits(opened: Image.Image) -> NDArray[np.uint8]:
    """Grey of more than 8 bits in 8: by the range that the file states, by that of its bits, or by values that
    fit one range only. Raises :class:`ImageError` where the range is not known."""
    values = np.asarray(opened)
    tags = getattr(opened, "tag_v2", {}) if opened.format == "TIFF" else {}
    if opened.mode == "I" and tags and _number(tags.get(339, 1)) == 1 and _bits(opened, b"") == 32:
        values = values.view(np.uint32)  # Pillow reads them as signed
    if opened.mode.startswith("I;16") and values.dtype != np.uint16:
        values = values.view(np.uint16) if values.dtype.itemsize == 2 else values
    if not np.isfinite(values).all():
        raise ImageError("it has values that are not finite numbers (NaN or infinite): replace them")
    low, high = float(values.min()), float(values.max())
    stated = [_number(tags.get(tag, tags.get(exif_tag))) for tag, exif_tag in ((340, 280), (341, 281))]
    if stated[1] is not None and stated[1] > (stated[0] or 0.0):
        bottom, top = stated[0] or 0.0, stated[1]
        if low < bottom or high > top:
            raise ImageError(
                f"its values, {low:g} to {high:g}, are outside the range that the file states, {bottom:g} to {top:g}"
            )
    else:
        bottom, top = 0.0, _top(opened, low, high)
    grey = values // 256 if top == 65535 else np.rint((values.astype(np.float64) - bottom) * (255 / (top - bottom)))
    out: NDArray[np.uint8] = grey.astype(np.uint8)
    return 255 - out if tags.get(262) == 0 else out


def _number(value: Any) -> float | None:
    value = value[0] if isinstance(value, tuple) and value else value
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None


def _top(opened: Image.Image, low: float, high: float) -> float:
    """The value that is white, of an image whose values are between ``low`` and ``high``."""
    bits = _bits(opened, b"") if opened.format == "TIFF" else 16
    if low < 0:
        raise ImageError(f"its values start at {low:g}, below 0: save it with values from 0 to 1, or with 8 bits")
    if opened.mode == "F":
        whole = high <= 255 and not np.mod(np.asarray(opened), 1).any()
        if high <= 1:
            return 1.0
        if high <= 255 and (high >= 128 or whole):
            return 255.0
    elif opened.mode != "I" or bits == 16:
        signed = opened.mode == "I" and opened.format == "TIFF"
        top = 32767.0 if signed else {12: 4095.0}.get(bits, 65535.0)
        if opened.format != "PPM" and bits == 16:  # PPM states its range, and Pillow scales by it
            _refuse_dark(high)
        return top
    elif high == 0 or 1 < high <= 255:
        return 255.0
    elif _DARK < high <= 65535:
        return 65535.0
    raise ImageError(
        f"its values reach {high:g}, and the file does not say which value is white: save it with values from 0"
        " to 1, or with 8 bits"
    )


#: A 16-bit image that is not black and has no larger value has 12 bits or fewer: it would come out black.
_DARK = 4095


def _refuse_dark(high: float) -> None:
    if 0 < high <= _DARK:
        raise ImageError(
            f"it has 16 bits and no value above {high:g}: 12 bits or fewer stored in 16, or almost black;"
            " save it scaled to 8 bits"
        )


# --- checks of the encoded bytes -------------------------------------------------------------------------------------

_PNG = b"\x89PNG\r\n\x1a\n"


def _refuse_by_content(data: bytes) -> None:
    if not data:
        raise ImageError("the file is empty")
    if data.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")):  # Pillow would run Ghostscript on it
        raise ImageError("a PostScript file, not an image")
    if data[4:8] == b"ftyp" and importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    if data.startswith(_PNG):
        _check_png(data)


def _check_png(data: bytes, start: int = 0) -> None:
    """Check every chunk's checksum, which Pillow skips for the pixels; a file cut off after its pixels is accepted."""
    place = start + len(_PNG)
    while place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        end = place + 12 + length
        name = kind.decode("ascii", "backslashreplace")
        if end > len(data):
            if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
                raise ImageError(f"image file is truncated (the PNG ends in its chunk {name})")
            return
        if zlib.crc32(data[place + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ImageError(f"the PNG is damaged: the checksum of its chunk {name} is wrong")
        if kind == b"IEND":
            return
        place = end


def _check_png_inside(data: bytes) -> None:
    """Check the PNG files inside an icon file."""
    start = data.find(_PNG)
    while start >= 0:
        _check_png(data, start)
        start = data.find(_PNG, start + 1)


def _check_tiff(opened: Image.Image, data: bytes) -> None:
    """Check the checksums of a deflated TIFF, which libtiff skips, and refuse signed numbers of 8 bits, which Pillow
    reads as unsigned."""
    tags: Any = getattr(opened, "tag_v2", {})
    if _number(tags.get(339)) == 2 and _bits(opened, b"") == 8:
        raise ImageError("it has signed numbers of 8 bits, which Pillow reads as unsigned: save it unsigned")
    if tags.get(259) not in (8, 32946):
        return
    places, sizes = (tags.get(273, ()), tags.get(279, ())) if 273 in tags else (tags.get(324, ()), tags.get(325, ()))
    for place, size in zip(places, sizes, strict=False):
        try:
            zlib.decompress(data[place : place + size])
        except zlib.error as error:
            raise ImageError(f"the TIFF is damaged: {' '.join(str(error).split())}") from error


class _Strict:
    """A context, for any number of threads at once: truncated files are errors, whatever another library has set, and
    what Pillow warns of is not shown. The first thread in sets both for the process, the last one out puts them back.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        from PIL import ImageFile

        with self._lock:
            if not self._inside:
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.simplefilter("ignore")
                self._before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        from PIL import ImageFile

        with self._lock:
            self._inside -= 1
            if not self._inside:
                ImageFile.LOAD_TRUNCATED_IMAGES = self._before
                self._warnings.__exit__(None, None, None)


_STRICT = _Strict()


def error_reason(error: BaseException, data: bytes = b"") -> str:
    """Why an image cannot be decoded, in one line; ``data``: its bytes, to name formats that Pillow cannot read."""
    text = " ".join(str(error).split())
    if "cannot identify image file" in text:
        if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
            return "a TIFF of a kind that Pillow cannot read: save it with 8 bits a channel"
        if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"):
            return "a HEIC image, which Pillow reads only with the package pillow-heif"
        return "not an image that Pillow can read"
    return text or type(error).__name__
