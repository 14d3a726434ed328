"""Which differences between methods can be trusted: tidy frames from a store, for tables, plots and notebooks.

`compare_methods` makes all of them:

``scores``      a row a method: mean over splits and seeds, interval over seeds, group mark, what is missing
``pairs``       a row a pair of methods: difference, bootstrap interval, p value raw and corrected
``ranks``       a row a method: mean rank over (protocol, query domain) with its interval
``agreement``   a row a question: rank correlation of the methods' order between two seeds
``inflation``   a row a method: how much selecting on test data (``select=oracle``) adds over ``select=val``

Every frame starts with the columns of `benchmarks.reporting.types.SETTING`: scores are only compared within one
setting. ``split`` is the query domain or transfer; rows with ``split == ALL`` are about the mean over all of them, and
exist only for methods that have every split with every one of their seeds; ``missing`` lists what is missing.
Fractions, not percent.

Methods that have the same value for every query (retrieval of those that leave the image features as they are) are one
method to the tests: Holm's correction counts the pairs of different ones, and each of the same stands where they stand.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from benchmarks.evaluation.statistics import (
    ALPHA,
    CONFIDENCE,
    ClassTotals,
    PairedTest,
    class_totals,
    holm,
    mean_over_seeds,
    mean_ranks,
    not_separable_from_best,
    paired_tests,
)
from benchmarks.reporting.tables import METHOD_COLUMNS, newest, of_setting, row_labels
from benchmarks.reporting.types import ALL, SETTING, ScoreTable, Setting
from benchmarks.store.files import ResultStore
from benchmarks.store.frame import load_results
from benchmarks.store.records import CellId, Record, RecordError

if TYPE_CHECKING:
    import pyarrow as pa

_ABOUT = ["label", *METHOD_COLUMNS, "floor"]
_QUESTION = ["protocol", "gallery", "metric", "split"]

SCORE_COLUMNS = [
    *SETTING, *_QUESTION, *_ABOUT,
    "value", "seeds", "low", "high", "best", "group", "p_best", "tested", "missing",
]  # fmt: skip
PAIR_COLUMNS = [
    *SETTING, *_QUESTION,
    "a", "b", "difference", "low", "high", "p", "p_holm", "exact", "classes", "queries", "seeds_a", "seeds_b", "same",
]  # fmt: skip
RANK_COLUMNS = [*SETTING, "protocol", *_ABOUT, "rank", "low", "high", "cells", "of", "missing"]
AGREEMENT_COLUMNS = [*SETTING, "protocol", "gallery", "metric", "methods", "seeds", "mean", "low", "high"]
INFLATION_COLUMNS = [
    *(name for name in SETTING if name != "select"), *_QUESTION, *_ABOUT,
    "val", "oracle", "inflation", "seeds", "low", "high", "missing",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class MethodComparison:
    """The frames of `compare_methods`; columns in ``SCORE_COLUMNS``, ``PAIR_COLUMNS`` and so on."""

    scores: pd.DataFrame
    pairs: pd.DataFrame
    ranks: pd.DataFrame
    agreement: pd.DataFrame
    inflation: pd.DataFrame


@dataclass(frozen=True)
class TestedScore:
    """Tests of a score: its interval over seeds, and whether it differs from the best of its column."""

    low: float
    high: float
    seeds: int
    best: bool
    group: bool
    p_best: float
    tested: bool


class SettingComparison:
    """A comparison's rows of one setting; scores are looked up by table, split (or `ALL`) and label.

    Without a comparison (it could not be made) all is empty.
    """

    def __init__(self, comparison: MethodComparison | None, setting: Setting) -> None:
        nothing = pd.DataFrame()
        self.ranks = nothing if comparison is None else of_setting(comparison.ranks, setting)
        self.pairs = nothing if comparison is None else of_setting(comparison.pairs, setting)
        self.agreement = nothing if comparison is None else of_setting(comparison.agreement, setting)
        self.inflation = nothing if comparison is None else of_setting(comparison.inflation, setting, ("select",))
        self._scores: dict[tuple[str, ...], TestedScore] = {}
        if comparison is not None:
            for row in of_setting(comparison.scores, setting).to_dict("records"):
                place = tuple(str(row[name]) for name in ("protocol", "gallery", "metric", "split", "label"))
                self._scores[place] = TestedScore(
                    row["low"], row["high"], row["seeds"], row["best"], row["group"], row["p_best"], row["tested"]
                )

    def of(self, table: ScoreTable, split: str, label: str) -> TestedScore | None:
        """The tests of a table's score; None if it has none."""
        return self._scores.get((table.protocol, table.gallery, table.metric, split, label))


