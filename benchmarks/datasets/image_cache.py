"""Decoded images in a memory-mapped cache that can be resumed.

The cache is a sparse file of 8-bit pixels, one slot an image, and a small table of which slots are filled, from which
file content, with which checksum. What is filled is never decoded again, even if the process that filled it was killed;
a slot whose checksum does not fit (the machine crashed) is filled again. Several processes may share it. It is in
``$UCDR_BENCH_CACHE`` (``off``: none), else in the user's cache folder; where it cannot be written, images are decoded
each time, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.decoding import RECIPE, ImageError
from benchmarks.datasets.image_workers import CheckedImage, Job, make_jobs, progress_bar, run_jobs
from methods.parts.preprocessing import ImageProcessing

#: Room on the disk that the cache leaves free, in bytes.
SPARE = 1 << 30

#: A progress bar is shown from this many images on (on a terminal).
BAR_FROM = 2000


def cache_folder() -> Path | None:
    """The folder of the image cache; None if it is switched off, or (with a warning) if no home folder is known."""
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


class ImageCache:
    """Pixels of N image files under one processing, decoded once and kept in the cache folder.

    ``files`` are paths; ``stamps [N, 2]`` (int64) name each file's content, and a slot is only used if its stamp is
    the one it was filled with. ``identity`` names the list of images (names and contents), so that another copy of
    the same images shares the cache and different sets never do. ``how``: the processing of a backbone, or a size in
    pixels for OpenAI's own; mean and deviation are ignored. ``hashes``: each file's sha256 where it is known
    (anything but 64 digits: not known); a file whose content differs when it is decoded counts as broken.
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
        self._verified = np.zeros(len(files), dtype=bool)
        self._filling = threading.RLock()  # one thread at a time decides what is missing, and decodes it
        if folder is not None and len(files):
            key = hashlib.sha256(f"{RECIPE}\n{identity}\n{self._geometry}".encode()).hexdigest()[:32]
            self._folder = folder / "pictures" / key
            try:
                self._open(self._folder)
            except OSError as error:
                self._disable(f"the image cache {self._folder} cannot be used ({error.strerror or error})")

    @property
    def folder(self) -> Path | None:
        """The folder of these images in the cache; None where nothing is kept."""
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
        broken: list[CheckedImage] = []
        for result in run_jobs(self._jobs(wanted, None), len(wanted)):
            assert result.pixels is not None
            out[np.searchsorted(wanted, [check.row for check in result.checked])] = result.pixels
            broken += [check for check in result.checked if check.reason]
            self.decoded += len(result.checked)
        self._raise_if_broken(broken)
        return out[np.searchsorted(wanted, rows)]

    def keep(self, rows: NDArray[np.int64]) -> bool:
        """Decode those of ``rows`` that are not in the cache yet into it; False where they cannot be kept.

        Raises :class:`ImageError` as :meth:`pixels` does.
        """
        with self._filling:
            if self._folder is None:
                return False
            missing = rows[~self._valid(rows)]
            if len(missing) and not self._room(len(missing)):
                return False
            try:
                self._fill(missing)
            except OSError as error:  # a full disk or quota; broken files are no OSError here
                self._disable(f"the image cache {self._folder} cannot be written ({error.strerror or error})")
                return False
            return True

    def filled(self) -> int:
        """Number of images in the cache."""
        return 0 if self._folder is None else int(self._filled(np.arange(len(self.files))).sum())

    def _fill(self, rows: NDArray[np.int64]) -> None:
        broken: list[CheckedImage] = []
        with progress_bar(len(rows), "images decoded", show=len(rows) >= BAR_FROM) as advance:
            for result in run_jobs(self._jobs(rows, self._slots_file), len(rows)):
                whole = [check.row for check in result.checked if not check.reason]
                self._state["stamp"][whole] = self._stamps[whole]
                self._state["checksum"][whole] = [check.checksum for check in result.checked if not check.reason]
                self._state["filled"][whole] = 1
                self._verified[whole] = True
                broken += [check for check in result.checked if check.reason]
                self.decoded += len(result.checked)
                advance(len(result.checked))
        self._raise_if_broken(broken)

    def _jobs(self, rows: NDArray[np.int64], slots: Path | None) -> Iterator[Job]:
        return make_jobs(rows, self.files.__getitem__, self.how, slots, expected=self._hashes)

    def _filled(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        state = self._state[rows]
        out: NDArray[np.bool_] = (state["filled"] == 1) & (state["stamp"] == self._stamps[rows]).all(axis=1)
        return out

    def _valid(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which slots are filled and have the checksum they were filled with (checked once a process)."""
        valid = self._filled(rows)
        for place in np.flatnonzero(valid & ~self._verified[rows]):
            row = rows[place]
            valid[place] = self._verified[row] = zlib.crc32(self._slots[row]) == self._state["checksum"][row]
        return valid

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

    def _disable(self, why: str) -> None:
        self._folder = None
        warnings.warn(f"{why}: images are decoded each time they are used", RuntimeWarning, stacklevel=4)

    def _raise_if_broken(self, broken: list[CheckedImage]) -> None:
        if broken:
            first = min(broken, key=lambda check: check.row)
            others = f" ({len(broken)} of the requested images are broken)" if len(broken) > 1 else ""
            raise ImageError(f"{self.files[first.row]} is broken: {first.reason}{others}")
