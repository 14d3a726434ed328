"""``python -m benchmarks.data list | card NAME | verify NAME --root DIR | splits NAME``: data sets."""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.console import OneLineParser, command
from benchmarks.datasets.registry import DATASETS

if TYPE_CHECKING:
    import numpy as np

    from benchmarks.datasets.base import Dataset, DatasetCard
    from benchmarks.datasets.layouts import FolderDataset

EPILOG = """examples:
  python -m benchmarks.data list --data-root /data            which data sets are there
  python -m benchmarks.data card domainnet                    where it comes from, how its folder must look
  python -m benchmarks.data verify domainnet --root /data/domainnet
  python -m benchmarks.data verify folder --root my/images --write-broken

A data set lies in FOLDER/NAME under the data root, or in the folder that --root names. Decoded images are kept in
$UCDR_BENCH_CACHE (default: ucdr-bench in the user's cache folder; "off": nowhere); $UCDR_BENCH_WORKERS sets the number
of worker processes.

Images are decoded as torchvision's loader does it: to RGB, of several frames the first. Three things differ: they are
turned as their EXIF orientation says (not under --rules official), transparent parts become white, and 16-bit grey
keeps its shades. A run resizes and crops them as the backbone's preprocessor_config.json says; --size N as OpenAI's
CLIPs do (the shorter edge to N, the central square).

exit code: 0 in order, 1 the data set is missing, damaged or breaks a promise, 2 a wrong option or name, 130 stopped
"""

#: Names printed of each kind of finding unless ``--all`` is given.
SHOWN = 20

