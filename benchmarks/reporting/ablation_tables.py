"""Ablations as the store holds them: each method's default and, below it, what switching one factor does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pandas as pd

from benchmarks.reporting.tables import is_ablated, score_tables
from benchmarks.reporting.types import DEFAULT, AblationTable, Score, ScoreTable, Setting


def ablation_tables(frame: pd.DataFrame, setting: Setting) -> Iterator[AblationTable]:
    """The ablations of a setting, by the leading metrics' means over query domains (or transfers) and seeds.

    All arms of a method are asked for the query domains that any of them has, so an arm without one of them has no
    mean. Where the store holds several defaults of a method (budgets, variants), an arm belongs to the one that differs
    from it in the fewest settings.
    """
    for method in frame.loc[is_ablated(frame), "method"].unique():
        tables = [table for table in score_tables(frame[frame["method"] == method], setting) if table.leads]
        kinds = {(row.ablation, row.config) for table in tables for row in table.rows}
        defaults = sorted(config for name, config in kinds if not name)
        arms_of: dict[str, dict[tuple[str, str], str]] = {}  # default's config -> (factor, config) -> name of the arm
        for name, config in sorted(kinds, key=lambda kind: (_natural(kind[0]), kind[1])):
            default = min(defaults, key=lambda usual: len(_changed(usual, config)), default="")
            arms = arms_of.setdefault(config if not name else default, {("", default): DEFAULT} if default else {})
            if name:
                same = sum(second == name for second, _ in arms)
                arms[name, config] = name if not same else f"{name} #{same + 1}"
        several = {
            key for default in arms_of for second in arms_of if default and second for key in _changed(default, second)
        }
        for default, arms in arms_of.items():
            if set(arms.values()) != {DEFAULT}:
                notes = [f"{key}={value}" for key, value in json.loads(default or "{}").items() if key in several]
                title = f"{method} ({', '.join(notes)})" if notes else str(method)
                yield _ablation_table(title, str(method), arms, tables)


def _ablation_table(
    title: str, owner: str, arms: dict[tuple[str, str], str], tables: list[ScoreTable]
) -> AblationTable:
    scores: dict[str, dict[str, Score]] = {name: {} for name in arms.values()}
    questions: dict[str, None] = {}
    for table in tables:
        question = f"{table.question()}: {table.metric}"
        for row in table.rows:
            if (arm := arms.get((row.ablation, row.config))) is not None:
                questions[question] = None
                scores[arm][question] = row.mean
    return AblationTable(title, tuple(questions), scores, owner)


def _changed(usual: str, config: str) -> set[str]:
    """The settings in which two configs (JSON) differ."""
    first, second = json.loads(usual), json.loads(config)
    return {key for key in {*first, *second} if first.get(key) != second.get(key)}


def _natural(name: str) -> list[tuple[str, int]]:
    """Sorts names by their words and numbers: ``length_2`` before ``length_16``."""
    return [(word, int(number or 0)) for word, number in re.findall(r"(\D*)(\d*)", name)]
