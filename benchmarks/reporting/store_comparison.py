"""Two stores compared cell by cell: what got better, what got worse, and what cannot be compared.

Cells are paired by what they measure: method, switched factor, data set, protocol, split, gallery, seed, rules and
selection. Where a store holds several variants, configs, backbones or limits of such a cell, equal ones are paired
first, and what is left only if it is one on either side; ``changed`` then says what differs. The hash of the inputs
is not compared: it differs between the two by design.

A cell that had a score in the old store and cannot be judged in the new one, because it failed there, is missing there,
has other queries or lacks the gallery or the metric, is lost: a gate that passed it would pass whatever no longer runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmarks.evaluation.statistics import (
    ALPHA,
    CONFIDENCE,
    PairedTest,
    class_totals,
    holm,
    paired_tests,
    resamples_for,
)
from benchmarks.reporting.method_comparison import QueryValues, per_query_tables, query_values
from benchmarks.reporting.tables import newest
from benchmarks.reporting.types import is_absent
from benchmarks.store.files import ResultStore
from benchmarks.store.frame import frame_and_records
from benchmarks.store.records import RecordError

#: A drop is reported as one if it is significant and larger than this (a fraction: 0.01 is one point of percent).
THRESHOLD = 0.01

IDENTITY = ["dataset", "protocol", "split", "gallery", "method", "ablation", "seed", "rules", "select"]
_DETAILS = [
    "variant",
    "config",
    "backbone",
    "weights_hash",
    "identity",
    "precision",
    "limit",
    "shots",
    "data_hash",
    "scoring",
]

CELL_COLUMNS = [
    *IDENTITY, "metric", "old", "new", "difference", "low", "high", "p", "p_holm", "verdict", "classes", "queries",
    "changed",
]  # fmt: skip
UNPAIRED_COLUMNS = [*IDENTITY, "store", "why", "reason"]

#: ``why`` a cell was not compared: it is in one store only, has no score in the other, or has nothing to pair.
ABSENT, FAILED, UNLIKE = "absent", "failed", "not comparable"

_NOT_THERE = "not in the other store"
_PLANNED = ("method", "dataset", "protocol")  # together in the record of cells that could not be planned


@dataclass(frozen=True, eq=False)
class StoreComparison:
    """What `compare_stores` found.

    Attributes:
        cells: a row a paired cell and metric (``CELL_COLUMNS``), largest drop first. ``difference`` is new minus old,
            [``low``, ``high``] its bootstrap interval, ``p_holm`` corrected over all rows; ``verdict`` is ``drop`` or
            ``gain`` where it is significant and larger than the threshold, else empty.
        unpaired: a row a cell that was not compared (``UNPAIRED_COLUMNS``); ``store`` is ``old`` or ``new`` where only
            that one has a score, ``both`` where the two cannot be paired; ``why`` is `ABSENT` (not in the other
            store), `FAILED` (there, but without a score or the gallery, or not planned for an error) or `UNLIKE`.
    """

    cells: pd.DataFrame
    unpaired: pd.DataFrame

    @property
    def drops(self) -> pd.DataFrame:
        """Rows of ``cells`` that got significantly worse."""
        return self.cells[self.cells["verdict"] == "drop"]

    @property
    def lost(self) -> pd.DataFrame:
        """Rows of ``unpaired`` that had a score in the old store and cannot be judged in the new one."""
        return self.unpaired[self.unpaired["store"] != "new"]


def compare_stores(
    old: ResultStore,
    new: ResultStore,
    *,
    metrics: Iterable[str] | None = None,
    threshold: float = THRESHOLD,
    alpha: float = ALPHA,
    confidence: float = CONFIDENCE,
    resamples: int | None = None,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
) -> StoreComparison:
    """Pair the cells of two stores and test each pair on its per-query values, whole classes swapped.

    Args:
        old, new: the stores.
        metrics: names; a cell is compared by those it has. None: by the first leading metric of its gallery.
        threshold: smallest change that counts, a fraction.
        alpha: level after Holm's correction over all tests.
        confidence: of the intervals.
        resamples: of each test; None: enough for the number of tests, at least 10 000.
        seed: of the resampling.
        report: gets one line for each file that cannot be used.

    Raises:
        FileNotFoundError: a store is not a folder.
        PermissionError: a store's folder cannot be read.
        ValueError: a store without a readable record, a metric that no paired cell has, no common cell, or options
            outside their range.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} must be from 0 to 1: a fraction, 0.01 is one percentage point")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha} must be between 0 and 1")
    wanted = None if metrics is None else list(dict.fromkeys(metrics))
    sides = []
    unplanned: dict[tuple[str, str, str], str] = {}
    for store in (old, new):
        rows, records = frame_and_records(store.root, report or (lambda line: None))
        if not records:
            raise ValueError(f"{store.root} holds no readable record")
        sides.append(_by_cell(newest(rows)))
        failed = rows[(rows["split"] == "*") & (rows["status"] == "failed")]
        unplanned = dict(zip(failed[[*_PLANNED]].itertuples(index=False, name=None), failed["reason"], strict=True))
    cells_before, cells_after = sides
    pairs, unpaired = _paired(cells_before, cells_after, unplanned)  # those of the new store, which was read last
    if not pairs:
        raise ValueError(f"{old.root} and {new.root} have no cell with a score in common")
    tests: list[tuple[dict[str, Any], QueryValues, QueryValues]] = []
    read = (_Reader(old, "old"), _Reader(new, "new"))
    known: dict[str, None] = {}
    for before, after in pairs:
        about = {name: before[name] for name in IDENTITY}
        known |= dict.fromkeys(before["metrics"])
        names = before["headline"][:1] if wanted is None else [name for name in wanted if name in before["metrics"]]
        if not names and wanted is None:
            unpaired.append(
                about | {"store": "both", "why": UNLIKE, "reason": "no metric leads its gallery in the old store"}
            )
        for metric in names:
            missing = [name for name, side in (("old", before), ("new", after)) if metric not in side["metrics"]]
            if missing:
                reason = f"{metric}: its record in the {missing[0]} store has no such metric"
                unpaired.append(about | {"store": "both", "why": UNLIKE, "reason": reason})
                continue
            line = about | {
                "metric": metric, "old": before["metrics"][metric], "new": after["metrics"][metric],
                "changed": _changed(before, after),
            }  # fmt: skip
            try:
                tests.append((line, *_pairable(read[0](before, metric), read[1](after, metric))))
            except (RecordError, ValueError) as error:
                reason = f"{metric}: {error}"
                unpaired.append(about | {"store": "both", "why": UNLIKE, "reason": reason})
    absent = [name for name in wanted or [] if name not in known]
    if absent:
        raise ValueError(f"no paired cell has the metric {', '.join(absent)}; there are: {', '.join(known)}")
    lines = [
        line | _tested(old, new, max(1, len(tests)), alpha=alpha, confidence=confidence, resamples=resamples, seed=seed)
        for line, old, new in tests
    ]
    for line, p in zip(lines, holm([line["p"] for line in lines]), strict=True):
        line["p_holm"] = float(p)
        large = abs(line["difference"]) > threshold and p <= alpha
        line["verdict"] = ("gain" if line["difference"] > 0 else "drop") if large else ""
    cells = pd.DataFrame(lines, columns=CELL_COLUMNS).sort_values("difference", kind="stable", ignore_index=True)
    return StoreComparison(cells, pd.DataFrame(unpaired, columns=UNPAIRED_COLUMNS))


