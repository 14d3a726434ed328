"""Tables of the report as cells of text, for every format: scores, tests, ranks, costs, errors, cards and settings.

A `Grid` is only text and numbers to sort by; `benchmarks.reporting.page`, ``latex``, ``markdown`` and ``terminal``
write it. A new column of the leaderboard is a new entry of `protocol_columns` or of `overview`, and appears in every
format; where it needs a figure that is not computed yet, that figure is a property of
`benchmarks.reporting.data.ReportData` or ``SettingData``.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from benchmarks.reporting import tables
from benchmarks.reporting.error_analysis import WordNet, distances
from benchmarks.reporting.method_comparison import SettingComparison, TestedScore, leading_pairs
from benchmarks.reporting.plots import REFERENCE
from benchmarks.reporting.selector_picks import SELECTOR_ORDER, SelectorPicks, means_over_methods
from benchmarks.reporting.types import (
    ALL,
    BEST,
    DEFAULT,
    EXTENSION,
    GROUP,
    STATUS_TEXT,
    AblationTable,
    Grid,
    GridCell,
    GridRow,
    MethodCost,
    MethodScores,
    QuestionErrors,
    Score,
    ScoreTable,
    is_transfer,
    protocol_title,
)
from benchmarks.store.files import is_file
from benchmarks.store.records import Record
from benchmarks.store.weights import CARD, WeightsError, WeightStore, read_kept

#: Pairs of methods that a page lists; of more it lists those with zero_shot and those with the best method.
LISTED_PAIRS = 600

#: Most confused pairs of classes displayed for each method.
PAIRS = 8


def percent(value: float | None, digits: int = 1) -> str:
    """Percent, or "-" for no number."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def number(value: float | None, digits: int = 3) -> GridCell:
    """A number in few digits; sorts by its value."""
    if value is None or math.isnan(value):
        return GridCell("-", kind="none")
    if value and abs(value) < 10 ** (1 - digits):
        return GridCell(f"{value:.1g}" if abs(value) >= 1e-4 else f"{value:.0e}", value, "number")
    text = f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.{digits}g}"
    return GridCell(text, value, "number")


def score_cell(score: Score, tested: TestedScore | None = None, mark: str = "", kind: str = "") -> GridCell:
    """A score with half its interval, ★ for the best of its column and ≈ for what is not separable from it."""
    if score.value is None:
        text = score.text()
        return GridCell(text, kind=f"{kind} {'bad' if text.startswith('failed') else 'none'}".strip())
    plain = f"{score.text()}{mark} {score.interval_text()}".rstrip()
    small, notes = "", [f"{100 * score.value:.3f} %, n = {score.seeds}"]
    if tested is not None:
        if not math.isnan(tested.low):
            small = f"± {100 * (tested.high - tested.low) / 2:.1f}"
            notes.append(f"95 % t interval over seeds {percent(tested.low, 2)} to {percent(tested.high, 2)}")
        if tested.best:
            mark, kind = BEST + mark, f"{kind} best"
            notes.append("the best of its column")
        elif tested.group:
            mark, kind = GROUP + mark, f"{kind} group"
        if tested.tested and not math.isnan(tested.p_best):
            notes.append(f"p against the best {tested.p_best:.3g} (Holm)")
        elif not tested.tested:
            notes.append("not tested: no per-query values, or not ranked")
    return GridCell(score.text(), 100 * score.value, kind.strip(), mark, small, "; ".join(notes), plain=plain)


def name_cell(label: str, *, floor: bool = False, extension: str = "", oracle: bool = False) -> GridCell:
    """A method's name with its tags."""
    tags = (("floor",) if floor else ()) + (("oracle, unranked",) if oracle else ())
    plain = f"{label} (floor)" if floor else f"{label} {EXTENSION}" if extension else label
    return GridCell(label, mark=EXTENSION if extension else "", tags=tags, note=extension, plain=plain)


def _seeds_cell(scores: Iterable[Score]) -> GridCell:
    """Over how many seeds some scores are means."""
    numbers = sorted({score.seeds for score in scores if score.value is not None})
    plain = ", ".join(f"n = {n}" for n in numbers) or STATUS_TEXT["missing"]
    return GridCell(", ".join(map(str, numbers)) or "-", numbers[0] if numbers else None, plain=plain)


# --------------------------------------------------------------------------------------------------------------------
# Scores
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MethodColumn:
    """A column of methods' scores: its head, and the cell of a method's row."""

    head: str
    cell: Callable[[MethodScores], GridCell]


