"""Average precision, precision and recall from the exact ranking of a gallery.

Conventions
-----------
For one query let ``r_i`` be 1 if the gallery item at rank i is of the query's class and else 0, ``P_i = (r_1 + .. +
r_i) / i``, and R the number of relevant items in the whole gallery. Per query:

=====================  ==========================================================================================
``ap@k[retrieved]``    ``sum_{i<=k} P_i r_i`` divided by the relevant items *found* in the first k; 0 if none is found.
                       This is what the code of the UCDR papers reports as mAP@200.
``ap@k[trec]``         the same sum divided by R, all relevant items, as ``map_cut`` of trec_eval.
``ap@all``             the same over the whole gallery; both conventions agree there.
``p@k``                relevant items in the first k, divided by k (also where the gallery is smaller than k).
``recall@k``           1 if *at least one* relevant item is in the first k, else 0: the "R@k" of image retrieval, whose
                       mean is the share of queries with a hit. It is not the share of relevant items found.
=====================  ==========================================================================================

Means over queries carry the same name, with ``map`` for ``ap``: ``map@200[retrieved]``, ``p@100``, ``recall@1``.

Ties
----
Every figure is the *expected value over all orders of tied items*, in closed form, so the order of files never matters
and a method that maps all images to one point scores about the class prior. Two items tie when their scores are
equal to the last bit. To make that a property of the two embeddings alone, and not of where a matrix product
rounds, directions are first rounded to a fixed-point grid (a unit vector becomes integers of length 2**26). All
partial sums of a scalar product are then integers below 2**53, so float64 arithmetic has no rounding error at all:
the ranking is identical to the last bit for any order of gallery and queries, any chunk size, any number of threads
and any BLAS. The grid resolves cosines to 1e-8, several times finer than a float32 product. Squared Euclidean distances
take a second, 2**20 times finer part of the directions along (two further products, each of integers below 2**53), so
that they are good to about 1e-13 of the product of the two lengths.

Speed
-----
No ranking is made. The figures only need, for each relevant item, how many gallery items score higher and how many
score the same. Where few items are relevant, cosines are computed in float32 first, and only items that are closer to a
relevant one than a float32 product can tell apart get their exact score (`benchmarks.evaluation.screening`). Else one
counting pass over buckets between the lowest and the highest relevant exact score settles nearly all of the gallery,
and only the few items that share a bucket with a relevant one are sorted. With ``whole=False`` nothing is computed of
what is below the largest cut. Both ways give the same figures to the last bit.
``python -m benchmarks.speed.ranking`` measures the cost as a multiple of the matrix product alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation import screening
from benchmarks.evaluation.screening import Float32Screen

if TYPE_CHECKING:
    import pandas as pd
    import torch

Similarity = Literal["cosine", "sqeuclidean"]
WithoutRelevant = Literal["exclude", "zero"]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

RULES: Mapping[str, dict[str, Any]] = {
    "clean": {"similarity": "cosine", "without_relevant": "exclude"},
    "official": {"similarity": "sqeuclidean", "without_relevant": "zero"},
}
"""Arguments of `rank` for ``--rules clean`` (ours) and ``--rules official`` (as the released UCDR code)."""

FIXED_POINT = 2.0**26
"""Length, in grid steps, of a unit vector after rounding: the product of two stays below 2**53."""

_LOW = 2.0**20
_BUCKETS = 8192
_SLAB = 1024
_MIB = 2**20
_SCORES_MIB = 64

_SCREEN_FROM = 2048
"""Gallery items from which a float32 screen pays."""

_SCREEN_RELEVANT = 100
"""All figures are screened where, on average, at most one item in this many is relevant."""


@dataclass(frozen=True, eq=False)
class RetrievalScores:
    """What a ranking scored, query by query. Columns are named as in the module's docstring.

    Attributes:
        per_query_values: column name (``ap@200[trec]``, ``p@100``, ...) -> float64 [Q]; NaN marks a query that is left
            out of the means because the gallery holds no relevant item (only with ``without_relevant="exclude"``).
        n_relevant: int64 [Q], relevant items of each query in the gallery.
        gallery_size: N.
        without_relevant: ``exclude`` or ``zero``, the rule the values follow.
        similarity: ``cosine``, ``sqeuclidean``, or ``given`` for `rank_scores`.
        top_ids: int64 [Q, min(top, N)], gallery positions of the best items, best first; equal scores are shown in
            gallery order (this order is only for display, no figure depends on it). None unless requested.
        top_scores: float64, same shape: cosine, or minus the squared Euclidean distance.
    """

    per_query_values: Mapping[str, Float64]
    n_relevant: Int64
    gallery_size: int
    without_relevant: WithoutRelevant
    similarity: str
    top_ids: Int64 | None = field(default=None, repr=False)
    top_scores: Float64 | None = field(default=None, repr=False)

    @property
    def n_queries(self) -> int:
        """Number of queries, with or without a relevant item."""
        return len(self.n_relevant)

    @property
    def n_without_relevant(self) -> int:
        """Queries whose class does not occur in the gallery."""
        return int((self.n_relevant == 0).sum())

    def values(self, metric: str) -> Float64:
        """Per-query values [Q] behind a mean: ``values("map@all")`` is the column ``ap@all``."""
        column = metric[1:] if metric.startswith("map@") else metric
        if column not in self.per_query_values:
            known = ", ".join(_mean_name(name) for name in self.per_query_values)
            raise KeyError(f"no metric {metric!r} was computed; there are: {known}")
        return self.per_query_values[column]

    def means(self) -> dict[str, float]:
        """Mean of each column over the queries its rule counts, exact to the last bit for any order of queries.

        Raises:
            ValueError: no query is counted, so that a mean does not exist.
        """
        counted = self.n_relevant > 0 if self.without_relevant == "exclude" else np.ones(self.n_queries, bool)
        n = int(counted.sum())
        if n == 0:
            raise ValueError(
                f"means do not exist: none of the {self.n_queries} queries has an item of its class in the gallery "
                f"of {self.gallery_size}; check that query and gallery labels use the same class ids"
            )
        return {_mean_name(name): math.fsum(v[counted]) / n for name, v in self.per_query_values.items()}

    def per_query(self) -> pd.DataFrame:
        """One row a query: ``n_relevant``, every column, and lists ``top_ids``, ``top_scores`` if they were kept."""
        import pandas as pd

        columns: dict[str, Any] = {"n_relevant": self.n_relevant, **self.per_query_values}
        if self.top_ids is not None and self.top_scores is not None:
            columns["top_ids"] = list(self.top_ids)
            columns["top_scores"] = list(self.top_scores)
        return pd.DataFrame(columns).rename_axis("query")


def rank(
    query: torch.Tensor | NDArray[Any],
    gallery: torch.Tensor | NDArray[Any],
    query_labels: Any,
    gallery_labels: Any,
    *,
    similarity: Similarity = "cosine",
    ks: Sequence[int] = (100, 200),
    recall_ks: Sequence[int] = (1, 10, 100),
    without_relevant: WithoutRelevant = "exclude",
    top: int = 0,
    whole: bool = True,
    memory_mib: float = 512,
    progress: Callable[[int], None] | None = None,
) -> RetrievalScores:
    """Rank the gallery for every query and score the ranking; ``**RULES["official"]`` gives the released code's rules.

    Args:
        query: [Q, D] embeddings, torch or numpy, any floating type. A zero row has cosine 0 to everything.
        gallery: [N, D] embeddings.
        query_labels: [Q] class of each query, integers or strings.
        gallery_labels: [N] class of each gallery item.
        similarity: ``cosine``, or ``sqeuclidean``: minus the squared Euclidean distance of the embeddings as they are.
        ks: cuts for ``ap@k`` (both conventions) and ``p@k``; may exceed N.
        recall_ks: cuts for ``recall@k``.
        without_relevant: ``exclude`` leaves queries without a relevant item out of the means (NaN in their row),
            ``zero`` counts them as 0. Either way they are reported as ``n_without_relevant``.
        top: keep ids and scores of this many best items of each query (0: none).
        whole: also ``ap@all``; without it, only the first places up to the largest cut are looked at, which is faster.
        memory_mib: ceiling in MiB for everything allocated here beside the inputs and the result.
        progress: called after each chunk with the number of queries finished in it.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, an empty gallery, a bad option, or a ceiling
            too low for one query.
    """
    q, g = check_embeddings(query, gallery)
    if similarity not in ("cosine", "sqeuclidean"):
        raise ValueError(f"similarity={similarity!r} is unknown; use 'cosine' or 'sqeuclidean'")
    scorer = _Scorer(q, g, similarity, memory_mib * _MIB)
    return _score(
        scorer,
        query_labels,
        gallery_labels,
        similarity,
        ks,
        recall_ks,
        without_relevant,
        top,
        whole,
        memory_mib,
        progress,
    )


def nearest(
    query: NDArray[Any], gallery: NDArray[Any], k: int, *, similarity: Similarity, memory_mib: float = 16
) -> tuple[Int64, Float64]:
    """Ids and scores ``[Q, k]`` of each query's ``k`` best gallery items, as `rank` with ``top=k`` gives them.

    Takes checked embeddings. Raises ``ValueError`` as `rank` does where squared distances do not fit float64.
    """
    scorer = _Scorer(query, gallery, similarity, memory_mib * _MIB)
    ids, scores = np.empty((len(query), k), np.int64), np.empty((len(query), k))
    step = max(1, int(memory_mib * _MIB / 4 // (8 * len(gallery))))
    rows = np.empty((min(step, len(query)), len(gallery)))
    for start in range(0, len(query), step):
        part = rows[: min(step, len(query) - start)]
        scorer.fill(part, slice(start, start + step))
        for i, row in enumerate(part, start):
            ids[i], scores[i] = _best(row, k, scorer.unit)
    return ids, scores


def rank_scores(
    scores: torch.Tensor | NDArray[Any],
    query_labels: Any,
    gallery_labels: Any,
    *,
    ks: Sequence[int] = (100, 200),
    recall_ks: Sequence[int] = (1, 10, 100),
    without_relevant: WithoutRelevant = "exclude",
    top: int = 0,
    memory_mib: float = 512,
) -> RetrievalScores:
    """Score rankings given as a matrix ``scores`` [Q, N], higher is better, equal entries tie. Arguments as `rank`."""
    given = _as_array(scores, "scores")
    _check_finite(given, "scores")
    return _score(
        _Given(given),
        query_labels,
        gallery_labels,
        "given",
        ks,
        recall_ks,
        without_relevant,
        top,
        True,
        memory_mib,
        None,
    )


def check_embeddings(
    query: torch.Tensor | NDArray[Any], gallery: torch.Tensor | NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both embeddings as finite floating numpy matrices of one width, or a ValueError."""
    q, g = _as_array(query, "query"), _as_array(gallery, "gallery")
    if q.shape[1] != g.shape[1]:
        raise ValueError(
            f"query embeddings have {q.shape[1]} dimensions and gallery embeddings {g.shape[1]}; "
            "encode both with the same method"
        )
    _check_finite(q, "query")
    _check_finite(g, "gallery")
    return q, g