def leading_pairs(pairs: pd.DataFrame, score_tables: Iterable[ScoreTable]) -> list[dict[Any, Any]]:
    """The rows of ``pairs`` on the mean over splits (`ALL`) of the metric that leads each gallery's tables."""
    leading = {(table.protocol, table.gallery): table.metric for table in score_tables if table.leads}
    entries = pairs[pairs["split"] == ALL].to_dict("records") if len(pairs) else []
    return [entry for entry in entries if leading.get((entry["protocol"], entry["gallery"])) == entry["metric"]]


def compare_methods(
    store: ResultStore,
    results: pd.DataFrame | None = None,
    *,
    metrics: Iterable[str] | None = None,
    alpha: float = ALPHA,
    confidence: float = CONFIDENCE,
    resamples: int | None = None,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
    records: Mapping[str, Record] | None = None,
) -> MethodComparison:
    """All frames of this module.

    Args:
        store: where the per-query values are read from.
        results: rows of `benchmarks.store.frame.load_results` to compare, e.g. without the
            ablations; None: the whole store.
        metrics: names; None: the leading metrics of each gallery.
        alpha: level of the tests behind the groups.
        confidence: of all intervals.
        resamples: of tests; None: 10 000, more where many methods are compared. Bootstraps take at most 10 000.
        seed: of the resampling.
        report: gets one line for each record whose per-query values cannot be used.
        records: by key, where they have been read already; the others are read from the store.
    """
    frame = newest(load_results(store.root, report or (lambda line: None)) if results is None else results)
    options: dict[str, Any] = {"alpha": alpha, "confidence": confidence, "resamples": resamples, "seed": seed}
    scores, pairs = scores_and_pairs(store, frame, metrics=metrics, report=report, records=records, **options)
    return MethodComparison(
        scores=scores,
        pairs=pairs,
        ranks=rank_table(frame, confidence=confidence, seed=seed),
        agreement=seed_agreement(frame),
        inflation=oracle_inflation(frame, metrics=metrics, confidence=confidence),
    )


# --------------------------------------------------------------------------------------------------------------------
# Scores, groups and pairs
# --------------------------------------------------------------------------------------------------------------------


