"""Which plots a setting's results allow: each is drawn by itself, and one that fails leaves a notice in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.reporting import ablation_tables, errors, grids, leaderboard, plots
from benchmarks.reporting.leaderboard import Setting, Table, protocol_title
from benchmarks.reporting.method_comparison import ALL, Comparison
from benchmarks.reporting.page import Drawn, Plot
from benchmarks.store.files import ResultStore
from benchmarks.store.records import Record


class Easel:
    """Draws plots one by one and keeps what became of them."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.plots: list[Plot] = []
        self._report = report

    def draw(
        self, make: Callable[[], Sequence[Path]], kind: str, title: str, caption: str = "", protocol: str = ""
    ) -> None:
        """Draw one; no files mean that there was nothing to show."""
        try:
            files = tuple(make())
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            self._report(f"plot of {title} left out: {reason}")
            self.plots.append(Plot(title, caption, kind, protocol, failed=reason))
            return
        if files:
            self.plots.append(Plot(title, caption, kind, protocol, files))


def draw(
    store: ResultStore,
    own: pd.DataFrame,
    everything: pd.DataFrame,
    setting: Setting,
    comparison: Comparison | None,
    records: Mapping[str, Record],
    folder: Path,
    report: Callable[[str], None],
) -> Drawn:
    """All plots of one setting, written to ``folder``, with the tables of errors.

    Args:
        store: where per-query values are read from.
        own: results without ablations; ``everything``: with them.
        setting: the one to draw.
        comparison: for intervals; None: none are drawn.
        records: by key; losses and costs come from them.
        folder: of the files.
        report: gets one line for each plot that failed.
    """
    easel = Easel(report)
    tables = leaderboard.tables(own, setting)
    rows = grids.of_setting(leaderboard.usable(own), setting)
    labels = leaderboard.row_labels(rows)
    leading = [table for table in tables if table.leads]
    first = list({table.protocol: table for table in reversed(leading)}.values())[::-1]
    scores = grids.Scores(comparison, setting)
    for table in leading:
        easel.draw(
            partial(plots.bars, table, folder, _intervals(table, scores)),
            "scores", f"{grids.question_title(table)}: {table.metric}", protocol=table.protocol,
        )  # fmt: skip
    if setting.limit is not None:
        note = "A limited run proves that it runs; its scores mean nothing, so no more is drawn of them."
        return Drawn(tuple(easel.plots), (note,))
    for table in leading:
        if len(table.columns) > 1:
            what = "transfer" if leaderboard.is_transfer(table.protocol) else "query domain"
            easel.draw(
                partial(plots.heat_map, table, folder), "methods by domains",
                f"{grids.question_title(table)}: method by {what}", f"{table.metric}, darker is better", table.protocol,
            )  # fmt: skip
    costs = grids.costs(rows, labels, records)
    for table in first:
        easel.draw(
            partial(plots.cost_against_score, table, costs, folder), "cost",
            f"{grids.question_title(table)}: accuracy against the cost of training",
            "What trains nothing stands at the left; no floors; scores do not begin at zero.", table.protocol,
        )  # fmt: skip
    easel.draw(
        partial(plots.seconds_by_phase, costs, folder), "cost", "Seconds by phase",
        "What trains is counted once for all cells that share it.",
    )  # fmt: skip
    by_metric = {(table.protocol, table.metric): table for table in tables}
    for (protocol, metric), table in by_metric.items():
        unseen = by_metric.get((protocol, metric.replace("seen[", "unseen[", 1)))
        if metric.startswith("seen[") and unseen is not None:
            easel.draw(
                partial(plots.seen_against_unseen, table, unseen, folder), "seen and unseen",
                f"{protocol_title(protocol)}: seen against unseen classes",
                "Grey lines: equal harmonic mean; dotted: as good on unseen as on seen classes.", protocol,
            )  # fmt: skip
    notes, tables_of_errors = _errors(store, easel, tables, rows, labels, records, setting, folder, report)
    by_label: dict[str, list[Record]] = {}
    for identity, of_method in rows.groupby(["method", "variant", "config"], sort=False):
        found = [records[key] for key in dict.fromkeys(of_method["key"]) if key in records]
        by_label[labels[identity]] = list({(one.fit.fit_id, one.cell.seed): one for one in found}.values())
    easel.draw(
        partial(plots.loss_curves, by_label, folder), "training", "Training loss",
        "A line a fit, in the order of its steps; stages of one fit follow each other.",
    )  # fmt: skip
    for one in ablation_tables.ablations(everything, setting):
        easel.draw(
            partial(plots.ablation_bars, one, folder), "ablations", f"{one.method}: one factor switched",
            "Percentage points that each switched factor adds to the default or takes from it, in each question.",
        )  # fmt: skip
    return Drawn(tuple(easel.plots), tuple(notes), tuple(tables_of_errors))


def _intervals(table: Table, scores: grids.Scores) -> dict[str, tuple[float, float]] | None:
    found = {}
    for row in table.rows:
        known = scores.of(table, ALL, row.label)
        if known is not None and known.low == known.low:  # not NaN
            found[row.label] = (known.low, known.high)
    return found or None


def _errors(
    store: ResultStore,
    easel: Easel,
    tables: Sequence[Table],
    rows: pd.DataFrame,
    labels: Mapping[Any, str],
    records: Mapping[str, Record],
    setting: Setting,
    folder: Path,
    report: Callable[[str], None],
) -> tuple[list[str], list[grids.Grid]]:
    try:
        questions = errors.question_errors(store, tables, rows, labels, records, report)
        wordnet = errors.WordNet(errors.synsets_of(setting.dataset))
        made = errors.error_grids(questions, wordnet)
    except Exception as error:
        report(f"errors by WordNet distance left out: {type(error).__name__}: {error}")
        return [f"Errors could not be read: {error}"], []
    notes = []
    for question in questions:
        if question.problem:
            notes.append(f"{question.title}: no curves and no errors, because {question.problem}.")
            continue
        if any(one.curve is not None for one in question.methods):
            easel.draw(
                partial(plots.precision_curves, question, folder), "precision and recall",
                f"{question.title}: precision@k, precision against recall",
                "From the stored lists of best images; the store keeps no whole rankings, so the curves end there.",
                question.protocol,
            )  # fmt: skip
        easel.draw(
            partial(plots.error_distances, question, wordnet, folder), "errors",
            f"{question.title}: errors by WordNet distance",
            "How many queries are answered wrongly, by how far the answer lies from the truth.", question.protocol,
        )  # fmt: skip
    if not any(one.curve is not None for question in questions for one in question.methods):
        notes.append("No precision and recall curves: the store has no lists of best images for this setting.")
    return notes, made