# --------------------------------------------------------------------------------------------------------------------
# Scores, chunk by chunk
# --------------------------------------------------------------------------------------------------------------------


class _Given:
    """Rows of a score matrix that exists already."""

    def __init__(self, scores: NDArray[Any]) -> None:
        self.scores = scores
        self.shape = scores.shape
        self.fixed_bytes = 0.0
        self.row_bytes = 0.0
        self.chunk_bytes = float(_SCORES_MIB * _MIB)
        self.unit = 1.0

    def fill(self, out: Float64, queries: slice | Int64) -> None:
        out[:] = self.scores[queries]


class _Scorer:
    """Scores of queries against the gallery as exact functions of the two embeddings (see the module's docstring)."""

    def __init__(self, query: NDArray[Any], gallery: NDArray[Any], similarity: Similarity, budget: float) -> None:
        self.query, self.gallery, self.cosine = query, gallery, similarity == "cosine"
        if not self.cosine:
            _check_squares(query, gallery)
        n, d = gallery.shape
        self.shape = (len(query), n)
        self.unit = FIXED_POINT**-2 if self.cosine else 1.0
        self.slab = max(1, min(n, _SLAB))
        self.norms = np.empty(n)
        width = d if self.cosine else 2 * d
        whole = 8.0 * n * width
        self.kept: Float64 | None = np.empty((n, width)) if whole <= budget / 2 else None
        self.fixed_bytes = 8.0 * n + 8.0 * self.slab * (2 * d + 2 * width) + (0.0 if self.kept is None else whole)
        self.row_bytes = 8.0 * (2 * d + 3 * width) + 8.0 * self.slab * (not self.cosine)
        # A gallery too large to keep is rounded again for every chunk: then chunks are as large as the ceiling allows.
        self.chunk_bytes = math.inf if self.kept is None else float(_SCORES_MIB * _MIB)
        for start in range(0, n, self.slab):
            part = slice(start, start + self.slab)
            grid, self.norms[part] = fixed_point(gallery[part], low=not self.cosine)
            if self.kept is not None:
                self.kept[part] = grid

    def fill(self, out: Float64, queries: slice | Int64) -> None:
        """Write the scores [b, N] of b queries in multiples of ``unit``."""
        d = self.query.shape[1]
        grid, norms = fixed_point(self.query[queries], low=not self.cosine)
        swapped = grid if self.cosine else np.roll(grid, d, axis=1)
        for first in range(0, self.shape[1], self.slab):
            part = slice(first, first + self.slab)
            block = out[:, part]
            other = fixed_point(self.gallery[part], low=not self.cosine)[0] if self.kept is None else self.kept[part]
            np.matmul(grid[:, :d], other[:, :d].T, out=block)
            if not self.cosine:
                cross = swapped @ other.T  # high of one times low of the other, both ways
                cross *= 1 / _LOW
                block += cross
                block *= self.norms[part] * (2 * FIXED_POINT**-2)
                block *= norms[:, None]
                block -= np.square(self.norms[part])
                block -= np.square(norms)[:, None]


