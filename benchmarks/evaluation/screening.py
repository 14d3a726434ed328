"""A float32 product that screens a gallery: few items need their exact score, and nothing close is decided by it.

The exact scores of `benchmarks.evaluation.ranking` are scalar products of whole numbers in float64. A float32 product
of the same directions, half as long to compute, is off by at most `Float32Screen.error`, whatever the order in which
the products are added: the bound of a floating-point sum of n terms, ``n 2**-24`` of the sum of their absolute values,
which for unit vectors is at most 1. It is taken over blocks of dimensions, added up afterwards, so n is small. What is
further than that from a score is above or below it for certain; what is nearer gets its exact score. So all counts are
those of the exact scores, and where the bound is found violated (a BLAS that multiplies in less than float32), or many
items are near, the screen declines and the whole row is scored exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

#: Dimensions that are multiplied at a time for all counts: fewer make the bound tighter and the product slower.
BLOCK = 128

#: Most items of a row that get their exact score; a row with more near items is declined.
MOST = 2048

_SLAB = 1024
_BUCKETS = 65536
_THREE = np.arange(3)


class Float32Screen:
    """Screens rows of scores against one gallery; owns its float32 copy and the scratch memory.

    Args:
        gallery: [N, D] whole numbers, directions of length ``length``.
        length: of a direction of ``gallery`` and of the queries.
        block: dimensions that are multiplied at a time.
    """

    def __init__(self, gallery: Float64, length: float, block: int = BLOCK) -> None:
        n, d = gallery.shape
        self._block = block
        self._exact = gallery
        self._length = length
        self._single = np.empty((n, d), np.float32)
        for start in range(0, n, _SLAB):
            np.divide(gallery[start : start + _SLAB], length, out=self._single[start : start + _SLAB], casting="unsafe")
        terms = min(d, block) + -(-d // block) + 4
        #: How far a float32 cosine may be from the exact one; 4 terms are the rounding of both inputs, twice over.
        self.error = 1.01 * 2.0**-24 * terms
        self._unit = length**-2
        self._sorted = np.empty(n, np.float32)
        self._value = np.empty(n, np.float32)
        self._bucket = np.empty(n, np.uint16)
        self._near = np.empty(n, bool)
        self._flagged = np.zeros(_BUCKETS + 2, bool)
        self._rows = np.empty((min(n, MOST), d))

    @staticmethod
    def fixed_bytes(n: int, d: int) -> float:
        """Bytes of a screen of n items."""
        return 4.0 * n * d + 27.0 * n + 8.0 * min(n, MOST) * (d + 12) + 4.0 * _SLAB * d + _BUCKETS

    def fill(self, out: Float32, directions: Float64) -> None:
        """Write the float32 cosines [b, N] of queries ``directions`` [b, D]."""
        single = (directions / self._length).astype(np.float32)
        n, d = self._single.shape
        part = np.empty((len(out), min(n, _SLAB)), np.float32)
        for start in range(0, n, _SLAB):
            block, other = out[:, start : start + _SLAB], self._single[start : start + _SLAB]
            np.matmul(single[:, : self._block], other[:, : self._block].T, out=block)
            for first in range(self._block, d, self._block):
                columns = slice(first, first + self._block)
                more = part[:, : block.shape[1]]
                block += np.matmul(single[:, columns], other[:, columns].T, out=more)

    def exact(self, directions: Float64, ids: Int64) -> Float64:
        """Exact scores [n] or [b, n] of at most `MOST` items for one query's direction [D] or several's [b, D]."""
        rows = self._exact.take(ids, axis=0, out=self._rows[: len(ids)], mode="clip")
        return np.asarray(directions @ rows.T)

    def counts(self, row: Float32, direction: Float64, columns: Int64, relevant: Float64) -> tuple[Int64, Int64] | None:
        """How many items score higher than, and the same as, each of ``columns``, best first; None: declined.

        Args:
            row: [N] from `fill`.
            direction: [D] the query's.
            columns: [R] positions of relevant items.
            relevant: [R] their exact scores.
        """
        single = row.take(columns)
        centre = relevant * self._unit
        if np.abs(single - centre).max() > self.error:
            return None
        relevant = np.sort(relevant)
        centre.sort()
        low, high = self._window(centre)
        ids = self._near_ids(row, columns, low, high)
        if len(ids) > MOST:
            return None
        self._sorted[:] = row
        self._sorted.sort()
        above = len(row) - self._sorted.searchsorted(high, "right")  # for certain
        if len(ids):  # those of ``above`` among them are counted by their exact scores instead
            known = np.concatenate([relevant, self.exact(direction, ids)])
            known.sort()
            single = np.concatenate([single, row.take(ids)])
        else:
            known = relevant
        single.sort()
        right = known.searchsorted(relevant, "right")
        greater = above - right + single.searchsorted(high, "right")
        return greater[::-1], (right - known.searchsorted(relevant, "left"))[::-1]

    def best(self, row: Float32, direction: Float64, k: int) -> tuple[Int64, Float64] | None:
        """Positions, ascending, and exact scores of all items that may be among the first k, ties included; or None."""
        kth = float(np.partition(row, len(row) - k)[len(row) - k])
        low = np.nextafter(np.float32(kth - 2 * self.error), np.float32(-np.inf))
        ids = (row >= low).nonzero()[0]
        if len(ids) > MOST:
            return None
        exact = self.exact(direction, ids)
        if np.abs(row.take(ids) - exact * self._unit).max() > self.error:
            return None
        return ids, exact

    def _window(self, centre: Float64) -> tuple[Float32, Float32]:
        """Float32 bounds around exact cosines, rounded outwards: outside them the order is certain."""
        low = np.nextafter((centre - self.error).astype(np.float32), np.float32(-np.inf))
        return low, np.nextafter((centre + self.error).astype(np.float32), np.float32(np.inf))

    def _near_ids(self, row: Float32, columns: Int64, low: Float32, high: Float32) -> Int64:
        """Items inside one of the windows, without ``columns``. Every step is weakly monotone in the score."""
        width = float((high - low).max())
        scale = np.float32(min((_BUCKETS - 8) / max(float(high[-1] - low[0]), width), 1 / width))
        offset = np.float32(1) - low[0] * scale  # bucket 0 is for all that is below the windows
        np.multiply(row, scale, out=self._value)
        np.add(self._value, offset, out=self._value)
        self._value.clip(0, _BUCKETS - 1, out=self._value)
        np.copyto(self._bucket, self._value, casting="unsafe")
        first = (low * scale + offset).clip(0, _BUCKETS - 1).astype(np.intp)
        windows = (first[:, None] + _THREE).ravel()  # a window is at most a bucket wide, up to rounding
        self._flagged[windows] = True
        self._flagged.take(self._bucket, out=self._near, mode="clip")
        self._flagged[windows] = False
        self._near[columns] = False
        return self._in_window(self._near.nonzero()[0], row, low, high)

    @staticmethod
    def _in_window(ids: Int64, row: Float32, low: Float32, high: Float32) -> Int64:
        values = row.take(ids)
        place = high.searchsorted(values, "left")
        return ids[(low.take(place, mode="clip") <= values) & (place < len(high))]
