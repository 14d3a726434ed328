"""Ablations as the store holds them: each method's default and, below it, what switching one factor does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from benchmarks.reporting import leaderboard
from benchmarks.reporting.grids import Cell, Grid, Row, score_cell
from benchmarks.reporting.leaderboard import Score, Setting, protocol_title

#: Name of a method's default among its arms.
DEFAULT = "default"


@dataclass(frozen=True)
class Ablation:
    """A method's arms in one setting, the default first; ``scores`` has one entry a question for each arm."""

    method: str
    questions: tuple[str, ...]
    scores: dict[str, dict[str, Score]]

    def difference(self, arm: str, question: str) -> float | None:
        """Score of an arm minus the default's; None where either is missing."""
        own, usual = self.scores[arm].get(question), self.scores.get(DEFAULT, {}).get(question)
        if own is None or usual is None or own.value is None or usual.value is None:
            return None
        return own.value - usual.value


def is_ablated(frame: pd.DataFrame) -> pd.Series:
    """Which rows of `benchmarks.store.load_results` are of records whose method had a factor switched."""
    if "ablation" not in frame.columns:
        return pd.Series(False, index=frame.index)
    return frame["ablation"].fillna("") != ""


def ablations(frame: pd.DataFrame, setting: Setting) -> Iterator[Ablation]:
    """The ablations of a setting, by the leading metrics' means over query domains (or transfers) and seeds."""
    for method in frame.loc[is_ablated(frame), "method"].unique():
        of_method = frame[frame["method"] == method]
        questions: dict[str, None] = {}
        scores: dict[str, dict[str, Score]] = {}
        for arm in sorted(of_method["ablation"].fillna("").unique(), key=lambda name: name != ""):
            for table in leaderboard.tables(of_method[of_method["ablation"].fillna("") == arm], setting):
                if table.leads and table.rows:
                    question = f"{protocol_title(table.protocol)} {table.gallery}: {table.metric}"
                    questions[question] = None
                    scores.setdefault(arm or DEFAULT, {})[question] = table.rows[0].mean
        if set(scores) - {DEFAULT}:
            yield Ablation(str(method), tuple(questions), scores)


def ablation_grids(frame: pd.DataFrame, setting: Setting) -> list[Grid]:
    """A table a method; beside each score of a switched arm its difference to the default, in percentage points."""
    grids = []
    for one in ablations(frame, setting):
        asked = [question for question in one.questions if any(question in own for own in one.scores.values())]
        rows = []
        for arm, scores in one.scores.items():
            cells = [Cell(arm)]
            for question in asked:
                cell = score_cell(scores.get(question, Score(None, status="missing")), None)
                difference = one.difference(arm, question)
                small = "" if arm == DEFAULT or difference is None else f"{100 * difference:+.1f}"
                cells.append(Cell(cell.text, cell.sort, cell.kind, small=small, note=cell.note))
            rows.append(Row(tuple(cells), one.method, "default" if arm == DEFAULT else ""))
        note = "One factor switched at a time. Mean over query domains; beside it the difference to the default."
        grids.append(Grid(one.method, ("switched", *asked), tuple(rows), notes=(note,)))
    return grids