def fixed_point(x: NDArray[Any], *, low: bool = False) -> tuple[Float64, Float64]:
    """Directions of the rows of x [n, D] as integers of length 2**26 (stored as float64), and their lengths [n].

    With ``low``, D more columns follow: what the rounding left, as integers in steps 2**20 times finer.
    """
    x = x.astype(np.float64)
    largest = np.abs(x).max(axis=1, initial=0.0, keepdims=True)
    x /= np.where(largest > 0, largest, 1.0)
    norm = np.sqrt(np.square(x).sum(axis=1, keepdims=True))
    x *= FIXED_POINT / np.where(norm > 0, norm, 1.0)
    length = (norm * largest)[:, 0]
    if not low:
        return np.rint(x, out=x), length
    high = np.rint(x)
    x -= high
    x *= _LOW
    return np.concatenate([high, np.rint(x, out=x)], axis=1), length


# --------------------------------------------------------------------------------------------------------------------
# From scores to positions
# --------------------------------------------------------------------------------------------------------------------


class _Counter:
    """Counts gallery items above and level with given scores in one row of N scores; owns the scratch memory."""

    def __init__(self, n: int) -> None:
        self.value = np.empty(n)
        self.bucket = np.empty(n, np.intp)
        self.near = np.empty(n, bool)
        self.flagged = np.zeros(_BUCKETS, bool)

    @staticmethod
    def fixed_bytes(n: int) -> float:
        return 34.0 * n + 24.0 * _BUCKETS

    def __call__(self, row: Float64, columns: Int64) -> tuple[Int64, Int64]:
        """How many entries of ``row`` [N] are greater than, and equal to, each of ``row[columns]``, best first."""
        relevant = row[columns]
        order = relevant.argsort()
        relevant, columns = relevant[order], columns[order]
        low, span = float(relevant[0]), float(relevant[-1] - relevant[0])
        scale = (_BUCKETS - 3) / span if span > 0 else math.inf
        offset = 1 - low * scale
        if not (math.isfinite(scale) and math.isfinite(offset)):  # one distinct score, or too close for buckets
            near = np.sort(row[row >= low])
            above: Int64 | int = 0
        else:
            # Every step is weakly monotone in the score, so an item in a higher bucket never scores lower.
            np.multiply(row, scale, out=self.value)
            np.add(self.value, offset, out=self.value)
            self.value.clip(0, _BUCKETS - 1, out=self.value)
            np.copyto(self.bucket, self.value, casting="unsafe")
            buckets = self.bucket[columns]
            self.flagged[buckets] = True
            self.flagged.take(self.bucket, out=self.near, mode="clip")
            self.flagged[buckets] = False
            near = row.take(self.near.nonzero()[0])
            near.sort()
            histogram = np.bincount(self.bucket, minlength=_BUCKETS)
            histogram[buckets] = 0  # these items are counted one by one
            between = np.add.reduceat(histogram, buckets)  # from this relevant item's bucket up to the next one's
            above = between[::-1].cumsum()[::-1]
        right = near.searchsorted(relevant, "right")
        greater = (above + (near.size - right))[::-1]
        return greater, (right - near.searchsorted(relevant, "left"))[::-1]


