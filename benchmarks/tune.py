"""``python -m benchmarks.tune``: search every method's learning rate on validation data, once, for all later runs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from benchmarks.console import command, named_path
from benchmarks.runner.options import build_parser
from benchmarks.runner.tuning import OUT, PRESET, SPLITS, tune

EXAMPLES = """examples:
  python -m benchmarks.tune --dry-run
  python -m benchmarks.tune --methods coop,full_finetune --protocols ucdr,udcdr
  python -m benchmarks.tune --backbone FOLDER --splits 2 --jobs 2

Presets quick and standard take the rates that are found; seed 0 and validation data alone decide. The same command
goes on after a stop.
"""


@command
def main(argv: Sequence[str] | None = None, prog: str = "benchmarks.tune") -> int:
    """Run the command; returns the exit code."""
    text = "Search every method's learning rate around its paper's and keep it as data."
    parser = build_parser(prog, text, EXAMPLES, splits=False)
    what = parser.add_argument_group("tuning", f"defaults: --preset {PRESET}, --out {OUT}; --seeds is not used")
    what.add_argument(
        "--splits", metavar="N", type=int, help=f"mean over the first N splits of each protocol (default: {SPLITS})"
    )
    what.add_argument(
        "--to",
        metavar="FILE",
        type=named_path,
        help=".toml file of rates (default: benchmarks/presets/tuned/BACKBONE.toml)",
    )
    options = vars(parser.parse_args(argv))
    splits, file = options.pop("splits", SPLITS), options.pop("to", None)
    given = sys.argv[1:] if argv is None else argv
    return tune(options, prog, shlex.join(["python", "-m", "benchmarks.tune", *given]), splits=splits, file=file)


if __name__ == "__main__":
    raise SystemExit(main())