def protocol_columns(table: ScoreTable, comparison: SettingComparison | None = None) -> list[MethodColumn]:
    """The columns of one protocol, gallery and metric in every format: a new column is a new line here."""
    oracle = table.setting.select == "oracle"

    def tested(split: str, row: MethodScores) -> TestedScore | None:
        return None if comparison is None else comparison.of(table, split, row.label)

    def of_split(split: str) -> MethodColumn:
        return MethodColumn(split, lambda row: score_cell(row.scores[split], tested(split, row)))

    columns = [
        MethodColumn(
            "method", lambda row: name_cell(row.label, floor=row.floor, extension=row.extension, oracle=oracle)
        ),
        *map(of_split, table.columns),
        MethodColumn("mean", lambda row: score_cell(row.mean, tested(ALL, row), kind="mean")),
        MethodColumn("seeds", lambda row: _seeds_cell(row.scores.values())),
    ]
    if any(row.training is not None for row in table.rows):  # records of older versions tell nothing of it
        columns.append(MethodColumn("training", _training_cell))
    return columns


#: What the column ``training`` says.
TRAINING_NOTE = (
    "training: fits whose validation still rose in the last quarter of their budget, and a learning rate that is the "
    "lowest or highest of those tried; empty where neither."
)


def _training_cell(row: MethodScores) -> GridCell:
    """Fits that still rise, and a rate at an end of its range."""
    text = row.training or ""
    return GridCell(text, kind="bad" if text else "none", note=TRAINING_NOTE if text else "")


def by_protocol(
    table: ScoreTable, comparison: SettingComparison | None = None, data: Mapping[str, str] | None = None
) -> Grid:
    """Methods by query domains of one protocol, gallery and metric, the mean last; ``data`` for the page's filters.

    Without a comparison only the plain text of its cells has intervals.
    """
    oracle = table.setting.select == "oracle"
    columns = protocol_columns(table, comparison)
    rows = [
        GridRow(tuple(column.cell(row) for column in columns), row.method, "floor" if row.floor else "")
        for row in table.rows
    ]
    return Grid(
        table.title(),
        tuple(column.head for column in columns),
        tuple(rows),
        data=data or {},
        unranked=oracle,
        notes=("Selected on the test data: not ranked.",) if oracle else (),
        corner=table.metric,
    )


def summary(score_tables: Sequence[ScoreTable], metric: str) -> Grid:
    """A metric's means in every table that has it: methods by (protocol, gallery), in order of the first column."""
    asked = [table for table in score_tables if table.metric == metric]
    lines = []
    for label, of_tables in _by_label(asked).items():
        present = [row for row in of_tables if row]
        floor = any(row.floor for row in present)
        cells = [name_cell(label, floor=floor), *(_mean_cell(row) for row in of_tables)]
        cells.append(_seeds_cell(row.mean for row in present))
        lines.append(GridRow(tuple(cells), present[0].method, "floor" if floor else ""))
    head = ("method", *(table.question() for table in asked), "seeds")
    return Grid(metric, head, tuple(lines), corner=metric)


def overview(score_tables: Sequence[ScoreTable], comparison: SettingComparison) -> list[Grid]:
    """One table of the means over domains of every gallery's leading metric, with the mean rank."""
    leading = [table for table in score_tables if table.leads]
    if not leading:
        return []
    oracle = leading[0].setting.select == "oracle"
    ranks = {}
    if len(comparison.ranks):
        of_all = comparison.ranks[comparison.ranks["protocol"] == ALL]
        ranks = {rank["label"]: rank for rank in of_all.to_dict("records")}
    lines: list[tuple[float, GridRow]] = []
    for label, of_tables in _by_label(leading).items():
        present = [row for row in of_tables if row]
        floor = any(row.floor for row in present)
        rank = ranks.get(label)
        cells = [name_cell(label, floor=floor, oracle=oracle), _rank_cell(rank)]
        cells += [
            _mean_cell(row, comparison.of(table, ALL, label)) for table, row in zip(leading, of_tables, strict=True)
        ]
        order = rank["rank"] if rank is not None and not math.isnan(rank["rank"]) else math.inf
        lines.append((order, GridRow(tuple(cells), present[0].method, "floor" if floor else "")))
    if not oracle:
        lines.sort(key=lambda line: line[0])
    head = ("method", "mean rank", *(f"{table.question()}: {table.metric}" for table in leading))
    notes = (
        "Mean over query domains or transfers. Mean rank: over (protocol, query domain) by the leading metric, 1 is "
        "best, with its 95 % bootstrap interval; only methods that have every cell are ranked.",
    )
    if oracle:
        notes = ("Selected on the test data: not ranked, not tested, in no order.",)
    return [Grid("Leading metric of every protocol and gallery", head, tuple(row for _, row in lines), notes=notes)]


