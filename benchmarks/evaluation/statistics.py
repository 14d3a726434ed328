"""Statistical tests of scores: intervals over seeds, paired tests on per-query values, corrections, mean ranks.

Unit of the tests
-----------------
Queries of one class are not independent: they share the class's images, its gallery items and what a method has learned
about it. So the unit of every paired test and interval here is the *class*, over all its queries and all the splits
that are averaged. Conclusions are about other classes of the same kind. They are not about other training runs: for
those there is the interval over seeds, and where a method was run with several seeds its per-query values are averaged
over the seeds before anything is tested.

Tests
-----
*Randomisation.* If two methods are equally good, swapping their values within a class changes nothing but chance.
Whole classes are swapped at random, and p is the share of swaps that separate the two methods at least as far as the
observed values do (two-sided). Where the metric is a mean over queries this is the sign-flip test on the classes'
contributions. With few classes all swaps are enumerated and p is exact; otherwise the observed arrangement counts as
one of the random ones, so that p is never 0. Fisher (1935); for retrieval Smucker, Allan and Carterette (CIKM 2007);
the count of one: Phipson and Smyth (2010).

*Bootstrap.* Whole classes are drawn with replacement, the same for both methods, and the interval is the middle 95 %
of the differences (percentile method). With few classes it is somewhat too narrow; the test is more reliable.

*Several comparisons.* p values are corrected by Holm's step-down method (1979). Which method is best is read off the
same data, so the family of a "not separable from the best" group is every pair of methods, not only the pairs with the
best one: with equally good methods a group then loses a member in at most 5 % of tables.

Metrics
-------
A metric here is a mean over queries (``ap``, ``p@k``, ``recall@k``, ``credit`` per image), a mean over classes of
their means (``[class]``), or the harmonic mean over groups of classes of such means (seen and unseen classes); over
several splits it is the plain mean of the splits' metrics. `ClassTotals` holds the sums by class from which all of
these follow.

Everything is deterministic: the same input and ``seed`` give the same figures, and p(a, b) = p(b, a) to the last bit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Weighting = Literal["query", "class"]

ALPHA = 0.05
CONFIDENCE = 0.95
RESAMPLES = 10_000

_CHUNK = 2048
_EQUAL = 1e-12  # differences of scores closer than this differ by rounding only


# --------------------------------------------------------------------------------------------------------------------
# Seeds
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeedMean:
    """Mean over ``n`` seeds with its t interval; ``low`` and ``high`` are None for one seed."""

    mean: float
    low: float | None
    high: float | None
    n: int


def mean_over_seeds(values: ArrayLike, confidence: float = CONFIDENCE) -> SeedMean:
    """Mean and t interval of one score a seed: ``mean +- t * s / sqrt(n)`` with ``s`` over n - 1.

    Args:
        values: [n] scores, one a seed.
        confidence: share of such intervals that hold the mean over all seeds, if scores are normal.

    Raises:
        ValueError: no values, values that are not finite, or a confidence outside (0, 1).
    """
    x = np.asarray(values, dtype=np.float64)
    _check_share(confidence, "confidence")
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"one score a seed is needed, got an array of shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("scores must be finite; a seed without a score makes the mean missing, not smaller")
    mean = math.fsum(x) / len(x)
    if len(x) == 1:
        return SeedMean(mean, None, None, 1)
    half = float(stats.t.ppf(0.5 + confidence / 2, len(x) - 1)) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return SeedMean(mean, mean - half, mean + half, len(x))


# --------------------------------------------------------------------------------------------------------------------
# Per-query values, summed by class
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ClassTotals:
    """Per-query values of M methods on the same queries, summed within each of C classes, J splits and G groups.

    A method's metric is the mean over splits j of the harmonic mean over groups g of ``sum_c totals[m, j, g, c] /
    sum_c counts[j, g, c]``.

    Attributes:
        methods: names, M of them.
        classes: names of the clusters, C of them.
        totals: float64 [M, J, G, C].
        counts: float64 [J, G, C], number of queries (or 1 for a class that occurs, where classes weigh the same).
        n_queries: number of queries behind the sums.
    """

    methods: tuple[str, ...]
    classes: tuple[str, ...]
    totals: Float64
    counts: Float64
    n_queries: int

    def estimates(self) -> dict[str, float]:
        """The metric of each method."""
        values = _combined(self.totals.sum(-1) / self.counts.sum(-1))
        return {method: float(value) for method, value in zip(self.methods, values, strict=True)}


def class_totals(
    values: Mapping[str, ArrayLike],
    classes: ArrayLike,
    *,
    splits: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    weighting: Weighting = "query",
) -> ClassTotals:
    """Sum per-query values by class, after averaging each method's seeds query by query.

    Args:
        values: method -> [Q] values, or [S, Q] for S seeds (S may differ between methods). NaN marks a query that has
            no value under any method, such as one whose class is not in the gallery; it is left out.
        classes: [Q] class of each query. Any other labels are clusters as well.
        splits: [Q] labels; the metric is computed in each split and averaged. None: one split.
        groups: [Q] labels whose metrics are joined by the harmonic mean (seen and unseen). None: one group.
        weighting: ``query`` averages over queries; ``class`` over classes, each with the mean of its queries.

    Raises:
        ValueError: no method, shapes that do not fit, a query with a value under some methods or seeds only, infinite
            values, or a split without a query in some group.
    """
    if not values:
        raise ValueError("there is no method to compare")
    if weighting not in ("query", "class"):
        raise ValueError(f"weighting={weighting!r} is unknown; use 'query' or 'class'")
    of_class = np.asarray(classes)
    n = len(of_class)
    averaged = np.stack([_seed_average(name, rows, n) for name, rows in values.items()])
    absent = np.isnan(averaged)
    partly = absent.any(0) & ~absent.all(0)
    if partly.any():
        without = [name for name, missing in zip(values, absent[:, partly], strict=True) if missing.any()]
        raise ValueError(f"{partly.sum()} of {n} queries have no value under {', '.join(without)} but under others")
    kept = ~absent[0]
    names, cluster = np.unique(of_class[kept], return_inverse=True)
    n_splits, split = _numbered(splits, kept, "splits")
    n_groups, group = _numbered(groups, kept, "groups")
    shape = (n_splits, n_groups, len(names))
    place = np.ravel_multi_index((split, group, cluster), shape)
    cells = math.prod(shape)
    counts = np.bincount(place, minlength=cells).astype(np.float64).reshape(shape)
    sums = [np.bincount(place, weights=row[kept], minlength=cells).reshape(shape) for row in averaged]
    totals = np.stack(sums).astype(np.float64)
    if not len(names) or (counts.sum(-1) == 0).any():
        raise ValueError("a split or one of its groups has no query with a value")
    if weighting == "class":
        present = counts > 0
        totals = np.divide(totals, counts, out=np.zeros_like(totals), where=present)
        counts = present.astype(np.float64)
    return ClassTotals(tuple(values), tuple(map(str, names)), totals, counts, int(kept.sum()))


# --------------------------------------------------------------------------------------------------------------------
# Paired tests
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedTest:
    """Two methods on the same queries.

    Attributes:
        a, b: the methods.
        difference: metric of a minus metric of b.
        low, high: bootstrap interval of the difference.
        p: two-sided randomisation p value, not corrected for other tests.
        exact: all swaps of classes were enumerated.
        n_classes, n_queries: what was resampled, and what it holds.
    """

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    exact: bool
    n_classes: int
    n_queries: int


def paired_tests(
    totals: ClassTotals,
    pairs: Sequence[tuple[str, str]] | None = None,
    *,
    resamples: int | None = None,
    draws: int | None = None,
    alpha: float = ALPHA,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> list[PairedTest]:
    """Randomisation test and bootstrap interval of each pair of methods, whole classes swapped and drawn.

    Args:
        totals: from `class_totals`.
        pairs: names of the methods to compare; None: every pair, in the order of the methods.
        resamples: random swaps; None: `resamples_for` the number of pairs.
        draws: of the bootstrap; None: as many, but at most 10 000.
        alpha: level the p values will be held against after correction; only sets the default of ``resamples``.
        confidence: of the intervals.
        seed: of the random numbers, the same for all pairs.

    Raises:
        ValueError: a confidence or alpha outside (0, 1) or fewer than one resample.
        KeyError: a pair names a method that is not in ``totals``.
    """
    _check_share(confidence, "confidence")
    names = list(itertools.combinations(totals.methods, 2)) if pairs is None else list(pairs)
    if not names:
        return []
    resamples = resamples_for(len(names), alpha) if resamples is None else resamples
    draws = min(resamples, RESAMPLES) if draws is None else draws
    if min(resamples, draws) < 1:
        raise ValueError(f"{min(resamples, draws)} resamples are too few; 10000 are usual")
    number = {name: place for place, name in enumerate(totals.methods)}
    index = np.array([(number[a], number[b]) for a, b in names])
    p, exact = _randomisation(totals, index, resamples, seed)
    low, high = _bootstrap(totals, index, draws, confidence, seed)
    value = totals.estimates()
    return [
        PairedTest(
            a, b, value[a] - value[b], float(low[i]), float(high[i]), float(p[i]), exact,
            len(totals.classes), totals.n_queries,
        )
        for i, (a, b) in enumerate(names)
    ]  # fmt: skip


def resamples_for(tests: int, alpha: float = ALPHA) -> int:
    """Enough resamples that the smallest possible p, 1 / (1 + resamples), stays below alpha / 4 after correction."""
    _check_share(alpha, "alpha")
    return max(RESAMPLES, math.ceil(4 * tests / alpha))


def holm(p: ArrayLike) -> Float64:
    """Holm's step-down adjusted p values [N]: the i-th smallest of n times n - i + 1, made monotone, at most 1.

    NaN is a test that was not made: it stays NaN and is not counted.

    Raises:
        ValueError: values outside [0, 1].
    """
    given = np.asarray(p, dtype=np.float64)
    if given.ndim != 1 or ((given < 0) | (given > 1)).any():
        raise ValueError("p values must be a list of numbers from 0 to 1")
    adjusted = np.full(given.shape, np.nan)
    made = np.flatnonzero(~np.isnan(given))
    order = made[np.argsort(given[made], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * given[order]), 1.0)
    return adjusted


@dataclass(frozen=True)
class BestGroup:
    """The best method and all methods that do not differ significantly from it.

    ``members`` holds the best itself; ``p`` has the corrected p value against the best of every other method.
    """

    best: str
    members: frozenset[str]
    p: Mapping[str, float]


def not_separable_from_best(
    estimates: Mapping[str, float], tests: Sequence[PairedTest], *, alpha: float = ALPHA
) -> BestGroup:
    """The group of methods whose Holm-corrected p against the best is above ``alpha``.

    Args:
        estimates: method -> metric, higher is better.
        tests: one for each pair of these methods; all of them are the family that is corrected for, because which
            method is best was not known before the data (see the module's docstring).
        alpha: level of the test.

    Raises:
        ValueError: no method, or a pair with the best is not among the tests.
    """
    if not estimates:
        raise ValueError("there is no method to group")
    best = min(estimates, key=lambda name: (-estimates[name], name))
    corrected = holm([test.p for test in tests])
    p = {}
    for test, value in zip(tests, corrected, strict=True):
        if best in (test.a, test.b):
            p[test.b if test.a == best else test.a] = float(value)
    untested = [name for name in estimates if name != best and name not in p]
    if untested:
        raise ValueError(f"no test of {best} against {', '.join(untested)}; give one for each pair")
    return BestGroup(best, frozenset({best, *(name for name in estimates if p.get(name, 0.0) > alpha)}), p)


# --------------------------------------------------------------------------------------------------------------------
# Ranks
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeanRank:
    """A method's mean rank over cells (1 is best), or None with the questions it has no score for.

    ``low`` and ``high`` bound the bootstrap interval over cells; None for one cell. ``of`` is the number of methods
    that were ranked against each other.
    """

    method: str
    rank: float | None
    low: float | None
    high: float | None
    cells: int
    of: int
    missing: tuple[Hashable, ...] = ()


def mean_ranks(
    scores: Mapping[str, Mapping[Any, float | None]],
    *,
    cell_of: Callable[[Any], Hashable] = lambda question: question,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[MeanRank]:
    """Mean rank of each method over cells, with a bootstrap interval over the cells.

    In each question methods are ranked from the highest score (rank 1); equal scores share the average of their ranks.
    Ranks of the questions of one cell are averaged, then the cells', which are what the bootstrap draws. Ranks compare
    only methods that have a score for every question; the others are returned with what they miss and without a rank,
    and they do not change anyone's rank.

    Args:
        scores: method -> question -> score, higher is better; None, NaN or an absent question is a missing score.
        cell_of: the cell a question belongs to, e.g. ``lambda q: (q.protocol, q.query_domain)``; by default each
            question is a cell.
        confidence: of the interval.
        resamples: bootstrap draws.
        seed: of the bootstrap.

    Returns:
        One entry a method: ranked ones from the best, then the incomplete ones, by name where equal.
    """
    _check_share(confidence, "confidence")
    questions = list(dict.fromkeys(question for row in scores.values() for question in row))
    missing = {
        method: tuple(q for q in questions if (value := row.get(q)) is None or math.isnan(value))
        for method, row in scores.items()
    }
    ranked = [method for method in scores if not missing[method]] if questions else []
    cells = list(dict.fromkeys(map(cell_of, questions)))
    incomplete = [
        MeanRank(method, None, None, None, len(cells), len(ranked), missing[method])
        for method in sorted(scores)
        if method not in ranked
    ]
    if not ranked:
        return incomplete
    table = np.array([[scores[method][q] for q in questions] for method in ranked], dtype=np.float64)
    ranks = stats.rankdata(-np.round(table, 12), axis=0)
    number = {cell: place for place, cell in enumerate(cells)}
    cell = np.array([number[cell_of(q)] for q in questions])
    by_cell = np.stack([ranks[:, cell == place].mean(1) for place in range(len(cells))])  # [K, M]
    low: list[float | None] = [None] * len(ranked)
    high = list(low)
    if len(cells) > 1:
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(len(cells), np.full(len(cells), 1 / len(cells)), size=resamples) @ by_cell / len(cells)
        bounds = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
        low, high = bounds[0].tolist(), bounds[1].tolist()
    mean = by_cell.mean(0).tolist()
    rows = [MeanRank(m, mean[i], low[i], high[i], len(cells), len(ranked)) for i, m in enumerate(ranked)]
    return sorted(rows, key=lambda row: (row.rank or 0.0, row.method)) + incomplete


# --------------------------------------------------------------------------------------------------------------------
# Resampling
# --------------------------------------------------------------------------------------------------------------------


def _randomisation(totals: ClassTotals, pairs: Int64, resamples: int, seed: int) -> tuple[Float64, bool]:
    """Two-sided p [P] of each pair (rows of ``pairs`` [P, 2]) under random swaps of classes, and whether it is exact.

    Swapping class c moves each ratio of a by ``-d_c`` and of b by ``+d_c``, ``d_c`` being the class's share in their
    difference; so with s_c = +1 (as observed) or -1 (swapped) the ratios are ``middle +- s @ d / 2``.
    """
    ratios = totals.totals / totals.counts.sum(-1, keepdims=True)  # [M, J, G, C]: shares of the classes
    a, b = ratios[pairs[:, 0]], ratios[pairs[:, 1]]
    d = a - b
    exact, arrangements = _signs(len(totals.classes), resamples, seed)
    reached = np.zeros(len(pairs), dtype=np.int64)
    total = 0
    if d.shape[2] == 1:  # the metric is linear in the swaps: one column a pair
        columns = np.ascontiguousarray(d[:, :, 0].mean(1).T)  # [C, P]
        bar = np.abs(columns.sum(0)) - _EQUAL
        for signs in arrangements:
            reached += (np.abs(signs @ columns) >= bar).sum(0)
            total += len(signs)
    else:
        middle = (a + b).sum(-1) / 2  # [P, J, G]
        bar = np.abs(_combined(a.sum(-1)) - _combined(b.sum(-1))) - _EQUAL
        for signs in arrangements:
            for i in range(len(pairs)):
                half = np.einsum("nc,jgc->njg", signs, d[i], optimize=True) / 2
                swapped = _combined(middle[i] + half) - _combined(middle[i] - half)
                reached[i] += (np.abs(swapped) >= bar[i]).sum()
            total += len(signs)
    return (reached / total if exact else (reached + 1) / (total + 1)), exact


def _signs(n: int, resamples: int, seed: int) -> tuple[bool, Iterator[Float64]]:
    """Whether all swaps of n classes are enumerated, and chunks of rows of +1 and -1 [*, n].

    Swapping every class only turns the sign of the difference, so half of all swaps are enough: class 0 stays.
    """
    if 2 ** (n - 1) <= resamples:
        return True, _enumerated(n)
    return False, _random_signs(n, resamples, seed)


def _enumerated(n: int) -> Iterator[Float64]:
    bits = np.arange(n) - 1
    for start in range(0, 2 ** (n - 1), _CHUNK):
        number = np.arange(start, min(start + _CHUNK, 2 ** (n - 1)))[:, None]
        signs = (1 - 2 * ((number >> np.maximum(bits, 0)) & 1)).astype(np.float64)
        signs[:, 0] = 1.0
        yield signs


def _random_signs(n: int, resamples: int, seed: int) -> Iterator[Float64]:
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        size = (min(_CHUNK, resamples - start), n)
        yield (1 - 2 * rng.integers(0, 2, size=size, dtype=np.int8)).astype(np.float64)


def _bootstrap(totals: ClassTotals, pairs: Int64, draws: int, confidence: float, seed: int) -> tuple[Float64, Float64]:
    """Percentile interval [P] of each pair's difference over draws of whole classes.

    Classes are drawn within their groups (seen among seen), so that every draw has both. Draws that miss every class of
    some split, possible only where classes are very few, are left out.
    """
    m, j, g, c = totals.totals.shape
    rng = np.random.default_rng([seed, 1])
    flat = totals.totals.reshape(m * j * g, c).T
    counts = totals.counts.reshape(j * g, c).T
    _, stratum = np.unique(totals.counts.any(0).T, axis=0, return_inverse=True)  # which groups a class occurs in
    strata = [np.flatnonzero(stratum.ravel() == s) for s in np.unique(stratum)]
    metrics = np.empty((draws, m))
    for start in range(0, draws, _CHUNK):
        n = min(_CHUNK, draws - start)
        times = np.zeros((n, c))
        for members in strata:
            k = len(members)
            drawn_classes = rng.integers(k, size=(n, k)) + k * np.arange(n)[:, None]
            times[:, members] = np.bincount(drawn_classes.ravel(), minlength=n * k).reshape(n, k)
        drawn = (times @ counts).reshape(n, 1, j, g)
        sums = (times @ flat).reshape(n, m, j, g)
        ratio = np.divide(sums, drawn, out=np.full_like(sums, np.nan), where=drawn > 0)
        metrics[start : start + n] = _combined(ratio)
    metrics = metrics[~np.isnan(metrics).any(1)]
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.empty(len(pairs)), np.empty(len(pairs))
    for i, (a, b) in enumerate(pairs):
        low[i], high[i] = np.quantile(metrics[:, a] - metrics[:, b], tails)
    return low, high


def _combined(ratios: Float64) -> Float64:
    """Harmonic mean over the last axis (groups; 0 if one is 0), mean over the one before (splits)."""
    if ratios.shape[-1] == 1:
        return np.asarray(ratios[..., 0].mean(-1))
    with np.errstate(divide="ignore"):
        joined = np.where((ratios <= 0).any(-1), 0.0, ratios.shape[-1] / (1.0 / ratios).sum(-1))
    return np.asarray(joined.mean(-1))


def _seed_average(method: str, values: ArrayLike, n: int) -> Float64:
    """[Q] mean over seeds of one method's values."""
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim == 1:
        rows = rows[None]
    if rows.ndim != 2 or len(rows) == 0 or rows.shape[1] != n:
        raise ValueError(f"{method} has values of shape {np.shape(values)}; {n} queries have a class")
    if np.isinf(rows).any():
        raise ValueError(f"{method} has infinite values")
    absent = np.isnan(rows)
    if (absent.any(0) != absent.all(0)).any():
        raise ValueError(f"{method} has values of some seeds only for {(absent.any(0) & ~absent.all(0)).sum()} queries")
    return np.asarray(rows.mean(0))


def _numbered(labels: ArrayLike | None, kept: NDArray[np.bool_], name: str) -> tuple[int, Int64]:
    """Number of distinct labels (over all queries) and each kept query's."""
    if labels is None:
        return 1, np.zeros(int(kept.sum()), dtype=np.int64)
    given = np.asarray(labels)
    if given.shape != kept.shape:
        raise ValueError(f"{name} has shape {given.shape}; there are {len(kept)} queries")
    names, number = np.unique(given, return_inverse=True)
    return len(names), number[kept].astype(np.int64)


def _check_share(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}={value} must be between 0 and 1")
