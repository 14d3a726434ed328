"""Image files to pixels: decoding and resizing in worker processes, into a memory-mapped cache that can be resumed.

An image is opened with Pillow, laid on white where it is transparent, turned to RGB, turned upright as its EXIF data
say (not under the official rules, whose loaders do not), then resized and cropped as the backbone's processor says
(:class:`methods.parts.preprocessing.ImageProcessing`). Grey of 16 bits, whole or floating-point numbers is scaled to 8
bits where its range is known, else refused. Of several frames the first counts; the checksums of a PNG are checked. A
image that cannot be decoded is reported by name and never replaced.

The cache is a sparse file of 8-bit pixels, one slot an image, and a small table that says which slots are filled, from
which file state, with which checksum; what is filled is never decoded again, whatever happened to the process that
filled it, and a slot whose checksum does not fit (the machine went down) is filled anew. Several processes may share
it. It lies in ``$UCDR_BENCH_CACHE`` (``off``: none), else in the user's cache folder; where it cannot be written,
images are decoded each time, with a warning. ``$UCDR_BENCH_WORKERS`` sets the number of worker processes. Nothing
here imports torch or pandas, so that workers start quickly.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import multiprocessing
import os
import shutil
import signal
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from methods.parts.preprocessing import ImageProcessing

if TYPE_CHECKING:
    from PIL import Image

#: Raised when the way from file to pixels changes; part of every cache key.
RECIPE = "processor-exif-white-4"

#: Fewer images than this are decoded in the calling process.
POOL_FROM = 24

#: Images in one job of a worker.
CHUNK = 32

#: Room on the disk that the cache leaves alone, in bytes.
SPARE = 1 << 30

#: A progress bar is shown from this many images on (on a terminal).
BAR_FROM = 2000


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

    Left out is what needs another program (PostScript, PDF, Windows metafiles) or is no image by itself (MPEG, HDF5).
    HEIC is among them only where the package ``pillow_heif`` is installed.
    """
    from PIL import features

    endings: tuple[str, ...] = _ENDINGS
    endings += _JPEG_2000 if features.check("jpg_2000") else ()
    endings += _AVIF if features.check("avif") else ()
    return endings + (HEIF_ENDINGS if importlib.util.find_spec("pillow_heif") else ())


class ImageError(ValueError):
    """An image that cannot be read or decoded; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class Checked:
    """What decoding said about one image: its number, the sha256 of its file, and why it is broken ("" if whole);
    ``checksum``: CRC-32 of the pixels where they were stored; ``orientation``: how its EXIF data say it lies, 1 to 8 (1
    upright), where it was decoded as a whole."""

    row: int
    sha256: str
    reason: str
    checksum: int = 0
    orientation: int = 1


def decode(data: bytes, how: int | ImageProcessing | None = None) -> NDArray[np.uint8]:
    """RGB pixels of an encoded image: uint8 ``[3, size, size]``, or ``[3, H, W]`` as it is without ``how``.

    ``how``: the processing of a backbone or its ``image_size``, which carries it; any other size is OpenAI's own (the
    central square, bicubic). The image is turned as its EXIF data say, unless the processing says "as stored".

    Raises :class:`ImageError` with the reason in one line.
    """
    how = None if how is None else ImageProcessing.at(how)
    image, _ = upright(data, turn=how is None or how.orientation == "exif")
    try:
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)) if how is None else how.apply(image)
    except Exception as error:  # MemoryError and what Pillow raises for absurd sizes
        raise ImageError(_reason(error)) from error


def upright(data: bytes, *, turn: bool = True) -> tuple[Image.Image, int]:
    """The RGB image in an encoded image, turned as its EXIF data say, and what they say: 1 (upright) to 8.

    ``turn=False`` leaves it as it is stored (a TIFF is turned by Pillow all the same).
    Raises :class:`ImageError` with the reason in one line.
    """
    from PIL import Image

    _refuse_by_content(data)
    try:
        with warnings.catch_warnings(), _whole_files_only():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as opened:
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
        raise ImageError(_reason(error, data)) from error


#: EXIF orientation to Pillow's ``Image.Transpose``, by number.
_TURNS: Any = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


def _turns(opened: Image.Image, orientation: int) -> bool:
    return orientation in _TURNS and opened.format != "TIFF"


def _orientation(opened: Image.Image) -> int:
    """1 to 8; 1 where nothing is said, or nothing that can be read."""
    try:
        orientation = opened.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF data say nothing of the pixels
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
    leave no doubt. Raises :class:`ImageError` where the range is not known."""
    values = np.asarray(opened)
    tags = getattr(opened, "tag_v2", {}) if opened.format == "TIFF" else {}
    if opened.mode == "I" and tags and _number(tags.get(339, 1)) == 1 and _bits(opened, b"") == 32:
        values = values.view(np.uint32)  # Pillow takes them for signed
    if opened.mode.startswith("I;16") and values.dtype != np.uint16:
        values = values.view(np.uint16) if values.dtype.itemsize == 2 else values
    if not np.isfinite(values).all():
        raise ImageError("it has values that are not finite numbers (NaN or infinite): replace them")
    low, high = float(values.min()), float(values.max())
    stated = [_number(tags.get(one, tags.get(other))) for one, other in ((340, 280), (341, 281))]
    if stated[1] is not None and stated[1] > (stated[0] or 0.0):
        bottom, top = stated[0] or 0.0, stated[1]
        if low < bottom or high > top:
            raise ImageError(f"its values, {low:g} to {high:g}, leave the range it states, {bottom:g} to {top:g}")
    else:
        bottom, top = 0.0, _top(opened, low, high)
    grey = values // 256 if top == 65535 else np.rint((values.astype(np.float64) - bottom) * (255 / (top - bottom)))
    out: NDArray[np.uint8] = grey.astype(np.uint8)
    return 255 - out if tags.get(262) == 0 else out


