"""``python -m benchmarks.data list | card NAME | verify NAME --root DIR | splits NAME``: data sets."""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import sys
import warnings
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.console import OneLineParser, command, counted
from benchmarks.datasets.registry import DATASETS

if TYPE_CHECKING:
    from benchmarks.datasets.base import Dataset, DatasetCard
    from benchmarks.datasets.folder_dataset import FolderDataset

EPILOG = """examples:
  python -m benchmarks.data list --data-root /data            which data sets are there
  python -m benchmarks.data card domainnet                    where it comes from, how its folder must look
  python -m benchmarks.data verify domainnet --root /data/domainnet
  python -m benchmarks.data verify folder --root my/images --write-broken

A data set is in FOLDER/NAME under the data root, or in the folder that --root names. Decoded images are kept in
$UCDR_BENCH_CACHE (default: ucdr-bench in the user's cache folder; "off": nowhere); $UCDR_BENCH_WORKERS sets the number
of worker processes.

Images are decoded as torchvision's loader does it: to RGB, of several frames the first. Three things differ: they are
turned as their EXIF orientation says (not under --rules official), transparent parts become white, and 16-bit grey
keeps its shades. A run resizes and crops them as the backbone's preprocessor_config.json says; --size N as OpenAI's
CLIPs do (the shorter edge to N, the central square).

exit code: 0 in order, 1 the data set is missing, damaged or inconsistent, 2 a wrong option or name, 130 stopped
"""

#: Names printed of each kind of finding unless ``--all`` is given.
SHOWN = 20

#: Largest side for ``--size``, in pixels.
LARGEST = 2048


