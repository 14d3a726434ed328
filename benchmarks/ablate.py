"""``python -m benchmarks.ablate``: every method's ablation table, one factor at a time, as an ordinary sweep."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.console import command
from benchmarks.runner.command import perform
from benchmarks.runner.options import build_parser

if TYPE_CHECKING:
    from benchmarks.runner.ablation_plan import AblationPlan
    from benchmarks.runner.settings import Settings

EXAMPLES = """examples:
  python -m benchmarks.ablate --methods all
  python -m benchmarks.ablate --methods pros --factors no_mask,no_simulator --protocols ucdr --seeds 0,1,2
  python -m benchmarks.ablate --methods pros,ucdr_adapter --factors none --grid prompt_length=1,2,4

A row is an ordinary record that names the switched factor; the default's row is the record of benchmarks.run.
Without --protocols each method runs on the protocols its paper defines it on.
"""


@command
def main(argv: Sequence[str] | None = None, prog: str = "benchmarks.ablate") -> int:
    """Run the command; returns the exit code."""
    parser = build_parser(prog, "Run each method as configured, then with one factor switched at a time.", EXAMPLES)
    what = parser.add_argument_group("what to switch")
    what.add_argument("--factors", metavar="LIST", help="comma list of the methods' own, all (default), or none")
    what.add_argument("--grid", metavar="KEY=V1,V2", action="append", help="[method.]field and levels; may be repeated")
    options = vars(parser.parse_args(argv))
    factors = [name.strip() for name in options.pop("factors", "all").split(",") if name.strip()]
    grid = options.pop("grid", [])
    from_file = "config" in options or "recipe" in options
    own_protocols = "protocols" not in options and not from_file
    if not from_file:
        options.setdefault("out", "results/ablation")

    def arms(settings: Settings) -> AblationPlan:
        from benchmarks.runner.ablation_plan import plan_ablation

        return plan_ablation(settings, factors, grid, own_protocols=own_protocols)

    given = sys.argv[1:] if argv is None else argv
    return perform(options, prog, shlex.join(["python", "-m", "benchmarks.ablate", *given]), arms)


if __name__ == "__main__":
    raise SystemExit(main())