def _best(row: Float64, top: int, unit: float) -> tuple[Int64, Float64]:
    """Positions and scores (times ``unit``) of the ``top`` highest entries of a row, equal scores by position."""
    lowest = np.partition(row, len(row) - top)[len(row) - top]
    ids = np.flatnonzero(row >= lowest)
    ids = ids[np.argsort(-row[ids], kind="stable")[:top]]
    return ids, row[ids] * unit


@dataclass(frozen=True)
class _Positions:
    """What is found of one query: (greater, equal) of its relevant items, best first, and its best items with scores;
    None where not asked for."""

    counts: tuple[Int64, Int64] | None
    best: tuple[Int64, Float64] | None


class _Rows:
    """Positions from rows of exact scores."""

    def __init__(self, source: _Scorer | _Given, top: int) -> None:
        self.source, self.top = source, top
        n = source.shape[1]
        self.count = _Counter(n)
        self.fixed_bytes = source.fixed_bytes + _Counter.fixed_bytes(n) + 16.0 * n
        self.row_bytes = source.row_bytes + 8.0 * n
        self.chunk_bytes = source.chunk_bytes
        self._scores = np.empty((0, n))

    def positions(self, queries: Int64, columns: Sequence[Int64]) -> list[_Positions]:
        """Of these queries, with the positions of each one's relevant items."""
        if len(self._scores) < len(queries):
            self._scores = np.empty((0, self.source.shape[1]))  # frees it first
            self._scores = np.empty((len(queries), self.source.shape[1]))
        self.source.fill(self._scores[: len(queries)], _as_slice(queries))
        return [
            _Positions(
                self.count(row, of_query) if len(of_query) else None,
                _best(row, self.top, self.source.unit) if self.top else None,
            )
            for row, of_query in zip(self._scores, columns, strict=False)
        ]


