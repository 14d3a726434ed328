"""Content hashes of many files: read in threads, and remembered in the cache folder while a file is untouched.

A hash is the sha256 of a file's bytes. It is reused only where path, size, modification time, change time and inode
are what they were when the file was read; replacing a file, even by one of the same size with restored times, changes
the last two. A file that was written in the last :data:`SETTLED` seconds is not remembered: clocks of file systems are
coarse. Without a cache folder every start reads every file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.image_cache import cache_folder
from benchmarks.datasets.image_workers import worker_count

if TYPE_CHECKING:
    import pandas as pd

#: Seconds without a change after which a file's hash is kept.
SETTLED = 2.0

#: Seconds before progress is shown, and between two lines where there is no terminal.
PATIENCE, EVERY = 3.0, 60.0

#: Files that one thread checks at a time.
PART = 256

#: Bytes read at a time.
BLOCK = 1 << 20

_STAMP = ("size", "mtime_ns", "ctime_ns", "inode")


def file_hashes(paths: Sequence[str], *, name: str, what: str = "images read") -> list[str]:
    """sha256 of each file, hexadecimal, in order; "" for one that cannot be read.

    ``name`` names the file in the cache folder (files of one data set share one); ``what`` is shown in the progress.
    """
    cache = _HashFile(name)
    known = cache.load(paths)
    stamps = np.full((len(paths), len(_STAMP)), -1, dtype=np.int64)
    hashes = np.zeros(len(paths), dtype="U64")
    start = time.time()

    def stamp(rows: range) -> list[int]:
        """Stamp these files; returns those that must be read."""
        unread = []
        for row in rows:
            with contextlib.suppress(OSError, ValueError):
                stamps[row] = _stamp(os.stat(paths[row]))  # noqa: PTH116 - a million times
                if known is not None and (known.stamps[row] == stamps[row]).all():
                    hashes[row] = known.hashes[row]
                else:
                    unread.append(row)
        return unread

    def read(rows: Sequence[int]) -> int:
        """Read these files; returns their bytes."""
        for row in rows:
            with contextlib.suppress(OSError):
                hashes[row], stamps[row] = _read(paths[row])
        return int(stamps[rows, 0].clip(0).sum())

    with _threads() as threads:
        unread = [row for part in threads.map(stamp, _parts(len(paths))) for row in part]
        sizes = stamps[unread, 0].clip(0)
        with progress(len(unread), int(sizes.sum()), what) as advance:
            pieces = [unread[part.start : part.stop] for part in _parts(len(unread))]
            for piece, read_bytes in zip(pieces, threads.map(read, pieces), strict=True):
                advance(len(piece), read_bytes)
    if unread:
        cache.keep(paths, stamps, hashes, start)
    return hashes.tolist()


def remember(paths: Sequence[str], hashes: Sequence[str], *, name: str, start: float) -> None:
    """Keep hashes of files that the caller read since the time ``start`` in the cache file ``name``."""
    stamps = np.full((len(paths), len(_STAMP)), -1, dtype=np.int64)
    for row, path in enumerate(paths):
        with contextlib.suppress(OSError, ValueError):
            stamps[row] = _stamp(Path(path).stat())
    _HashFile(name).keep(paths, stamps, np.array(hashes, dtype="U64"), start)


def tree_hash(path: str | Path) -> str:
    """sha256 of a file, or of the names and contents of all files in a folder.

    Raises ``OSError`` if it cannot be read.
    """
    path = Path(path)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    names = [file.relative_to(path).as_posix() for file in files] if path.is_dir() else [""]
    hashes = file_hashes([str(file.resolve()) for file in files], name="files", what="files read")
    for file, digest in zip(files, hashes, strict=True):
        if not digest:
            file.open("rb").close()  # raises the reason
            raise OSError(None, "it changed while it was read", str(file))
    return hashlib.sha256("".join(map("{}\t{}\n".format, names, hashes)).encode()).hexdigest()


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that are cancelled after an error or Ctrl-C; more than processors, since they wait for the disk."""
    pool = ThreadPoolExecutor(2 * worker_count())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _parts(count: int) -> list[range]:
    return [range(start, min(start + PART, count)) for start in range(0, count, PART)]


def _stamp(about: os.stat_result) -> tuple[int, int, int, int]:
    inode = about.st_ino & (2**63 - 1)  # unsigned on some systems
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns, inode


def _read(path: str) -> tuple[str, tuple[int, int, int, int]]:
    """A file's sha256 and its stamp; raises ``OSError`` if it is written to meanwhile."""
    digest = hashlib.sha256()
    with Path(path).open("rb", buffering=0) as file:
        before = _stamp(os.fstat(file.fileno()))
        while block := file.read(BLOCK):
            digest.update(block)
        if _stamp(os.fstat(file.fileno())) != before:
            raise OSError(None, "it changed while it was read", path)
    return digest.hexdigest(), before


