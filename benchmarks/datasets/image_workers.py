"""Workers that read, hash and decode image files (``$UCDR_BENCH_WORKERS`` sets their number): processes, or threads
where there are few images or this process cannot start others. Pillow decodes and resizes without Python's lock.

Nothing here imports torch or pandas, so that workers start quickly.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.console import Lines
from benchmarks.datasets.decoding import ImageError, decode, error_reason, upright
from methods.parts.preprocessing import ImageProcessing

#: Fewer images than this are decoded by threads of this process.
POOL_FROM = 24

#: Images in one job of a worker.
CHUNK = 32


@dataclass(frozen=True)
class CheckedImage:
    """The result of decoding one image: its row, the sha256 of its file, and why it is broken ("" if it is not).

    ``checksum``: CRC-32 of the pixels where they were stored; ``orientation``: its EXIF orientation, 1 to 8 (1 is
    upright), where the whole file was checked.
    """

    row: int
    sha256: str
    reason: str
    checksum: int = 0
    orientation: int = 1


@dataclass(frozen=True)
class Job:
    """Images for one worker. ``how`` None: only decode and hash; ``slots``: write the pixels to this file, else return
    them.

    ``expected``: each file's sha256, where it is known; other content is refused.
    """

    rows: tuple[int, ...]
    files: tuple[str, ...]
    how: ImageProcessing | None
    slots: str | None
    hashes: bool
    expected: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobResult:
    """The images of one job; ``pixels``: uint8 ``[B, 3, size, size]`` where the job asked for them."""

    checked: list[CheckedImage]
    pixels: NDArray[np.uint8] | None


def check_images(files: Sequence[str], *, progress: bool = True) -> Iterator[CheckedImage]:
    """Read, hash and fully decode image files in worker processes; one result a file, in no particular order.

    ``row`` of a result is the position in ``files``. Broken images come with a reason; nothing is raised for them.
    """
    with progress_bar(len(files), "images checked", show=progress) as advance:
        for result in run_jobs(make_jobs(range(len(files)), files.__getitem__, None, None, hashes=True), len(files)):
            advance(len(result.checked))
            yield from result.checked


def worker_count() -> int:
    """``UCDR_BENCH_WORKERS`` if set, else the processors this process may use, at most 16."""
    given = os.environ.get("UCDR_BENCH_WORKERS", "")
    if given.isdecimal():
        return max(1, int(given))
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, allowed)


@contextlib.contextmanager
def progress_bar(total: int, what: str, *, show: bool = True) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, or a line a minute where that is no terminal; yields ``advance(count)``."""
    if not show:
        yield lambda count: None
        return
    if not sys.stderr.isatty():
        yield Lines(total, what).advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn(what), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def make_jobs(
    rows: Sequence[int] | NDArray[np.int64],
    file_of: Callable[[int], str],
    how: ImageProcessing | None,
    slots: Path | None,
    *,
    hashes: bool = False,
    expected: Sequence[str] = (),
) -> Iterator[Job]:
    """Jobs of at most :data:`CHUNK` images; arguments as the fields of :class:`Job`, ``file_of`` gives a row's path."""
    target = None if slots is None else str(slots)
    chunk = max(1, min(CHUNK, -(-len(rows) // worker_count())))
    for start in range(0, len(rows), chunk):
        part = tuple(int(row) for row in rows[start : start + chunk])
        known = tuple(expected[row] for row in part) if expected else ()
        yield Job(part, tuple(file_of(row) for row in part), how, target, hashes, known)


_pool: ProcessPoolExecutor | None = None
_starting = threading.Lock()


def run_jobs(jobs: Iterable[Job], count: int) -> Iterator[JobResult]:
    """Run jobs by worker processes and yield their results in order of completion; only a few jobs are queued at a
    time. Few images, or a process that cannot start others (itself a worker of a run): by threads; one worker: by the
    calling thread."""
    global _pool
    workers = worker_count()
    if workers == 1 or count == 1:
        yield from map(_work, jobs)
    elif count < POOL_FROM or multiprocessing.current_process().daemon:
        with ThreadPoolExecutor(workers, thread_name_prefix="decoding") as threads:
            yield from _results(threads, jobs, workers)
    else:
        with _starting:
            if _pool is None:
                _pool = ProcessPoolExecutor(
                    workers, mp_context=multiprocessing.get_context("spawn"), initializer=_ignore_interrupts
                )
            pool = _pool
        yield from _results(pool, jobs, workers)


def _results(pool: Executor, jobs: Iterable[Job], workers: int) -> Iterator[JobResult]:
    global _pool
    queue = iter(jobs)
    running: dict[Future[JobResult], Job] = {}
    try:
        while True:
            while len(running) < 2 * workers and (job := next(queue, None)) is not None:
                with _interrupts_wait():
                    running[pool.submit(_work, job)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                result = future.result()
                del running[future]
                yield result
    except BrokenProcessPool:
        _pool = None
        warnings.warn("worker processes died; images are decoded in this process", RuntimeWarning, stacklevel=2)
        yield from map(_work, [*running.values(), *queue])
    finally:
        for future in running:
            future.cancel()


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C reaches this process after the block, and never the processes started in it, even while they import."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(job: Job) -> JobResult:
    checked: list[CheckedImage] = []
    keep = job.how is not None and job.slots is None
    side = 0 if job.how is None else job.how.size
    pixels = np.zeros((len(job.rows), 3, side, side), dtype=np.uint8) if keep else None
    slots = os.open(job.slots, os.O_WRONLY | getattr(os, "O_BINARY", 0)) if job.slots is not None else None
    try:
        for position, (row, file) in enumerate(zip(job.rows, job.files, strict=True)):
            digest, reason, checksum, orientation = "", "", 0, 1
            try:
                data = Path(file).read_bytes()
                digest = hashlib.sha256(data).hexdigest() if job.hashes or job.expected else ""
                if job.expected and _is_hash(job.expected[position]) and digest != job.expected[position]:
                    raise ImageError("the file changed after its content was hashed; start the command again")
                if job.how is None:
                    orientation = upright(data)[1]
                else:
                    decoded = decode(data, job.how)
            except OSError as error:
                reason = error.strerror or error_reason(error)
            except ImageError as error:
                reason = str(error)
            else:
                if pixels is not None:
                    pixels[position] = decoded
                elif slots is not None and job.how is not None:
                    raw = decoded.tobytes()
                    checksum = zlib.crc32(raw)
                    _write(slots, raw, row * len(raw))
            checked.append(CheckedImage(row, digest, reason, checksum, orientation))
    finally:
        if slots is not None:
            os.close(slots)
    return JobResult(checked, pixels)


def _is_hash(text: str) -> bool:
    return len(text) == 64 and " " not in text


def _write(descriptor: int, data: bytes, offset: int) -> None:
    """Write with ``os.write``, not through a memory map: a full disk is then an error and does not kill the process."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
