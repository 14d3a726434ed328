"""``ucdr-bench methods | datasets | protocols | cite METHOD``: what there is, and whom to cite."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.commandline import command
from benchmarks.run import OneLineParser
from methods.registry import METHODS, Registry, UnknownNameError


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