def by_domain(
    score_tables: Sequence[ScoreTable], split: str, comparison: SettingComparison, data: Mapping[str, str]
) -> Grid:
    """Methods by protocols and galleries of one query domain or transfer."""
    asked = [table for table in score_tables if table.leads and split in table.columns]
    lines = []
    for label, of_tables in _by_label(asked).items():
        present = [row for row in of_tables if row]
        floor = any(row.floor for row in present)
        cells = [name_cell(label, floor=floor, oracle=asked[0].setting.select == "oracle")]
        for table, row in zip(asked, of_tables, strict=True):
            score = row.scores[split] if row else Score(None, status="missing")
            mark = EXTENSION if row and row.extension and score.value is not None else ""
            cells.append(score_cell(score, comparison.of(table, split, label), mark))
        lines.append(GridRow(tuple(cells), present[0].method, "floor" if floor else ""))
    word = "Transfer" if asked and all(is_transfer(table.protocol) for table in asked) else "Query domain"
    head = ("method", *(f"{table.question()}: {table.metric}" for table in asked))
    return Grid(f"{word} {split}: leading metrics in percent", head, tuple(lines), data=data)


def _by_label(score_tables: Sequence[ScoreTable]) -> dict[str, list[MethodScores | None]]:
    """The row of each label in every table, None where a table has none."""
    rows = [{row.label: row for row in table.rows} for table in score_tables]
    labels = dict.fromkeys(label for of_table in rows for label in of_table)
    return {label: [of_table.get(label) for of_table in rows] for label in labels}


def _mean_cell(row: MethodScores | None, tested: TestedScore | None = None) -> GridCell:
    mean = row.mean if row else Score(None, status="missing")
    mark = EXTENSION if row and row.extension and mean.value is not None else ""
    return score_cell(mean, tested, mark)


def _rank_cell(rank: Mapping[Any, Any] | None) -> GridCell:
    if rank is None or math.isnan(rank["rank"]):
        missing = "; ".join(rank["missing"][:8]) + ("; ..." if len(rank["missing"]) > 8 else "") if rank else ""
        return GridCell("not ranked" if rank else "-", kind="none", note=f"no score for {missing}" if missing else "")
    interval = "" if math.isnan(rank["low"]) else f"[{rank['low']:.1f}, {rank['high']:.1f}]"
    return GridCell(f"{rank['rank']:.2f}", rank["rank"], "", small=interval, note=f"over {rank['cells']} cells")


# --------------------------------------------------------------------------------------------------------------------
# Tests, ranks, selection on test data
# --------------------------------------------------------------------------------------------------------------------


def _pairs_that_lead(entries: Sequence[Mapping[Any, Any]]) -> list[Mapping[Any, Any]]:
    """The pairs with ``REFERENCE`` or with the best method of their question, in the order given."""
    better: dict[tuple[Any, Any], dict[Any, int]] = {}
    for entry in entries:
        wins = better.setdefault((entry["protocol"], entry["gallery"]), {})
        wins[entry["a"]] = wins.get(entry["a"], 0) + 1
    best = {question: max(wins, key=lambda name: wins[name]) for question, wins in better.items()}
    return [
        entry for entry in entries if {REFERENCE, best[entry["protocol"], entry["gallery"]]} & {entry["a"], entry["b"]}
    ]