def scores_and_pairs(
    store: ResultStore,
    results: pd.DataFrame,
    *,
    metrics: Iterable[str] | None = None,
    alpha: float = ALPHA,
    confidence: float = CONFIDENCE,
    resamples: int | None = None,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
    records: Mapping[str, Record] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The frames ``scores`` and ``pairs``, for each split and for the mean over all splits (`ALL`).

    ``scores``: ``value`` is the mean over seeds (NaN where something is missing), ``low`` and ``high`` its t interval
    (NaN for one seed), ``seeds`` their number. ``best`` marks the best method of a question, ``group`` it and every
    method not separable from it, ``p_best`` is the corrected p value against it (NaN for itself). ``tested`` is False
    for rows without usable per-query values, which are in no group. Rows of ``select=oracle`` are never tested.

    ``pairs``: ``a`` is the better of the two, ``difference`` is a minus b and [``low``, ``high``] its bootstrap
    interval; ``p_holm`` is corrected over all pairs of different methods of the same question. ``same``: the two have
    the same value for every query; their p is 1, and no test is made.
    """
    chosen_metrics = None if metrics is None else list(metrics)
    scores: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for setting, in_setting in _settings(results):
        labels = _labels(in_setting)
        ranked = setting["select"] != "oracle"
        for protocol, asked in _by_protocol(_questions(in_setting)).items():
            metrics_of = {
                question.gallery: [m for m in chosen_metrics or question.leading if question.has(m)]
                for question in asked
            }
            part = in_setting[in_setting["protocol"] == protocol]
            tables = _QueryTables(store, part, metrics_of, report, records or {}) if ranked else None
            for question in asked:
                for metric, split in itertools.product(metrics_of[question.gallery], [ALL, *question.splits]):
                    splits = question.splits if split == ALL else [split]
                    place = {"protocol": protocol, "gallery": question.gallery, "metric": metric, "split": split}
                    lines = _seed_scores(question, labels, metric, splits, confidence)
                    tested = None
                    if tables is not None:
                        tested = _test(
                            tables, [line for line in lines if not line["missing"]], question.gallery, metric, splits,
                            alpha=alpha, confidence=confidence, resamples=resamples, seed=seed,
                        )  # fmt: skip
                    scores += [setting | place | line for line in _marked(lines, tested, alpha)]
                    pairs += [setting | place | line for line in _pair_lines(lines, tested)]
    return _frame(scores, SCORE_COLUMNS), _frame(pairs, PAIR_COLUMNS)


@dataclass(frozen=True)
class _Tested:
    """Tests of the pairs of different methods; ``alike``: each method and the one in ``tests`` with the same values."""

    totals: ClassTotals
    tests: list[PairedTest]
    p_holm: list[float]
    alike: dict[str, str]


def _seed_scores(
    question: _Question, labels: Mapping[Any, str], metric: str, splits: list[str], confidence: float
) -> list[dict[str, Any]]:
    """A line a method: mean over splits seed by seed, then over seeds; or what is missing."""
    lines = []
    for identity, cells in question.methods.items():
        value, missing = cells.by_seed(metric, splits)
        line = dict(zip(METHOD_COLUMNS, identity, strict=True)) | {
            "label": labels[identity],
            "floor": cells.floor,
            "seeds": len(value),
            "missing": missing,
            "value": math.nan, "low": math.nan, "high": math.nan,
        }  # fmt: skip
        if not missing:
            mean = mean_over_seeds([value[seed] for seed in sorted(value)], confidence)
            line |= {"value": mean.mean, "low": _or_nan(mean.low), "high": _or_nan(mean.high)}
        lines.append(line)
    return lines


def _test(
    tables: _QueryTables,
    lines: list[dict[str, Any]],
    gallery: str,
    metric: str,
    splits: list[str],
    *,
    alpha: float,
    confidence: float,
    resamples: int | None,
    seed: int,
) -> _Tested | None:
    """Tests among the methods whose per-query values can be read; None if there are none."""
    blocks: dict[str, list[list[QueryValues]]] = {}
    for line in lines:
        block = tables.values(tuple(line[name] for name in METHOD_COLUMNS), gallery, metric, splits)
        if block is not None:
            blocks[line["label"]] = block
    if not blocks:
        return None
    signatures = {label: {tuple(v.signature for v in block) for block in seeds} for label, seeds in blocks.items()}
    common, _ = Counter(signature for seen in signatures.values() for signature in seen).most_common(1)[0]
    blocks = {label: seeds for label, seeds in blocks.items() if signatures[label] == {common}}
    if not blocks:
        return None
    reference = next(iter(blocks.values()))[0]
    values = {label: [np.concatenate([v.values for v in block]) for block in seeds] for label, seeds in blocks.items()}
    groups = [block.groups for block in reference]
    totals = class_totals(
        {label: np.stack(seeds) for label, seeds in values.items()},
        np.concatenate([block.classes for block in reference]),
        splits=np.repeat(np.arange(len(splits)), [len(block.values) for block in reference]),
        groups=None if groups[0] is None else np.concatenate([g for g in groups if g is not None]),
        weighting=reference[0].weighting,
    )
    alike = _alike(values)
    pairs = list(itertools.combinations(dict.fromkeys(alike.values()), 2))
    tests = paired_tests(totals, pairs, resamples=resamples, alpha=alpha, confidence=confidence, seed=seed)
    return _Tested(totals, tests, holm([test.p for test in tests]).tolist(), alike)


def _alike(values: Mapping[str, list[np.ndarray]]) -> dict[str, str]:
    """For each method the first by name that has the same mean over seeds for every query, to nine digits."""
    first: dict[bytes, str] = {}
    found = {}
    for label in sorted(values):
        mean = np.mean(values[label], axis=0).round(9) + 0.0  # no negative zeros: equal numbers have equal bytes
        found[label] = first.setdefault(mean.tobytes(), label)
    return {label: found[label] for label in values}


def _marked(lines: list[dict[str, Any]], tested: _Tested | None, alpha: float) -> Iterator[dict[str, Any]]:
    group = None
    if tested is not None:
        estimates = tested.totals.estimates()
        different = {label: estimates[label] for label in tested.alike.values()}
        group = not_separable_from_best(different, tested.tests, alpha=alpha)
    for line in lines:
        label = line["label"] if tested is None else tested.alike.get(line["label"], line["label"])
        is_copy = label != line["label"]
        yield line | {
            "tested": tested is not None and label in tested.totals.methods,
            "best": group is not None and label == group.best and not is_copy,
            "group": group is not None and label in group.members,
            "p_best": math.nan if group is None else group.p.get(label, 1.0 if is_copy else math.nan),
        }


def _pair_lines(lines: list[dict[str, Any]], tested: _Tested | None) -> Iterator[dict[str, Any]]:
    if tested is None:
        return
    seeds = {line["label"]: line["seeds"] for line in lines}
    found = {frozenset((test.a, test.b)): (test, p) for test, p in zip(tested.tests, tested.p_holm, strict=True)}
    size = {"classes": len(tested.totals.classes), "queries": tested.totals.n_queries}
    for a, b in itertools.combinations(tested.totals.methods, 2):
        first, second = tested.alike[a], tested.alike[b]
        if same := first == second:
            difference, low, high, p, p_holm, exact = 0.0, 0.0, 0.0, 1.0, 1.0, True
        else:
            test, p_holm = found[frozenset((first, second))]
            difference, low, high, p, exact = test.difference, test.low, test.high, test.p, test.exact
            if test.a != first:
                difference, low, high = -difference, -high, -low
            if difference < 0:
                a, b, difference, low, high = b, a, -difference, -high, -low
        yield {
            "a": a, "b": b, "difference": difference, "low": low, "high": high, "p": p, "p_holm": p_holm,
            "exact": exact, **size, "seeds_a": seeds[a], "seeds_b": seeds[b], "same": same,
        }  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------
# Mean ranks
# --------------------------------------------------------------------------------------------------------------------


def rank_table(results: pd.DataFrame, *, confidence: float = CONFIDENCE, seed: int = 0) -> pd.DataFrame:
    """The frame ``ranks``: over all protocols (``protocol == ALL``) and within each.

    Methods are ranked by each gallery's first metric (mean over seeds) in each split; the galleries of one (protocol,
    split) count as one cell. ``rank`` is NaN for a method without a score in some cell; ``missing`` lists these.
    ``of`` methods were ranked. Rows of ``select=oracle`` are not ranked.
    """
    lines: list[dict[str, Any]] = []
    for setting, rows in _settings(results):
        if setting["select"] == "oracle":
            continue
        labels = _labels(rows)
        identities = {label: identity for identity, label in labels.items()}
        floors: dict[str, bool] = {}
        scores: dict[str, dict[tuple[str, str, str], float | None]] = {label: {} for label in identities}
        for question in _questions(rows):
            for split, (identity, cells) in itertools.product(question.splits, question.methods.items()):
                value, missing = cells.by_seed(question.leading[0] if question.leading else "", [split])
                score = None if missing else math.fsum(value.values()) / len(value)
                scores[labels[identity]][question.protocol, split, question.gallery] = score
                floors[labels[identity]] = cells.floor
        for scope in [ALL, *rows["protocol"].unique()]:
            included = {
                label: {place: value for place, value in values.items() if scope in (ALL, place[0])}
                for label, values in scores.items()
            }
            for row in mean_ranks(included, cell_of=lambda place: place[:2], confidence=confidence, seed=seed):
                lines.append(
                    setting
                    | dict(zip(METHOD_COLUMNS, identities[row.method], strict=True))
                    | {
                        "protocol": scope, "label": row.method, "floor": floors[row.method],
                        "rank": _or_nan(row.rank), "low": _or_nan(row.low), "high": _or_nan(row.high),
                        "cells": row.cells, "of": row.of,
                        "missing": tuple(", ".join(place) for place in row.missing),  # type: ignore[arg-type]
                    }
                )  # fmt: skip
    return _frame(lines, RANK_COLUMNS)


# --------------------------------------------------------------------------------------------------------------------
# Agreement of seeds
# --------------------------------------------------------------------------------------------------------------------

FEWEST_METHODS = 3
"""Methods from which a rank correlation between seeds is given: of two it is 1 or -1."""


def seed_agreement(results: pd.DataFrame) -> pd.DataFrame:
    """The frame ``agreement``: how far one seed's order of the methods is another's, by each gallery's first metric.

    Spearman's rank correlation of the methods' means over all splits, for every pair of seeds: ``mean``, ``low`` and
    ``high`` are its mean, least and greatest value over the pairs. ``methods`` were compared: those that have every
    split with every seed of the question, floors left out. A question with fewer than two seeds or fewer than
    `FEWEST_METHODS` methods has no row, and neither has ``select=oracle``. Methods with the same scores in every seed
    count once: their ties agree by construction, and say nothing of the order of the others.
    """
    lines: list[dict[str, Any]] = []
    for setting, rows in _settings(results):
        if setting["select"] == "oracle":
            continue
        for question in _questions(rows):
            metric = question.leading[0] if question.leading else ""
            scored = [
                cells.by_seed(metric, question.splits)[0] for cells in question.methods.values() if not cells.floor
            ]
            seeds = sorted({seed for one in scored for seed in one})
            # Rounded: two methods of one and the same ranking may differ in the last bit of a mean.
            whole = pd.DataFrame([one for one in scored if len(one) == len(seeds)], columns=seeds)
            whole = whole.round(9).drop_duplicates()
            if len(seeds) < 2 or len(whole) < FEWEST_METHODS:
                continue
            of_seeds = whole.corr("spearman").to_numpy()
            found = of_seeds[np.triu_indices(len(seeds), 1)]
            lines.append(
                setting
                | {
                    "protocol": question.protocol, "gallery": question.gallery, "metric": metric,
                    "methods": len(whole), "seeds": len(seeds),
                    "mean": float(np.mean(found)), "low": float(np.min(found)), "high": float(np.max(found)),
                }
            )  # fmt: skip
    return _frame(lines, AGREEMENT_COLUMNS)


# --------------------------------------------------------------------------------------------------------------------
# Selection on test data
# --------------------------------------------------------------------------------------------------------------------


def oracle_inflation(
    results: pd.DataFrame, *, metrics: Iterable[str] | None = None, confidence: float = CONFIDENCE
) -> pd.DataFrame:
    """The frame ``inflation``: oracle minus val for each method that has both, each split and their mean (`ALL`).

    Seeds are paired; ``low`` and ``high`` bound the t interval of the difference over seeds (NaN for one seed).
    ``inflation`` is NaN where a split or a seed is missing on either side; ``missing`` lists these.
    """
    wanted = None if metrics is None else list(metrics)
    shared = [name for name in SETTING if name != "select"]
    lines: list[dict[str, Any]] = []
    both = results[results["select"].isin(["val", "oracle"])] if len(results) else results
    for setting, rows in _settings(both, shared):
        if rows["select"].nunique() < 2:
            continue
        labels = _labels(rows)
        val, oracle = (
            {(question.protocol, question.gallery): question for question in _questions(rows[rows["select"] == select])}
            for select in ("val", "oracle")
        )
        for place in [place for place in val if place in oracle]:
            before, after = val[place], oracle[place]
            all_splits = sorted({*before.splits, *after.splits})
            for metric in wanted or before.leading:
                for identity in [identity for identity in before.methods if identity in after.methods]:
                    on_val, on_test = before.methods[identity], after.methods[identity]
                    about = dict(zip(METHOD_COLUMNS, identity, strict=True)) | {
                        "label": labels[identity], "floor": on_val.floor, "gallery": before.gallery,
                        "protocol": before.protocol, "metric": metric,
                    }  # fmt: skip
                    for split in [ALL, *all_splits]:
                        line = _inflation(on_val, on_test, metric, all_splits if split == ALL else [split], confidence)
                        lines.append(setting | about | {"split": split} | line)
    return _frame(lines, INFLATION_COLUMNS)


def _inflation(
    on_val: _MethodCells, on_test: _MethodCells, metric: str, splits: list[str], confidence: float
) -> dict[str, Any]:
    val, missing = on_val.by_seed(metric, splits)
    oracle, missing_too = on_test.by_seed(metric, splits)
    missing = tuple(f"val {text}" for text in missing) + tuple(f"oracle {text}" for text in missing_too)
    for seed in sorted(val.keys() ^ oracle.keys()):
        if not missing:
            missing += (f"{'oracle' if seed in val else 'val'} seed {seed}: missing",)
    nothing = dict.fromkeys(("val", "oracle", "inflation", "low", "high"), math.nan)
    if missing:
        return nothing | {"seeds": len(val.keys() & oracle.keys()), "missing": missing}
    difference = mean_over_seeds([oracle[seed] - val[seed] for seed in sorted(val)], confidence)
    return {
        "val": math.fsum(val.values()) / len(val), "oracle": math.fsum(oracle.values()) / len(oracle),
        "inflation": difference.mean, "low": _or_nan(difference.low), "high": _or_nan(difference.high),
        "seeds": difference.n, "missing": (),
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------
# Stored scores by question
# --------------------------------------------------------------------------------------------------------------------


@dataclass
class _MethodCells:
    """One method's cells of a question: (split, seed) -> status and metrics."""

    floor: bool = False
    cells: dict[tuple[str, int], tuple[str, dict[str, float]]] = field(default_factory=dict)

    def by_seed(self, metric: str, splits: list[str]) -> tuple[dict[int, float], tuple[str, ...]]:
        """Mean over splits of each seed the method was run with, and the cells without a score, with the reason."""
        seeds = sorted({seed for _, seed in self.cells})
        missing: list[str] = []
        for split in splits:
            reasons = {}
            for seed in seeds:
                status, metrics = self.cells.get((split, seed), ("missing", {}))
                if metric not in metrics:
                    reasons[seed] = "no such metric" if status == "ok" else status
            if len(reasons) == len(seeds) and len(set(reasons.values())) == 1:
                missing.append(f"{split}: {reasons[seeds[0]]}")
            else:
                missing += [f"{split}, seed {seed}: {reason}" for seed, reason in reasons.items()]
        if missing:
            return {}, tuple(missing)
        return {s: math.fsum(self.cells[split, s][1][metric] for split in splits) / len(splits) for s in seeds}, ()


