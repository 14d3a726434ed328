"""The leaderboard, the ablations and the cells without a score, printed on a console."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from benchmarks.reporting import grids
from benchmarks.reporting.data import ReportData
from benchmarks.reporting.tables import failure_lines, settings_of
from benchmarks.reporting.types import EXTENSION, Grid, Score

if TYPE_CHECKING:
    from rich.console import Console


def print_tables(console: Console, data: ReportData, *, by_domain: bool = True) -> None:
    """Print the leaderboard: with ``by_domain`` the first metric by query domain, then all means."""
    for part in data.settings:
        console.print()
        console.print(part.setting.title(), style="bold", markup=False, highlight=False)
        if by_domain:
            for table in part.leading:
                print_grid(console, table.title(), grids.by_protocol(table))
        for metric in part.metrics:
            title = f"All protocols: {metric} in percent, mean over query domains or transfers"
            print_grid(console, title, grids.summary(part.tables, metric))
        if part.extensions:
            note = f"{EXTENSION} beyond the method's paper; the leaderboard file says what is done"
            console.print(note, markup=False, highlight=False)
        for line in part.notes:
            console.print(f"note: {line}", markup=False, highlight=False, soft_wrap=True)
    print_failures(console, data.listed)


def print_failures(console: Console, frame: pd.DataFrame) -> None:
    """Print a line for each cell of a frame of results that has no score."""
    for status, line in failure_lines(frame):
        style = "red" if status == "failed" else "yellow"
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def print_ablations(console: Console, data: ReportData) -> None:
    """Print a table for each ablated method and setting."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for setting in settings_of(data.newest):
        for ablation in data.ablations(setting):
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for number, head in enumerate(("switched", *ablation.questions, "seeds")):
                table.add_column(Text(_line(head)), justify="right" if number else "left", overflow="fold")
            for arm, scores in ablation.scores.items():
                cells = [arm]
                for question in ablation.questions:
                    score = scores.get(question, Score(None, status="missing"))
                    change = ablation.change(arm, question)
                    cells.append(f"{score.text()} ({change})" if change else score.text())
                table.add_row(*(Text(_line(text)) for text in (*cells, ablation.seeds(arm))))
            console.print()
            title = f"{ablation.method}: one factor switched at a time; {setting.title()}"
            console.print(_line(title), markup=False, highlight=False, soft_wrap=True)
            console.print(table)


def print_grid(console: Console, title: str, grid: Grid) -> None:
    """Print a table ready to be written."""
    print_lines(console, title, *grid.plain())


def print_lines(console: Console, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table in blocks of columns that fit the console; no number is broken over two lines."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console.print()
    console.print(_line(title), markup=False, highlight=False, soft_wrap=True)
    for columns in blocks(head, rows, console.width):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for place in columns:
            justify = "right" if place else "left"
            table.add_column(Text(_line(head[place])), justify=justify, overflow="fold", no_wrap=True)  # type: ignore[arg-type]
        for line in rows:
            style = "dim" if line[0].endswith("(floor)") else ""
            table.add_row(*(Text(_line(line[place]), style=style) for place in columns))
        needed = _width(head, rows, columns)
        if needed > console.width:  # not even one column fits: run over the edge rather than break a number
            table.width = needed
        console.print(table, soft_wrap=True, crop=False)


def blocks(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Columns to print side by side so that no number is broken over two lines: the label (column 0) with as many
    others as fit into ``width``, at least one each time."""
    blocks_of_columns: list[list[int]] = []
    for place in range(1, len(head)):
        if blocks_of_columns and _width(head, rows, [*blocks_of_columns[-1], place]) <= width:
            blocks_of_columns[-1].append(place)
        else:
            blocks_of_columns.append([0, place])
    return blocks_of_columns or [[0]]


def _width(head: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]) -> int:
    """Characters that these columns take side by side, with the space between them."""
    from rich.cells import cell_len

    of_column = (max(cell_len(_line(line[place])) for line in (head, *rows)) for place in columns)
    return sum(of_column) + 3 * len(columns) + 2


def _line(text: str) -> str:
    return " ".join(text.split())