def tests(
    score_tables: Sequence[ScoreTable], comparison: SettingComparison, picks: Sequence[SelectorPicks] = ()
) -> list[Grid]:
    """Pairs of methods on each leading metric, ranks, agreement of seeds, what each way to select picks, oracle."""
    drawn = []
    leading = {(table.protocol, table.gallery): table.metric for table in score_tables if table.leads}
    lines = []
    every = leading_pairs(comparison.pairs, score_tables)
    listed = every if len(every) <= LISTED_PAIRS else _pairs_that_lead(every)
    for entry in listed:
        p = entry["p_holm"]
        verdict = "equal for every query" if entry["same"] else "separable" if p <= 0.05 else "not separable"
        interval = f"[{percent(entry['low'])}, {percent(entry['high'])}]"
        cells = (
            GridCell(f"{protocol_title(entry['protocol'])} {entry['gallery']}"), GridCell(entry["metric"]),
            GridCell(entry["a"]), GridCell(entry["b"]),
            GridCell(f"+{percent(entry['difference'])}", 100 * entry["difference"], "number", small=interval),
            GridCell(_p(entry["p"]), entry["p"], "number"), GridCell(_p(p), p, "number"),
            GridCell(verdict, kind="" if p <= 0.05 else "none"),
            GridCell(f"{entry['classes']} / {entry['queries']}", entry["classes"], "number"),
        )  # fmt: skip
        lines.append(GridRow(cells, f"{entry['a']} {entry['b']}"))
    if lines:
        head = ("question", "metric", "better", "worse", "difference, 95 % bootstrap", "p", "p (Holm)", "at 5 %",
                "classes / queries")  # fmt: skip
        note = "Paired on the same queries, whole classes swapped (randomisation) or drawn (bootstrap)."
        title, notes = "All pairs", [note]
        if any(entry["same"] for entry in every):
            notes.append("Methods that have the same value for every query are one method to the correction.")
        if len(listed) < len(every):
            title = f"Pairs with {REFERENCE} or with a question's best method"
            notes.append(f"{len(listed)} of {len(every)} pairs; all are in pairs.csv, and corrected together.")
        title += ", on the mean over domains"
        drawn.append(Grid(title, head, tuple(lines), "texts", notes=tuple(notes), search=True))
    if len(comparison.ranks):
        drawn.append(_ranks(comparison.ranks))
    if len(comparison.agreement):
        drawn.append(_agreement(comparison.agreement))
    drawn += [selection_grid(picks)] if picks else []
    selections = {table.setting.select for table in score_tables}
    if len(comparison.inflation) and selections & {"val", "oracle"}:
        drawn.append(_inflation(comparison.inflation, leading))
    return drawn


def _p(p: float) -> str:
    return "-" if math.isnan(p) else f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def _ranks(ranks: pd.DataFrame) -> Grid:
    protocols = list(dict.fromkeys(ranks["protocol"]))
    rows = []
    for label, rows_of_label in ranks.groupby("label", sort=False):
        by = {entry["protocol"]: entry for entry in rows_of_label.to_dict("records")}
        floor = bool(rows_of_label["floor"].iloc[0])
        cells = (name_cell(str(label), floor=floor), *(_rank_cell(by.get(protocol)) for protocol in protocols))
        rows.append(GridRow(cells, str(rows_of_label["method"].iloc[0]), "floor" if floor else ""))
    head = ("method", *("all" if protocol == ALL else protocol_title(protocol) for protocol in protocols))
    return Grid("Mean ranks (1 is best), with 95 % bootstrap intervals over query domains", head, tuple(rows))


def _agreement(agreement: pd.DataFrame) -> Grid:
    """How far the order of the methods is the same with another seed."""
    rows = []
    for entry in agreement.to_dict("records"):
        pairs = entry["seeds"] * (entry["seeds"] - 1) // 2
        small = f"[{entry['low']:.2f}, {entry['high']:.2f}]" if pairs > 1 and not math.isnan(entry["mean"]) else ""
        mean = "-" if math.isnan(entry["mean"]) else f"{entry['mean']:.2f}"
        question = f"{protocol_title(entry['protocol'])} {entry['gallery']}"
        cells = (
            GridCell(question), GridCell(entry["metric"]), GridCell(mean, entry["mean"], "number", small=small),
            GridCell(str(entry["seeds"]), entry["seeds"], "number"),
            GridCell(str(entry["methods"]), entry["methods"], "number"),
        )  # fmt: skip
        rows.append(GridRow(cells, question))
    head = ("question", "metric", "rank correlation [least, greatest]", "seeds", "methods")
    note = (
        "Spearman's correlation of the methods' means over domains, between two seeds; mean, least and greatest over"
        " the pairs of seeds. Methods with all cells of all seeds, without floors. What one seed, or a shorter run,"
        " can say about the order is bounded by it."
    )
    return Grid("Do the seeds agree on the order?", head, tuple(rows), "texts", notes=(note,))


def selection_grid(picks: Sequence[SelectorPicks]) -> Grid:
    """The test score of what each way to select picks, with its regret against the best checkpoint (``oracle``)."""
    names = [name for name in SELECTOR_ORDER if any(name in one.scores for one in picks)]
    rows = []
    for one in [*picks, *means_over_methods(picks)]:
        cells = [
            GridCell(one.label),
            GridCell(f"{protocol_title(one.protocol)} {one.question}"),
            GridCell(one.over),
            GridCell(f"{one.checkpoints:g} / {one.fits}", one.checkpoints, "number"),
        ]
        least = min((one.regret(name) for name in names if name in one.scores and name != "oracle"), default=math.nan)
        for name in names:
            score = one.scores.get(name)
            if score is None:
                cells.append(GridCell("-", kind="none"))
                continue
            small = "" if name == "oracle" else f"-{percent(one.regret(name))}"
            best = name != "oracle" and one.regret(name) == least
            plain = f"{percent(score)} ({small})" if small else percent(score)
            cells.append(
                GridCell(
                    percent(score), 100 * score, "number best" if best else "number", mark=BEST if best else "",
                    small=small, tags=("unranked",) if name == "oracle" else (), plain=plain + (BEST if best else ""),
                )
            )  # fmt: skip
        rows.append(GridRow(tuple(cells), one.method))
    head = ("method", "question", "over", "checkpoints / fits", *names)
    return Grid("What each way to select would have picked", head, tuple(rows), notes=(SELECTION_NOTE,))


