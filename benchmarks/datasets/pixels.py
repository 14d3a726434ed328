"""A data set's images as pixels: decoded once while memory allows, and given to a method row by row.

Images are 8-bit RGB until a method is called: :func:`~methods.parts.feeding.unit_range` makes the floats that methods
take.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import psutil
import torch
from torch import Tensor

from benchmarks.datasets.base import Dataset, DatasetError
from methods.interface import Images, WithheldError
from methods.parts.feeding import unit_range as unit_range  # reporting imports nothing of methods/
from methods.parts.preprocessing import ImageProcessing

#: Decoded images are kept in memory while they take at most this share of what is free at the start, all jobs' caches
#: together.
CACHE_SHARE = 0.25


class PixelCache:
    """A data set's images under one image processing, decoded once while memory allows.

    ``how``: the processing, or a size in pixels for OpenAI's own (the central square, bicubic).

    Images are 8-bit RGB whether cached or not, so what is cached never changes a number. Those of the domains
    ``inverted`` are negatives.
    """

    def __init__(
        self,
        dataset: Dataset,
        how: int | ImageProcessing,
        share: float = CACHE_SHARE,
        inverted: tuple[str, ...] = (),
    ) -> None:
        self.dataset = dataset
        self.how = ImageProcessing.at(how)
        self.size = size = self.how.size
        self.inverted = dataset.table["domain"].isin(inverted).to_numpy()
        count = len(dataset.table)
        fits = count * 3 * size * size <= share * psutil.virtual_memory().available
        self._kept = np.empty((count, 3, size, size), dtype=np.uint8) if fits else None
        self._known = np.zeros(count, dtype=bool)
        self._decoding = threading.Lock()  # training reads ahead while validation reads

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        """RGB of table rows: uint8 ``[B, 3, size, size]``.

        Raises :class:`~benchmarks.datasets.base.DatasetError` naming an image that cannot be decoded.
        """
        if self._kept is None:
            return torch.from_numpy(self._decode(rows))
        if not self._known[rows].all():
            with self._decoding:
                missing = np.unique(rows[~self._known[rows]])
                self._kept[missing] = self._decode(missing)
                self._known[missing] = True
        return torch.from_numpy(self._kept[rows])

    def _decode(self, rows: np.ndarray) -> np.ndarray:
        try:
            pixels = self.dataset.processed(rows, self.how)
        except Exception as error:
            raise self._broken(rows, error) from error
        if pixels.dtype is not torch.uint8:
            name = self.dataset.card.name
            raise DatasetError(f"{name}: processed() returned {pixels.dtype}; return uint8 RGB from 0 to 255")
        decoded: np.ndarray = pixels.numpy().copy() if self.inverted.any() else pixels.numpy()
        decoded[self.inverted[rows]] ^= 255
        return decoded

    def _broken(self, rows: np.ndarray, error: Exception) -> Exception:
        """The error that names the image, if one of these cannot be decoded by itself; else the error as it is."""
        if isinstance(error, DatasetError | MemoryError):
            return error
        name, keys = self.dataset.card.name, self.dataset.table["key"].to_numpy()
        for row in np.unique(rows):
            try:
                self.dataset.processed(np.array([row]), self.how)
            except Exception as reason:
                message = " ".join(str(reason).split()) or type(reason).__name__
                return DatasetError(
                    f"{name}: the image {keys[row]!r} cannot be decoded ({message}); put a whole file in its place"
                    f" (`python -m benchmarks.data verify {name}` checks all)"
                )
        return error


class DatasetImages(Images):
    """Some rows of a data set, as a method sees them: no attribute gives access to the other rows."""

    def __init__(self, cache: PixelCache, rows: np.ndarray) -> None:
        self._count = len(rows)
        self._decode = lambda index: cache[rows[index]]
        self._hashes = lambda: (cache.dataset.content, cache.dataset.decoding, cache.inverted, rows)

    def __len__(self) -> int:
        return self._count

    def pixels(self, index: Tensor) -> Tensor:
        """RGB in [0, 1] of the images at ``index [B]``: float32 ``[B, 3, H, W]``; raises as :meth:`stored` does."""
        return unit_range(self.stored(index))

    def stored(self, index: Tensor) -> Tensor:
        """RGB of the images at ``index [B]``: uint8 ``[B, 3, H, W]``.

        Raises :class:`~methods.interface.WithheldError` for an index below 0 or beyond the last image shown.
        """
        outside = index[(index < 0) | (index >= self._count)]
        if len(outside):
            raise WithheldError(f"image {int(outside[0])} is not shown: the protocol shows {self._count}, from 0 on")
        return self._decode(index.cpu().numpy())

    @cached_property
    def content(self) -> Sequence[str]:
        """Content hash of every image as it is given to the method."""
        content, decoding, inverted, rows = self._hashes()
        before = f"{decoding} " if decoding else ""
        return [f"{before}inverted {content[row]}" if inverted[row] else before + content[row] for row in rows]