@dataclass
class _Question:
    """A gallery of a protocol: leading metrics, and the scores of every method asked."""

    protocol: str
    gallery: str
    leading: list[str] = field(default_factory=list)
    methods: dict[tuple[str, str, str], _MethodCells] = field(default_factory=dict)

    @property
    def splits(self) -> list[str]:
        return sorted({split for method in self.methods.values() for split, _ in method.cells})

    def has(self, metric: str) -> bool:
        return any(metric in metrics for method in self.methods.values() for _, metrics in method.cells.values())


def _questions(rows: pd.DataFrame) -> list[_Question]:
    """The questions of some results (of one setting), in the order stored."""
    questions: dict[tuple[str, str], _Question] = {}
    names = ["protocol", "gallery", *METHOD_COLUMNS, "split", "seed", "status", "metric", "value", "headline", "floor"]
    for line in zip(*(rows[name].tolist() for name in names), strict=True):
        protocol, gallery, method, variant, config, split, seed, status, metric, value, headline, floor = line
        question = questions.setdefault((protocol, gallery), _Question(protocol, gallery))
        question.leading += [name for name in headline if name not in question.leading]
        cells = question.methods.setdefault((method, variant, config), _MethodCells())
        cells.floor = cells.floor or bool(floor)
        _, metrics = cells.cells.setdefault((split, int(seed)), (status, {}))
        if status == "ok":
            metrics[metric] = float(value)
    return list(questions.values())


