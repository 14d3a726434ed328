"""``python -m benchmarks.pack RESULTS --out FOLDER``: a folder in few files (:mod:`benchmarks.store.packed`)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.console import OneLineParser, command, counted, file_size, given_folder
from benchmarks.store.files import ResultStore
from benchmarks.store.pack_writer import TOP, write_pack
from benchmarks.store.packed import FORMS, PER_QUERY, RECORDS, PackError
from benchmarks.store.records import RecordError
from benchmarks.store.weights import WeightStore


def build_parser(prog: str = "benchmarks.pack") -> argparse.ArgumentParser:
    """The options."""
    parser = OneLineParser(prog=prog, description="Write a results folder as a pack: a few small files, fit to commit.")
    parser.add_argument("results", metavar="RESULTS", type=given_folder, help="results folder, loose or packed")
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        required=True,
        type=given_folder,
        help="where to write: a new or empty folder, or a pack",
    )
    parser.add_argument(
        "--per-query",
        choices=FORMS,
        default="lean",
        help="lean (default): what reports show, rounded to 1e-4, best images of a sample; full: everything, exactly",
    )
    parser.add_argument(
        "--top",
        metavar="N",
        type=int,
        help=f"lean: queries of each split and gallery that keep their best images (default: {TOP})",
    )
    parser.add_argument(
        "--weights",
        action="store_true",
        help="also take the weights that --keep-weights kept (default: leave them out)",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="replace a pack in FOLDER that holds records or weights which RESULTS lacks, or that is damaged",
    )
    return parser


@command
def main(argv: Sequence[str] | None = None, prog: str = "benchmarks.pack") -> int:
    """Run the command; exit code 0, 1 if records could not be read and were left out, 2 if there is nothing to pack."""
    arguments = build_parser(prog).parse_args(argv)
    unreadable: list[str] = []

    def warn(line: str) -> None:
        unreadable.append(line)
        print(line, file=sys.stderr)

    try:
        if arguments.top is not None and (arguments.per_query == "full" or arguments.top < 0):
            raise PackError("--top is 0 or more, and goes with --per-query lean (full keeps all)")
        store = ResultStore(arguments.results, warn)
        top = TOP if arguments.top is None else arguments.top
        manifest = write_pack(
            store, Path(arguments.out), form=arguments.per_query, top=top, weights=arguments.weights,
            replace=arguments.replace, report=print,
        )  # fmt: skip
    except (PackError, RecordError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{prog}: {arguments.out}: cannot be written ({error.strerror or error})", file=sys.stderr)
        return 2
    files = [Path(arguments.out) / name for name in (RECORDS, PER_QUERY)]
    sizes = ", ".join(f"{file.name} {file_size(file.stat().st_size)}" for file in files)
    print(f"{arguments.out}: {manifest.form}, {manifest.records} records, {manifest.rows} per-query rows; {sizes}")
    if line := _weights(store, taken=arguments.weights):
        print(line)
    return 1 if unreadable else 0


def _weights(store: ResultStore, *, taken: bool) -> str:
    """What became of the store's weights, in one line; "" if it has none."""
    kept = list(WeightStore(store.root).all())
    size = sum(path.stat().st_size for one in kept for path in one.folder.iterdir())
    what = f"weights of {counted(len(kept), 'fit')}, {file_size(size)}"
    return "" if not kept else f"{what}: taken" if taken else f"{what}: left out; --weights takes them"


if __name__ == "__main__":
    raise SystemExit(main())
