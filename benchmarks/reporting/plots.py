"""Plots from stored scores. Colours are Okabe and Ito's, with a shape each; sizes fit one text column.

Every function draws one figure and writes it as SVG and PNG into a folder; it returns the files. The same scores give
the same files.
"""

from __future__ import annotations

import base64
import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.reporting.types import (
    DEFAULT,
    AblationTable,
    EmbeddingMap,
    Galleries,
    GalleryQuery,
    MethodCost,
    QuestionErrors,
    ScoreTable,
    protocol_title,
)
from benchmarks.store.files import safe_name, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    ("#009E73", "h"),
    ("#CC79A7", "*"),
    ("#E69F00", "d"),
    ("#56B4E9", "8"),
)

#: Dash patterns, so that lines differ by more than colour.
DASHES: tuple[Any, ...] = ("-", (0, (4, 1)), (0, (1, 1)), (0, (4, 1, 1, 1)))

#: The method whose mean is drawn across the others' bars, and whose pairs every page lists.
REFERENCE = "zero_shot"

#: Width of a text column in inches.
COLUMN = 3.5

#: Queries and methods of the gallery sheet.
SHEET_QUERIES, SHEET_METHODS = 3, 5

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "svg.hashsalt": "ucdr-bench",
}


@contextlib.contextmanager
def _figure(
    folder: Path,
    name: str,
    files: list[Path],
    height: float,
    rows: int = 1,
    columns: int = 1,
    *,
    width: float = COLUMN,
    kinds: Sequence[str] = ("svg", "png"),
    dpi: int = 200,
    colours: int = 128,
) -> Iterator[Any]:
    """A figure and its axes ``[rows, columns]``; saved as ``name`` where the block ends without an error.

    ``dpi`` and ``colours`` are those of the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)
        try:
            yield figure, axes
            folder.mkdir(parents=True, exist_ok=True)
            for kind in kinds:
                files.append(folder / f"{name}.{kind}")
                data = io.BytesIO()
                if kind == "png":
                    figure.savefig(data, format=kind, dpi=dpi)
                    data = _shrink(data, colours)
                else:
                    figure.savefig(data, format=kind, metadata={"Date": None})
                write_atomically(files[-1], data.getvalue())  # another run may draw the same report
        finally:
            pyplot.close(figure)


def _shrink(png: io.BytesIO, colours: int) -> io.BytesIO:
    """A plot has few colours: a palette makes its PNG a third as large."""
    from PIL import Image

    with Image.open(png) as image:
        small = image.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    data = io.BytesIO()
    small.save(data, "png", optimize=True, dpi=(200, 200))
    return data


def _name(kind: str, *parts: str) -> str:
    return "-".join(safe_name(part) for part in (kind, *parts) if part)


def _title(table: ScoreTable) -> str:
    return plain(f"{protocol_title(table.protocol)}, {table.gallery}{_mark(table)}")


def _legend(figure: Figure, axes: Axes, columns: int = 3) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=columns, handletextpad=0.3, columnspacing=1, handlelength=1.8
    )


def _marks(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and shape of each method; the same labels get the same marks, and no two of 56 labels share both."""
    colours = [colour for colour, _ in MARKS[:8]]
    return {
        label: (colours[place % len(colours)], MARKS[place % len(MARKS)][1])
        for place, label in enumerate(sorted(labels))
    }


def draw_plot(function: str, arguments: tuple[Any, ...], folder: Path) -> tuple[list[Path], str]:
    """Draw one plot into a folder by the name of a function of this module.

    Returns its files (none: there was nothing to draw), and why it failed or "".
    """
    try:
        return list(globals()[function](*arguments, folder)), ""
    except Exception as error:
        return [], f"{type(error).__name__}: {error}"