class _ScreenedRows:
    """Positions from float32 rows and a few exact scores; from exact rows where the screen declines.

    ``cut``: only the first so many places count, and positions below are given as N; None: all count.
    """

    def __init__(self, scorer: _Scorer, top: int, cut: int | None) -> None:
        assert scorer.kept is not None
        n, d = scorer.kept.shape
        self.scorer, self.top, self.cut = scorer, top, cut
        self.screen = Float32Screen(scorer.kept, FIXED_POINT, screening.BLOCK if cut is None else d)
        self.exact = _Rows(scorer, top)
        self.fixed_bytes = self.exact.fixed_bytes + Float32Screen.fixed_bytes(n, d) + self.exact.row_bytes
        self.row_bytes = scorer.row_bytes + 4.0 * n + 4.0 * min(n, _SLAB) + 4.0 * d
        self.chunk_bytes = scorer.chunk_bytes
        self._singles = np.empty((0, n), np.float32)
        self._useless = False

    @staticmethod
    def pays(source: _Scorer | _Given, n_relevant: Int64, cut: int | None, top: int, budget: float) -> bool:
        """Whether to screen: cosines, a gallery that is kept, room for its float32 copy, few items of interest."""
        if not isinstance(source, _Scorer) or not source.cosine or source.kept is None or not len(n_relevant):
            return False
        n, d = source.kept.shape
        needed = source.fixed_bytes + Float32Screen.fixed_bytes(n, d) + 2 * (source.row_bytes + 12.0 * n)
        few = n_relevant.mean() * _SCREEN_RELEVANT <= n if cut is None else cut <= min(n, screening.MOST) // 2
        return n >= _SCREEN_FROM and few and top <= screening.MOST // 2 and needed + 64.0 * n < budget / 2

    def positions(self, queries: Int64, columns: Sequence[Int64]) -> list[_Positions]:
        """As `_Rows.positions`."""
        if self._useless:
            return self._exactly(queries, columns)
        if len(self._singles) < len(queries):
            self._singles = np.empty((0, self.scorer.shape[1]), np.float32)
            self._singles = np.empty((len(queries), self.scorer.shape[1]), np.float32)
        directions, _ = fixed_point(self.scorer.query[_as_slice(queries)])
        self.screen.fill(self._singles[: len(queries)], directions)
        relevant = self._relevant(directions, columns)
        found: list[_Positions | None] = [
            self._screened(row, direction, of_query, exact)
            for row, direction, of_query, exact in zip(self._singles, directions, columns, relevant, strict=False)
        ]
        declined = [place for place, one in enumerate(found) if one is None]
        self._useless = 2 * len(declined) > len(queries)
        again = iter(self._exactly(queries[declined], [columns[place] for place in declined]))
        return [next(again) if one is None else one for one in found]

    def _exactly(self, queries: Int64, columns: Sequence[Int64]) -> list[_Positions]:
        """By exact rows, in chunks of half as many queries, for they take twice the memory."""
        step = max(1, len(self._singles) // 2)
        self._singles = self._singles if not self._useless else self._singles[:0]
        found = []
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            found += self.exact.positions(queries[part], columns[part])
        return found

    def _relevant(self, directions: Float64, columns: Sequence[Int64]) -> list[Float64 | None]:
        """Exact scores of each query's relevant items, read once for all queries of a class; None where not needed."""
        scores: list[Float64 | None] = [None] * len(columns)
        if self.cut is not None:
            return scores
        queries_of: dict[int, list[int]] = {}  # queries of one class share the array of its positions
        for place, of_query in enumerate(columns):
            if 0 < len(of_query) <= screening.MOST:
                queries_of.setdefault(id(of_query), []).append(place)
        for places in queries_of.values():
            of_class = self.screen.exact(directions[places], columns[places[0]])
            for place, exact in zip(places, of_class, strict=True):
                scores[place] = exact
        return scores

    def _screened(
        self, row: NDArray[np.float32], direction: Float64, columns: Int64, relevant: Float64 | None
    ) -> _Positions | None:
        k = max(self.top, self.cut or 0)
        first = self.screen.best(row, direction, k) if k else None
        if k and first is None:
            return None
        counts = best = None
        if first is not None and self.top:
            ids, scores = first
            order = np.argsort(-scores, kind="stable")[: self.top]
            best = ids[order], scores[order] * self.scorer.unit
        if len(columns) and self.cut is None:
            if relevant is None:
                return None
            counts = self.screen.counts(row, direction, columns, relevant)
            if counts is None:
                return None
        elif len(columns):
            assert first is not None
            counts = _counts_among(*first, columns, len(row))
        return _Positions(counts, best)


def _counts_among(ids: Int64, scores: Float64, columns: Int64, n: int) -> tuple[Int64, Int64]:
    """(greater, equal) of relevant items ``columns`` among the best items ``ids``, best first; the others come last,
    tied, after all ``n`` items: no cut reaches them."""
    place = ids.searchsorted(columns)
    relevant = np.sort(scores[place[ids.take(place, mode="clip") == columns]])
    ordered = np.sort(scores)
    right = ordered.searchsorted(relevant, "right")
    greater, equal = np.full(len(columns), n), np.full(len(columns), len(columns) - len(relevant))
    greater[: len(relevant)] = (len(ordered) - right)[::-1]
    equal[: len(relevant)] = (right - ordered.searchsorted(relevant, "left"))[::-1]
    return greater, equal


def _as_slice(queries: Int64) -> slice | Int64:
    """Consecutive numbers as a slice, which copies nothing."""
    if len(queries) and int(queries[-1]) - int(queries[0]) == len(queries) - 1:
        return slice(int(queries[0]), int(queries[-1]) + 1)
    return queries


def _score(
    source: _Scorer | _Given,
    query_labels: Any,
    gallery_labels: Any,
    similarity: str,
    ks: Sequence[int],
    recall_ks: Sequence[int],
    without_relevant: WithoutRelevant,
    top: int,
    whole: bool,
    memory_mib: float,
    progress: Callable[[int], None] | None,
) -> RetrievalScores:
    n_queries, n = source.shape
    if without_relevant not in ("exclude", "zero"):
        raise ValueError(f"without_relevant={without_relevant!r} is unknown; use 'exclude' or 'zero'")
    if n == 0:
        raise ValueError("the gallery is empty; there is nothing to rank")
    if any(k != int(k) or k < 1 for k in (*ks, *recall_ks)) or top < 0:
        raise ValueError(f"cuts must be positive integers, got ks={tuple(ks)}, recall_ks={tuple(recall_ks)}, top={top}")
    ks, recall_ks = [int(k) for k in ks], [int(k) for k in recall_ks]
    if not (whole or ks or recall_ks):
        raise ValueError("whole=False needs a cut; give ks or recall_ks")
    columns_of, class_of_query = _columns_by_class(query_labels, gallery_labels, n_queries, n)
    n_relevant = np.array([len(columns_of[c]) for c in class_of_query], np.int64)

    top = min(int(top), n)
    top_ids = np.empty((n_queries, top), np.int64) if top else None
    top_scores = np.empty((n_queries, top)) if top else None
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, n + 1))])
    names = _columns(ks, recall_ks, whole)
    empty = np.nan if without_relevant == "exclude" else 0.0
    values = {name: np.full(n_queries, empty) for name in names}
    budget = memory_mib * _MIB
    cut = None if whole else min(max((*ks, *recall_ks)), n)
    rows: _Rows | _ScreenedRows
    if _ScreenedRows.pays(source, n_relevant, cut, top, budget):
        assert isinstance(source, _Scorer)
        rows = _ScreenedRows(source, top, cut)
    else:
        rows = _Rows(source, top)
    for start, stop in list(_chunks(n_relevant, rows.row_bytes, rows.fixed_bytes, budget, rows.chunk_bytes)):
        columns = [columns_of[c] for c in class_of_query[start:stop]]
        positions = rows.positions(np.arange(start, stop), columns)
        for i, one in enumerate(positions, start):
            if top_ids is not None and top_scores is not None and one.best is not None:
                top_ids[i], top_scores[i] = one.best
        found = [one.counts for one in positions if one.counts is not None]
        if found:
            where = start + np.flatnonzero(n_relevant[start:stop])
            greater, equal = (np.concatenate(part) for part in zip(*found, strict=True))
            figures = _figures(greater, equal, n_relevant[where], n, ks, recall_ks, harmonic, whole)
            for name, column in figures.items():
                values[name][where] = column
        if progress is not None:
            progress(stop - start)
    return RetrievalScores(values, n_relevant, n, without_relevant, similarity, top_ids, top_scores)