def _number(value: Any) -> float | None:
    value = value[0] if isinstance(value, tuple) and value else value
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None


def _top(opened: Image.Image, low: float, high: float) -> float:
    """The value that is white, of an image whose values lie between ``low`` and ``high``."""
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


#: A 16-bit image that is not black and has no larger value holds 12 bits or fewer: it would come out black.
_DARK = 4095


def _refuse_dark(high: float) -> None:
    if 0 < high <= _DARK:
        raise ImageError(
            f"it has 16 bits and no value above {high:g}: 12 bits or fewer in 16, or all but black; save it scaled to 8"
            " bits"
        )


# --- what can be told from the bytes ----------------------------------------------------------------------------------

_PNG = b"\x89PNG\r\n\x1a\n"


def _refuse_by_content(data: bytes) -> None:
    if not data:
        raise ImageError("the file is empty")
    if data.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")):  # Pillow would run Ghostscript on it
        raise ImageError("a PostScript file, no image")
    if data[4:8] == b"ftyp" and importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    if data.startswith(_PNG):
        _check_png(data)


def _check_png(data: bytes, start: int = 0) -> None:
    """Check every chunk's checksum, which Pillow skips for the pixels; a file cut off behind its pixels is whole."""
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
    """Icons hold PNG files."""
    start = data.find(_PNG)
    while start >= 0:
        _check_png(data, start)
        start = data.find(_PNG, start + 1)


def _check_tiff(opened: Image.Image, data: bytes) -> None:
    """Check the checksums of a deflated TIFF, which libtiff skips, and refuse signed numbers of 8 bits, which Pillow
    takes for unsigned ones."""
    tags: Any = getattr(opened, "tag_v2", {})
    if _number(tags.get(339)) == 2 and _bits(opened, b"") == 8:
        raise ImageError("it has signed numbers of 8 bits, of which Pillow makes other ones: save it unsigned")
    if tags.get(259) not in (8, 32946):
        return
    places, sizes = (tags.get(273, ()), tags.get(279, ())) if 273 in tags else (tags.get(324, ()), tags.get(325, ()))
    for place, size in zip(places, sizes, strict=False):
        try:
            zlib.decompress(data[place : place + size])
        except zlib.error as error:
            raise ImageError(f"the TIFF is damaged: {' '.join(str(error).split())}") from error


@contextlib.contextmanager
def _whole_files_only() -> Iterator[None]:
    """Truncated files are errors, whatever another library has set."""
    from PIL import ImageFile

    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _reason(error: BaseException, data: bytes = b"") -> str:
    text = " ".join(str(error).split())
    if "cannot identify image file" in text:
        if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
            return "a TIFF of a kind that Pillow cannot read: save it with 8 bits a channel"
        if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"):
            return "a HEIC image, which Pillow reads only with the package pillow-heif"
        return "not an image that Pillow can read"
    return text or type(error).__name__


