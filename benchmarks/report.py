"""``python -m benchmarks.report RESULTS --out FOLDER``: tables, plots and one HTML page from stored results."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.console import OneLineParser, command, consoles, given, given_folder

#: Processes that draw plots beside this one, at most.
MOST_WORKERS = 4


def build_parser(prog: str = "benchmarks.report") -> argparse.ArgumentParser:
    """The options."""
    parser = OneLineParser(
        prog=prog,
        description="Print the leaderboard of stored results; write tables, plots and one page.",
        epilog="exit code: 0 done, 1 done, but a record could not be read, 2 no results or a wrong option",
    )
    parser.add_argument(
        "results", metavar="RESULTS", nargs="?", default="results/run", type=given_folder,
        help="results folder (default: results/run)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FOLDER", type=given, help="where to write (default: RESULTS/report)")
    parser.add_argument(
        "--pictures",
        action="store_true",
        help="also retrieval galleries and a map of embeddings; needs the data set, the map the backbone too",
    )
    parser.add_argument("--data-root", metavar="FOLDER", help="folder of the data sets, for --pictures")
    parser.add_argument(
        "--resamples", metavar="N", type=_resamples, help="of the tests between methods (default: 10000 or more)"
    )
    return parser


@command
def main(argv: Sequence[str] | None = None, prog: str = "benchmarks.report") -> int:
    """Run the command; exit code 0, 1 if a record cannot be read, 2 without results or if --out cannot be written."""
    arguments = build_parser(prog).parse_args(argv)
    from benchmarks.reporting.data import ReportData
    from benchmarks.reporting.files import PAGE, write_report
    from benchmarks.reporting.tables import is_ablated
    from benchmarks.reporting.terminal import print_ablations, print_failures, print_tables
    from benchmarks.store.files import ResultStore
    from benchmarks.store.frame import frame_and_records

    out, err = consoles()
    unread: list[str] = []

    def warn(line: str) -> None:
        err.print(" ".join(line.split()), style="yellow", markup=False, highlight=False, soft_wrap=True)

    def warn_unread(line: str) -> None:
        unread.append(line)
        warn(line)

    try:
        frame, records = frame_and_records(arguments.results, warn_unread, compact=True)
    except OSError as error:
        err.print(f"{prog}: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    if not records:
        line = f"{prog}: {arguments.results} holds no readable record"
        err.print(line, markup=False, highlight=False, soft_wrap=True)
        return 2
    command = shlex.join(["python", "-m", "benchmarks.report", *(sys.argv[1:] if argv is None else argv)])
    data = ReportData(
        frame, store=ResultStore(arguments.results), command=command, report=warn, resamples=arguments.resamples,
        records=records,
    )  # fmt: skip
    print_tables(out, data)
    print_ablations(out, data)
    print_failures(out, data.current[is_ablated(data.current)])
    folder = Path(arguments.out) if arguments.out else Path(arguments.results) / "report"
    images = {"data_root": arguments.data_root} if arguments.pictures else None
    try:
        files = write_report(data, folder, images=images, workers=min(_cores() - 1, MOST_WORKERS))
    except OSError as error:
        reason = error.strerror or error
        err.print(f"{prog}: {folder}: cannot be written ({reason})", markup=False, highlight=False, soft_wrap=True)
        return 2
    for path in files:
        name = "page: " if path.name == PAGE else ""
        out.print(f"{name}{path}", markup=False, highlight=False, soft_wrap=True)
    if unread:
        warn(f"unreadable records: {len(unread)}; each is named above")
    return 1 if unread else 0


def _resamples(text: str) -> int:
    """Resamples of a test: :func:`benchmarks.evaluation.statistics.paired_tests` needs one."""
    if text.strip().lstrip("+-").isdecimal() and int(text) < 1:
        raise argparse.ArgumentTypeError(f"{int(text)} is too few: 1 or more, 10000 are usual")
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"cannot read {text!r}: write a whole number, 1 or more") from None


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    raise SystemExit(main())
