"""``ucdr-bench COMMAND``: the entry point of all commands.

The listings ``methods | datasets | protocols`` and ``cite METHOD`` are here; any other command's module is
imported when the command is called.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence

from benchmarks.console import OneLineParser, command
from methods.registry import METHODS, Registry, UnknownNameError

COMMANDS: Registry = Registry("command")

for _name, _target, _summary in (
    ("run", "benchmarks.run:main", "plan, run and store a sweep; print its leaderboard"),
    ("ablate", "benchmarks.ablate:main", "each method's ablation table, one factor at a time"),
    ("tune", "benchmarks.tune:main", "search every method's learning rate, once, for all later runs"),
    ("report", "benchmarks.report:main", "tables and plots of stored results"),
    ("compare", "benchmarks.compare:main", "paired comparison of two results folders"),
    ("pack", "benchmarks.pack:main", "a results folder in few small files, fit to commit"),
    ("apply", "benchmarks.apply:main", "a fitted method on your images: embed, search, classify"),
    ("embed", "benchmarks.embed:main", "a data set's embeddings as Parquet or .npy"),
    ("push", "benchmarks.push:main", "kept weights with their model card to the Hugging Face Hub"),
    ("data", "benchmarks.data:main", "list, describe and check data sets"),
    ("convert", "benchmarks.convert:main", "OpenAI's CLIP files as folders for --backbone"),
    ("pretrain", "benchmarks.pretrain.__main__:main", "train the small CLIP"),
    ("methods", "benchmarks.cli:methods", "list methods"),
    ("datasets", "benchmarks.cli:datasets", "list data sets"),
    ("protocols", "benchmarks.cli:protocols", "list protocols"),
    ("cite", "benchmarks.cli:cite", "print the BibTeX entry of a method"),
):
    COMMANDS.add(_name, _target, summary=_summary)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code, 2 for an unknown one."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        try:
            print(f"ucdr-bench {importlib.metadata.version('ucdr-bench')}")
        except importlib.metadata.PackageNotFoundError:
            print("ucdr-bench: a checkout that is not installed; pip install -e . makes its version known")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: ucdr-bench COMMAND [options]; COMMAND --help lists the options; --version\n")
        for entry in COMMANDS.entries():
            print(f"  {entry.name:10} {entry.summary}")
        return 0 if arguments else 2
    try:
        command = COMMANDS.get(arguments[0])
    except UnknownNameError as error:
        print(f"ucdr-bench: {error}", file=sys.stderr)
        return 2
    return int(command(arguments[1:], prog=f"ucdr-bench {arguments[0]}"))


@command
def methods(argv: Sequence[str] | None = None, prog: str = "ucdr-bench methods") -> int:
    """List methods; imports none of them."""
    return _list(METHODS, argv, prog)


@command
def datasets(argv: Sequence[str] | None = None, prog: str = "ucdr-bench datasets") -> int:
    """List data sets; imports none of them."""
    from benchmarks.datasets.registry import DATASETS

    return _list(DATASETS, argv, prog)


@command
def protocols(argv: Sequence[str] | None = None, prog: str = "ucdr-bench protocols") -> int:
    """List protocols; imports none of them."""
    from benchmarks.protocols.registry import PROTOCOLS

    return _list(PROTOCOLS, argv, prog)


@command
def cite(argv: Sequence[str] | None = None, prog: str = "ucdr-bench cite") -> int:
    """Print the BibTeX entry of a method; exit code 2 if there is no such method, 1 if it has no paper."""
    parser = OneLineParser(prog=prog, description="Print the BibTeX entry of a method's paper.")
    parser.add_argument("method", metavar="METHOD")
    name = parser.parse_args(argv).method
    try:
        METHODS.check(name)
    except UnknownNameError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    card = METHODS.get(name).card
    if not card.bibtex:
        print(f"{prog}: {name} ({card.title}) has no paper to cite", file=sys.stderr)
        return 1
    print(card.bibtex)
    return 0


def _list(registry: Registry, argv: Sequence[str] | None, prog: str) -> int:
    OneLineParser(prog=prog, description=f"List every {registry.kind}.").parse_args(argv)
    for entry in registry.entries():
        print(f"{entry.name:20} {entry.summary or entry.origin}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
