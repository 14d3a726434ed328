"""``python -m benchmarks.ablate``: every method's ablation table, one factor at a time, as an ordinary sweep."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.console import command
from benchmarks.run import build_parser, perform

if TYPE_CHECKING:
    from benchmarks.runner.ablation_plan import Ablation
    from benchmarks.runner.settings import Settings

EXAMPLES = """examples:
  python -m benchmarks.ablate --methods all
  python -m benchmarks.ablate --methods pros --factors no_mask,no_simulator --protocols ucdr --seeds 0,1,2
  python -m benchmarks.ablate --methods pros,ucdr_adapter --factors none --grid prompt_length=1,2,4

A row is an ordinary record that names the switched factor; the default's row is the one that benchmarks.run makes.
Without --protocols each method runs on the protocols its paper defines it on.
"""


@command
def main(argv: Sequence[str] | None = None, prog: str = "benchmarks.ablate") -> int:
    """Run the command; returns the exit code."""
    parser = build_parser(prog)
    parser.description = "Run each method as configured, then with one factor switched at a time."
    parser.epilog = EXAMPLES
    what = parser.add_argument_group("what to switch")
    what.add_argument("--factors", metavar="LIST", help="comma list of the methods' own, all (default), or none")
    what.add_argument("--grid", metavar="KEY=V1,V2", action="append", help="[method.]field and levels; may be repeated")
    arguments = vars(parser.parse_args(argv))
    factors = [name.strip() for name in arguments.pop("factors", "all").split(",") if name.strip()]
    grid = arguments.pop("grid", [])
    filed = "config" in arguments or "recipe" in arguments
    own_protocols = "protocols" not in arguments and not filed
    if not filed:
        arguments.setdefault("out", "results/ablation")

    def choose(settings: Settings) -> Ablation:
        from benchmarks.runner.ablation_plan import ablation

        return ablation(settings, factors, grid, own_protocols=own_protocols)

    given = sys.argv[1:] if argv is None else argv
    return perform(arguments, prog, shlex.join(["python", "-m", "benchmarks.ablate", *given]), choose)


if __name__ == "__main__":
    raise SystemExit(main())