#: What the table of selectors shows.
SELECTION_NOTE = (
    "Score on the test data, in percent, of the checkpoint that each way to select picks of those validated, and its "
    "regret: how far it is below the best one (oracle). Means over fits. ★ has the least regret. val: the protocol's "
    "validation task; last: the last step; the others look at target images without their labels."
)


def _inflation(inflation: pd.DataFrame, leading: Mapping[tuple[str, str], str]) -> Grid:
    rows = []
    for row in inflation[inflation["split"] == ALL].to_dict("records"):
        if leading.get((row["protocol"], row["gallery"]), row["metric"]) != row["metric"]:
            continue
        gained = row["inflation"]
        interval = "" if math.isnan(row["low"]) else f"[{percent(row['low'])}, {percent(row['high'])}]"
        missing = "; ".join(row["missing"])
        cells = (
            GridCell(row["label"]), GridCell(f"{protocol_title(row['protocol'])} {row['gallery']}: {row['metric']}"),
            GridCell(percent(row["val"]), _or_none(row["val"], 100)),
            GridCell(percent(row["oracle"]), _or_none(row["oracle"], 100), tags=("unranked",)),
            GridCell("-" if math.isnan(gained) else f"{100 * gained:+.1f}", _or_none(gained, 100), small=interval,
                 note=missing),
            GridCell(str(row["seeds"]), row["seeds"]),
        )  # fmt: skip
        rows.append(GridRow(cells, row["method"]))
    head = ("method", "question", "selected on validation", "oracle (on test)", "inflation", "seeds")
    return Grid("How much selecting on the test data adds (percentage points)", head, tuple(rows))


def _or_none(value: float, factor: float = 1) -> float | None:
    return None if math.isnan(value) else factor * value


# --------------------------------------------------------------------------------------------------------------------
# Cost, failures, extensions, ablations, errors
# --------------------------------------------------------------------------------------------------------------------


def cost_grid(entries: Sequence[MethodCost]) -> Grid:
    """Parameters, seconds by phase, speed and memory."""
    gpu = any(entry.gpu_memory is not None for entry in entries)
    head = ["method", "trainable parameters", "all parameters", "fit (s)", "search (s)", "encode (s)", "rank (s)"]
    head += ["classify (s)", "images/s", "peak memory (MiB)", *(["peak GPU memory (MiB)"] if gpu else [])]
    head += ["fits", "cells"]
    rows = []
    for entry in entries:
        cells = [name_cell(entry.label, floor=entry.floor), number(entry.trainable), number(entry.total)]
        trained = {"fit", "search"} if not entry.trainable else set()
        for phase in ("fit", "search", "encode", "rank", "classify"):
            cells.append(GridCell("-", kind="none") if phase in trained else number(entry.seconds.get(phase)))
        cells += [number(entry.images_per_second), number(entry.memory), *([number(entry.gpu_memory)] if gpu else [])]
        cells += [number(entry.fits), number(entry.cells)]
        rows.append(GridRow(tuple(replace(cell, kind=cell.kind.replace("number", "")) for cell in cells), entry.method))
    notes = (
        "Means. fit: training one model, once for all cells that share it; search: training with every learning rate "
        "of the grid, once for all seeds; encode: images first needed by the cell; peak memory: of the process.",
    )
    return Grid("What a method costs", tuple(head), tuple(rows), notes=notes)


def failures(frame: pd.DataFrame) -> Grid | None:
    """Cells without a score, each with its reason; None if there are none."""
    failed = tables.failures(frame)
    if failed.empty:
        return None
    rows = tuple(
        GridRow(tuple(GridCell(str(value), kind="bad" if value == "failed" else "") for value in line), str(line[3]))
        for line in failed.itertuples(index=False)
    )
    return Grid("Failed, skipped and not applicable cells", tuple(failed.columns), rows, "texts", search=True)