#: Largest side that ``--size`` takes, in pixels.
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
    listing.add_argument("--data-root", metavar="FOLDER", help="where data sets lie: FOLDER/NAME")
    for name, text in (
        ("card", "where it comes from, its licence, how the folder must look, its sizes, known problems"),
        ("verify", "decode every image and check every promise; names what is missing, broken or left out"),
        ("splits", "classes of each split and the hash of each list"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text}.")
        command.add_argument("name", metavar="NAME")
        command.add_argument("--data-root", metavar="FOLDER", help="where data sets lie: FOLDER/NAME")
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
    for stream in (sys.stdout, sys.stderr):  # names that the terminal cannot show are no reason to fail
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
    except BrokenPipeError:  # whoever read has gone, as ``| head`` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _perform(arguments: argparse.Namespace, prog: str) -> int:
    if arguments.command == "list":
        return listing(arguments.data_root, prog)
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


def listing(data_root: str | None, prog: str = "benchmarks.data") -> int:
    """Print the names; with a data root also which data sets have a folder there. Returns 1 if the root is none."""
    if data_root is not None:
        from benchmarks.datasets.base import expanded

        if not expanded(data_root).is_dir():
            print(f"{prog}: --data-root {data_root} is no folder", file=sys.stderr)
            return 1
    for entry in DATASETS.entries():
        there = "" if data_root is None else f"{_there(entry.name, data_root):9} "
        print(f"{entry.name:20} {there}{entry.summary}")
    return 0


def _there(name: str, data_root: str) -> str:
    from benchmarks.datasets.base import DatasetError, dataset_root
    from benchmarks.datasets.layouts import FolderDataset, check_root

    kind = DATASETS.get(name)
    if not (isinstance(kind, type) and issubclass(kind, FolderDataset)):
        return "shipped"
    root = dataset_root(data_root, name)
    try:
        folder = kind(root).folder
        check_root(folder)
    except DatasetError as error:
        if "does not exist" in str(error):
            return "missing"
        return "unusable" if root is None or _has_files(root) else "empty"
    if not _has_files(folder):
        return "empty"
    return "found" if root is None or folder.name == root.name else f"found as {folder.name}"


def _has_files(folder: Path) -> bool:
    """Whether there is an image or an archive that may hold some, at any depth; hidden files do not count."""
    from benchmarks.datasets.layouts import ARCHIVE_SUFFIXES, IMAGE_SUFFIXES

    known = (*IMAGE_SUFFIXES, *ARCHIVE_SUFFIXES)
    return any(
        not name.startswith(".") and name.lower().endswith(known)
        for _, _, names in os.walk(folder, followlinks=True)
        for name in names
    )


def card(dataset: Dataset) -> None:
    """Print the card and, where the data set is there, the number of images by domain and split."""
    from benchmarks.datasets.base import DatasetError

    own = dataset.card
    _print_card(own)
    published = getattr(dataset, "published_counts", {})
    if published:
        sizes = ", ".join(f"{domain} {count:,}" for domain, count in published.items())
        print(f"{'published sizes':16} {sizes}; all {sum(published.values()):,}")
    print(f"{'classes':16} {_class_counts(dataset)}")
    if own.bibtex:
        print(f"\n{own.bibtex}")
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
    _facts(dataset)


def _print_card(own: DatasetCard) -> None:
    for label, value in (
        ("title", own.title),
        ("version", own.version),
        ("source", own.source),
        ("licence", own.licence),
        ("folder", own.layout or "none: it is shipped"),
        ("gallery domain", own.gallery_domain or "chosen by rule when the folder is read"),
        ("leading metrics", ", ".join(own.headline.metrics())),
    ):
        print(f"{label:16} {value}")
    for problem in own.known_problems:
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
    from benchmarks.datasets.layouts import FolderDataset

    dataset.check()
    if isinstance(dataset, FolderDataset):
        trouble = _verify_folder(dataset, size, write_broken, shown)
    else:
        trouble = []
        _decode_all(dataset)
    tasks, unsound = _check_tasks(dataset)
    print(f"{'tasks':16} {', '.join(f'{protocol} {count}' for protocol, count in tasks.items())}")
    _names("tasks that are not sound", unsound, shown)
    trouble += [f"{len(unsound)} of the tasks are not sound"] if unsound else []
    name = f"{dataset.card.name} {dataset.card.version}"
    if trouble:
        print(f"{name}: NOT in order: {'; '.join(trouble)}")
    else:
        print(f"{name}: {len(dataset.table)} images decode, {sum(tasks.values())} tasks are sound{_beside(dataset)}")
    print(f"data hash {dataset.data_hash}")
    return 1 if trouble else 0


def _beside(dataset: Dataset) -> str:
    """What a verdict on a whole folder must not hide: domains of another size than published."""
    published = getattr(dataset, "published_counts", {})
    found = dataset.table["domain"].value_counts()
    other = [domain for domain, count in published.items() if found.get(domain, 0) != count]
    return f"; not of the published size: {', '.join(other)}" if other else ""


def _decode_all(dataset: Dataset) -> None:
    import numpy as np

    from benchmarks.datasets.base import DatasetError

    rows = np.arange(len(dataset.table))
    for batch in np.array_split(rows, max(1, len(rows) // 512)):
        try:
            dataset.pixels(batch, 32)
        except DatasetError:
            raise
        except Exception as error:
            first, last = dataset.table["key"].iloc[[batch[0], batch[-1]]]
            raise DatasetError(f"an image between {first!r} and {last!r} cannot be decoded: {error}") from error


def _check_tasks(dataset: Dataset) -> tuple[dict[str, int], list[str]]:
    """Number of tasks by protocol, and a line for each task that breaks a promise."""
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
    import numpy as np

    from benchmarks.datasets.image_files import check_images
    from benchmarks.datasets.layouts import BROKEN_LIST

    print(f"folder {dataset.folder}")
    _facts(dataset)
    _counts(dataset)
    kinds: dict[str, list[str]] = {}
    for finding in dataset.findings:
        kinds.setdefault(finding.kind, []).append(str(finding))
    for kind, title in (
        ("missing", "missing images"),
        ("broken", f"images left out by {BROKEN_LIST}"),
        ("stale", f"lines of {BROKEN_LIST} that name no image"),
        ("lacking", "classes without images in a domain"),
        ("twice", "names of images that are read already"),
        ("unknown", "folders that are no class"),
        ("alike", "class or domain folders with almost the same name"),
        ("empty", "folders without images"),
        ("link", "links that are not followed"),
        ("name", "names that cannot be used"),
        ("unused", "second folders of a domain, not read"),
        ("skipped", "files that are not read"),
    ):
        _names(title, kinds.get(kind, []), shown)
    trouble = [f"{len(kinds['missing'])} images are missing"] if "missing" in kinds else []
    trouble += [f"{len(kinds['lacking'])} classes lack images in a domain"] if "lacking" in kinds else []

    _names("class names whose WordNet sense is doubtful (SRE-CLIP)", _doubtful_senses(dataset), shown)
    keys, paths = dataset.table["key"].to_numpy(), dataset.table["path"].to_numpy()
    hashes, broken, begun = np.zeros(len(keys), dtype="U64"), {}, time.time()
    turned: list[int] = []
    for one in check_images(dataset.paths()):
        hashes[one.row] = one.sha256
        turned += [one.row] if one.orientation != 1 else []
        if one.reason:
            broken[one.row] = one.reason
    dataset.take_content(hashes.tolist(), begun)
    if turned:
        share = f"{len(turned)} of {len(keys)} images are stored turned, such as {paths[min(turned)]}"
        print(f"{'EXIF orientation':16} {share}: they are turned upright (not under --rules official)")
    empty = {one.path: one.reason for one in dataset.findings if one.kind == "zero"}
    bad = {**empty, **{str(keys[row]): reason for row, reason in broken.items()}}
    lines = [f"{key}: {reason}; left out" for key, reason in empty.items()]
    _names("broken images", sorted([*lines, *(f"{paths[row]}: {broken[row]}" for row in broken)]), shown)
    content = hashlib.sha256("".join(f"{key}\t{digest}\n" for key, digest in zip(keys, hashes, strict=True)).encode())
    whole = np.setdiff1d(np.arange(len(keys)), list(broken))
    _twins(dataset, hashes, whole, shown)
    if bad and write_broken:
        _write_broken(dataset, bad)
        trouble.append(f"{len(bad)} images were broken and are now left out; verify again")
    elif bad:
        trouble.append(f"{len(bad)} images are broken (--write-broken leaves them out)")
    if size is not None:
        _keep(dataset, size, whole)
    print(f"content hash {content.hexdigest()}")
    return trouble


def _doubtful_senses(dataset: FolderDataset) -> list[str]:
    """Classes whose WordNet synset nobody gave and the names leave open, a line each."""
    from benchmarks.datasets.synsets import checked_synsets
    from methods.parts.senses import doubtful

    lines = [str(one) for one in doubtful(dataset.classes(), dataset.synsets)]
    wide = [
        f"{name}: {one.synset} is only the nearest wider synset"
        for name, one in checked_synsets(dataset.card.name).items()
        if not one.exact and name in set(dataset.classes())
    ]
    return lines + wide


def _keep(dataset: FolderDataset, size: int, rows: np.ndarray) -> None:
    """Decode images into the cache; raises DatasetError if they cannot be kept."""
    from benchmarks.datasets.base import DatasetError
    from benchmarks.datasets.image_files import SPARE, ImageError

    name, store = dataset.card.name, dataset.store(size)
    try:
        kept = store.keep(rows)
    except ImageError as error:
        raise DatasetError(f"{name}: {error}; it changed since it was checked, verify again") from error
    if not kept:
        raise DatasetError(
            f"{name}: images cannot be kept decoded at {size} x {size} pixels: set UCDR_BENCH_CACHE to a folder with"
            f" {(len(rows) * store.slot_bytes + SPARE) / 2**30:.1f} GiB of room"
        )
    print(f"{store.filled()} images are kept decoded at {size} x {size} pixels in {store.folder}")


def _facts(dataset: Dataset) -> None:
    for fact in dataset.facts:
        print(f"{'read':16} {fact}")
    if dataset.left_out:
        print(f"{'left out':16} {dataset.left_out}")


def _counts(dataset: FolderDataset) -> None:
    table, published = dataset.table, dataset.published_counts
    for domain in dataset.domains:
        mine = table[table["domain"] == domain]
        line = f"{domain:16} {len(mine):>9,} images, {mine['class'].nunique():,} classes"
        if domain in published:
            same = "as published" if published[domain] == len(mine) else f"published: {published[domain]:,}"
            line += f" ({same})"
        print(line)


def _names(title: str, lines: Sequence[str], shown: int | None) -> None:
    if not lines:
        return
    print(f"{title}: {len(lines)}")
    for line in lines if shown is None else lines[:shown]:
        print(f"  {line}")
    if shown is not None and len(lines) > shown:
        print(f"  ... and {len(lines) - shown} more (--all names them)")


def _twins(dataset: FolderDataset, hashes: np.ndarray, rows: np.ndarray, shown: int | None) -> None:
    """Name byte-identical images among ``rows`` that stand in two roles: those could make a test easier than it
    should be."""
    table = dataset.table
    role = table["split"].where(~table["held_back"], "held back")
    facts = table.assign(sha=hashes, role=role).iloc[rows]
    facts = facts[facts["sha"].duplicated(keep=False)]
    lines = []
    for _, group in facts.groupby("sha", sort=False):
        differs = [name for name in ("role", "domain", "class") if group[name].nunique() > 1]
        if differs:
            more = f" = {len(group) - 4} more" if len(group) > 4 else ""
            lines.append(f"{' = '.join(group['path'].head(4))}{more} (differ in {', '.join(differs)})")
    _names("byte-identical images in two roles, domains or classes", sorted(lines), shown)


def _write_broken(dataset: FolderDataset, broken: dict[str, str]) -> None:
    from benchmarks.datasets.base import DatasetError
    from benchmarks.datasets.layouts import BROKEN_LIST

    file = dataset.folder / BROKEN_LIST
    try:
        before = file.read_text(encoding="utf-8-sig") if file.is_file() else "# left out; image, then why\n"
        lines = "".join(f"{key}\t{broken[key]}\n" for key in sorted(broken))
        file.write_text(before + ("" if before.endswith("\n") else "\n") + lines, encoding="utf-8")
    except OSError as error:
        why = error.strerror or error
        raise DatasetError(f"{file} cannot be written: {why}; mend or remove those images instead") from error
    print(f"wrote {file}")


# --- splits -----------------------------------------------------------------------------------------------------------


def splits(dataset: Dataset) -> None:
    """Print each split's classes with the sha256 of the newline-joined list, then the held-back images' and the fixed
    UDA and DAZSL settings, as far as the data set can tell without its images."""
    from benchmarks.datasets.base import DatasetError

    for split in ("train", "val", "test"):
        _list(split, dataset.classes(split))
    try:
        table, closed = dataset.table, dataset.closed_set
    except DatasetError as error:
        print(f"held back images: not known here: {error}")
        return
    _list("held back", table["key"][table["held_back"]], what="images", names_too=False)
    if closed.uda_domains:
        print(f"uda domains: {', '.join(closed.uda_domains)}")
        _list("uda", closed.uda_classes)
    for source, target in closed.dazsl_pairs:
        print(f"dazsl pair: {source} to {target}")
    for label, names in (("dazsl seen", closed.seen), ("dazsl unseen", closed.unseen)):
        if names:
            _list(label, names)


def _list(label: str, names: Iterable[str], *, what: str = "classes", names_too: bool = True) -> None:
    listed = list(names)
    print(f"{label}: {len(listed)} {what}, sha256 {hashlib.sha256(chr(10).join(listed).encode()).hexdigest()}")
    if names_too:
        print(f"  {', '.join(listed)}")


if __name__ == "__main__":
    raise SystemExit(main())
