"""``python -m benchmarks.data list | card NAME | verify NAME | splits NAME``: data sets."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.datasets.registry import DATASETS
from benchmarks.run import OneLineParser

if TYPE_CHECKING:
    from benchmarks.datasets.base import Dataset


def build_parser(prog: str = "benchmarks.data") -> argparse.ArgumentParser:
    """The options."""
    parser = OneLineParser(prog=prog, description="List, describe and check data sets.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="names and one line each")
    for name, text in (
        ("card", "what it is, its sizes, what is known to be wrong with it"),
        ("verify", "check the files and every promise of the data set; exit code 1 if one is broken"),
        ("splits", "classes of each split and the hash of each list"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("name", metavar="NAME")
        command.add_argument("--data-root", metavar="FOLDER", help="where data sets lie")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "benchmarks.data") -> int:
    """Run the command; exit code 0, 1 if a data set cannot be used, 2 for an unknown name."""
    arguments = build_parser(prog).parse_args(argv)
    if arguments.command == "list":
        for entry in DATASETS.entries():
            print(f"{entry.name:20} {entry.summary}")
        return 0
    import sys

    from methods.registry import UnknownNameError

    try:
        DATASETS.check(arguments.name)
    except UnknownNameError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    from benchmarks.datasets.base import DatasetError
    from benchmarks.workbench import dataset_root

    try:
        dataset = DATASETS.get(arguments.name)(dataset_root(arguments.data_root, arguments.name))
        dataset.check()
        {"card": card, "verify": verify, "splits": splits}[arguments.command](dataset)
    except DatasetError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    return 0


def card(dataset: Dataset) -> None:
    """Print the card and the number of pictures by domain and split."""
    own = dataset.card
    for label, value in (
        ("title", own.title),
        ("version", own.version),
        ("source", own.source),
        ("licence", own.licence),
        ("gallery domain", own.gallery_domain),
        ("leading metrics", ", ".join(own.headline.metrics())),
    ):
        print(f"{label:16} {value}")
    for problem in own.known_problems:
        print(f"{'known problem':16} {problem}")
    table = dataset.table.assign(split=dataset.table["split"].where(~dataset.table["held_back"], "held back"))
    counts = table.groupby(["domain", "split"]).size().unstack(fill_value=0)
    counts["all"] = counts.sum(axis=1)
    counts.loc["all"] = counts.sum()
    print(f"\n{counts.to_string()}")


def verify(dataset: Dataset) -> None:
    """Decode every picture, check every task of every protocol, print the hashes."""
    import numpy as np

    from benchmarks.datasets.base import DatasetError
    from benchmarks.protocols.registry import PROTOCOLS

    rows = np.arange(len(dataset.table))
    for batch in np.array_split(rows, max(1, len(rows) // 512)):
        try:
            dataset.pixels(batch, 32)
        except DatasetError:
            raise
        except Exception as error:
            first, last = dataset.table["key"].iloc[[batch[0], batch[-1]]]
            raise DatasetError(f"a picture between {first!r} and {last!r} cannot be decoded: {error}") from error
    tasks = 0
    for name in PROTOCOLS.names():
        protocol = PROTOCOLS.get(name)
        for split in protocol.splits(dataset):
            protocol.task(dataset, split).check(dataset)
            tasks += 1
    print(f"{dataset.card.name} {dataset.card.version}: {len(rows)} pictures decode, {tasks} tasks are sound")
    print(f"data hash {dataset.data_hash}")


def splits(dataset: Dataset) -> None:
    """Print each split's classes with the sha256 of the newline-joined list."""
    for split in ("train", "val", "test"):
        classes = dataset.classes(split)
        digest = hashlib.sha256("\n".join(classes).encode()).hexdigest()
        print(f"{split}: {len(classes)} classes, sha256 {digest}")
        print(f"  {', '.join(classes)}")


if __name__ == "__main__":
    raise SystemExit(main())