def extensions(lines: Sequence[tuple[str, str, str]]) -> Grid | None:
    """What this suite decided where a paper is silent: `benchmarks.reporting.tables.extensions`."""
    rows = tuple(GridRow(tuple(map(GridCell, line)), line[0]) for line in lines)
    title = "Answers that a method's paper does not define, and what is done"
    return Grid(title, ("method", "protocols", "what is done"), rows, "texts") if rows else None


def ablation_grid(ablation: AblationTable) -> Grid:
    """A method's arms; next to each score of a switched arm its difference to the default, in percentage points."""
    rows = []
    for arm, scores in ablation.scores.items():
        cells = [GridCell(arm)]
        for question in ablation.questions:
            cell = score_cell(scores.get(question, Score(None, status="missing")))
            cells.append(
                GridCell(cell.text, cell.sort, cell.kind, small=ablation.change(arm, question), note=cell.note)
            )
        cells.append(GridCell(ablation.seeds(arm)))
        rows.append(GridRow(tuple(cells), ablation.owner, "default" if arm == DEFAULT else ""))
    note = (
        "One factor switched at a time. Mean over query domains; beside it the difference to the default, seed by "
        "seed, ± half of its 95 % t interval over seeds."
    )
    return Grid(ablation.method, ("switched", *ablation.questions, "seeds"), tuple(rows), notes=(note,))


def error_grids(questions: Sequence[QuestionErrors], wordnet: WordNet) -> list[Grid]:
    """For each question a table of how far errors are, and one of the most confused pairs of classes."""
    grids = []
    for question in questions:
        if not question.methods:
            continue
        far, pairs = [], []
        for errors in question.methods:
            by = distances(errors, wordnet)
            total = by.total()
            mean = sum(d * n for d, n in by.items()) / total if total else float("nan")
            near = sum(n for d, n in by.items() if d <= 4) / total if total else float("nan")
            wrong = errors.wrong / errors.queries
            cells = (
                GridCell(errors.label), GridCell(f"{errors.queries:,}", errors.queries),
                GridCell(percent(wrong), 100 * wrong),
                number(mean) if math.isnan(mean) else GridCell(f"{mean:.1f}", mean, "number"),
                GridCell(percent(near), None if total == 0 else 100 * near),
            )  # fmt: skip
            far.append(GridRow(cells, errors.method))
            for (true, answered), times in sorted(errors.confused.items(), key=lambda kv: (-kv[1], kv[0]))[:PAIRS]:
                share = times / errors.per_class[true]
                distance = wordnet.distance(true, answered)
                line = (
                    GridCell(errors.label), GridCell(true), GridCell(answered), GridCell(str(times), times, "number"),
                    GridCell(f"{percent(share)} of {errors.per_class[true]}", 100 * share, "number"),
                    GridCell("-" if distance is None else str(distance), distance, "number"),
                    GridCell(wordnet.common(true, answered)),
                )  # fmt: skip
                pairs.append(GridRow(line, errors.method))
        what = "first image retrieved" if question.retrieval else "class answered"
        grids.append(
            Grid(
                f"{question.title}: how far the {what} is from the true class when it is wrong",
                ("method", "queries", "wrong (%)", "mean WordNet distance of errors", "errors within 4 edges (%)"),
                tuple(far),
                notes=(
                    "Distance: edges on the shortest path over hypernyms; 2 is a sibling. Lowest seed, and the queries "
                    "whose lists are kept: a packed results folder keeps some of each cell.",
                ),
            )
        )
        head = ("method", "true class", "answered", "times", "share of the class's queries", "WordNet distance",
                "nearest common hypernym")  # fmt: skip
        title = f"{question.title}: most confused pairs of classes, {PAIRS} a method"
        grids.append(Grid(title, head, tuple(pairs), "texts", search=True))
    return grids


# --------------------------------------------------------------------------------------------------------------------
# Cards, settings, environment, published figures
# --------------------------------------------------------------------------------------------------------------------


def method_cards(cards: Sequence[Mapping[str, Any]]) -> Grid | None:
    """Method cards as a table."""
    rows = []
    for card in cards:
        name = _text(card, "name")
        venue = " ".join(part for part in (_text(card, "venue"), _text(card, "year")) if part not in ("", "0"))
        cells = (
            GridCell(name, tags=("floor",) if card.get("floor") else ()),
            GridCell(_text(card, "title"), link=_web(card.get("url"))),
            GridCell(_text(card, "authors")), GridCell(venue), GridCell(_text(card, "trains")),
            GridCell(_text(card, "similarity")),
            GridCell(_text(card, "code_licence")), GridCell(_text(card, "notes")),
        )  # fmt: skip
        rows.append(GridRow(cells, name))
    head = ("method", "paper", "authors", "venue", "what is trained", "similarity", "licence of the released code",
            "notes")  # fmt: skip
    return Grid("Method cards", head, tuple(rows), "texts") if rows else None


