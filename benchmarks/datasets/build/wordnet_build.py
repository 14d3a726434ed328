"""Build the embedded WordNet: the nouns of WordNet 3.0 as a corpus for NLTK.

The database comes from Debian's ``wordnet-base``, fetched and unpacked with the ordinary client::

    apt-get download wordnet-base && dpkg -x wordnet-base_*.deb wordnet
    python -m benchmarks.datasets.build.wordnet_build wordnet/usr/share/wordnet

What goes in: ``data.noun`` and ``index.noun`` (every noun at its official offset, so that WordNet and ImageNet ids
stay valid), ``noun.exc`` (irregular plurals), the noun lines of ``cntlist.rev`` (sense counts), ``lexnames``, and for
verbs, adjectives and adverbs files with the licence header and no entries, which NLTK's reader opens. What is left
out: everything that is not a noun, and in ``data.noun`` the pointers from nouns to other parts of speech, whose
targets do not exist here; the freed bytes are blanks at the end of the line, so offsets do not move. ``index.sense``
is empty: NLTK opens it at start and uses it for ``lemma_from_key`` only.

The result depends on the input alone: entries are sorted and carry one fixed date.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.console import OneLineParser

OUT = Path(__file__).parents[2] / "assets" / "nltk_data" / "corpora" / "wordnet.zip"
DATE = (2006, 12, 6, 0, 0, 0)  # of the files in WordNet 3.0
OTHER = ("adj", "adv", "verb")

NOUN_FILES = """Tops act animal artifact attribute body cognition communication event feeling food group location motive
object person phenomenon plant possession process quantity relation shape state substance time"""
VERB_FILES = """body change cognition communication competition consumption contact creation emotion motion perception
possession social stative weather"""
LEXICOGRAPHER_FILES = (
    *(("adj.all", 3), ("adj.pert", 3), ("adv.all", 4)),
    *((f"noun.{name}", 1) for name in NOUN_FILES.split()),
    *((f"verb.{name}", 2) for name in VERB_FILES.split()),
    ("adj.ppl", 3),
)
"""Name and part of speech of the 45 lexicographer files, in the order of their numbers (manual page lexnames(5WN))."""

README = """\
Nouns of WordNet 3.0 (Princeton University) for NLTK, built by UCDR-Bench (benchmarks/datasets/wordnet_build.py).

Changed against the original: verbs, adjectives and adverbs are left out, and so are the pointers from nouns to them
in data.noun; byte offsets are unchanged. lexnames lists the 45 lexicographer files. index.sense is empty.
The licence, in LICENSE and at the head of every data and index file, is that of WordNet 3.0.
"""
"""Part of the archive, whose hash is in record keys: this module is named there as when the archive was made."""


def build(source: Path) -> dict[str, bytes]:
    """The corpus as file name -> content, from the folder with WordNet 3.0's database files.

    Raises:
        ValueError: a file is missing from the folder, or a file is not that of WordNet 3.0.
    """
    for name in ("data.noun", "index.noun", "noun.exc", "cntlist.rev"):
        if not (source / name).is_file():
            raise ValueError(f"{source / name} does not exist; give the folder usr/share/wordnet of wordnet-base 3.0")
    data = (source / "data.noun").read_bytes()
    index = (source / "index.noun").read_bytes()
    header = b"".join(line for line in data.splitlines(keepends=True) if line.startswith(b"  "))
    if b"WordNet 3.0 Copyright" not in header or not index.startswith(header):
        raise ValueError(f"{source} does not hold WordNet 3.0: the licence header of data.noun or index.noun differs")
    nouns = b"".join(map(without_other_pointers, data.splitlines(keepends=True)))
    check_offsets(nouns, index)
    counts = (source / "cntlist.rev").read_bytes().splitlines(keepends=True)
    files = {
        "LICENSE": b"".join(line.strip().partition(b" ")[2] + b"\n" for line in header.splitlines()),
        "README": README.encode(),
        "cntlist.rev": b"".join(line for line in counts if b"%1:" in line),
        "data.noun": nouns,
        "index.noun": index,
        "index.sense": b"",
        "lexnames": b"".join(
            f"{number:02d}\t{name}\t{pos}\n".encode() for number, (name, pos) in enumerate(LEXICOGRAPHER_FILES)
        ),
        "noun.exc": (source / "noun.exc").read_bytes(),
    }
    for pos in OTHER:
        files |= {f"data.{pos}": header, f"index.{pos}": header, f"{pos}.exc": b""}
    return dict(sorted(files.items()))


def without_other_pointers(line: bytes) -> bytes:
    """A line of data.noun without its pointers to other parts of speech, as long as before."""
    if line.startswith(b"  "):
        return line
    columns, gloss = line.split(b"|", 1)
    fields = columns.split()
    start = 4 + 2 * int(fields[3], 16)
    pointers = [fields[i : i + 4] for i in range(start + 1, len(fields), 4)]
    if len(pointers) != int(fields[start]):
        raise ValueError(
            f"data.noun: {fields[0].decode()} announces {fields[start].decode()} pointers, not as many follow"
        )
    kept = [pointer for pointer in pointers if pointer[2] == b"n"]
    if len(kept) == len(pointers):
        return line
    fields = [*fields[:start], b"%03d" % len(kept), *(field for pointer in kept for field in pointer)]
    return (b" ".join([*fields, b"|"]) + gloss.rstrip(b"\n")).ljust(len(line) - 1) + b"\n"


def check_offsets(data: bytes, index: bytes) -> None:
    """Raise ValueError unless every offset in index.noun and every pointer in data.noun is that of a line."""
    place, lines = 0, set()
    for line in data.splitlines(keepends=True):
        if not line.startswith(b"  "):
            lines.add(b"%08d" % place)
            if line[:8] != b"%08d" % place:
                raise ValueError(f"data.noun: the line at byte {place} calls itself {line[:8].decode()}")
        place += len(line)
    for line in index.splitlines():
        if not line.startswith(b"  "):
            fields = line.split()
            missing = set(fields[-int(fields[2]) :]) - lines
            if missing:
                raise ValueError(f"index.noun: {fields[0].decode()} points to {missing}, where data.noun has no line")
    for line in data.splitlines():
        if not line.startswith(b"  "):
            fields = line.split(b"|", 1)[0].split()
            missing = set(fields[6 + 2 * int(fields[3], 16) :: 4]) - lines
            if missing:
                raise ValueError(f"data.noun: {fields[0].decode()} points to {missing}, where data.noun has no line")


def archive(files: dict[str, bytes]) -> bytes:
    """A zip with one top folder ``wordnet/``, the same bytes for the same files and compression library."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        for name, content in files.items():
            entry = zipfile.ZipInfo(f"wordnet/{name}", DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            target.writestr(entry, content)
    return out.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see ``--help``."""
    parser = OneLineParser(
        prog="python -m benchmarks.datasets.build.wordnet_build",
        description="Pack the nouns of WordNet 3.0 as a corpus that NLTK reads.",
    )
    parser.add_argument("folder", type=Path, metavar="WORDNET_FOLDER", help="usr/share/wordnet of wordnet-base 3.0")
    parser.add_argument("--out", type=Path, default=OUT, help="zip to write (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        files = build(args.folder)
    except ValueError as error:
        parser.error(str(error))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    packed = archive(files)
    args.out.write_bytes(packed)
    print(f"{args.out}: {len(files)} files, {len(packed):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