class _Known:
    """The known stamps and hashes, row by row; ``stamps`` -1 where there is nothing."""

    def __init__(self, stamps: NDArray[np.int64], hashes: NDArray[np.str_]) -> None:
        self.stamps, self.hashes = stamps, hashes


class _HashFile:
    """A file ``CACHE/contents/NAME.hashes``: a sha256, then the Parquet table that it is of, with path, stamp and
    sha256 (32 bytes) of each file. A damaged one is treated as empty."""

    def __init__(self, name: str) -> None:
        folder = cache_folder()
        self.file = None if folder is None else folder / "contents" / f"{name}.hashes"

    def load(self, paths: Sequence[str]) -> _Known | None:
        """The known stamps and hashes of these paths; None if there are none."""
        frame = self._frame()
        if frame is None:
            return None
        frame = frame.set_index("path").reindex(list(paths))
        there = frame["sha256"].notna().to_numpy()
        stamps = np.full((len(paths), len(_STAMP)), -1, dtype=np.int64)
        stamps[there] = frame.loc[there, list(_STAMP)].to_numpy(dtype=np.int64)
        hashes = np.zeros(len(paths), dtype="U64")
        hashes[there] = [value.hex() for value in frame.loc[there, "sha256"]]
        return _Known(stamps, hashes)

    def keep(self, paths: Sequence[str], stamps: NDArray[np.int64], hashes: NDArray[np.str_], start: float) -> None:
        """Add files whose hash is known and that were not touched since shortly before ``start``."""
        import pandas as pd

        if self.file is None:
            return
        still = stamps[:, 1:3].max(axis=1, initial=-1) < (start - SETTLED) * 1e9
        rows = np.flatnonzero((hashes != "") & (stamps[:, 0] >= 0) & still)
        new = pd.DataFrame(stamps[rows], columns=list(_STAMP))
        new.insert(0, "path", [paths[row] for row in rows.tolist()])
        new["sha256"] = [bytes.fromhex(hashes[row]) for row in rows]
        old = self._frame()
        whole = new if old is None else pd.concat([old[~old["path"].isin(set(paths))], new], ignore_index=True)
        with contextlib.suppress(OSError, ValueError):  # no room, no right, an odd name: the next start reads again
            self._write(whole)

    def _frame(self) -> pd.DataFrame | None:
        from pyarrow import parquet

        if self.file is None:
            return None
        try:
            data = self.file.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            return None
        frame: pd.DataFrame = parquet.read_table(io.BytesIO(data[32:])).to_pandas()
        return frame

    def _write(self, frame: pd.DataFrame) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        assert self.file is not None
        written = io.BytesIO()
        parquet.write_table(pa.Table.from_pandas(frame, preserve_index=False), written, compression="zstd")
        data = written.getvalue()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_suffix(f".{os.getpid()}.part")
        try:
            temporary.write_bytes(hashlib.sha256(data).digest() + data)
            temporary.replace(self.file)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def progress(count: int, size: int, what: str) -> Iterator[Advance]:
    """Show the progress of reading ``count`` files of ``size`` bytes in all.

    Nothing is shown in the first :data:`PATIENCE` seconds; then a bar on a terminal, else a line every :data:`EVERY`
    seconds on standard error.
    """
    advance = Advance(count, size, what)
    try:
        yield advance
    finally:
        advance.close()


class Advance:
    """``advance(files, bytes)``; the time left is that of the bytes, with a share for each file."""

    #: Bytes that opening a file counts as.
    OPENING = 1 << 15

    def __init__(self, count: int, size: int, what: str) -> None:
        self.count, self.what = count, what
        self.total = size + self.OPENING * count
        self.done_files = self.done = 0
        self.start = self.printed = time.monotonic()
        self._bar: contextlib.ExitStack | None = None

    def __call__(self, files: int, size: int) -> None:
        self.done_files += files
        self.done += size + self.OPENING * files
        now = time.monotonic()
        if now - self.start < PATIENCE or self.done_files >= self.count:
            return
        if sys.stderr.isatty():
            self._show()
        elif now - self.printed >= EVERY or self.printed == self.start:
            self.printed = now
            print(self.line(now - self.start), file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """The progress after so many ``seconds``, in one line."""
        left = seconds * (self.total - self.done) / max(1, self.done)
        shown = f"{max(1, round(left))} s" if left < 90 else f"{round(left / 60)} min"
        return f"{self.done_files:,} of {self.count:,} {self.what}, about {shown} left"

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        if self._bar is None:
            self._bar = contextlib.ExitStack()
            columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
            shown = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress = self._bar.enter_context(shown)
            self._task = self._progress.add_task("", total=self.total)
        seconds = time.monotonic() - self.start
        self._progress.update(self._task, completed=self.done, description=self.line(seconds))

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