def build_parser(prog: str = "benchmarks.data") -> argparse.ArgumentParser:
    """The options."""
    parser = OneLineParser(
        prog=prog,
        description="List, describe and check data sets.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="names and one line each; with --data-root which of them are there")
    listing.add_argument("--data-root", metavar="FOLDER", help="where data sets are: FOLDER/NAME")
    for name, text in (
        ("card", "where it comes from, its licence, how the folder must look, its sizes, known problems"),
        ("verify", "decode every image and check every task; names what is missing, broken or left out"),
        ("splits", "classes of each split and the hash of each list"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text}.")
        command.add_argument("name", metavar="NAME")
        command.add_argument("--data-root", metavar="FOLDER", help="where data sets are: FOLDER/NAME")
        command.add_argument("--root", metavar="DIR", help="the data set's own folder, whatever its name")
        if name == "verify":
            command.add_argument("--size", metavar="N", type=_size, help="also keep all images decoded at N x N pixels")
            command.add_argument(
                "--write-broken", action="store_true", help="add broken images to DIR/broken.txt: they are left out"
            )
            command.add_argument("--all", action="store_true", help=f"print every name, not {SHOWN} of each kind")
    return parser


def _size(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= LARGEST:
        raise argparse.ArgumentTypeError(f"a whole number from 1 to {LARGEST}, not {text!r}")
    return int(text)


@command
def main(argv: Sequence[str] | None = None, prog: str = "benchmarks.data") -> int:
    """Run the command; exit code 0, 1 if a data set cannot be used, 2 for an unknown name, 130 if it is stopped."""
    arguments = build_parser(prog).parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show must not fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"{prog}: warning: {message}", file=sys.stderr)
            code = _perform(arguments, prog)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        print(f"{prog}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has closed the pipe, as ``| head`` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _perform(arguments: argparse.Namespace, prog: str) -> int:
    if arguments.data_root is not None:
        from benchmarks.datasets.base import root_problem

        if problem := root_problem(arguments.data_root):
            print(f"{prog}: {problem}", file=sys.stderr)
            return 1
    if arguments.command == "list":
        return listing(arguments.data_root)
    from methods.registry import UnknownNameError

    try:
        DATASETS.check(arguments.name)
    except UnknownNameError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    from benchmarks.datasets.base import DatasetError

    try:
        dataset = DATASETS.get(arguments.name)(_root(arguments))
        if arguments.command == "card":
            card(dataset)
        elif arguments.command == "splits":
            splits(dataset)
        else:
            return verify(
                dataset,
                size=arguments.size,
                write_broken=arguments.write_broken,
                shown=None if arguments.all else SHOWN,
            )
    except DatasetError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    return 0


def _root(arguments: argparse.Namespace) -> Path | None:
    from benchmarks.datasets.base import dataset_root, expanded

    if arguments.root is not None:
        return expanded(arguments.root)
    return dataset_root(arguments.data_root, arguments.name)


def listing(data_root: str | None) -> int:
    """Print the names; with a data root also which data sets are there."""
    for entry in DATASETS.entries():
        print(f"{entry.name:20} {_presence(entry.name, data_root)}{entry.summary}")
    return 0


def _presence(name: str, data_root: str | None) -> str:
    if data_root is None:
        return ""
    from benchmarks.datasets.verification import presence

    return f"{presence(name, data_root):9} "


def card(dataset: Dataset) -> None:
    """Print the card and, where the data set is there, the number of images by domain and split."""
    from benchmarks.datasets.base import DatasetError

    about = dataset.card
    _print_card(about)
    published = getattr(dataset, "published_counts", {})
    if published:
        sizes = ", ".join(f"{domain} {count:,}" for domain, count in published.items())
        print(f"{'published sizes':16} {sizes}; all {sum(published.values()):,}")
    print(f"{'classes':16} {_class_counts(dataset)}")
    if about.bibtex:
        print(f"\n{about.bibtex}")
    try:
        dataset.check()
    except DatasetError as error:
        print(f"\nnot usable here: {error}")
        return
    table = dataset.table.assign(split=dataset.table["split"].where(~dataset.table["held_back"], "held back"))
    counts = table.groupby(["domain", "split"]).size().unstack(fill_value=0)
    counts["all"] = counts.sum(axis=1)
    counts.loc["all"] = counts.sum()
    print(f"\n{counts.to_string()}")
    _print_facts(dataset)


def _print_card(card: DatasetCard) -> None:
    for label, value in (
        ("title", card.title),
        ("version", card.version),
        ("source", card.source),
        ("licence", card.licence),
        ("folder", card.layout or "none: it is shipped"),
        ("gallery domain", card.gallery_domain or "chosen by rule when the folder is read"),
        ("leading metrics", ", ".join(card.headline.metrics())),
    ):
        print(f"{label:16} {value}")
    for problem in card.known_problems:
        print(f"{'known problem':16} {problem}")


def _class_counts(dataset: Dataset) -> str:
    from benchmarks.datasets.base import DatasetError

    try:
        return ", ".join(f"{len(dataset.classes(split))} {split}" for split in ("train", "val", "test"))
    except DatasetError:
        return "those of the folder"


# --- verify -----------------------------------------------------------------------------------------------------------


def verify(dataset: Dataset, *, size: int | None = None, write_broken: bool = False, shown: int | None = SHOWN) -> int:
    """Decode every image, check every task of every protocol, print counts, findings and hashes.

    Returns 1 if images are broken or missing or a task is not sound. ``shown``: names printed of each kind.
    """
    from benchmarks.datasets.folder_dataset import FolderDataset
    from benchmarks.datasets.verification import decode_all

    dataset.check()
    if isinstance(dataset, FolderDataset):
        trouble = _verify_folder(dataset, size, write_broken, shown)
    else:
        trouble = []
        decode_all(dataset)
    tasks, unsound = _check_tasks(dataset)
    print(f"{'tasks':16} {', '.join(f'{protocol} {count}' for protocol, count in tasks.items())}")
    _print_names("tasks that are not sound", unsound, shown)
    trouble += [f"{len(unsound)} of the tasks are not sound"] if unsound else []
    name = f"{dataset.card.name} {dataset.card.version}"
    if trouble:
        print(f"{name}: NOT in order: {'; '.join(trouble)}")
    else:
        print(f"{name}: {len(dataset.table)} images decode, {sum(tasks.values())} tasks are sound{_sizes(dataset)}")
    print(f"data hash {dataset.data_hash}")
    return 1 if trouble else 0


def _sizes(dataset: Dataset) -> str:
    """Domains whose number of images is not the published one, as a phrase; "" if there are none."""
    published = getattr(dataset, "published_counts", {})
    counts = dataset.table["domain"].value_counts()
    other = [domain for domain, count in published.items() if counts.get(domain, 0) != count]
    return f"; not of the published size: {', '.join(other)}" if other else ""


def _check_tasks(dataset: Dataset) -> tuple[dict[str, int], list[str]]:
    """Number of tasks by protocol, and a line for each task that is not sound."""
    from benchmarks.datasets.base import DatasetError
    from benchmarks.protocols.registry import PROTOCOLS

    tasks: dict[str, int] = {}
    unsound = []
    for name in PROTOCOLS.names():
        protocol = PROTOCOLS.get(name)
        splits = protocol.splits(dataset)
        tasks[name] = len(splits)
        for split in splits:
            try:
                protocol.task(dataset, split).check(dataset)
            except DatasetError as error:
                unsound.append(str(error))
    return tasks, unsound


def _verify_folder(dataset: FolderDataset, size: int | None, write_broken: bool, shown: int | None) -> list[str]:
    """Findings, counts, decoding and content of a data set that is a folder; returns what is wrong, a phrase each."""
    from benchmarks.datasets import verification

    print(f"folder {dataset.folder}")
    _print_facts(dataset)
    _print_counts(dataset)
    kinds = verification.findings_by_kind(dataset)
    for kind, title in verification.FINDING_TITLES.items():
        _print_names(title, kinds.get(kind, []), shown)
    senses = verification.doubtful_senses(dataset)
    _print_names("class names whose WordNet sense is doubtful (SRE-CLIP)", senses, shown)
    trouble = []
    if missing := kinds.get("missing_image"):
        trouble.append(f"{counted(len(missing), 'image')} {_are(missing)} missing")
    if "missing_class" in kinds:
        absent = kinds["missing_class"]
        verb = "has" if len(absent) == 1 else "have"
        trouble.append(f"{counted(len(absent), 'class')} {verb} no images in a domain")

    report = verification.check_files(dataset)
    keys, paths = dataset.table["key"].to_numpy(), dataset.table["path"].to_numpy()
    if report.turned:
        of_all = f"{len(report.turned)} of {counted(len(keys), 'image')}"
        share = f"{of_all} {_are(report.turned)} stored turned, such as {paths[min(report.turned)]}"
        print(f"{'EXIF orientation':16} {share}: they are turned upright (not under --rules official)")
    empty = {finding.path: finding.reason for finding in dataset.findings if finding.kind == "empty_file"}
    broken = {**empty, **{str(keys[row]): reason for row, reason in report.broken.items()}}
    lines = [f"{key}: {reason}; left out" for key, reason in empty.items()]
    lines += [f"{paths[row]}: {reason}" for row, reason in report.broken.items()]
    _print_names("broken images", sorted(lines), shown)
    identical = verification.identical_images(dataset, report.hashes, report.whole)
    _print_names("byte-identical images in two roles, domains or classes", identical, shown)
    if broken and write_broken:
        print(f"wrote {verification.write_broken_list(dataset, broken)}")
        trouble.append(f"{counted(len(broken), 'broken image')} now left out; verify again")
    elif broken:
        trouble.append(f"{counted(len(broken), 'image')} {_are(broken)} broken (--write-broken leaves them out)")
    if size is not None:
        print(verification.fill_cache(dataset, size, report.whole))
    print(f"content hash {report.content_hash}")
    return trouble


def _are(found: Sized) -> str:
    return "is" if len(found) == 1 else "are"


def _print_facts(dataset: Dataset) -> None:
    for fact in dataset.facts:
        print(f"{'read':16} {fact}")
    if dataset.left_out:
        print(f"{'left out':16} {dataset.left_out}")


def _print_counts(dataset: FolderDataset) -> None:
    table, published = dataset.table, dataset.published_counts
    for domain in dataset.domains:
        images = table[table["domain"] == domain]
        line = f"{domain:16} {len(images):>9,} images, {images['class'].nunique():,} classes"
        if domain in published:
            same = "as published" if published[domain] == len(images) else f"published: {published[domain]:,}"
            line += f" ({same})"
        print(line)


def _print_names(title: str, lines: Sequence[str], shown: int | None) -> None:
    if not lines:
        return
    print(f"{title}: {len(lines)}")
    for line in lines if shown is None else lines[:shown]:
        print(f"  {line}")
    if shown is not None and len(lines) > shown:
        print(f"  ... and {len(lines) - shown} more (--all names them)")


# --- splits -----------------------------------------------------------------------------------------------------------


def splits(dataset: Dataset) -> None:
    """Print each split's classes with the sha256 of the newline-joined list, then the held-back images' and the fixed
    UDA and DAZSL settings, as far as they are known without the images."""
    from benchmarks.datasets.base import DatasetError

    for split in ("train", "val", "test"):
        _print_list(split, dataset.classes(split))
    try:
        table, closed = dataset.table, dataset.closed_set
    except DatasetError as error:
        print(f"held back images: not known here: {error}")
        return
    _print_list("held back", table["key"][table["held_back"]], what="image", names_too=False)
    if closed.uda_domains:
        print(f"uda domains: {', '.join(closed.uda_domains)}")
        _print_list("uda", closed.uda_classes)
    for source, target in closed.dazsl_pairs:
        print(f"dazsl pair: {source} to {target}")
    for label, names in (("dazsl seen", closed.seen), ("dazsl unseen", closed.unseen)):
        if names:
            _print_list(label, names)


def _print_list(label: str, names: Iterable[str], *, what: str = "class", names_too: bool = True) -> None:
    listed = list(names)
    print(f"{label}: {counted(len(listed), what)}, sha256 {hashlib.sha256(chr(10).join(listed).encode()).hexdigest()}")
    if names_too:
        print(f"  {', '.join(listed)}")


if __name__ == "__main__":
    raise SystemExit(main())
