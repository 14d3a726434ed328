"""Picture files to pixels: decoding and resizing in worker processes, into a memory-mapped cache that can be resumed.

A picture is opened with Pillow, laid on white where it is transparent, turned to RGB, cropped to its central square and
resized with bicubic interpolation (CLIP's evaluation preprocessing without the normalisation). EXIF orientation is not
applied, as in the published loaders; 16-bit grey is scaled to 8 bits (they clip it to white). Of several frames the
first counts. A picture that cannot be decoded is reported by name and never replaced.

The cache is a sparse file of 8-bit pixels, one slot a picture, and a small table that says which slots are filled, from
which file state, with which checksum; what is filled is never decoded again, whatever happened to the process that
filled it, and a slot whose checksum does not fit (the machine went down) is filled anew. Several processes may share
it. It lies in ``$UCDR_BENCH_CACHE`` (``off``: none), else in the user's cache folder; where it cannot be written,
pictures are decoded each time, with a warning. ``$UCDR_BENCH_WORKERS`` sets the number of worker processes. Nothing
here imports torch or pandas, so that workers start quickly.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

#: Raised when the way from file to pixels changes; part of every cache key.
RECIPE = "fit-bicubic-white-3"

#: Fewer pictures than this are decoded in the calling process.
POOL_FROM = 24

#: Pictures in one job of a worker.
CHUNK = 32

#: Room on the disk that the cache leaves alone, in bytes.
SPARE = 1 << 30

#: A progress bar is shown from this many pictures on (on a terminal).
BAR_FROM = 2000


class PictureError(ValueError):
    """A picture that cannot be read or decoded; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class Checked:
    """What decoding said about one picture: its number, the sha256 of its file, and why it is broken ("" if whole);
    ``checksum``: CRC-32 of the pixels where they were stored."""

    row: int
    sha256: str
    reason: str
    checksum: int = 0


def decode(data: bytes, size: int | None = None) -> NDArray[np.uint8]:
    """RGB pixels of an encoded picture: uint8 ``[3, size, size]``, or ``[3, H, W]`` as it is without ``size``.

    Raises :class:`PictureError` with the reason in one line.
    """
    from PIL import Image, ImageOps

    if not data:
        raise PictureError("the file is empty")
    if data.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")):  # Pillow would run Ghostscript on it
        raise PictureError("a PostScript file, no picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as opened:
                opened.load()
                picture: Image.Image = opened
                if picture.mode == "I" or picture.mode.startswith("I;16"):
                    picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 256).astype(np.uint8))
                if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
                    layer = picture.convert("RGBA")
                    picture = Image.new("RGBA", layer.size, "white")
                    picture.alpha_composite(layer)
                picture = picture.convert("RGB")
                if size is not None and picture.size != (size, size):
                    picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
                return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))
    except Exception as error:  # Pillow raises almost anything on damaged files
        raise PictureError(_reason(error)) from error


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if "cannot identify image file" in text:
        return "not a picture that Pillow can read"
    return text or type(error).__name__


def workers_wanted() -> int:
    """``UCDR_BENCH_WORKERS`` if set, else the processors this process may use, at most 16."""
    given = os.environ.get("UCDR_BENCH_WORKERS", "")
    if given.isdecimal():
        return max(1, int(given))
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, allowed)


def cache_folder() -> Path | None:
    """Where the picture cache lies; None if it is switched off, or (with a warning) if no home folder is known."""
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
    """Pictures for one worker. ``size`` None: only decode and hash; ``slots``: write pixels there, else return them."""

    rows: tuple[int, ...]
    files: tuple[str, ...]
    size: int | None
    slots: str | None
    hashes: bool


@dataclass(frozen=True)
class _Answer:
    checked: list[Checked]
    pixels: NDArray[np.uint8] | None


