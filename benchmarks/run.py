"""``python -m benchmarks.run``: plan, run and store a sweep, print its leaderboard and where the files are."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from benchmarks.console import command
from benchmarks.runner.command import perform
from benchmarks.runner.options import build_parser

EXAMPLES = """examples:
  python -m benchmarks.run --methods all
  python -m benchmarks.run --methods zero_shot,random --protocols ucdr --seeds 0,1,2 --preset standard
  python -m benchmarks.run --methods zero_shot --set zero_shot.template="a drawing of a {}"
  python -m benchmarks.run --methods all --backbone openai/clip-vit-base-patch32 --device cuda --dry-run

exit code: 0 all cells have a score, 1 some failed, 2 a wrong option, 130 stopped (the same command goes on)
"""


@command
def main(argv: Sequence[str] | None = None, prog: str = "benchmarks.run") -> int:
    """Run the command; returns the exit code."""
    parser = build_parser(prog, "Run methods on protocols and data sets; finished cells are never run twice.", EXAMPLES)
    options = vars(parser.parse_args(argv))
    given = sys.argv[1:] if argv is None else argv
    return perform(options, prog, shlex.join(["python", "-m", "benchmarks.run", *given]))


if __name__ == "__main__":
    raise SystemExit(main())
