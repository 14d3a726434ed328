"""``ucdr-bench COMMAND``: one door to every command; each is a thin module, imported when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.commandline import command
from methods.registry import Registry, UnknownNameError

COMMANDS: Registry = Registry("command")

for _name, _target, _summary in (
    ("run", "benchmarks.run:main", "plan, run and store a sweep; print its leaderboard"),
    ("ablate", "benchmarks.ablate:main", "each method's ablation table, one factor at a time"),
    ("report", "benchmarks.report:main", "tables and plots of stored results"),
    ("compare", "benchmarks.compare:main", "paired comparison of two results folders"),
    ("pack", "benchmarks.pack:main", "a results folder in few small files, fit to commit"),
    ("data", "benchmarks.data:main", "list, describe and check data sets"),
    ("convert", "benchmarks.convert:main", "OpenAI's CLIP files as folders for --backbone"),
    ("pretrain", "benchmarks.pretrain.__main__:main", "train the small CLIP"),
    ("methods", "benchmarks.catalog:methods", "list methods"),
    ("datasets", "benchmarks.catalog:datasets", "list data sets"),
    ("protocols", "benchmarks.catalog:protocols", "list protocols"),
    ("cite", "benchmarks.catalog:cite", "print the BibTeX entry of a method"),
):
    COMMANDS.add(_name, _target, summary=_summary)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code, 2 for an unknown one."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: ucdr-bench COMMAND [options]; COMMAND --help lists the options\n")
        for entry in COMMANDS.entries():
            print(f"  {entry.name:10} {entry.summary}")
        return 0 if arguments else 2
    try:
        command = COMMANDS.get(arguments[0])
    except UnknownNameError as error:
        print(f"ucdr-bench: {error}", file=sys.stderr)
        return 2
    if arguments[0] == "pretrain":
        return int(command(arguments[1:]))
    return int(command(arguments[1:], prog=f"ucdr-bench {arguments[0]}"))


if __name__ == "__main__":
    raise SystemExit(main())