def _columns(ks: Sequence[int], recall_ks: Sequence[int], whole: bool) -> list[str]:
    cut = [name for k in ks for name in (f"ap@{k}[retrieved]", f"ap@{k}[trec]", f"p@{k}")]
    return [*(["ap@all"] if whole else []), *cut, *(f"recall@{k}" for k in recall_ks)]


def _mean_name(column: str) -> str:
    return "m" + column if column.startswith("ap@") else column


def _columns_by_class(
    query_labels: Any, gallery_labels: Any, n_queries: int, n: int
) -> tuple[list[Int64], NDArray[np.intp]]:
    """Gallery positions of every class, and the class of every query as an index into that list."""
    q, g = _labels(query_labels, n_queries, "query"), _labels(gallery_labels, n, "gallery")
    if (q.dtype.kind in "iub") != (g.dtype.kind in "iub"):
        raise ValueError(f"query labels are {q.dtype} and gallery labels {g.dtype}; use the same class ids for both")
    number_of: dict[Any, int] = {}  # no sorting of names: a million of them would take as much memory as their scores
    numbers = (number_of.setdefault(label, len(number_of)) for label in itertools.chain(q, g))
    codes = np.fromiter(numbers, np.intp, n_queries + n)
    q_codes, g_codes = codes[:n_queries], codes[n_queries:]
    order = np.argsort(g_codes, kind="stable")
    bounds = np.searchsorted(g_codes[order], np.arange(len(number_of) + 1))
    return [order[a:b] for a, b in itertools.pairwise(bounds)], q_codes


