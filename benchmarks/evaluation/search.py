"""Exact search for the k best gallery items of each query, through faiss, for galleries too large to rank in full.

For the cosine, faiss scans the gallery (``IndexFlatIP``, no approximation) in float32. A few more candidates than
requested are then scored again in float64 and put in order: the same scores and the same order as
`benchmarks.evaluation.ranking.rank` with ``top=k``, equal scores by gallery position. Where float32 rounding could have
left out an item (more ties at the k-th place than candidates), the query is ranked against the whole gallery instead.
The figures of a ranking come from `rank`; this is for neighbours, example images and everything that never looks below
the first k. Beside the inputs, it holds one float32 copy of the gallery (faiss's) and a few blocks of fixed size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.ranking import FIXED_POINT, Similarity, check_embeddings, fixed_point, nearest

if TYPE_CHECKING:
    import torch

SPARE = 32
"""Candidates beyond k that are scored again. Where more than this many items are within float32 rounding of the k-th
best score, the candidates prove nothing and the query is ranked in full."""

_CANDIDATE_BYTES = 64 * 2**20

_SLAB = 16384


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The best gallery items of each query, best first.

    Attributes:
        ids: int64 [Q, min(k, N)], positions in the gallery.
        scores: float64, same shape, higher is better: cosine, or minus the squared Euclidean distance.
    """

    ids: NDArray[np.int64]
    scores: NDArray[np.float64]


def search(
    query: torch.Tensor | NDArray[Any],
    gallery: torch.Tensor | NDArray[Any],
    k: int,
    *,
    similarity: Similarity = "cosine",
    index: Any = None,
) -> Neighbours:
    """The k best items of ``gallery`` [N, D] for each row of ``query`` [Q, D]; fewer columns where N < k.

    Args:
        query: embeddings, torch or numpy, any floating type.
        gallery: embeddings of the same width.
        k: number of neighbours.
        similarity: ``cosine``, or ``sqeuclidean`` for minus the squared Euclidean distance of the raw embeddings.
        index: the :func:`scan_index` of this gallery, where there is one already (cosine).

    Raises:
        ValueError: shapes that do not fit, values that are not finite or whose squared distances do not fit float64,
            an empty gallery, k < 1, unknown similarity.
    """
    q, g = check_embeddings(query, gallery)
    n, d = g.shape
    if n == 0:
        raise ValueError("the gallery is empty; there is nothing to search")
    if k < 1:
        raise ValueError(f"k={k} is not a number of neighbours; it must be at least 1")
    if similarity not in ("cosine", "sqeuclidean"):
        raise ValueError(f"similarity={similarity!r} is unknown; use 'cosine' or 'sqeuclidean'")
    k = min(k, n)
    if similarity == "sqeuclidean":  # float32 cannot order distances of embeddings of very different lengths
        return Neighbours(*nearest(q, g, k, similarity=similarity))
    wanted = min(k + SPARE, n)
    index = scan_index(g) if index is None else index
    if (index.ntotal, index.d) != (n, d):
        raise ValueError(f"the index has {index.ntotal} items of {index.d} dimensions, the gallery {n} of {d}")
    ids, scores = np.empty((len(q), k), np.int64), np.empty((len(q), k))
    step = max(1, _CANDIDATE_BYTES // (8 * wanted * d))
    rounding = 2.0**-23 * (d + 2)  # bound of a float32 scalar product of unit vectors that were rounded to float32
    uncertain = np.zeros(len(q), bool)
    for start in range(0, len(q), step):
        part = slice(start, start + step)
        scanned, candidates = index.search(_scanned(q[part]), wanted)
        candidates.sort(axis=1)
        exact = _exact(q[part], g, candidates)
        order = np.argsort(-exact, axis=1, kind="stable")[:, :k]
        ids[part] = np.take_along_axis(candidates, order, 1)
        scores[part] = np.take_along_axis(exact, order, 1)
        if wanted < n:  # everything faiss left out scores at most its last candidate, up to rounding
            uncertain[part] = scores[part, -1] <= scanned[:, -1] + rounding
    if uncertain.any():
        ids[uncertain], scores[uncertain] = nearest(q[uncertain], g, k, similarity=similarity)
    return Neighbours(ids, scores)


def scan_index(gallery: NDArray[Any]) -> Any:
    """The faiss index (``IndexFlatIP``) of a gallery [N, D]: what :func:`search` scans for the cosine."""
    import faiss

    index = faiss.IndexFlatIP(gallery.shape[1])
    for start in range(0, len(gallery), _SLAB):
        index.add(_scanned(np.asarray(gallery[start : start + _SLAB])))
    return index


def _scanned(x: NDArray[Any]) -> NDArray[np.float32]:
    """What faiss gets to see: float32, unit length."""
    return np.ascontiguousarray(fixed_point(x)[0] / FIXED_POINT, dtype=np.float32)


def _exact(query: NDArray[Any], gallery: NDArray[Any], candidates: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cosines [b, c] of the gallery items ``candidates`` [b, c]: those of `rank` to the bit."""
    distinct, where = np.unique(candidates, return_inverse=True)
    directions = fixed_point(gallery[distinct])[0][where.reshape(candidates.shape)]
    return np.einsum("qd,qcd->qc", fixed_point(query)[0], directions) * FIXED_POINT**-2