def _leave_interrupts_to_the_caller() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(job: _Job) -> _Answer:
    checked: list[Checked] = []
    keep = job.size is not None and job.slots is None
    pixels = np.zeros((len(job.rows), 3, job.size or 0, job.size or 0), dtype=np.uint8) if keep else None
    slots = os.open(job.slots, os.O_WRONLY | getattr(os, "O_BINARY", 0)) if job.slots is not None else None
    try:
        for place, (row, file) in enumerate(zip(job.rows, job.files, strict=True)):
            digest, reason, checksum = "", "", 0
            try:
                data = Path(file).read_bytes()
                digest = hashlib.sha256(data).hexdigest() if job.hashes else ""
                decoded = decode(data, job.size)
            except OSError as error:
                reason = error.strerror or _reason(error)
            except PictureError as error:
                reason = str(error)
            else:
                if pixels is not None:
                    pixels[place] = decoded
                elif slots is not None:
                    raw = decoded.tobytes()
                    checksum = zlib.crc32(raw)
                    _write(slots, raw, row * len(raw))
            checked.append(Checked(row, digest, reason, checksum))
    finally:
        if slots is not None:
            os.close(slots)
    return _Answer(checked, pixels)


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
        warnings.warn("worker processes died; pictures are decoded in this process", RuntimeWarning, stacklevel=2)
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
    size: int | None,
    slots: Path | None,
    *,
    hashes: bool = False,
) -> Iterator[_Job]:
    target = None if slots is None else str(slots)
    chunk = max(1, min(CHUNK, -(-len(rows) // workers_wanted())))
    for start in range(0, len(rows), chunk):
        part = tuple(int(row) for row in rows[start : start + chunk])
        yield _Job(part, tuple(file_of(row) for row in part), size, target, hashes)


def check_pictures(files: Sequence[str], *, progress: bool = True) -> Iterator[Checked]:
    """Read, hash and fully decode picture files in worker processes; one answer a file, in no particular order.

    ``row`` of an answer is the position in ``files``. Broken pictures come with a reason; nothing is raised for them.
    """
    with bar(len(files), "pictures checked", show=progress) as advance:
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
        from benchmarks.progress import Lines

        yield Lines(total, what).advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn(what), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


class PictureStore:
    """Pixels of N picture files at one size, decoded once and kept in the cache folder.

    ``files`` are paths; ``stamps [N, 2]`` (int64) are each file's size and modification time, and a slot is only used
    while they are what they were when it was filled; ``identity`` names the list of pictures (names, sizes and a sample
    of contents), so that another copy of the same pictures shares the cache.
    """

    def __init__(
        self, files: Sequence[str], stamps: NDArray[np.int64], identity: str, size: int, folder: Path | None
    ) -> None:
        self.files = files
        self.size = size
        self.decoded = 0
        self._stamps = np.asarray(stamps, dtype=np.int64).reshape(len(files), 2)
        self._folder = None
        self._warned = False
        self._trusted = np.zeros(len(files), dtype=bool)
        if folder is not None and len(files):
            key = hashlib.sha256(f"{RECIPE}\n{identity}\n{size}".encode()).hexdigest()[:32]
            self._folder = folder / "pictures" / key
            try:
                self._open(self._folder)
            except OSError as error:
                self._without(f"the picture cache {self._folder} cannot be used ({error.strerror or error})")

    @property
    def folder(self) -> Path | None:
        """This store's folder in the cache; None where nothing is kept."""
        return self._folder

    @property
    def slot_bytes(self) -> int:
        """Bytes of one picture."""
        return 3 * self.size * self.size

    def pixels(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 ``[B, 3, size, size]`` of the files at ``rows``.

        Raises :class:`PictureError` naming the first broken picture and the number of them among ``rows``.
        """
        rows = np.asarray(rows, dtype=np.int64)
        wanted = np.unique(rows)
        if self.keep(wanted):
            out: NDArray[np.uint8] = self._slots[rows]
            return out
        out = np.empty((len(wanted), 3, self.size, self.size), dtype=np.uint8)
        broken: list[Checked] = []
        for answer in _run(_jobs(wanted, self.files.__getitem__, self.size, None), len(wanted)):
            assert answer.pixels is not None
            out[np.searchsorted(wanted, [one.row for one in answer.checked])] = answer.pixels
            broken += [one for one in answer.checked if one.reason]
            self.decoded += len(answer.checked)
        self._refuse(broken)
        return out[np.searchsorted(wanted, rows)]

    def keep(self, rows: NDArray[np.int64]) -> bool:
        """Decode into the cache what of ``rows`` is not there yet; False where it cannot be kept.

        Raises :class:`PictureError` as :meth:`pixels` does.
        """
        if self._folder is None:
            return False
        missing = rows[~self._whole(rows)]
        if len(missing) and not self._room(len(missing)):
            return False
        try:
            self._fill(missing)
        except OSError as error:  # a full disk or quota; broken files are no OSError here
            self._without(f"the picture cache {self._folder} cannot be written ({error.strerror or error})")
            return False
        return True

    def filled(self) -> int:
        """Number of pictures in the cache."""
        return 0 if self._folder is None else int(self._filled(np.arange(len(self.files))).sum())

    def _fill(self, rows: NDArray[np.int64]) -> None:
        broken: list[Checked] = []
        with bar(len(rows), "pictures decoded", show=len(rows) >= BAR_FROM) as advance:
            for answer in _run(_jobs(rows, self.files.__getitem__, self.size, self._slots_file), len(rows)):
                whole = [one.row for one in answer.checked if not one.reason]
                self._state["stamp"][whole] = self._stamps[whole]
                self._state["checksum"][whole] = [one.checksum for one in answer.checked if not one.reason]
                self._state["filled"][whole] = 1
                self._trusted[whole] = True
                broken += [one for one in answer.checked if one.reason]
                self.decoded += len(answer.checked)
                advance(len(answer.checked))
        self._refuse(broken)

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
        about = {"recipe": RECIPE, "pictures": count, "size": self.size, "first": self.files[0]}
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
                f"{self._folder} has no room for more pictures ({gib:.1f} GiB for all at {self.size} x {self.size}): "
                "they are decoded again each time; set UCDR_BENCH_CACHE to a folder with room",
                RuntimeWarning,
                stacklevel=4,
            )
            self._warned = True
        return False

    def _without(self, why: str) -> None:
        self._folder = None
        warnings.warn(f"{why}: pictures are decoded each time they are used", RuntimeWarning, stacklevel=4)

    def _refuse(self, broken: list[Checked]) -> None:
        if broken:
            first = min(broken, key=lambda one: one.row)
            others = f" ({len(broken)} of the pictures asked for are broken)" if len(broken) > 1 else ""
            raise PictureError(f"{self.files[first.row]} is broken: {first.reason}{others}")
