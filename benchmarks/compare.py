"""``python -m benchmarks.compare OLD NEW``: paired comparison of two results folders; fails on a significant drop."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.console import OneLineParser, command, consoles, counted, given, given_folder

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from benchmarks.reporting.store_comparison import StoreComparison

EPILOG = """Cells of the two folders are paired by method, data set, protocol, split, gallery, seed, rules and
selection, and tested on their per-query values (classes swapped at random); p values are corrected over all cells.
A cell with a score in OLD that failed in NEW, is missing there, lacks the metric or has other queries is lost, and
fails the comparison; so does a record of either folder that cannot be read.

examples:
  python -m benchmarks.compare results/main results/branch
  python -m benchmarks.compare results/main results/branch --threshold 0.005 --metric map@all,recall@1 --out diff.csv

exit code: 0 no significant drop, 1 a drop larger than the threshold, a lost cell or an unreadable record, 2 input that
cannot be used
"""


def build_parser(prog: str = "benchmarks.compare") -> argparse.ArgumentParser:
    """The options."""
    parser = OneLineParser(
        prog=prog,
        description="Compare two results folders cell by cell.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("old", metavar="OLD", type=given_folder, help="results folder to compare with")
    parser.add_argument("new", metavar="NEW", type=given_folder, help="results folder to check")
    parser.add_argument(
        "--threshold",
        metavar="X",
        type=float,
        default=0.01,
        help="smallest drop that counts, a fraction (default: 0.01, one percentage point)",
    )
    parser.add_argument(
        "--alpha", metavar="P", type=float, default=0.05, help="level of significance after correction (default: 0.05)"
    )
    parser.add_argument(
        "--metric", metavar="LIST", action="append", help="comma list (default: the first metric of each gallery)"
    )
    parser.add_argument("--partial", action="store_true", help="NEW may hold fewer cells: those missing are not lost")
    parser.add_argument("--out", metavar="FILE", type=given, help="also write the table there, as CSV")
    return parser


@command
def main(argv: Sequence[str] | None = None, prog: str = "benchmarks.compare") -> int:
    """Run the command; exit code 0, 1 on a large drop, a lost cell or an unreadable record, 2 on unusable input."""
    arguments = build_parser(prog).parse_args(argv)
    from benchmarks.reporting.store_comparison import ABSENT, compare_stores
    from benchmarks.store.files import ResultStore, write_atomically

    out, err = consoles()

    unread: list[str] = []

    def warn(line: str) -> None:
        unread.append(line)
        err.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)

    metrics = None
    if arguments.metric is not None:
        metrics = [name.strip() for text in arguments.metric for name in text.split(",") if name.strip()]
        if not metrics:
            line = f"{prog}: --metric names no metric: write a comma list such as map@all,recall@1, or leave it out"
            err.print(line, markup=False, highlight=False, soft_wrap=True)
            return 2
    try:
        comparison = compare_stores(
            ResultStore(arguments.old),
            ResultStore(arguments.new),
            metrics=metrics,
            threshold=arguments.threshold,
            alpha=arguments.alpha,
            report=warn,
        )
    except (OSError, ValueError) as error:
        err.print(f"{prog}: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    try:
        if arguments.out:
            write_atomically(Path(arguments.out), comparison.cells.to_csv(index=False, lineterminator="\n").encode())
    except OSError as error:
        line = f"{prog}: --out {arguments.out}: {error.strerror or error}; name a file that can be written"
        err.print(line, markup=False, highlight=False, soft_wrap=True)
        return 2
    lost = comparison.lost[comparison.lost["why"] != ABSENT] if arguments.partial else comparison.lost
    _print(out, comparison, lost, arguments.threshold, arguments.alpha)
    if unread:
        err.print(f"unreadable records: {len(unread)}; each is named above", style="yellow", highlight=False)
    return 1 if len(comparison.drops) or len(lost) or unread else 0


def _print(out: Console, comparison: StoreComparison, lost: pd.DataFrame, threshold: float, alpha: float) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from benchmarks.reporting.types import protocol_title

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("method", "cell", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("old", "new", "difference", "95 % interval", "p (Holm)"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in comparison.cells.to_dict("records"):
        where = f"{row['dataset']} {protocol_title(row['protocol'])} {row['split']}, {row['gallery']}"
        old, new, difference, low, high = (100 * row[name] for name in ("old", "new", "difference", "low", "high"))
        cells = [
            row["method"], f"{where}, {_marks(row)}", row["metric"], f"{old:.1f}", f"{new:.1f}", f"{difference:+.1f}",
            f"{low:+.1f} to {high:+.1f}", f"{row['p_holm']:.4f}",
            "; ".join(filter(None, [row["verdict"].upper(), row["changed"]])),
        ]  # fmt: skip
        style = {"drop": "red", "gain": "green"}.get(row["verdict"], "")
        table.add_row(*(Text(" ".join(str(text).split()), style=style) for text in cells))
    out.print(table)
    _print_unpaired(out, comparison.unpaired, lost)
    counts = comparison.cells["verdict"].value_counts()
    summary = (
        f"{counted(len(comparison.cells), 'cell')} compared, in percent; "
        f"{counted(counts.get('drop', 0), 'significant drop')} and {counted(counts.get('gain', 0), 'gain')} of more "
        f"than {100 * threshold:g} (p <= {alpha:g} after Holm's correction); "
        f"{len(comparison.unpaired)} not compared, {len(lost)} of them lost"
    )
    out.print(summary, markup=False, highlight=False, soft_wrap=True)


def _print_unpaired(out: Console, unpaired: pd.DataFrame, lost: pd.DataFrame) -> None:
    for number, row in unpaired.iterrows():
        where = f"{row['method']} on {row['dataset']}/{row['protocol']}/{row['split']}, {row['gallery']}, {_marks(row)}"
        head = "not comparable" if row["store"] == "both" else f"only in {row['store'].upper()}"
        is_lost = number in lost.index
        line = " ".join(f"{'LOST, ' if is_lost else ''}{head}: {where}: {row['reason']}".split())
        out.print(line, style="red" if is_lost else "yellow", markup=False, highlight=False, soft_wrap=True)


def _marks(row: Mapping[Hashable, Any] | pd.Series) -> str:
    """The seed, and the rules, the selection and the switched factor where they are not the default."""
    marks = [f"seed {row['seed']}"]
    marks += [f"{row['rules']} rules"] if row["rules"] != "clean" else []
    marks += [row["select"]] if row["select"] != "val" else []
    marks += [row["ablation"]] if row["ablation"] else []
    return ", ".join(marks)


if __name__ == "__main__":
    sys.exit(main())