def workers_wanted() -> int:
    """``UCDR_BENCH_WORKERS`` if set, else the processors this process may use, at most 16."""
    given = os.environ.get("UCDR_BENCH_WORKERS", "")
    if given.isdecimal():
        return max(1, int(given))
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, allowed)


def cache_folder() -> Path | None:
    """Where the image cache lies; None if it is switched off, or (with a warning) if no home folder is known."""
    given = os.environ.get("UCDR_BENCH_CACHE", "")
    if given.lower() == "off":
        return None
    try:
        if given:
            return Path(given).expanduser()
        home = os.environ.get("XDG_CACHE_HOME")
        return (Path(home) if home else Path.home() / ".cache") / "ucdr-bench"
    except RuntimeError:
        warnings.warn(
            f"no cache: the home folder of {given or '~'} is not known; set UCDR_BENCH_CACHE to a folder",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


# --- worker side ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """Images for one worker. ``how`` None: only decode and hash; ``slots``: write pixels there, else return them.

    ``expected``: each file's sha256, where it is known; other content is refused.
    """

    rows: tuple[int, ...]
    files: tuple[str, ...]
    how: ImageProcessing | None
    slots: str | None
    hashes: bool
    expected: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Answer:
    checked: list[Checked]
    pixels: NDArray[np.uint8] | None


def _leave_interrupts_to_the_caller() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(job: _Job) -> _Answer:
    checked: list[Checked] = []
    keep = job.how is not None and job.slots is None
    side = 0 if job.how is None else job.how.size
    pixels = np.zeros((len(job.rows), 3, side, side), dtype=np.uint8) if keep else None
    slots = os.open(job.slots, os.O_WRONLY | getattr(os, "O_BINARY", 0)) if job.slots is not None else None
    try:
        for place, (row, file) in enumerate(zip(job.rows, job.files, strict=True)):
            digest, reason, checksum, orientation = "", "", 0, 1
            try:
                data = Path(file).read_bytes()
                digest = hashlib.sha256(data).hexdigest() if job.hashes or job.expected else ""
                if job.expected and _is_hash(job.expected[place]) and digest != job.expected[place]:
                    raise ImageError("it was replaced since its content was read; start the command again")
                if job.how is None:
                    orientation = upright(data)[1]
                else:
                    decoded = decode(data, job.how)
            except OSError as error:
                reason = error.strerror or _reason(error)
            except ImageError as error:
                reason = str(error)
            else:
                if pixels is not None:
                    pixels[place] = decoded
                elif slots is not None and job.how is not None:
                    raw = decoded.tobytes()
                    checksum = zlib.crc32(raw)
                    _write(slots, raw, row * len(raw))
            checked.append(Checked(row, digest, reason, checksum, orientation))
    finally:
        if slots is not None:
            os.close(slots)
    return _Answer(checked, pixels)


def _is_hash(text: str) -> bool:
    return len(text) == 64 and " " not in text


def _write(descriptor: int, data: bytes, offset: int) -> None:
    """Plain writes, not a mapping: a full disk is then an error and not a dead process."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


# --- calling side -----------------------------------------------------------------------------------------------------

_pool: ProcessPoolExecutor | None = None


def _run(jobs: Iterable[_Job], count: int) -> Iterator[_Answer]:
    """Answers in order of completion; a few jobs ahead of the workers at a time. In this process where a pool is not
    worth it or cannot be had."""
    global _pool
    workers = workers_wanted()
    if workers == 1 or count < POOL_FROM or multiprocessing.current_process().daemon:
        yield from map(_work, jobs)
        return
    if _pool is None:
        _pool = ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn"), initializer=_leave_interrupts_to_the_caller
        )
    queue = iter(jobs)
    running: dict[Future[_Answer], _Job] = {}
    try:
        while True:
            while len(running) < 2 * workers and (job := next(queue, None)) is not None:
                with _interrupts_wait():
                    running[_pool.submit(_work, job)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                answer = future.result()
                del running[future]
                yield answer
    except BrokenProcessPool:
        _pool = None
        warnings.warn("worker processes died; images are decoded in this process", RuntimeWarning, stacklevel=2)
        yield from map(_work, [*running.values(), *queue])
    finally:
        for future in running:
            future.cancel()


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C reaches this process afterwards, and never the processes started meanwhile: not even while they import."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _jobs(
    rows: Sequence[int] | NDArray[np.int64],
    file_of: Callable[[int], str],
    how: ImageProcessing | None,
    slots: Path | None,
    *,
    hashes: bool = False,
    expected: Sequence[str] = (),
) -> Iterator[_Job]:
    target = None if slots is None else str(slots)
    chunk = max(1, min(CHUNK, -(-len(rows) // workers_wanted())))
    for start in range(0, len(rows), chunk):
        part = tuple(int(row) for row in rows[start : start + chunk])
        known = tuple(expected[row] for row in part) if expected else ()
        yield _Job(part, tuple(file_of(row) for row in part), how, target, hashes, known)


def check_images(files: Sequence[str], *, progress: bool = True) -> Iterator[Checked]:
    """Read, hash and fully decode image files in worker processes; one answer a file, in no particular order.

    ``row`` of an answer is the position in ``files``. Broken images come with a reason; nothing is raised for them.
    """
    with bar(len(files), "images checked", show=progress) as advance:
        for answer in _run(_jobs(range(len(files)), files.__getitem__, None, None, hashes=True), len(files)):
            advance(len(answer.checked))
            yield from answer.checked


@contextlib.contextmanager
def bar(total: int, what: str, *, show: bool = True) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, or a line a minute where that is no terminal; yields ``advance(count)``."""
    if not show:
        yield lambda count: None
        return
    if not sys.stderr.isatty():
        from benchmarks.console import Lines

        yield Lines(total, what).advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn(what), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


class ImageStore:
    """Pixels of N image files under one processing, decoded once and kept in the cache folder.

    ``files`` are paths; ``stamps [N, 2]`` (int64) name each file's content, and a slot is only used while they are what
    they were when it was filled; ``identity`` names the list of images (names and contents), so that another copy of
    the same images shares the cache and no two sets that differ do. ``how``: the processing of a backbone, or a size in
    pixels for OpenAI's own; mean and deviation do not count. ``hashes``: each file's sha256 where it is known (anything
    but 64 digits: not known); a file that has other content when it is decoded counts as broken.
    """

    def __init__(
        self,
        files: Sequence[str],
        stamps: NDArray[np.int64],
        identity: str,
        how: int | ImageProcessing,
        folder: Path | None,
        *,
        hashes: Sequence[str] = (),
    ) -> None:
        self.files = files
        self._hashes = hashes
        self.how = ImageProcessing.at(how)
        self.size = self.how.size
        self.decoded = 0
        self._stamps = np.asarray(stamps, dtype=np.int64).reshape(len(files), 2)
        self._folder = None
        self._warned = False
        self._trusted = np.zeros(len(files), dtype=bool)
        if folder is not None and len(files):
            key = hashlib.sha256(f"{RECIPE}\n{identity}\n{self._geometry}".encode()).hexdigest()[:32]
            self._folder = folder / "pictures" / key
            try:
                self._open(self._folder)
            except OSError as error:
                self._without(f"the image cache {self._folder} cannot be used ({error.strerror or error})")

    @property
    def folder(self) -> Path | None:
        """This store's folder in the cache; None where nothing is kept."""
        return self._folder

    @property
    def _geometry(self) -> str:
        return json.dumps(self.how.geometry(), sort_keys=True)

    @property
    def slot_bytes(self) -> int:
        """Bytes of one image."""
        return 3 * self.size * self.size

    def pixels(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 ``[B, 3, size, size]`` of the files at ``rows``.

        Raises :class:`ImageError` naming the first broken image and the number of them among ``rows``.
        """
        rows = np.asarray(rows, dtype=np.int64)
        wanted = np.unique(rows)
        if self.keep(wanted):
            out: NDArray[np.uint8] = self._slots[rows]
            return out
        out = np.empty((len(wanted), 3, self.size, self.size), dtype=np.uint8)
        broken: list[Checked] = []
        for answer in _run(self._jobs(wanted, None), len(wanted)):
            assert answer.pixels is not None
            out[np.searchsorted(wanted, [one.row for one in answer.checked])] = answer.pixels
            broken += [one for one in answer.checked if one.reason]
            self.decoded += len(answer.checked)
        self._refuse(broken)
        return out[np.searchsorted(wanted, rows)]

    def keep(self, rows: NDArray[np.int64]) -> bool:
        """Decode into the cache what of ``rows`` is not there yet; False where it cannot be kept.

        Raises :class:`ImageError` as :meth:`pixels` does.
        """
        if self._folder is None:
            return False
        missing = rows[~self._whole(rows)]
        if len(missing) and not self._room(len(missing)):
            return False
        try:
            self._fill(missing)
        except OSError as error:  # a full disk or quota; broken files are no OSError here
            self._without(f"the image cache {self._folder} cannot be written ({error.strerror or error})")
            return False
        return True

    def filled(self) -> int:
        """Number of images in the cache."""
        return 0 if self._folder is None else int(self._filled(np.arange(len(self.files))).sum())

    def _fill(self, rows: NDArray[np.int64]) -> None:
        broken: list[Checked] = []
        with bar(len(rows), "images decoded", show=len(rows) >= BAR_FROM) as advance:
            for answer in _run(self._jobs(rows, self._slots_file), len(rows)):
                whole = [one.row for one in answer.checked if not one.reason]
                self._state["stamp"][whole] = self._stamps[whole]
                self._state["checksum"][whole] = [one.checksum for one in answer.checked if not one.reason]
                self._state["filled"][whole] = 1
                self._trusted[whole] = True
                broken += [one for one in answer.checked if one.reason]
                self.decoded += len(answer.checked)
                advance(len(answer.checked))
        self._refuse(broken)

    def _jobs(self, rows: NDArray[np.int64], slots: Path | None) -> Iterator[_Job]:
        return _jobs(rows, self.files.__getitem__, self.how, slots, expected=self._hashes)

    def _filled(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        state = self._state[rows]
        out: NDArray[np.bool_] = (state["filled"] == 1) & (state["stamp"] == self._stamps[rows]).all(axis=1)
        return out

    def _whole(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Filled, and with the checksum it was filled with (looked at once a process)."""
        whole = self._filled(rows)
        for place in np.flatnonzero(whole & ~self._trusted[rows]):
            row = rows[place]
            whole[place] = self._trusted[row] = zlib.crc32(self._slots[row]) == self._state["checksum"][row]
        return whole

    def _open(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        count = len(self.files)
        self._slots_file, state_file = folder / "pixels.u8", folder / "state.bin"
        kind = np.dtype([("filled", "u1"), ("checksum", "<u4"), ("stamp", "<i8", (2,))])
        for file, length in ((self._slots_file, count * self.slot_bytes), (state_file, count * kind.itemsize)):
            if not file.exists() or file.stat().st_size != length:
                with file.open("ab") as new:  # never cuts off what another process has written already
                    new.truncate(length)
        about = {"recipe": RECIPE, "pictures": count, **self.how.geometry(), "first": self.files[0]}
        (folder / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        self._state = np.memmap(state_file, dtype=kind, mode="r+", shape=(count,))
        self._slots = np.memmap(self._slots_file, dtype=np.uint8, mode="r", shape=(count, 3, self.size, self.size))

    def _room(self, count: int) -> bool:
        assert self._folder is not None
        free = shutil.disk_usage(self._folder).free
        if free >= count * self.slot_bytes + SPARE:
            return True
        if not self._warned:
            gib = len(self.files) * self.slot_bytes / 2**30
            warnings.warn(
                f"{self._folder} has no room for more images ({gib:.1f} GiB for all at {self.size} x {self.size}): "
                "they are decoded again each time; set UCDR_BENCH_CACHE to a folder with room",
                RuntimeWarning,
                stacklevel=4,
            )
            self._warned = True
        return False

    def _without(self, why: str) -> None:
        self._folder = None
        warnings.warn(f"{why}: images are decoded each time they are used", RuntimeWarning, stacklevel=4)

    def _refuse(self, broken: list[Checked]) -> None:
        if broken:
            first = min(broken, key=lambda one: one.row)
            others = f" ({len(broken)} of the images asked for are broken)" if len(broken) > 1 else ""
            raise ImageError(f"{self.files[first.row]} is broken: {first.reason}{others}")
