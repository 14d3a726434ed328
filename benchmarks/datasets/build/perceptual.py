"""When are two drawings the same? One rule, used to clean PictoDomains and to keep the pretraining corpus off it.

An image's *signature* has two halves of equal weight, each cropped to the content, scaled to 32 x 32, lightly blurred,
centred and scaled to unit length: its ink (darkness and colour distance from white) and its edges (strength capped, so
that a drawing inside a filled disc counts as much as the disc's rim). The similarity of two images is the product of
their signatures, i.e. the mean normalised cross-correlation of ink and edges: it ignores position, size, contrast and
recolouring, not shape.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

SIDE = 32

#: Pairs at or above this similarity count as one drawing. Set by looking at the pairs around it: above, recoloured
#: copies and redrawings of one outline (a collection's open and closed lock); below, other drawings of the same thing.
SAME_DRAWING = 0.90

#: Edge strength (of 255) beyond which all edges count the same.
_EDGE_CAP = 40


def signature(pixels: np.ndarray) -> np.ndarray:
    """Signature of one image: uint8 ``[H, W, 3]`` on white -> float32 ``[2048]``, unit length (zero if blank)."""
    ink = 255 - pixels.min(axis=2)
    rows, columns = np.flatnonzero((ink > 12).any(axis=1)), np.flatnonzero((ink > 12).any(axis=0))
    if len(rows) == 0:
        return np.zeros(2 * SIDE * SIDE, dtype=np.float32)
    box = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(box.shape[:2])
    square = np.full((side, side, 3), 255, dtype=np.uint8)
    top, left = (side - box.shape[0]) // 2, (side - box.shape[1]) // 2
    square[top : top + box.shape[0], left : left + box.shape[1]] = box
    vector = np.concatenate([_half(255 - square.min(axis=2)), _half(_edges(square))])
    norm = float(np.linalg.norm(vector))
    return vector / np.float32(norm) if norm > 0 else vector


def _edges(square: np.ndarray) -> np.ndarray:
    """Capped colour gradient of a square image at twice the signature's resolution: uint8 ``[64, 64]``."""
    fine = 2 * SIDE + 2
    shrink = Image.Resampling.BOX if len(square) >= fine else Image.Resampling.BICUBIC
    values = np.asarray(Image.fromarray(square).resize((fine, fine), shrink), dtype=np.float32)
    across = np.abs(values[1:-1, 2:] - values[1:-1, :-2]).max(axis=2)
    down = np.abs(values[2:, 1:-1] - values[:-2, 1:-1]).max(axis=2)
    return np.minimum(np.maximum(across, down), _EDGE_CAP).astype(np.uint8)


def _half(values: np.ndarray) -> np.ndarray:
    """uint8 ``[N, N]`` -> float32 ``[1024]``: 32 x 32, blurred, centred, unit length (zero if even)."""
    small = Image.fromarray(values).resize((SIDE, SIDE), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.7))
    vector = np.asarray(small, dtype=np.float32).ravel()
    vector = vector - vector.mean()
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm > 0 else vector


def nearest(queries: np.ndarray, references: np.ndarray, *, chunk: int = 2048) -> tuple[np.ndarray, np.ndarray]:
    """For each query signature the most similar reference: ``(index [Q], similarity [Q])``.

    Shapes: queries ``[Q, 2048]``, references ``[R, 2048]`` with R >= 1.
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