def _by_cell(results: pd.DataFrame) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Identity -> its records' galleries, each with ``metrics`` (name -> value), in the order stored."""
    galleries: dict[tuple[str, str], dict[str, Any]] = {}
    for row in results.to_dict("records"):
        gallery = galleries.setdefault((row["key"], row["gallery"]), {str(name): value for name, value in row.items()})
        metrics = gallery.setdefault("metrics", {})
        if row["status"] == "ok":
            metrics[str(row["metric"])] = float(row["value"])
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for gallery in galleries.values():
        cells.setdefault(tuple(gallery[name] for name in IDENTITY), []).append(gallery)
    return cells


def _paired(
    old: Mapping[tuple[Any, ...], list[dict[str, Any]]],
    new: Mapping[tuple[Any, ...], list[dict[str, Any]]],
    unplanned: Mapping[tuple[str, str, str], str],
) -> tuple[list[tuple[dict[str, Any], dict[str, Any]]], list[dict[str, Any]]]:
    """Pairs of galleries with scores in both stores, and a line for each that has no partner.

    ``unplanned``: (method, data set, protocol) whose cells could not be planned in the new store, and why.
    """
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    unpaired: list[dict[str, Any]] = []
    recorded = {_without_gallery(identity) for identity in new}
    for identity in dict.fromkeys([*old, *new]):
        before, after = list(old.get(identity, [])), list(new.get(identity, []))
        matched = []
        for names in (_DETAILS, ["variant", "config", "backbone", "limit", "shots"], ["variant", "config"]):
            for cell_before in list(before):
                details = _details(cell_before, names)
                same = [cell for cell in after if _details(cell, names) == details]
                if len(same) == 1 and sum(_details(cell, names) == details for cell in before) == 1:
                    before.remove(cell_before)
                    after.remove(same[0])
                    matched.append((cell_before, same[0]))
        if len(before) == len(after) == 1:
            matched.append((before.pop(), after.pop()))
        about = dict(zip(IDENTITY, identity, strict=True))
        for cell_before, cell_after in matched:
            if cell_before["metrics"] and cell_after["metrics"]:
                pairs.append((cell_before, cell_after))
            elif cell_before["metrics"] or cell_after["metrics"]:
                if cell_before["metrics"]:
                    scored, lost, name = cell_before, cell_after, "new"
                else:
                    scored, lost, name = cell_after, cell_before, "old"
                reason = f"{lost['status']} in the {name} store: {lost['reason']}"
                side = "old" if scored is cell_before else "new"
                unpaired.append(about | {"store": side, "why": FAILED, "reason": reason})
        for store, rest in (("old", before), ("new", after)):
            why, reason = (UNLIKE, "several configs, none alike") if before and after else (ABSENT, _NOT_THERE)
            if store == "old" and why == ABSENT and (key := tuple(about[name] for name in _PLANNED)) in unplanned:
                why, reason = FAILED, f"failed in the new store: {unplanned[key]}"
            elif store == "old" and identity not in new and _without_gallery(identity) in recorded:
                why, reason = FAILED, "its record in the new store has no such gallery"
            unpaired += [about | {"store": store, "why": why, "reason": reason} for cell in rest if cell["metrics"]]
    return pairs, unpaired


