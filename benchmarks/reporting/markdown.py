"""The leaderboard and the published figures as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pandas as pd

from benchmarks.reporting import grids
from benchmarks.reporting.data import ReportData
from benchmarks.reporting.tables import DATA_USED, data_used, failures
from benchmarks.reporting.types import EXTENSION
from benchmarks.store.weights import WeightStore


def leaderboard_markdown(data: ReportData) -> str:
    """The whole leaderboard; the records say what of each data set was read and left out."""
    lines = ["# Leaderboard", ""]
    if data.command:
        lines += [f"Made by `{data.command}`.", ""]
    lines += [
        "Percent. A table's head names its metric: the `[retrieved]` and `[trec]` conventions differ.",
        "`(floor)` marks baselines that know nothing. Means are taken over complete rows only.",
        "±: half of the 95 % t interval over seeds; one seed (n = 1) has none.",
        "",
    ]
    if any(row.training is not None for part in data.settings for table in part.tables for row in table.rows):
        lines[-1:] = [f"{grids.TRAINING_NOTE[0].upper()}{grids.TRAINING_NOTE[1:]}", ""]
    for part in data.settings:
        title = escape(part.setting.title())
        lines += [f"## {title}", "", "Means over the query domains (UDA and DAZSL: transfers).", ""]
        for metric in part.metrics:
            lines += [*_table(*grids.summary(part.tables, metric).plain()), ""]
        for table in part.tables:
            lines += [f"### {escape(table.title())}", "", *_table(*grids.by_protocol(table).plain()), ""]
        if part.selector_picks:
            grid = grids.selection_grid(part.selector_picks)
            lines += [f"### {grid.caption}", "", *grid.notes, "", *_table(*grid.plain()), ""]
        if part.extensions:
            lines += [
                f"### {EXTENSION} Extensions",
                "",
                "What a method's paper does not define and this suite decided:",
                "",
            ]
            rows = [list(row) for row in part.extensions]
            lines += [*_table(["method", "protocol", "what is done"], rows, figures=False), ""]
        if part.notes:
            lines += ["### Notes", "", *(f"- {escape(line)}" for line in part.notes), ""]
    used = [list(row) for row in data_used(data.records.values())]
    if used:
        lines += ["## Data", "", *_table(list(DATA_USED), used, figures=False), ""]
    kept = (
        None if data.store is None else grids.weights_grid(WeightStore(data.store.root), [*data.records.values()], None)
    )
    if kept is not None:
        lines += ["## Weights", "", *_table(*kept.plain(), figures=False), ""]
    failed = failures(data.listed)
    if len(failed):
        rows = [[str(value) for value in row] for row in failed.itertuples(index=False)]
        lines += ["## Cells without a score", "", *_table(list(failed.columns), rows, figures=False), ""]
    return "\n".join(lines)


def published_markdown(table: pd.DataFrame) -> str:
    """Rows of `benchmarks.reporting.published.beside` as tables, one a protocol, data set, backbone and gallery.

    Percent with one decimal; "-" where nothing was run.
    """
    lines = ["# Published beside ours", ""]
    keys = ["protocol", "dataset", "backbone", "gallery"]
    for (protocol, dataset, backbone, gallery), part in table.groupby(keys, sort=False):
        lines += [
            f"## {protocol}, {dataset}, {backbone or 'backbone not named'}, {gallery or 'gallery not named'}",
            "",
        ]
        lines += ["| method | split | metric | published | ours | gap | reason | source | confidence |"]
        lines += ["| --- | --- | --- | ---: | ---: | ---: | --- | --- | --- |"]
        for row in part.to_dict("records"):
            name = row["published_method"]
            name = f"{name} (ours: {row['label']}, {row['rules']} rules)" if row["label"] else name
            cells = [name, row["split"] or row["setting"], row["metric"] or row["published_metric"]]
            cells += [_percent(row["published"], row["published_std"]), _percent(row["ours"]), _percent(row["gap"])]
            cells += [row["reason"], row["source"], row["confidence"]]
            lines.append("| " + " | ".join(_escape_strictly(str(cell)) for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def escape(text: str) -> str:
    """Text as it is in Markdown: nothing of it is taken for markup."""
    text = re.sub(r"([\\`*\[\]<>|#&])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)  # inside a word an underscore is only that


def _escape_strictly(text: str) -> str:
    """`escape` for texts of papers, every underscore included."""
    return re.sub(r"([\\`*\[\]<>|_])", r"\\\1", " ".join(text.split()))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, figures: bool = True) -> list[str]:
    align = ["---", *(["---:"] if figures else ["---"]) * (len(head) - 1)]
    return [
        _line(map(escape, head)),
        _line(align),
        *(_line(map(escape, row)) for row in rows),
    ]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _percent(value: float | None, std: float | None = None) -> str:
    if value is None or pd.isna(value):
        return "-"
    text = f"{100 * value:.1f}"
    return text if std is None or pd.isna(std) else f"{text} ± {100 * std:.1f}"