def deviations(cards: Sequence[Mapping[str, Any]]) -> Grid | None:
    """The discrepancy table: where a paper and its released code disagree, and what this suite does."""
    rows = []
    for card in cards:
        for deviation in card.get("deviations") or ():
            if isinstance(deviation, Mapping):
                switch = _text(deviation, "switch")
                ours = _text(deviation, "ours") or (f"both: --set {_text(card, 'name')}.{switch}=..." if switch else "")
                texts = (deviation.get(name) for name in ("topic", "paper", "released"))
                cells = (card.get("name"), *texts, ours, switch)
                rows.append(GridRow(tuple(GridCell(str(text or "")) for text in cells), _text(card, "name")))
    head = ("method", "topic", "paper", "released code", "here", "switch")
    title = "Where a paper and its released code disagree"
    return Grid(title, head, tuple(rows), "texts", search=True) if rows else None


def dataset_cards(cards: Sequence[Mapping[str, Any]]) -> list[Grid]:
    """A table a data set."""
    drawn = []
    for card in cards:
        headline = card.get("headline")
        lines: list[tuple[str, Any]] = [(key, card.get(key)) for key in ("title", "version", "source", "licence")]
        lines += [("gallery domain", card.get("gallery_domain")), ("layout", card.get("layout"))]
        if isinstance(headline, Mapping):
            at, precision = headline.get("map_at"), headline.get("precision_at")
            cut = f"map@{'all' if at is None else at}, {'recall@1' if precision is None else f'p@{precision}'}"
            lines.append(("leading figures", cut))
        problems = card.get("known_problems")
        lines.append(("known problems", "; ".join(map(str, problems)) if isinstance(problems, list) else problems))
        rows = tuple(GridRow((GridCell(key), GridCell(str(value)))) for key, value in lines if value)
        drawn.append(Grid(f"Data set card: {_text(card, 'name')}", ("about", "value"), rows, "texts"))
    return drawn


def data_used(records: Sequence[Record]) -> Grid | None:
    """What of each data set was read, and how many files of which kind were left out."""
    rows = tuple(GridRow(tuple(map(GridCell, line))) for line in tables.data_used(records))
    return Grid("What was read of the data, and what was left out", tables.DATA_USED, rows, "texts") if rows else None