def bars(table: ScoreTable, folder: Path) -> list[Path]:
    """A bar a method (mean over query domains) with a mark for each domain; written as SVG and PNG.

    Error bars are the means' intervals over seeds. A method without a mean gets no bar, its status in words, and the
    marks it has. Returns the files.
    """
    intervals = {
        row.label: (row.mean.low, row.mean.high)
        for row in table.rows
        if row.mean.low is not None and row.mean.high is not None
    }
    rows = list(reversed(table.rows))
    files: list[Path] = []
    legend_rows = -(-len(table.columns) // 3)
    height = 0.75 + 0.26 * len(rows) + 0.17 * legend_rows
    name = "-".join(safe_name(part) for part in (table.protocol, table.gallery, table.metric))
    with _figure(folder, name, files, height) as (figure, [[axes]]):
        for place, row in enumerate(rows):
            if row.mean.value is not None:
                colour = "#e4e4e4" if row.floor else "#bcd3e6"
                axes.barh(place, 100 * row.mean.value, height=0.62, color=colour, zorder=1)
                axes.plot([100 * row.mean.value] * 2, [place - 0.31, place + 0.31], color="#333333", lw=1.2, zorder=2)
                if row.label in intervals:
                    low, high = intervals[row.label]
                    axes.plot([100 * low, 100 * high], [place - 0.38] * 2, color="#333333", lw=1.2, zorder=4)
                    axes.plot([100 * low, 100 * high], [place - 0.38] * 2, "|", color="#333333", ms=3.5, zorder=4)
            else:
                text = axes.text(0, place, f" {row.mean.text()}", va="center", fontsize=7, style="italic", zorder=4)
                text.set_parse_math(False)
        if frozen := [row.mean.value for row in rows if row.label == REFERENCE and row.mean.value is not None]:
            axes.axvline(100 * frozen[0], color="#666666", lw=0.8, ls=(0, (2, 2)), zorder=2)
        for number, column in enumerate(table.columns):
            colour, shape = MARKS[number % len(MARKS)]
            offset = 0.4 * (0.5 - number / max(1, len(table.columns) - 1))  # a lane each, so that equal scores show
            known = [
                (p, row.scores[column].value) for p, row in enumerate(rows) if row.scores[column].value is not None
            ]
            axes.scatter(
                [100 * value for _, value in known if value is not None],
                [place + offset for place, _ in known],
                color=colour, marker=shape, s=11, linewidths=0.4, edgecolors="white", zorder=3, label=plain(column),
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [plain(shorten(row.label)) for row in rows], fontsize=8)
        axes.set_ylim(-0.55, len(rows) - 0.45)
        axes.set_xlim(left=0)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        line = "; line: 95 %" if intervals else ""
        dotted = f"; dotted: {REFERENCE}" if frozen else ""
        axes.set_xlabel(plain(f"{table.metric} (%)") + "\n" + plain(f"mean (grey: floor){dotted}{line}"))
        axes.set_title(_title(table))
        _legend(figure, axes)
    return files


def heat_map(table: ScoreTable, folder: Path) -> list[Path]:
    """Methods by query domains (or transfers): the score in each cell, dark is high; missing cells are hatched."""
    files: list[Path] = []
    values = np.array(
        [[math.nan if (v := row.scores[c].value) is None else 100 * v for c in table.columns] for row in table.rows]
    )
    height = 0.9 + 0.22 * len(table.rows)
    with _figure(folder, _name("heat", table.protocol, table.gallery, table.metric), files, height) as (_, [[axes]]):
        import matplotlib

        colours = matplotlib.colormaps["cividis_r"].copy()
        top = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
        axes.set_facecolor("#ffffff")
        axes.imshow(values, aspect="auto", cmap=colours, vmin=0, vmax=top)
        small = len(table.columns) > 8
        for i, j in np.ndindex(*values.shape):
            known = np.isfinite(values[i, j])
            text = f"{values[i, j]:.0f}" if known and small else f"{values[i, j]:.1f}" if known else "–"
            colour = "#ffffff" if known and values[i, j] > 0.55 * top else "#000000"
            axes.text(j, i, text, ha="center", va="center", fontsize=6 if small else 7, color=colour)
        axes.set_xticks(
            range(len(table.columns)), [plain(shorten(c, 20)) for c in table.columns], rotation=45, ha="right"
        )
        axes.set_yticks(range(len(table.rows)), [plain(shorten(row.label)) for row in table.rows])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_title(plain(f"{protocol_title(table.protocol)}, {table.gallery}: {table.metric} (%){_mark(table)}"))
    return files


def cost_against_score(table: ScoreTable, costs: Sequence[MethodCost], folder: Path) -> list[Path]:
    """Mean score against seconds of training, and against trainable parameters; methods that train nothing at left.

    Floors are left out, so that the axis can show the differences between the others; it does not begin at zero.
    """
    by_label = {entry.label: entry for entry in costs}
    rows = [row for row in table.rows if row.mean.value is not None and row.label in by_label and not row.floor]
    if not rows:
        return []
    marks = _marks([row.label for row in table.rows])
    files: list[Path] = []
    height = 2.9 + 0.17 * -(-len(rows) // 3)
    with _figure(folder, _name("cost", table.protocol, table.gallery, table.metric), files, height, 2) as (
        figure,
        axes,
    ):
        panels = (
            (axes[0, 0], [by_label[row.label].training_seconds for row in rows], "seconds to train (search and fit)"),
            (axes[1, 0], [float(by_label[row.label].trainable or 0) for row in rows], "trainable parameters"),
        )
        for place, values, name in panels:
            positive = [value for value in values if value > 0]
            least = 10 ** math.floor(math.log10(min(positive, default=1)))
            for row, value in zip(rows, values, strict=True):
                colour, shape = marks[row.label]
                x = value if value > 0 else least / 6
                place.scatter(
                    x, 100 * (row.mean.value or 0), color=colour, marker=shape, s=44 if shape == "*" else 22,
                    linewidths=0.4, edgecolors="white", zorder=3, label=plain(shorten(row.label)),
                )  # fmt: skip
            place.set_xscale("log")
            ticks = [
                10.0**n for n in range(int(math.log10(least)), math.ceil(math.log10(max(positive, default=10))) + 1)
            ]
            place.set_xlim(least / 12, ticks[-1] * 1.6)
            place.set_xticks([least / 6, *ticks], ["none", *(_power(tick) for tick in ticks)])
            place.minorticks_off()
            place.axvline(least / 2.5, color="#999999", lw=0.6, ls=":")
            place.margins(y=0.15)
            place.set_xlabel(name)
            place.set_ylabel(plain(f"{table.metric} (%)"))
        axes[0, 0].set_title(_title(table))
        _legend(figure, axes[0, 0])
    return files


def seen_against_unseen(seen: ScoreTable, unseen: ScoreTable, folder: Path) -> list[Path]:
    """Accuracy on seen classes against unseen ones, with lines of equal harmonic mean (DAZSL)."""
    others = {row.label: row for row in unseen.rows}
    rows = [(row, others[row.label]) for row in seen.rows if row.label in others]
    known = [(a, b) for a, b in rows if a.mean.value is not None and b.mean.value is not None]
    marks = _marks([row.label for row in seen.rows])
    files: list[Path] = []
    height = 2.8 + 0.17 * -(-len(known) // 3)
    with _figure(folder, _name("seen-unseen", seen.protocol, seen.gallery), files, height) as (figure, [[axes]]):
        top = max((100 * max(a.mean.value or 0, b.mean.value or 0) for a, b in known), default=100.0) * 1.12
        grid = np.linspace(0.5, top, 200)
        x, y = np.meshgrid(grid, grid)
        lines = axes.contour(x, y, 2 * x * y / (x + y), levels=range(10, 100, 10), colors="#bbbbbb", linewidths=0.6)
        axes.clabel(lines, fmt="H %d", fontsize=6)
        axes.plot([0, top], [0, top], color="#999999", lw=0.6, ls=":")
        for a, b in known:
            colour, shape = marks[a.label]
            axes.scatter(100 * (a.mean.value or 0), 100 * (b.mean.value or 0), color=colour, marker=shape, s=24,
                         linewidths=0.4, edgecolors="white", zorder=3, label=plain(shorten(a.label)))  # fmt: skip
        axes.set_xlim(0, top)
        axes.set_ylim(0, top)
        axes.set_xlabel(plain(f"{seen.metric} (%)"))
        axes.set_ylabel(plain(f"{unseen.metric} (%)"))
        axes.set_title(_title(seen))
        _legend(figure, axes)
    return files


def precision_curves(question: QuestionErrors, folder: Path) -> list[Path]:
    """Precision after each of the first ranks, and precision against recall over them and the stored cuts beyond."""
    shown = [entry for entry in question.methods if entry.curve is not None]
    marks = _marks([entry.label for entry in shown])
    files: list[Path] = []
    height = 3.6 + 0.17 * -(-len(shown) // 3)
    with _figure(folder, _name("precision", question.protocol, question.gallery), files, height, 2) as (figure, axes):
        for number, entry in enumerate(shown):
            assert entry.curve is not None
            colour, shape = marks[entry.label]
            style: dict[str, Any] = {"color": colour, "marker": shape, "ms": 3, "lw": 1, "mec": "white", "mew": 0.3,
                                     "ls": DASHES[number % len(DASHES)]}  # fmt: skip
            ranks = np.arange(1, len(entry.curve.precision) + 1)
            axes[0, 0].plot(ranks, 100 * entry.curve.precision, label=plain(shorten(entry.label)), **style)
            precision = [*entry.curve.precision, *(p for p, _ in entry.curve.cuts.values())]
            recall = [*entry.curve.recall, *(r for _, r in entry.curve.cuts.values())]
            axes[1, 0].plot(100 * np.array(recall), 100 * np.array(precision), **style)
        axes[0, 0].set_xlabel("rank k")
        axes[0, 0].set_ylabel("precision@k (%)")
        axes[0, 0].set_ylim(bottom=0)
        cuts = next((list(entry.curve.cuts) for entry in shown if entry.curve is not None), [])
        ranks_shown = len(shown[0].curve.precision) if shown and shown[0].curve is not None else 0
        at = ", ".join(map(str, [f"1 to {ranks_shown}", *cuts]))
        axes[1, 0].set_xlabel(plain(f"recall (%), after ranks {at}"))
        axes[1, 0].set_ylabel("precision (%)")
        axes[1, 0].set_ylim(bottom=0)
        axes[0, 0].set_title(plain(question.title))
        _legend(figure, axes[0, 0])
    return files


def ablation_bars(ablation: AblationTable, folder: Path) -> list[Path]:
    """Difference of each switched factor to the default: a panel a question, each with its own scale, a bar an arm.

    A line across a bar's end is the 95 % t interval over seeds.
    """
    arms = [arm for arm in reversed(list(ablation.scores)) if arm != DEFAULT]
    count = len(ablation.questions)
    files: list[Path] = []
    height, width = 1.0 + 0.22 * max(1, len(arms)), COLUMN + 1.6 * (count - 1)
    name = _name("ablation", ablation.method)
    with _figure(folder, name, files, height, columns=count, width=width) as (figure, axes):
        for column, (place, question) in enumerate(zip(axes[0], ablation.questions, strict=True)):
            found = {arm: ablation.difference(arm, question) for arm in arms}
            ends = {
                arm: [100 * end for end in (mean.low, mean.mean, mean.high) if end is not None]
                for arm, mean in found.items()
                if mean is not None
            }
            reach = max((abs(end) for of_arm in ends.values() for end in of_arm), default=0.0) or 1.0
            for row, arm in enumerate(arms):
                if (difference := found[arm]) is None:
                    score = ablation.scores[arm].get(question)
                    text = "not asked" if score is None else score.text()
                    place.text(0.04 * reach, row, text, va="center", fontsize=7, style="italic").set_parse_math(False)
                    continue
                points = 100 * difference.mean
                place.barh(row, points, height=0.62, color="#f0c7a8" if points < 0 else "#bcd3e6", zorder=1)
                place.plot([min(ends[arm]), max(ends[arm])], [row, row], color="#555555", lw=0.8, zorder=3)
                side, shift, end = ("right", -0.04, min) if points < 0 else ("left", 0.04, max)
                place.text(end(ends[arm]) + shift * reach, row, f"{points:+.1f}", va="center", ha=side, fontsize=7)
            usual = ablation.scores.get(DEFAULT, {}).get(question)
            place.axvline(0, color="#000000", lw=0.8, zorder=2)
            place.set_xlim(-1.6 * reach, 1.6 * reach)
            place.set_ylim(-0.6, len(arms) - 0.4)
            shown = [plain(shorten(arm)) for arm in arms] if column == 0 else [""] * len(arms)
            place.set_yticks(range(len(arms)), shown)
            place.tick_params(axis="y", length=0)
            place.grid(visible=False, axis="y")
            place.set_title(plain(question))
            of = "none" if usual is None else usual.text()
            place.set_xlabel(plain(f"default {of}"))
        figure.suptitle(plain(f"{ablation.method}: percentage points against the default"), fontsize=9)
    return files


def loss_curves(curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]], folder: Path) -> list[Path]:
    """Training loss by step, a panel a method, a line ``(step, loss)`` a fit; stages follow each other."""
    if not curves:
        return []
    files: list[Path] = []
    rows = -(-len(curves) // 2)
    with _figure(folder, "loss", files, 0.2 + 1.15 * rows, rows, 2) as (_, axes):
        for place, (label, lines) in zip(axes.flat, sorted(curves.items()), strict=False):
            for line in lines:
                place.plot(*zip(*line, strict=True), lw=0.6, color=MARKS[0][0], alpha=max(0.25, 1 / len(lines) ** 0.5))
            place.set_title(plain(shorten(label, 24)))
            place.set_ylim(bottom=min(0.0, min(loss for line in lines for _, loss in line)))
        for place in list(axes.flat)[len(curves) :]:
            place.set_visible(False)
        for place in axes[:, 0]:
            place.set_ylabel("loss")
        for place in axes[-1]:
            place.set_xlabel("step")
    return files


def convergence_curves(
    protocol: str, curves: Mapping[str, Sequence[Sequence[tuple[int, float]]]], folder: Path
) -> list[Path]:
    """Best validation score so far (percent) by step, a line a method: the mean over its fits.

    A fit that patience ended keeps its best; a fit counts from its first validation on, and a line begins where all
    its method's fits have one.
    """
    if not curves:
        return []
    files: list[Path] = []
    marks = _marks(list(curves))
    ends: dict[str, tuple[float, float]] = {}
    height = max(2.4, 0.7 + 0.115 * len(curves))
    with _figure(folder, _name("convergence", protocol), files, height) as (_, [[axes]]):
        for number, label in enumerate(sorted(curves)):
            steps, means = best_so_far(curves[label])
            colour, shape = marks[label]
            axes.plot(steps, [100 * mean for mean in means], color=colour, marker=shape, ms=3, lw=1, mec="white",
                      mew=0.3, ls=DASHES[number % len(DASHES)])  # fmt: skip
            ends[label] = steps[-1], 100 * means[-1]
        axes.set_xlabel("step")
        axes.set_ylabel("best validation score (%)")
        axes.set_title(plain(protocol_title(protocol)))
        _name_ends(axes, ends, {label: colour for label, (colour, _) in marks.items()})
    return files


def _name_ends(axes: Axes, ends: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> None:
    """Each line's label at the right of the axes, as near to the line's end as the other labels leave room."""
    low, high = axes.get_ylim()
    order = sorted(ends, key=lambda label: ends[label][1])
    wanted = [(ends[label][1] - low) / (high - low) for label in order]
    for place, label in zip(spread(wanted, 1 / max(len(order), 14)), order, strict=True):
        axes.annotate(
            plain(shorten(label)), ends[label], (1.08, place), textcoords="axes fraction", fontsize=6, va="center",
            color=colours[label], annotation_clip=False,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": colours[label], "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Increasing ``places`` moved apart to at least ``gap``, each group around its mean and all above 0 where it fits.

    Groups that would overlap are joined, as in isotonic regression.
    """
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _lowest(groups[-1], gap) < _lowest(groups[-2], gap) + gap * len(groups[-2]):
            last = groups.pop()
            groups[-1] += last
    moved = [_lowest(group, gap) + gap * number for group in groups for number in range(len(group))]
    shift = max(0.0, -moved[0]) if moved else 0.0
    return [place + shift for place in moved]


def _lowest(group: Sequence[float], gap: float) -> float:
    """Where the first of a group begins that stands around its mean."""
    return math.fsum(group) / len(group) - gap * (len(group) - 1) / 2


def best_so_far(curves: Sequence[Sequence[tuple[int, float]]]) -> tuple[list[int], list[float]]:
    """Steps of any of the curves ``(step, score)`` from where all have begun, and the mean of their best until then."""
    first = max(curve[0][0] for curve in curves)
    steps = sorted({step for curve in curves for step, _ in curve if step >= first})
    means = [
        math.fsum(max(score for at, score in curve if at <= step) for curve in curves) / len(curves) for step in steps
    ]
    return steps, means


def seconds_by_phase(costs: Sequence[MethodCost], folder: Path) -> list[Path]:
    """Seconds by phase, a bar a method: one fit and its search, and one cell's encoding, ranking and answering."""
    phases = (("search", MARKS[5][0], ""), ("fit", MARKS[0][0], "////"), ("encode", MARKS[4][0], "...."),
              ("rank", MARKS[2][0], "xxxx"), ("classify", MARKS[3][0], "||||"))  # fmt: skip
    rows = sorted(costs, key=lambda entry: math.fsum(entry.seconds.get(phase, 0.0) for phase, *_ in phases))
    files: list[Path] = []
    with _figure(folder, "seconds", files, 0.85 + 0.2 * len(rows)) as (figure, [[axes]]):
        left = np.zeros(len(rows))
        for phase, colour, hatch in phases:
            values = np.array([entry.seconds.get(phase, 0.0) for entry in rows])
            if values.any():
                axes.barh(range(len(rows)), values, left=left, color=colour, hatch=hatch, edgecolor="white", lw=0.3,
                          height=0.66, label=phase)  # fmt: skip
            left += values
        for place, total in enumerate(left):
            axes.text(total, place, f" {total:.3g}", va="center", fontsize=6)
        axes.set_yticks(range(len(rows)), [plain(shorten(entry.label)) for entry in rows])
        axes.set_xlim(0, max(left.max(initial=0.0), 1e-9) * 1.15)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds: mean of a fit and its search,\nand of a cell's other phases")
        _legend(figure, axes, 5)
    return files


def error_distances(question: QuestionErrors, distances: Mapping[str, Mapping[int, int]], folder: Path) -> list[Path]:
    """Share of all queries whose first answer is wrong and at most so many WordNet edges from the true class.

    ``found``: of each label, how many wrong answers are at each distance (edges).
    """
    queries = {entry.label: entry.queries for entry in question.methods}
    if not any(distances.values()):
        return []
    marks = _marks(list(distances))
    files: list[Path] = []
    height = 2.2 + 0.17 * -(-len(distances) // 3)
    with _figure(folder, _name("wordnet", question.protocol, question.gallery), files, height) as (figure, [[axes]]):
        longest = max(max(by, default=0) for by in distances.values())
        at = np.arange(1, longest + 1)
        for number, (label, by) in enumerate(distances.items()):
            colour, shape = marks[label]
            share = np.cumsum([100 * by.get(int(d), 0) / queries[label] for d in at])
            axes.plot(at, share, color=colour, marker=shape, ms=3, lw=1, mec="white", mew=0.3,
                      ls=DASHES[number % len(DASHES)], label=plain(shorten(label)))  # fmt: skip
        axes.set_ylim(bottom=0)
        axes.set_xlabel("WordNet distance from the true class, at most (edges)")
        axes.set_ylabel("wrong queries (% of all)")
        axes.set_title(plain(question.title))
        _legend(figure, axes)
    return files


def embedding_points(embeddings: EmbeddingMap, folder: Path) -> list[Path]:
    """Images on two axes: colour is the class, shape the domain."""
    points, classes, domains = embeddings.points, embeddings.classes, embeddings.domains
    colours = {name: MARKS[n % 8][0] for n, name in enumerate(dict.fromkeys(classes))}
    shapes = {name: MARKS[n % len(MARKS)][1] for n, name in enumerate(sorted(set(domains)))}
    files: list[Path] = []
    with _figure(folder, "embeddings", files, 4.4) as (figure, [[axes]]):
        from matplotlib.lines import Line2D

        for (x, y), name, domain in zip(points, classes, domains, strict=True):
            axes.scatter(x, y, color=colours[name], marker=shapes[domain], s=12, linewidths=0.3, edgecolors="white")
        axes.set_xlabel(f"first two principal components: {100 * embeddings.share:.0f} % of the variance")
        axes.set_xticks([])
        axes.set_yticks([])
        handles = [Line2D([], [], color=c, marker="s", ls="", ms=4, label=plain(n)) for n, c in colours.items()]
        handles += [
            Line2D([], [], color="#444444", marker=m, ls="", ms=4, mfc="none", label=plain(n))
            for n, m in shapes.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, handletextpad=0.1, columnspacing=1)
    return files


def gallery_sheet(galleries: Galleries, folder: Path) -> list[Path]:
    """A few queries with their best images under a few methods, as one image; right ones ticked.

    Queries: of the first question, the one of each domain that the methods disagree most on, the widest first. Methods:
    the first of the table, with `REFERENCE`, without floors. Returns the file, PNG alone.
    """
    widest: dict[str, GalleryQuery] = {}
    for query in galleries.queries:
        if query.title == galleries.queries[0].title and query.spread > getattr(widest.get(query.domain), "spread", -1):
            widest[query.domain] = query
    queries = sorted(widest.values(), key=lambda query: (-query.spread, query.domain))[:SHEET_QUERIES]
    if not queries:
        return []
    labels = [row.label for row in queries[0].rows if not row.floor]
    others = [label for label in labels if label != REFERENCE][: SHEET_METHODS - (REFERENCE in labels)]
    chosen = [label for label in labels if label in (*others, REFERENCE)]
    columns = max(len(row.hits) for query in queries for row in query.rows)
    lines = len(queries) * (len(chosen) + 0.55)
    left, side = 3.6, 0.84  # where the hits begin, and how wide an image is, in units of an image's place
    width = 2 * COLUMN
    height = width * lines / (left + columns)
    files: list[Path] = []
    with _figure(
        folder, "gallery", files, height, width=width, kinds=("png",), dpi=120, colours=256
    ) as (figure, [[axes]]):  # fmt: skip
        from matplotlib.patches import Rectangle

        figure.set_layout_engine("none")
        axes.set(position=(0, 0, 1, 1), xlim=(0, left + columns), ylim=(lines, 0))
        axes.axis("off")

        def show(key: str, x: float, y: float, size: float) -> None:
            if pixels := galleries.images.get(key):
                axes.imshow(_pixels(pixels), extent=(x, x + size, y + size, y), aspect="auto", zorder=2)

        top = 0.0
        for query in queries:
            axes.text(0.1, top + 0.4, plain(shorten(query.class_name, 16)), fontsize=9, weight="bold")
            axes.text(0.1, top + 0.72, plain(shorten(query.domain, 20)), fontsize=7, color="#555555")
            show(query.key, 0.15, top + 0.95, 1.35)
            for place, row in enumerate([row for row in query.rows if row.label in chosen]):
                y = top + 0.3 + place
                axes.text(left - 0.12, y + 0.42, plain(shorten(row.label, 16)), fontsize=7, ha="right", va="center")
                for number, hit in enumerate(row.hits):
                    x, colour = left + number, MARKS[0][0] if hit.right else MARKS[1][0]
                    dashes = "-" if hit.right else (0, (2, 1.2))
                    show(hit.key, x, y, side)
                    axes.add_patch(Rectangle((x, y), side, side, fill=False, ec=colour, lw=1.4, ls=dashes, zorder=3))
                    if hit.right:
                        sign = {"boxstyle": "circle,pad=0.15", "fc": colour, "ec": "none"}
                        axes.text(x + side, y + 0.02, "✓", fontsize=6, color="#ffffff", ha="center", va="center",
                                  zorder=4, bbox=sign)  # fmt: skip
            top += len(chosen) + 0.55
    return files


def _pixels(data_uri: str) -> np.ndarray:
    """Pixels [H, W, 3] of an image in a page."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(data_uri.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"))


def _power(value: float) -> str:
    """A power of ten in few characters."""
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: one line, no mathematics."""
    return " ".join(text.split()).replace("$", r"\$")


def shorten(text: str, length: int = 28) -> str:
    """At most ``length`` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _mark(table: ScoreTable) -> str:
    setting = table.setting
    marks = [f"{setting.rules} rules"] if setting.rules != "clean" else []
    marks += ["oracle"] if setting.select == "oracle" else []
    marks += [f"limit {setting.limit}"] if setting.limit is not None else []
    return f" ({', '.join(marks)})" if marks else ""