def _by_protocol(questions: list[_Question]) -> dict[str, list[_Question]]:
    by_protocol: dict[str, list[_Question]] = {}
    for question in questions:
        by_protocol.setdefault(question.protocol, []).append(question)
    return by_protocol


# --------------------------------------------------------------------------------------------------------------------
# Per-query values
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class QueryValues:
    """What a metric is computed from: one value a query (or image).

    Attributes:
        queries, classes: [Q] key and class of each query, in order of the keys.
        values: float64 [Q], NaN where the metric leaves a query out.
        groups: bool [Q], unseen classes, where the metric is the harmonic mean of seen and unseen ones; else None.
        weighting: as in `benchmarks.evaluation.statistics.class_totals`.
    """

    queries: np.ndarray
    classes: np.ndarray
    values: np.ndarray
    groups: np.ndarray | None
    weighting: Literal["query", "class"]

    @cached_property
    def signature(self) -> bytes:
        """The same for values of the same queries, with the same ones left out; they can be paired."""
        return _signature(_names_digest(self.queries, self.classes), self.values)


def _names_digest(queries: np.ndarray, classes: np.ndarray) -> Any:
    return hashlib.sha256("\0".join([*queries, *classes]).encode())


def _signature(names: Any, values: np.ndarray) -> bytes:
    digest = names.copy()
    digest.update(np.isnan(values).tobytes())
    return bytes(digest.digest())


