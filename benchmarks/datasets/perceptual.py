"""When are two drawings the same? One rule, used to clean PictoDomains and to keep the pretraining corpus off it.

A picture's *signature* is its ink (darkness and colour distance from white) cropped to the content, scaled to
32 x 32, lightly blurred, centred and scaled to unit length. The similarity of two pictures is the product of their
signatures, i.e. normalised cross-correlation: it ignores position, size, contrast and recolouring, not shape.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

SIDE = 32

#: Pairs at or above this similarity count as one drawing (set by looking at the pairs around it).
SAME_DRAWING = 0.95


def signature(pixels: np.ndarray) -> np.ndarray:
    """Signature of one picture: uint8 ``[H, W, 3]`` on white -> float32 ``[1024]``, unit length (zero if blank)."""
    ink = 255 - pixels.min(axis=2)
    rows, columns = np.flatnonzero((ink > 12).any(axis=1)), np.flatnonzero((ink > 12).any(axis=0))
    if len(rows) == 0:
        return np.zeros(SIDE * SIDE, dtype=np.float32)
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(box.shape)
    square = np.zeros((side, side), dtype=np.uint8)
    top, left = (side - box.shape[0]) // 2, (side - box.shape[1]) // 2
    square[top : top + box.shape[0], left : left + box.shape[1]] = box
    small = Image.fromarray(square).resize((SIDE, SIDE), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.7))
    vector = np.asarray(small, dtype=np.float32).ravel()
    vector = vector - vector.mean()
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm > 0 else vector


def nearest(queries: np.ndarray, references: np.ndarray, *, chunk: int = 2048) -> tuple[np.ndarray, np.ndarray]:
    """For each query signature the most similar reference: ``(index [Q], similarity [Q])``.

    Shapes: queries ``[Q, 1024]``, references ``[R, 1024]`` with R >= 1.
    """
    index = np.empty(len(queries), dtype=np.int64)
    similarity = np.empty(len(queries), dtype=np.float32)
    for start in range(0, len(queries), chunk):
        product = queries[start : start + chunk] @ references.T
        index[start : start + chunk] = product.argmax(axis=1)
        similarity[start : start + chunk] = product.max(axis=1)
    return index, similarity


def near_duplicate_pairs(
    signatures: np.ndarray, *, threshold: float = SAME_DRAWING, chunk: int = 2048
) -> list[tuple[int, int, float]]:
    """All pairs ``(i, j, similarity)`` with ``i < j`` at or above the threshold, in order of ``(i, j)``."""
    pairs: list[tuple[int, int, float]] = []
    for start in range(0, len(signatures), chunk):
        product = signatures[start : start + chunk] @ signatures.T
        for row, column in zip(*np.nonzero(product >= threshold), strict=True):
            i, j = start + int(row), int(column)
            if i < j:
                pairs.append((i, j, float(product[row, column])))
    return pairs