def bibtex(cards: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Name and entry of every card that has one."""
    return [(_text(card, "name"), _text(card, "bibtex")) for card in cards if card.get("bibtex")]


def settings_tables(records: Sequence[Record], resolved: Mapping[str, Any]) -> list[Grid]:
    """The last run's settings, what each method ran with, and where."""
    drawn = []
    if resolved:
        rows = tuple(GridRow((GridCell(str(key)), GridCell(_shown(value)))) for key, value in resolved.items())
        drawn.append(Grid("Settings of the last run", ("option", "value"), rows, "texts"))
    configs: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        config = json.dumps(record.cell.config, sort_keys=True)
        configs.setdefault((record.cell.method, record.cell.variant, config), []).append(record)
    rows = tuple(
        GridRow(
            (
                GridCell(method), GridCell(variant),
                GridCell(", ".join(f"{key}={_shown(value)}" for key, value in json.loads(config).items()) or "-"),
                GridCell(", ".join(f"{rate:g}" for rate in sorted(_rates(fits))) or "-"),
                GridCell(", ".join(map(str, sorted({record.cell.seed for record in fits})))),
                number(len(fits)),
            ),
            method,
        )
        for (method, variant, config), fits in sorted(configs.items())
    )  # fmt: skip
    head = ("method", "variant", "config", "learning rates picked", "seeds", "cells")
    drawn.append(Grid("What each method ran with", head, rows, "texts", search=True))
    places: dict[str, int] = {}
    for record in records:
        environment = record.environment
        parts = [("device", environment.device), ("threads", environment.threads)]
        parts += [*environment.hardware.items(), *environment.packages.items()]
        if environment.device.startswith("cuda") and environment.tf32 is not None:
            parts.insert(1, ("TF32", "on" if environment.tf32 else "off"))
        git = environment.git
        commit = str(git.get("commit", ""))[:12] + (" (with local changes)" if git.get("dirty") else "")
        text = ", ".join(f"{key} {_shown(value)}" for key, value in [("code", commit), *parts] if value)
        places[text] = places.get(text, 0) + 1
    rows = tuple(
        GridRow((GridCell(text or "-"), number(n))) for text, n in sorted(places.items(), key=lambda kv: -kv[1])
    )
    drawn.append(Grid("Where the cells ran", ("environment", "cells"), rows, "texts"))
    return drawn


def weights_grid(weights: WeightStore, records: Sequence[Record], folder: Path | None) -> Grid | None:
    """The weights that are kept beside records, one row a fit; None if there are none.

    ``folder``: where the page is written, for links to their model cards; None: no links.
    """
    serves: dict[str, list[Record]] = {}
    for record in records:
        if place := weights.of_record(record):
            serves.setdefault(place, []).append(record)
    rows = []
    for place, own in sorted(serves.items()):
        try:
            kept = read_kept(weights.root / place)
        except WeightsError:
            continue
        cell = own[0].cell
        tasks = ", ".join(sorted({f"{one.cell.protocol}/{one.cell.split}" for one in own}))
        score = GridCell("-") if kept.validation is None else GridCell(f"{100 * kept.validation:.2f}", kept.validation)
        card = weights.root / place / CARD
        link = quote(Path(os.path.relpath(card, folder)).as_posix()) if folder is not None and is_file(card) else ""
        texts = (cell.method, cell.variant, cell.dataset, cell.backbone, tasks, str(cell.seed))
        rows.append(GridRow((*map(GridCell, texts), score, GridCell(place, link=link)), cell.method))
    head = ("method", "variant", "data set", "backbone", "protocols and splits", "seed", "validation", "weights")
    notes = ("Kept by --keep-weights; ucdr-bench apply FOLDER IMAGES uses them on other images.",)
    return Grid("Trained weights", head, tuple(rows), "texts", notes=notes, search=True) if rows else None


def _rates(records: Iterable[Record]) -> set[float]:
    return {record.fit.learning_rate for record in records if record.fit.learning_rate is not None}


def published(table: pd.DataFrame) -> list[Grid]:
    """`benchmarks.reporting.published.beside`'s rows: those with a figure of ours first, then all others."""
    drawn = []
    known = table[table["ours"].notna()]
    rest = table[table["ours"].isna()]
    for title, part in (("With a figure of ours", known), ("Without", rest)):
        rows = []
        for row in part.to_dict("records"):
            std = row["published_std"]
            ours = f"ours: {row['label']}, {row['rules']} rules" if row["label"] else ""
            cells = (
                GridCell(row["dataset"], small=" ".join((protocol_title(row["protocol"]), row["backbone"])).strip()),
                GridCell(" ".join(p for p in (row["split"] or row["setting"], row["gallery"]) if p)),
                GridCell(row["published_method"], small=ours),
                GridCell(row["metric"] or row["published_metric"]),
                GridCell(percent(row["published"]), 100 * row["published"], "number",
                     small="" if std is None or pd.isna(std) else f"± {100 * std:.1f}"),
                GridCell(percent(row["ours"]), _or_none(row["ours"], 100), "number", tags=_oracle_tag(row)),
                GridCell("-" if pd.isna(row["gap"]) else f"{100 * row['gap']:+.1f}", _or_none(row["gap"], 100),
                         "number"),
                GridCell(row["reason"]), GridCell(row["source"], small=f"confidence: {row['confidence']}"),
            )  # fmt: skip
            rows.append(GridRow(cells, row["method"] or row["published_method"]))
        if rows:
            head = ("data set, protocol", "split, gallery", "method", "metric", "published", "ours", "gap",
                    "why, or what differs", "source")  # fmt: skip
            drawn.append(Grid(f"{title} ({len(rows)})", head, tuple(rows), "texts", search=True))
    return drawn


def _oracle_tag(row: Mapping[Any, Any]) -> tuple[str, ...]:
    return ("oracle",) if row["select"] == "oracle" else ()


def _text(card: Mapping[str, Any], key: str) -> str:
    value = card.get(key)
    return "" if value is None else str(value)


def _web(address: Any) -> str:
    """An address only if a click on it opens a web page and runs nothing."""
    text = str(address or "")
    return text if text.startswith(("https://", "http://")) else ""


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_shown(item)}" for key, item in value.items()) or "-"
    return "-" if value is None else str(value)


def numbered(values: Iterable[Any]) -> dict[Any, str]:
    """A number for each value, as the page's filters use: names never become part of markup or script."""
    return {value: str(place) for value, place in zip(dict.fromkeys(values), itertools.count(), strict=False)}
