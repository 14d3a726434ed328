"""Plots from stored scores. Colours are Okabe and Ito's, told apart by shape as well; sizes fit one text column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.reporting.leaderboard import Table, protocol_title
from benchmarks.store import safe_name

#: Okabe and Ito's colour-blind-safe colours (without yellow, too faint on white) and a shape for each.
MARKS = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#000000", "X"),
    ("#666666", "<"),
    ("#0072B2", ">"),
    ("#D55E00", "p"),
)

#: Width of a text column in inches.
COLUMN = 3.5


def bars(table: Table, folder: Path) -> list[Path]:
    """A bar a method (mean over query domains) with a mark for each domain; written as SVG and PNG.

    A method without a mean gets no bar, its status in words, and the marks it has. Returns the files.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = list(reversed(table.rows))
    style: dict[Any, Any] = {
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "ucdr-bench",
    }
    with pyplot.rc_context(style):
        legend_rows = -(-len(table.columns) // 3)
        height = 0.75 + 0.26 * len(rows) + 0.17 * legend_rows
        figure, axes = pyplot.subplots(figsize=(COLUMN, height), layout="constrained")
        for place, row in enumerate(rows):
            if row.mean.value is not None:
                colour = "#e4e4e4" if row.floor else "#bcd3e6"
                axes.barh(place, 100 * row.mean.value, height=0.62, color=colour, zorder=1)
                axes.plot([100 * row.mean.value] * 2, [place - 0.31, place + 0.31], color="#333333", lw=1.2, zorder=2)
            else:
                text = axes.text(0, place, f" {row.mean.text()}", va="center", fontsize=7, style="italic", zorder=4)
                text.set_parse_math(False)
        for number, column in enumerate(table.columns):
            colour, shape = MARKS[number % len(MARKS)]
            offset = 0.4 * (0.5 - number / max(1, len(table.columns) - 1))  # a lane each, so that equal scores show
            known = [
                (p, row.scores[column].value) for p, row in enumerate(rows) if row.scores[column].value is not None
            ]
            axes.scatter(
                [100 * value for _, value in known if value is not None],
                [place + offset for place, _ in known],
                color=colour,
                marker=shape,
                s=11,
                linewidths=0.4,
                edgecolors="white",
                zorder=3,
                label=plain(column),
            )
        axes.set_yticks(range(len(rows)), [plain(shorten(row.label)) for row in rows])
        axes.set_ylim(-0.55, len(rows) - 0.45)
        axes.set_xlim(left=0)
        axes.grid(axis="x", color="#dddddd", lw=0.5, zorder=0)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(plain(f"{table.metric} (%); bar: mean (grey: floor)"), fontsize=7)
        axes.set_title(
            plain(f"{protocol_title(table.protocol)}, {table.gallery}{_mark(table)}"), loc="left", fontsize=8
        )
        figure.legend(
            loc="outside lower center", ncols=3, fontsize=7, frameon=False, handletextpad=0.1, columnspacing=1
        )
        name = "-".join(safe_name(part) for part in (table.protocol, table.gallery, table.metric))
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{name}.{kind}" for kind in ("svg", "png")]
        figure.savefig(files[0], metadata={"Date": None})
        figure.savefig(files[1], dpi=200)
        pyplot.close(figure)
    return files


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: one line, no mathematics."""
    return " ".join(text.split()).replace("$", r"\$")


def shorten(text: str, length: int = 28) -> str:
    """At most ``length`` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _mark(table: Table) -> str:
    setting = table.setting
    marks = [f"{setting.rules} rules"] if setting.rules != "clean" else []
    marks += ["oracle"] if setting.select == "oracle" else []
    marks += [f"limit {setting.limit}"] if setting.limit is not None else []
    return f" ({', '.join(marks)})" if marks else ""