def _chunks(
    n_relevant: Int64, row_bytes: float, fixed_bytes: float, budget: float, chunk_bytes: float
) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of queries whose scores and positions fit the memory ceiling and are of a handy size."""
    rows = row_bytes + 160.0 * n_relevant + 512.0
    needed = fixed_bytes + float(rows.max(initial=0.0))
    if needed > budget:
        raise ValueError(
            f"memory_mib={budget / _MIB:g} is too low to rank this gallery: "
            f"at least {math.ceil(needed / _MIB)} MiB are needed"
        )
    room = min(budget - fixed_bytes, max(float(rows.max(initial=0.0)), chunk_bytes))
    start, used = 0, 0.0
    for i, size in enumerate(rows):
        if used + size > room:
            yield start, i
            start, used = i, 0.0
        used += size
    if start < len(rows):
        yield start, len(rows)


# --------------------------------------------------------------------------------------------------------------------
# From positions to figures
# --------------------------------------------------------------------------------------------------------------------


def _figures(
    greater: Int64,
    equal: Int64,
    n_relevant: Int64,
    n: int,
    ks: Sequence[int],
    recall_ks: Sequence[int],
    harmonic: Float64,
    whole: bool,
) -> dict[str, Float64]:
    """Expected figures of queries that have relevant items.

    The relevant items of all queries are concatenated ([T], best first within a query): ``greater`` gallery
    items score higher than the item, ``equal`` score the same (itself included). In a group of e tied items, m of
    them relevant, that starts after g items, f of them relevant, position g + p (p = 1..e) holds a relevant item with
    probability m / e, and then (p - 1)(m - 1)/(e - 1) further ones of the group are expected before it. So the group
    is expected to add ``m/e * sum_p (f + 1 + (p - 1)(m - 1)/(e - 1)) / (g + p)`` to the sum of precisions, with p
    running to the end of the group or to the cut.
    """
    starts = np.concatenate([[0], np.cumsum(n_relevant)[:-1]])
    index = np.arange(len(greater)) - np.repeat(starts, n_relevant)  # place among the query's relevant items
    new = np.ones(len(greater), bool)
    new[1:] = (greater[1:] != greater[:-1]) | (index[1:] == 0)
    group = np.flatnonzero(new)
    size = np.diff(np.append(group, len(greater)))
    m = np.repeat(size, size)
    f = index[np.repeat(group, size)]
    e = equal.astype(np.float64)
    slope = np.where(equal > 1, (m - 1) / np.maximum(e - 1, 1), 0.0)

    def precision_sum(inside: Int64) -> Float64:
        """Share of each relevant item in what its group adds, when ``inside`` places of the group count."""
        h = np.where(inside == 1, 1.0 / (greater + 1), harmonic[greater + inside] - harmonic[greater])
        return ((f + 1) * h + slope * (inside - (greater + 1) * h)) / e

    out = {"ap@all": np.add.reduceat(precision_sum(equal), starts) / n_relevant} if whole else {}
    for k in ks:
        inside = np.clip(k - greater, 0, equal)
        part = precision_sum(inside)
        total = np.add.reduceat(part, starts)
        hits = np.add.reduceat(inside / e, starts)
        out[f"ap@{k}[trec]"] = total / n_relevant
        out[f"p@{k}"] = hits / k
        retrieved = np.divide(total, hits, out=np.zeros_like(total), where=hits > 0)
        before = np.add.reduceat(np.where(inside == equal, part, 0.0), starts)
        for i in np.flatnonzero((inside > 0) & (inside < equal) & new):  # at most one group of a query is on the cut
            query = int(np.searchsorted(starts, i, "right")) - 1
            shape = (int(f[i]), int(greater[i]), int(equal[i]), int(m[i]), int(inside[i]))
            inverse, within = _straddling(*shape)
            retrieved[query] = before[query] * inverse + within
        out[f"ap@{k}[retrieved]"] = retrieved
    for k in recall_ks:
        inside = np.clip(k - greater[starts], 0, equal[starts])
        hit = (inside > 0).astype(np.float64)
        for place in np.flatnonzero((inside > 0) & (inside < equal[starts]) & (m[starts] < equal[starts])):
            i = starts[place]
            hit[place] = 1.0 - _miss(int(equal[i]), int(m[i]), int(inside[place]))
        out[f"recall@{k}"] = hit
    return out


@lru_cache(maxsize=65536)
def _straddling(f: int, g: int, e: int, m: int, t: int) -> tuple[float, float]:
    """Expectations for a tied group across the cut, of which only the first t of e places count.

    J, the number of the group's m relevant items on those places, is hypergeometric. With f relevant items before the
    group, returned are E[1 / (f + J)] and E[X / (f + J)], X being the group's share of the sum of precisions; given
    J = j its places are a random j-subset of t, so that
    ``E[X | j] = j/t * sum_{p<=t} (f + 1 + (p - 1)(j - 1)/(t - 1)) / (g + p)``. Terms with f + J = 0 count as 0.
    """
    j = np.arange(max(0, t - (e - m)), min(m, t) + 1, dtype=np.float64)
    ratio = np.log((m - j[:-1]) * (t - j[:-1])) - np.log((j[:-1] + 1) * (e - m - t + j[:-1] + 1))
    log_probability = np.concatenate([[0.0], np.cumsum(ratio)])
    probability = np.exp(log_probability - log_probability.max())
    probability /= probability.sum()
    h = float((1.0 / np.arange(g + 1, g + t + 1)).sum())
    slope = (j - 1) / (t - 1) if t > 1 else np.zeros_like(j)
    within = j / t * ((f + 1) * h + slope * (t - (g + 1) * h))
    weight = np.divide(probability, f + j, out=np.zeros_like(j), where=f + j > 0)
    return float(weight.sum()), float((weight * within).sum())


@lru_cache(maxsize=65536)
def _miss(e: int, m: int, t: int) -> float:
    """Probability that none of m relevant items among e tied ones falls on the first t places."""
    few, many = min(m, t), max(m, t)
    i = np.arange(few)
    return float(np.prod(np.maximum(e - many - i, 0) / (e - i)))


# --------------------------------------------------------------------------------------------------------------------
# Inputs
# --------------------------------------------------------------------------------------------------------------------


def _as_array(x: Any, name: str) -> NDArray[Any]:
    """A 2-D floating numpy array from torch or numpy, without a copy where the type is float32 or float64."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = (x if str(x.dtype) == "torch.float64" else x.float()).numpy()
    x = np.asarray(x)
    if x.ndim != 2:
        raise ValueError(f"{name} must be a matrix (one row an image), got shape {tuple(x.shape)}")
    if x.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold numbers, got {x.dtype}")
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float64)


