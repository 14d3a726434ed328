"""Tables of a report as CSV: every score, one row each; every tested pair of methods, one row each.

Hashes are given by their first `DIGITS` digits; records have them whole.
"""

from __future__ import annotations

import csv
import io

import pandas as pd

from benchmarks.reporting.data import ReportData
from benchmarks.reporting.method_comparison import leading_pairs
from benchmarks.reporting.tables import score_tables, settings_of
from benchmarks.reporting.types import SETTING, ScoreTable, Setting

#: Hexadecimal digits of a hash in a row.
DIGITS = 12


def leaderboard_csv(data: ReportData) -> str:
    """Scores without ablations: one row a setting, protocol, gallery, metric, method and query domain (or mean)."""
    return _csv(data.listed, [table for setting_data in data.settings for table in setting_data.tables])


def ablations_csv(data: ReportData) -> str:
    """The same rows with those of ablations, and a column ``ablation``."""
    frame = data.newest
    return _csv(frame, [table for setting in settings_of(frame) for table in score_tables(frame, setting)])


#: Columns of `pairs_csv` after those of the setting.
PAIR_HEAD = (
    "protocol", "gallery", "metric", "better", "worse", "difference", "low", "high", "p", "p_holm", "classes", "same",
)  # fmt: skip


def pairs_csv(data: ReportData) -> str:
    """All pairs of methods on the mean over query domains of each gallery's leading metric, one row each.

    ``difference`` is better minus worse with its 95 % bootstrap interval; ``p_holm`` is corrected over the pairs of
    the same protocol, gallery and metric; ``same``: equal for every query, not tested
    (`benchmarks.reporting.method_comparison`).
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    stated = [name for name in SETTING if name != "identity"]
    writer.writerow([*stated, *PAIR_HEAD])
    for setting_data in data.settings:
        named = _stated(setting_data.setting, stated)
        for entry in leading_pairs(setting_data.comparison.pairs, setting_data.tables):
            where = [entry[name] for name in ("protocol", "gallery", "metric", "a", "b")]
            numbers = [f"{entry[name]:.6g}" for name in ("difference", "low", "high", "p", "p_holm")]
            writer.writerow([*named, *where, *numbers, entry["classes"], entry["same"]])
    return buffer.getvalue()


def _stated(setting: Setting, names: list[str]) -> list[object]:
    """A setting's values by these names, hashes shortened."""
    hashes = ("data_hash", "weights_hash", "identity")
    return [getattr(setting, name)[:DIGITS] if name in hashes else getattr(setting, name) for name in names]


def _csv(frame: pd.DataFrame, tables: list[ScoreTable]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    ablated = ["ablation"] if len(frame) and (frame["ablation"] != "").any() else []
    head = ["protocol", "gallery", "metric", "method", "label", *ablated, "floor", "extension", "query_domain"]
    used = {name: bool(len(frame)) and bool((frame[name] != "").any()) for name in ("identity", "shots")}
    stated = [name for name in SETTING if used.get(name, True)]
    writer.writerow([*stated, *head, "value", "low", "high", "seeds", "status"])
    for table in tables:
        setting = _stated(table.setting, stated)
        for row in table.rows:
            switched = [row.ablation] if ablated else []
            for column, score in [*row.scores.items(), ("mean", row.mean)]:
                numbers = ["" if x is None else f"{x:.6f}" for x in (score.value, score.low, score.high)]
                where = [table.protocol, table.gallery, table.metric, row.method, row.label, *switched, row.floor]
                where += [row.extension, column]
                writer.writerow([*setting, *where, *numbers, score.seeds, score.status])
    return buffer.getvalue()
