"""Ablations as the store holds them: each method's default and, below it, what switching one factor does."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from benchmarks.reporting import leaderboard
from benchmarks.reporting.grids import Cell, Grid, Row, score_cell
from benchmarks.reporting.leaderboard import SHOWN, Score, Setting, Table, protocol_title

if TYPE_CHECKING:
    from rich.console import Console

#: Name of a method's default among its arms.
DEFAULT = "default"


@dataclass(frozen=True)
class Ablation:
    """A method's arms in one setting, the default first; ``scores`` has one entry a question for each arm.

    ``method`` is the name, with what tells its defaults apart where arms hang from several; ``owner`` the bare name.
    """

    method: str
    questions: tuple[str, ...]
    scores: dict[str, dict[str, Score]]
    owner: str = ""

    def difference(self, arm: str, question: str) -> float | None:
        """Score of an arm minus the default's with the same seeds; None where the default lacks one of them."""
        own, usual = self.scores[arm].get(question), self.scores.get(DEFAULT, {}).get(question)
        if own is None or usual is None or not own.by_seed or not own.by_seed.keys() <= usual.by_seed.keys():
            return None
        return math.fsum(value - usual.by_seed[seed] for seed, value in own.by_seed.items()) / len(own.by_seed)

    def seeds(self, arm: str) -> str:
        """How many seeds stand behind an arm's scores."""
        own = sorted({score.seeds for score in self.scores[arm].values() if score.value is not None})
        return ", ".join(map(str, own)) or SHOWN["missing"]


def is_ablated(frame: pd.DataFrame) -> pd.Series:
    """Which rows of `benchmarks.store.frame.load_results` are of records whose method had a factor switched."""
    if "ablation" not in frame.columns:
        return pd.Series(False, index=frame.index)
    return frame["ablation"].fillna("") != ""


def ablations(frame: pd.DataFrame, setting: Setting) -> Iterator[Ablation]:
    """The ablations of a setting, by the leading metrics' means over query domains (or transfers) and seeds.

    All arms of a method are asked for the query domains that any of them has, so one that lacks a domain has no mean.
    Where the store holds several defaults of a method (budgets, variants), an arm belongs to the one that differs from
    it in the fewest settings.
    """
    for method in frame.loc[is_ablated(frame), "method"].unique():
        tables = [table for table in leaderboard.tables(frame[frame["method"] == method], setting) if table.leads]
        kinds = {(row.ablation, row.config) for table in tables for row in table.rows}
        defaults = sorted(config for name, config in kinds if not name)
        arms: dict[str, dict[tuple[str, str], str]] = {}
        for name, config in sorted(kinds, key=lambda kind: (_natural(kind[0]), kind[1])):
            base = min(defaults, key=lambda usual: len(_changed(usual, config)), default="")
            own = arms.setdefault(config if not name else base, {("", base): DEFAULT} if base else {})
            if name:
                same = sum(other == name for other, _ in own)
                own[name, config] = name if not same else f"{name} #{same + 1}"
        several = {key for base in arms for other in arms if base and other for key in _changed(base, other)}
        for base, own in arms.items():
            if set(own.values()) != {DEFAULT}:
                notes = [f"{key}={value}" for key, value in json.loads(base or "{}").items() if key in several]
                title = f"{method} ({', '.join(notes)})" if notes else str(method)
                yield _ablation(title, str(method), own, tables)


def _ablation(title: str, owner: str, arms: dict[tuple[str, str], str], tables: list[Table]) -> Ablation:
    scores: dict[str, dict[str, Score]] = {name: {} for name in arms.values()}
    questions: dict[str, None] = {}
    for table in tables:
        question = f"{protocol_title(table.protocol)} {table.gallery}: {table.metric}"
        for row in table.rows:
            if (arm := arms.get((row.ablation, row.config))) is not None:
                questions[question] = None
                scores[arm][question] = row.mean
    return Ablation(title, tuple(questions), scores, owner)


def _changed(usual: str, config: str) -> set[str]:
    """The settings in which two configs (JSON) differ."""
    one, other = json.loads(usual), json.loads(config)
    return {key for key in {*one, *other} if one.get(key) != other.get(key)}


def _natural(name: str) -> list[tuple[str, int]]:
    """Sorts names by their words and numbers: ``length_2`` before ``length_16``."""
    return [(word, int(number or 0)) for word, number in re.findall(r"(\D*)(\d*)", name)]


def print_ablations(console: Console, frame: pd.DataFrame) -> None:
    """Print a table for each method and setting."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    for setting in leaderboard.settings_of(frame):
        for one in ablations(frame, setting):
            table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
            for number, head in enumerate(("switched", *one.questions, "seeds")):
                table.add_column(Text(_line(head)), justify="right" if number else "left", overflow="fold")
            for arm, scores in one.scores.items():
                shown = [arm]
                for question in one.questions:
                    score = scores.get(question, Score(None, status="missing"))
                    difference = None if arm == DEFAULT else one.difference(arm, question)
                    shown.append(score.text() + ("" if difference is None else f" ({100 * difference:+.1f})"))
                table.add_row(*(Text(_line(text)) for text in (*shown, one.seeds(arm))))
            console.print()
            title = f"{one.method}: one factor switched at a time; {setting.title()}"
            console.print(_line(title), markup=False, highlight=False, soft_wrap=True)
            console.print(table)


def _line(text: str) -> str:
    return " ".join(text.split())


def ablation_grids(frame: pd.DataFrame, setting: Setting) -> list[Grid]:
    """A table a method; beside each score of a switched arm its difference to the default, in percentage points."""
    grids = []
    for one in ablations(frame, setting):
        rows = []
        for arm, scores in one.scores.items():
            cells = [Cell(arm)]
            for question in one.questions:
                cell = score_cell(scores.get(question, Score(None, status="missing")), None)
                difference = one.difference(arm, question)
                small = "" if arm == DEFAULT or difference is None else f"{100 * difference:+.1f}"
                cells.append(Cell(cell.text, cell.sort, cell.kind, small=small, note=cell.note))
            cells.append(Cell(one.seeds(arm)))
            rows.append(Row(tuple(cells), one.owner, "default" if arm == DEFAULT else ""))
        note = (
            "One factor switched at a time. Mean over query domains; beside it the difference to the default with the "
            "same seeds."
        )
        grids.append(Grid(one.method, ("switched", *one.questions, "seeds"), tuple(rows), notes=(note,)))
    return grids
