"""Leaderboards as LaTeX: one document that compiles by itself; its tables can be copied into a paper.

Only text of the US-ASCII range and accented Latin letters is written as it is; all other characters come out as their
code point, and every character that LaTeX gives a meaning is escaped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from benchmarks.reporting import grids
from benchmarks.reporting.data import ReportData
from benchmarks.reporting.types import BEST, EXTENSION, GROUP, Grid, GridCell

PREAMBLE = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage{textcomp}
\newcommand{\best}[1]{\textbf{#1}}
\newcommand{\tied}[1]{#1\textsuperscript{=}}
\newcommand{\fitted}[1]{\resizebox{\ifdim\width>\linewidth \linewidth\else\width\fi}{!}{#1}}
\begin{document}
"""

_ESCAPED = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
    "[": "{[}", "]": "{]}", "×": r"\texttimes{}", "÷": r"\textdiv{}",
    EXTENSION: r"\textdagger{}", "±": r"\textpm{}", "…": r"\ldots{}", "–": r"\textendash{}",
}  # fmt: skip


#: Accented letters that the fonts of T1 hold.
_LETTERS = frozenset(map(chr, range(0xC0, 0x100))) | frozenset(
    "ĂăĄąĆćČčĎďĐđĘęĚěĞğİıĹĺĽľŁłŃńŇňŐőŔŕŘřŚśŞşŠšŢţŤťŮůŰűŹźŻżŽž"
)


def escape(text: str) -> str:
    """Text as LaTeX that prints it and does nothing else: one line, no command, no ligature that hides a character."""
    escaped = []
    for character in " ".join(unicodedata.normalize("NFC", text).split()):
        if character in _ESCAPED:
            escaped.append(_ESCAPED[character])
        elif (character.isascii() and character.isprintable()) or character in _LETTERS:
            escaped.append(character)
        else:
            escaped.append(f"{{[}}U+{ord(character):04X}{{]}}")
    return re.sub(r"([-,])(?=\1)", r"\1{}", "".join(escaped))


def leaderboard_latex(data: ReportData) -> str:
    """The leaderboard without ablations.

    Bold: best of its column; a raised = : not separable from the best; ``\\pm`` half of the 95 % t interval over seeds.
    """
    lines = [PREAMBLE]
    if data.command:
        lines += [rf"\noindent Made by \texttt{{{escape(data.command)}}}.", ""]
    lines += [
        r"\noindent Percent. Bold: best of its column. \tied{}: not separable from the best (paired randomisation test "
        r"clustered by class, Holm-corrected, 5\,\%). $\pm$: half of the 95\,\% t interval over seeds. \textdagger{}: "
        "beyond the method's paper.",
        "",
    ]
    for part in data.settings:
        lines += [rf"\section*{{{escape(part.setting.title())}}}", ""]
        for grid in grids.overview(part.tables, part.comparison):
            lines += [*_table(grid), ""]
        for table in part.tables:
            lines += [*_table(grids.by_protocol(table, part.comparison)), ""]
        if part.extensions:
            lines += [r"\noindent \textdagger{} Extensions:", r"\begin{itemize}"]
            lines += [
                rf"\item {escape(method)}, {escape(where)}: {escape(text)}" for method, where, text in part.extensions
            ]
            lines += [r"\end{itemize}", ""]
    return "\n".join([*lines, r"\end{document}", ""])


def _table(grid: Grid) -> Iterator[str]:
    yield r"\begin{table}[htbp]\centering"
    yield rf"\caption{{{escape(grid.caption)}}}"
    yield rf"\fitted{{\begin{{tabular}}{{l{'r' * (len(grid.head) - 1)}}}"
    yield r"\toprule"
    yield _line([escape(name) for name in grid.head])
    yield r"\midrule"
    for row in grid.rows:
        yield _line([_cell(cell) for cell in row.cells])
    yield r"\bottomrule"
    yield r"\end{tabular}}"
    yield r"\end{table}"


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(cell: GridCell) -> str:
    text = escape(cell.text)
    if BEST in cell.mark:
        text = rf"\best{{{text}}}"
    elif GROUP in cell.mark:
        text = rf"\tied{{{text}}}"
    if EXTENSION in cell.mark:
        text += r"\textdagger{}"
    if cell.small.startswith("±"):
        text += rf" {{\small$\pm${escape(cell.small[1:].strip())}}}"
    elif cell.small:
        text += rf" {{\small {escape(cell.small)}}}"
    return text + "".join(f" ({escape(tag)})" for tag in cell.tags)