def _check_finite(x: NDArray[Any], name: str) -> None:
    bad: list[int] = []
    for start in range(0, len(x), _SLAB):
        rows = x[start : start + _SLAB]
        bad += (start + np.flatnonzero(~np.isfinite(rows).all(axis=1))).tolist()
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise ValueError(f"{name} has NaN or infinite values in {len(bad)} of {len(x)} rows ({shown})")


#: Embeddings whose largest value is outside these have squared distances that float64 cannot represent.
_SMALLEST, _LARGEST = 1e-140, 1e140


def _check_squares(query: NDArray[Any], gallery: NDArray[Any]) -> None:
    largest = max(
        (float(np.abs(x[i : i + _SLAB]).max(initial=0.0)) for x in (query, gallery) for i in range(0, len(x), _SLAB)),
        default=0.0,
    )
    if largest > _LARGEST or 0 < largest < _SMALLEST:
        raise ValueError(
            f"the largest value of the embeddings is {largest:.3g}: squared distances do not fit float64; scale query"
            " and gallery embeddings by one factor"
        )


def _labels(labels: Any, n: int, name: str) -> NDArray[Any]:
    if hasattr(labels, "detach"):
        labels = labels.detach().cpu().numpy()
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(f"{name} has {n} rows but labels of shape {tuple(labels.shape)}; give one label a row")
    return labels