def _without_gallery(identity: tuple[Any, ...]) -> tuple[Any, ...]:
    place = IDENTITY.index("gallery")
    return identity[:place] + identity[place + 1 :]


class _Reader:
    """Per-query values of one store's cells; a record's tables are kept while its galleries are asked in a row."""

    def __init__(self, store: ResultStore, name: str) -> None:
        self._store, self._name = store, name
        self._key, self._tables = "", {}  # type: str, dict[str, pd.DataFrame]

    def __call__(self, row: Mapping[str, Any], metric: str) -> QueryValues:
        try:
            if self._key != row["key"]:
                self._key, self._tables = "", per_query_tables(self._store, row)
                self._key = str(row["key"])
            if row["gallery"] not in self._tables:
                raise RecordError("its per-query file has no rows of this gallery")
            return query_values(self._tables[row["gallery"]], metric)
        except (RecordError, KeyError) as error:
            raise RecordError(f"{self._name} store: {error.args[0]}") from error


def _pairable(old: QueryValues, new: QueryValues) -> tuple[QueryValues, QueryValues]:
    if old.signature != new.signature:
        shared = len(set(old.queries) & set(new.queries))
        raise ValueError(
            f"the queries differ ({len(old.queries)} in the old store, {len(new.queries)} in the new one, "
            f"{shared} in both, or others of them are left out)"
        )
    return old, new


def _tested(
    old: QueryValues, new: QueryValues, n_tests: int, *, alpha: float, resamples: int | None, **options: Any
) -> dict[str, Any]:
    totals = class_totals(
        {"new": new.values, "old": old.values}, old.classes, groups=old.groups, weighting=old.weighting
    )
    resamples = resamples_for(n_tests, alpha) if resamples is None else resamples
    test: PairedTest = paired_tests(totals, resamples=resamples, **options)[0]
    return {
        "difference": test.difference, "low": test.low, "high": test.high, "p": test.p,
        "classes": test.n_classes, "queries": test.n_queries,
    }  # fmt: skip


def _details(row: Mapping[str, Any], names: Iterable[str]) -> list[Any]:
    return [None if is_absent(row[name]) else row[name] for name in names]


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What differs between two paired cells, in words; empty if nothing that is known."""
    notes = []
    for name in _DETAILS:
        old, new = (None if is_absent(row[name]) else row[name] for row in (before, after))
        if old == new:
            continue
        if name == "config":
            first, second = json.loads(str(old)), json.loads(str(new))
            keys = sorted(key for key in {*first, *second} if first.get(key) != second.get(key))
            notes += [f"{key}: {first.get(key, '-')} -> {second.get(key, '-')}" for key in keys]
        elif name.endswith("hash"):
            notes.append(f"{name}: {str(old)[:8]} -> {str(new)[:8]}")
        else:
            notes.append(f"{name}: {old} -> {new}")
    return "; ".join(notes)
