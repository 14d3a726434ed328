"""``python -m benchmarks.apply MODEL IMAGES...``: a fitted method on one's own images (:mod:`benchmarks.applying`)."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.console import OneLineParser, command, counted, named_path, printable, unwritable

if TYPE_CHECKING:
    from benchmarks.applying.contact_sheet import Tile
    from benchmarks.applying.image_index import ImageIndex
    from methods.interface import Method

EXAMPLES = """examples:
  ucdr-bench apply RECORD photos --out photos-coop
  ucdr-bench apply WEIGHTS photos --out photos-coop --search sketch.png --text "a red bicycle" --sheet hits.png
  ucdr-bench apply WEIGHTS --out photos-coop --classify cat,dog,bicycle

exit code: 0 done, 1 done, but images could not be read and were left out, 2 a wrong option or nothing to do
"""

#: Broken images, and images with their class, that are printed, at most; files have all.
PRINTED = 20


def build_parser(prog: str = "benchmarks.apply") -> argparse.ArgumentParser:
    """The options."""
    parser = OneLineParser(
        prog=prog,
        description="Embed images with a fitted method; search them by image or text, or sort them into classes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="MODEL", type=named_path, help="a record with kept weights, a folder of weights, or of results"
    )
    parser.add_argument(
        "images",
        metavar="IMAGES",
        nargs="*",
        type=named_path,
        default=[],
        help="folders or files; none: those of --out",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", type=named_path, default=Path("applied"), help="embeddings (applied)"
    )
    parser.add_argument(
        "--parquet", metavar="FILE", type=named_path, help="also names and embeddings as one Parquet file"
    )
    parser.add_argument(
        "--search", metavar="IMAGE", type=named_path, action="append", default=[], help="query; repeatable"
    )
    parser.add_argument("--text", metavar="TEXT", action="append", default=[], help="text query; repeatable")
    parser.add_argument("--classify", metavar="NAMES", help="cat,dog,... or @FILE with one class name a line")
    parser.add_argument("--top", metavar="N", type=int, default=10, help="images of a query, classes of an image (10)")
    parser.add_argument("--sheet", metavar="FILE", type=named_path, help="PNG of the hits (default: FOLDER/hits.png)")
    parser.add_argument("--backbone", metavar="NAME", help="name or folder in place of the one in the weights' file")
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto (default), cpu, cuda, ...")
    return parser


@command
def main(argv: Sequence[str] | None = None, prog: str = "benchmarks.apply") -> int:
    """Run the command; exit code 0, 1 if images were left out, 2 if nothing could be done."""
    arguments = build_parser(prog).parse_intermixed_args(argv)  # IMAGES may follow options
    from benchmarks.applying.image_index import ApplyError
    from benchmarks.runner.settings import SettingsError
    from benchmarks.store.weights import WeightsError

    try:
        _check(arguments)
        return _apply(arguments)
    except (ApplyError, WeightsError, SettingsError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
    except OSError as error:
        where = error.filename or arguments.out
        print(f"{prog}: {where}: cannot be read or written ({error.strerror or error})", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; what is embedded is kept, the same command goes on", file=sys.stderr)
        return 130
    return 2


def _check(arguments: argparse.Namespace) -> None:
    """Refuse, before anything is embedded, what could only fail afterwards; raises :class:`ApplyError`."""
    from benchmarks.applying.image_index import ApplyError
    from benchmarks.datasets.decoding import ImageError, decode

    if arguments.top < 1:
        raise ApplyError(f"--top {arguments.top}: must be 1 or more")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise ApplyError(f"--out {arguments.out}: a file; give a folder for the embeddings")
    if reason := unwritable(arguments.out):
        raise ApplyError(f"--out {arguments.out}: cannot be written ({reason}); give another folder")
    for path in arguments.search:
        if not path.is_file():
            raise ApplyError(f"--search {path}: {'a folder, not an image' if path.is_dir() else 'no such file'}")
        try:
            decode(path.read_bytes())
        except (OSError, ImageError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ApplyError(f"--search {path}: {why}; give an image file to search with") from error
    if not all(text.strip() for text in arguments.text):
        raise ApplyError("--text: is empty; give the text to search for")
    for option, file in (("--parquet", arguments.parquet), ("--sheet", arguments.sheet)):
        if file is not None and file.is_dir():
            raise ApplyError(f"{option} {file}: a folder; give the file to write")
        if file is not None and (reason := unwritable(file.parent)):
            raise ApplyError(f"{option} {file}: cannot be written ({reason}); give a file elsewhere")
    if arguments.sheet is not None and arguments.sheet.suffix.lower() != ".png":
        raise ApplyError(f"--sheet {arguments.sheet}: its ending must be .png")


def _apply(arguments: argparse.Namespace) -> int:
    from benchmarks.applying.class_names import read_names
    from benchmarks.applying.image_index import ApplyError, ImageIndex, embed_images, find_images
    from benchmarks.applying.loading import load_method
    from benchmarks.datasets.image_workers import progress_bar

    names = [] if arguments.classify is None else read_names(arguments.classify)
    found = find_images(arguments.images, arguments.out) if arguments.images else []
    loaded = load_method(arguments.model, arguments.backbone, arguments.device)
    broken: dict[str, str] = {}
    if found:
        with progress_bar(len(found), "images embedded") as advance:
            index, broken = embed_images(loaded.method, loaded.key, found, arguments.out, advance)
    else:
        index = ImageIndex(arguments.out)
        if index.key != loaded.key:
            raise ApplyError(f"{arguments.out}: embedded with other weights; give IMAGES to embed them with these")
    for name, reason in list(broken.items())[:PRINTED]:
        print(f"left out: {printable(name)}: {reason}", file=sys.stderr)
    if len(broken) > PRINTED:
        print(f"left out: {counted(len(broken), 'image')}; {arguments.out / 'broken.csv'} names all", file=sys.stderr)
    width = counted(index.embeddings.shape[1], "dimension")
    print(f"{arguments.out}: {counted(len(index), 'image')}, {width}, {index.method}")
    if arguments.parquet:
        index.write_parquet(arguments.parquet)
        print(f"parquet: {arguments.parquet}")
    if arguments.search or arguments.text:
        _search(arguments, loaded.method, index)
    if names:
        _classify(arguments, loaded.method, index, names)
    return 1 if broken else 0


def _search(arguments: argparse.Namespace, method: Method, index: ImageIndex) -> None:
    """Print the nearest images of each query; write ``hits.csv`` and the contact sheet."""
    import torch

    from benchmarks.applying.contact_sheet import Tile, write_sheet
    from benchmarks.applying.image_index import image_query, text_query, write_csv

    queries = [(str(path), path, image_query(method, path)) for path in arguments.search]
    queries += [(text, None, text_query(method, text)) for text in arguments.text]
    hits = index.search(torch.cat([embedding for _, _, embedding in queries]), arguments.top)
    rows: list[list[Tile]] = []
    table: list[tuple[Any, ...]] = []
    for (label, path, _), ids, scores in zip(queries, hits.ids, hits.scores, strict=True):
        print(f"query: {printable(label)}")
        tiles = [Tile(path, label, "query")]
        for rank, (row, score) in enumerate(zip(ids, scores, strict=True), 1):
            print(f"  {rank:3}  {score:8.4f}  {printable(index.names[row])}")
            table.append((label, rank, f"{score:.6f}", index.names[row], index.paths[row]))
            tiles.append(Tile(Path(index.paths[row]), index.names[row], f"{rank}: {score:.3f}"))
        rows.append(tiles)
    write_csv(arguments.out / "hits.csv", ("query", "rank", "score", "name", "path"), table)
    sheet = arguments.sheet or arguments.out / "hits.png"
    write_sheet(sheet, rows)
    print(f"hits: {arguments.out / 'hits.csv'}\ncontact sheet: {sheet}")


def _classify(arguments: argparse.Namespace, method: Method, index: ImageIndex, names: list[str]) -> None:
    """Print the class of each image, or of many the counts; write ``classes.csv``."""
    from benchmarks.applying.class_names import classify_images
    from benchmarks.applying.image_index import write_csv

    classes, values = classify_images(method, index, names, arguments.top)
    table = [
        (name, rank, names[number], f"{value:.6f}")
        for name, best, probabilities in zip(index.names, classes, values, strict=True)
        for rank, (number, value) in enumerate(zip(best, probabilities, strict=True), 1)
    ]
    file = arguments.out / "classes.csv"
    write_csv(file, ("name", "rank", "class", "probability"), table)
    if len(index) <= PRINTED:
        for name, best, probabilities in zip(index.names, classes, values, strict=True):
            print(f"  {names[best[0]]:20}  {100 * probabilities[0]:5.1f} %  {printable(name)}")
    for name, count in Counter(names[best[0]] for best in classes).most_common():
        print(f"{name}: {counted(count, 'image')}")
    print(f"classes: {file}")


if __name__ == "__main__":
    raise SystemExit(main())