_ACCURACY = re.compile(r"(accuracy|seen|unseen|all|zsl|h)\[(image|class)\]")


def query_values(table: pd.DataFrame, metric: str, asked: _Asked | None = None) -> QueryValues:
    """The values behind ``metric`` from one gallery's rows of a per-query table.

    ``map@k`` is the mean of the column ``ap@k``, ``p@k`` and ``recall@k`` of the columns of those names; the accuracies
    come from ``credit`` and ``zsl_credit``; images of unseen classes are flagged ``unseen`` or are those with a
    ``zsl_credit``. ``asked``: queries and classes of the table, where they are known already.

    Raises:
        KeyError: a column that the metric needs is missing.
    """
    accuracy = _ACCURACY.fullmatch(metric)
    kind, average = accuracy.groups() if accuracy else ("", "")
    if accuracy:
        column = "zsl_credit" if kind == "zsl" else "credit"
    else:
        column = metric[1:] if metric.startswith("map@") else metric
    split = kind in ("seen", "unseen", "zsl", "h")
    flag = "unseen" if "unseen" in table.columns else "zsl_credit"
    missing = [name for name in (column, *([flag] if split else [])) if name not in table.columns]
    if missing:
        raise KeyError(f"no per-query column {missing[0]!r} for {metric}")
    asked = _asked(table["query"], table["class"]) if asked is None else asked
    unseen, chosen = np.zeros(len(table), dtype=bool), slice(None)
    if split:
        unseen = table[flag].to_numpy(dtype=bool) if flag == "unseen" else table[flag].notna().to_numpy()
        unseen = unseen[asked.order]
    part = ""
    if split and kind != "h":
        chosen = unseen == (kind != "seen")
        part = hashlib.sha256(np.packbits(chosen).tobytes()).hexdigest()
    queries, classes, names = asked.part(part, chosen)
    values = QueryValues(
        queries=queries,
        classes=classes,
        values=table[column].to_numpy(dtype=np.float64)[asked.order][chosen],
        groups=unseen if kind == "h" else None,
        weighting="class" if average == "class" else "query",
    )
    vars(values)["signature"] = _signature(names, values.values)
    return values


