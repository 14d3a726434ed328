"""Tensors with one row an image, in memory-mapped files that are filled in parts and outlive the process.

For values of so many images that they should not be held in memory: the system keeps in memory what is in use, and
after an interruption the rows that are not filled yet are computed. ``FOLDER/about.json`` holds names, shapes and
types, ``NAME.bin`` the rows one after the other, ``filled.bin`` a mark and a CRC-32 of its values for each row, written
after the values have reached the disk. A row whose values do not match its checksum counts as not filled; each row is
checked once by each :class:`RowFiles`, when :attr:`RowFiles.filled` is asked for. Several processes may fill the same
files if they write the same values.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

#: Bytes that these files leave free on the disk.
SPARE = 1 << 30

#: What ``filled.bin`` holds for a row.
MARK = np.dtype([("filled", "u1"), ("checksum", "<u4")])


class RowFiles:
    """``count`` rows of some tensors in ``folder``.

    Nothing is created before the first :meth:`write`. Files that are damaged or do not fit ``count`` are deleted.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.count = count
        self._kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        self._checked = np.zeros(count, dtype=bool)
        # about.json is written last, so that files that do not fit it are damaged
        if os.access(folder / "about.json", os.F_OK):
            self._kinds = self._read()
            if not self._kinds:
                self.remove()

    @property
    def started(self) -> bool:
        """Whether there are files to continue."""
        return bool(self._kinds)

    @property
    def filled(self) -> np.ndarray:
        """Which rows are filled and undamaged: bool ``[count]``."""
        if not self.started:
            return np.zeros(self.count, dtype=bool)
        marks = np.fromfile(self._marks, dtype=MARK)
        there: np.ndarray = marks["filled"] == 1
        unchecked = np.flatnonzero(there & ~self._checked)
        if len(unchecked):
            raw = [self._raw(name) for name in sorted(self._kinds)]
            self._checked[unchecked] = _checksums(raw, unchecked) == marks["checksum"][unchecked]
        return there & self._checked

    def write(self, rows: np.ndarray, values: Mapping[str, Tensor]) -> None:
        """Store the values ``[len(rows), ...]`` of rows (sorted, each once).

        Raises ``OSError`` (no space left) before anything is written if the files would fill the disk.
        """
        if not self.started:
            self._create({name: (value.dtype, tuple(value.shape[1:])) for name, value in values.items()})
        if values.keys() != self._kinds.keys():
            raise ValueError(f"{self.folder} holds {sorted(self._kinds)}, not {sorted(values)}: delete it")
        runs = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1)
        raws: dict[str, np.ndarray] = {}
        for name, value in values.items():
            kind = (value.dtype, tuple(value.shape[1:]))
            if kind != self._kinds[name]:
                raise ValueError(
                    f"{self._file(name)} holds {self._kinds[name]} a row, not {kind}: delete {self.folder}"
                )
            raw = raws[name] = value.contiguous().reshape(len(rows), -1).view(torch.uint8).numpy()
            self._put(self._file(name), [(int(rows[run[0]]) * raw.shape[1], raw[run[0] : run[-1] + 1]) for run in runs])
        marks = np.zeros(len(rows), dtype=MARK)
        marks["filled"] = 1
        marks["checksum"] = _checksums([raws[name] for name in sorted(raws)], range(len(rows)))
        bytes_of = marks.view(np.uint8).reshape(len(rows), MARK.itemsize)
        self._put(self._marks, [(int(rows[run[0]]) * MARK.itemsize, bytes_of[run[0] : run[-1] + 1]) for run in runs])
        self._checked[rows] = True

    def tensors(self) -> dict[str, Tensor]:
        """The tensors ``[count, ...]`` over the files: rows are read when they are used. Rows not filled are 0.

        The mapping is for reading: changing such a tensor in place is a segmentation fault.
        """
        tensors = {}
        for name, (dtype, shape) in self._kinds.items():
            raw = self._raw(name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch expects writable arrays
                tensors[name] = torch.from_numpy(raw).view(dtype).view(self.count, *shape)
        return tensors

    def _raw(self, name: str) -> np.ndarray:
        """The bytes of a tensor's rows, uint8 ``[count, bytes]``, over its file."""
        return np.memmap(self._file(name), dtype=np.uint8, mode="r", shape=(self.count, row_bytes(*self._kinds[name])))

    def remove(self) -> None:
        """Delete the files; tensors over them stay valid."""
        with contextlib.suppress(OSError):
            self._marks.unlink()  # first: whatever a killed process leaves of the others then counts as not filled
        shutil.rmtree(self.folder, ignore_errors=True)
        self._kinds = {}
        self._checked[:] = False

    def _read(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        try:
            about = json.loads((self.folder / "about.json").read_text(encoding="utf-8"))
            kinds = {name: (getattr(torch, dtype), tuple(shape)) for name, (dtype, shape) in about["tensors"].items()}
            sizes = {self._file(name): self.count * row_bytes(*kind) for name, kind in kinds.items()}
            sizes[self._marks] = self.count * MARK.itemsize
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        whole = all(os.access(file, os.R_OK) and file.stat().st_size == size for file, size in sizes.items())
        return kinds if whole else {}

    @property
    def _marks(self) -> Path:
        return self.folder / "filled.bin"

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.bin"

    def _create(self, kinds: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        needed = self.count * sum(row_bytes(*kind) for kind in kinds.values())
        if shutil.disk_usage(self.folder).free < needed + SPARE:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} for {needed / 2**30:.1f} GiB", str(self.folder))
        for name, kind in kinds.items():
            with self._file(name).open("ab") as file:  # another process may have created them: nothing is cut off
                file.truncate(self.count * row_bytes(*kind))
        with self._marks.open("ab") as file:
            file.truncate(self.count * MARK.itemsize)
        tensors = {name: (str(dtype).removeprefix("torch."), shape) for name, (dtype, shape) in kinds.items()}
        temporary = self.folder / f"about.{os.getpid()}.part"
        temporary.write_text(json.dumps({"tensors": tensors}), encoding="utf-8")
        temporary.replace(self.folder / "about.json")
        self._kinds = dict(kinds)

    @staticmethod
    def _put(path: Path, pieces: list[tuple[int, np.ndarray]]) -> None:
        """Plain writes, not a mapping: a full disk is then an error and not a dead process."""
        with path.open("r+b", buffering=0) as file:
            for offset, data in pieces:
                file.seek(offset)
                view = np.ascontiguousarray(data).data.cast("B")
                while view:
                    view = view[file.write(view) :]
            os.fsync(file.fileno())


def _checksums(raw: Sequence[np.ndarray], rows: Iterable[int]) -> np.ndarray:
    """CRC-32 of each of the rows, through all tensors: uint32 ``[len(rows)]``."""
    values = []
    for row in rows:
        value = 0
        for tensor in raw:
            value = zlib.crc32(tensor[row], value)
        values.append(value)
    return np.array(values, dtype=np.uint32)


def row_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of one row."""
    return int(torch.empty(0, dtype=dtype).element_size() * np.prod(shape, dtype=np.int64))
