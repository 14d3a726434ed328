"""Write everything printable from a results folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from benchmarks.reporting import leaderboard
from benchmarks.store import write_atomically


def write_report(
    frame: pd.DataFrame, folder: Path, *, command: str = "", report: Callable[[str], None] | None = None
) -> list[Path]:
    """Write ``leaderboard.md``, ``leaderboard.csv`` and ``plots/`` for the results in a frame; returns the files.

    A plot that fails is left out and reported in one line; it never costs the tables.
    """
    files = {
        folder / "leaderboard.md": leaderboard.markdown(frame, command),
        folder / "leaderboard.csv": leaderboard.csv_text(frame),
    }
    for path, text in files.items():
        write_atomically(path, text.encode())
    made = list(files)
    settings = leaderboard.settings_of(frame)
    for number, setting in enumerate(settings, start=1):
        plots_folder = folder / "plots" if len(settings) == 1 else folder / "plots" / f"setting-{number}"
        for table in leaderboard.tables(frame, setting):
            try:
                from benchmarks.reporting import plots

                made += plots.bars(table, plots_folder)
            except Exception as error:
                line = f"plot of {table.title()} left out: {type(error).__name__}: {error}"
                (report or (lambda text: None))(line)
    return made