@dataclass(frozen=True, eq=False)
class _Asked:
    """Queries of a gallery in order of their keys: ``order`` [Q] are their places in the table, ``queries`` and
    ``classes`` [Q] the names in that order; ``parts`` what was made of some of them."""

    order: np.ndarray
    queries: np.ndarray
    classes: np.ndarray
    parts: dict[str, tuple[np.ndarray, np.ndarray, Any]] = field(default_factory=dict)

    def part(self, name: str, chosen: Any) -> tuple[np.ndarray, np.ndarray, Any]:
        """Keys and classes of the queries chosen, and the beginning of their signature; ``name`` names the choice."""
        if name not in self.parts:
            queries, classes = self.queries[chosen], self.classes[chosen]
            self.parts[name] = (queries, classes, _names_digest(queries, classes))
        return self.parts[name]


def _asked(queries: pd.Series, classes: pd.Series) -> _Asked:
    order = queries.reset_index(drop=True).sort_values(kind="stable").index.to_numpy()
    return _Asked(order, queries.to_numpy(dtype=str)[order], classes.to_numpy(dtype=str)[order])


class _QueryTables:
    """Values from the per-query tables of one protocol's records; each is read once, when it is first needed.

    What cannot be read is reported once and counts as absent. ``metrics`` are those asked of each gallery.
    """

    def __init__(
        self,
        store: ResultStore,
        rows: pd.DataFrame,
        metrics: Mapping[str, list[str]],
        report: Callable[[str], None] | None,
        records: Mapping[str, Record],
    ) -> None:
        self._store = store
        self._records = records
        self._metrics = metrics
        self._report = report or (lambda line: None)
        self._cells: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
        for row in _rows(rows[rows["status"] == "ok"].drop_duplicates("key")):
            identity = tuple(row[name] for name in METHOD_COLUMNS)
            self._cells.setdefault(identity, {}).setdefault(str(row["split"]), []).append(row)
        self._read: dict[str, dict[tuple[str, str], QueryValues]] = {}
        self._asked: dict[bytes, dict[str, tuple[np.ndarray, _Asked]]] = {}

    def values(
        self, identity: tuple[Any, ...], gallery: str, metric: str, splits: list[str]
    ) -> list[list[QueryValues]] | None:
        """Values of one method by seed and split; None if any cannot be read."""
        seeds: dict[int, list[QueryValues]] = {}
        for split in splits:
            for row in self._cells[identity].get(split, []):
                values = self._of(row).get((gallery, metric))
                if values is None:
                    return None
                seeds.setdefault(int(row["seed"]), []).append(values)
        return list(seeds.values())

    def _of(self, row: dict[str, Any]) -> dict[tuple[str, str], QueryValues]:
        key = str(row["key"])
        if key not in self._read:
            values_of: dict[tuple[str, str], QueryValues] = {}
            try:
                values = _per_query(self._store, row, self._records.get(key))
                numbers = values.drop_columns([n for n in _TEXTS if n in values.column_names]).to_pandas(
                    use_threads=False
                )
                for gallery, (places, asked) in self._questions(values).items():
                    table = numbers.iloc[places]
                    for metric in self._metrics.get(gallery, []):
                        values_of[gallery, metric] = query_values(table, metric, asked)
            except (RecordError, KeyError) as error:
                self._report(f"{cell_text(row)}: {error.args[0]}; not tested")
            self._read[key] = values_of
        return self._read[key]

    def _questions(self, values: pa.Table) -> dict[str, tuple[np.ndarray, _Asked]]:
        """By gallery: its rows in a table, and what was asked. Held once for all records of the same queries."""
        state = hashlib.sha256()
        for name in ("gallery", "query", "class"):
            column = values[name].combine_chunks()
            state.update(f"{name} {column.type} {column.offset} {len(column)}".encode())
            for buffer in column.buffers():
                state.update(b"" if buffer is None else buffer)
        if state.digest() not in self._asked:
            names = values.select(["gallery", "query", "class"]).to_pandas()
            self._asked[state.digest()] = {
                str(gallery): (np.flatnonzero(names["gallery"] == gallery), _asked(rows["query"], rows["class"]))
                for gallery, rows in names.groupby("gallery", sort=False)
            }
        return self._asked[state.digest()]


#: Columns of a per-query table that say what was asked.
_TEXTS = ("gallery", "query", "class", "domain")


def per_query_tables(
    store: ResultStore, row: Mapping[str, Any], record: Record | None = None
) -> dict[str, pd.DataFrame]:
    """Per-query values by gallery of the record that a row of `load_results` is about, without lists of best images.

    ``record`` is that record where it has been read already.

    Raises:
        RecordError: the record or its per-query file is missing or altered.
    """
    table: pd.DataFrame = _per_query(store, row, record).to_pandas()
    return {str(gallery): rows.reset_index(drop=True) for gallery, rows in table.groupby("gallery", sort=False)}


def _per_query(store: ResultStore, row: Mapping[str, Any], record: Record | None) -> pa.Table:
    if record is None:
        record = store.read(_cell(row), str(row["key"]), set_aside=False)
    if record is None:
        raise RecordError("the record is gone")
    return store.per_query_table(record, lists=False)


def _cell(row: Mapping[str, Any]) -> CellId:
    names = [name for name in CellId.__dataclass_fields__ if name not in ("config", "seed", "limit")]
    limit = None if pd.isna(row["limit"]) else int(row["limit"])
    return CellId(
        **{name: row[name] for name in names}, config=json.loads(row["config"]), seed=int(row["seed"]), limit=limit
    )


def cell_text(row: Mapping[str, Any]) -> str:
    """A cell in words, for messages."""
    return f"{row['method']} on {row['dataset']}/{row['protocol']}/{row['split']}, seed {row['seed']}"


def _settings(results: pd.DataFrame, columns: Iterable[str] = SETTING) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Settings with their rows, in order of the names; clean rules first."""
    if results.empty:
        return
    names = list(columns)
    parts: list[tuple[dict[str, Any], pd.DataFrame]] = []
    for key, part in results.groupby(names, dropna=False):
        setting: dict[str, Any] = {str(name): value for name, value in zip(names, key, strict=True)}
        setting["limit"] = None if pd.isna(setting["limit"]) else int(setting["limit"])
        parts.append((setting, part))
    yield from sorted(parts, key=lambda part: (part[0]["rules"] != "clean", *map(str, part[0].values())))


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _labels(rows: pd.DataFrame) -> dict[Any, str]:
    """`row_labels`, each label given once."""
    labels: dict[Any, str] = {}
    for identity, label in row_labels(rows).items():
        number = sum(label in (other, other.rpartition(" #")[0]) for other in labels.values())
        labels[identity] = f"{label} #{number + 1}" if number else label
    return labels


def _frame(lines: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame(lines, columns=columns)
    frame["limit"] = pd.Series([line["limit"] for line in lines], dtype=object)
    return frame


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
