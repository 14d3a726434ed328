"""Cost of the command itself: ``python -m benchmarks.speed.run`` measures cold, cached and dry runs in one go.

Each is a fresh process of ``python -m benchmarks.run`` on a results folder that is removed afterwards:

* ``cold``: nothing is cached, every cell is measured and the report is drawn;
* ``report``: all cells are cached, the report's folder was removed;
* ``cached``: the same command again, with nothing to do;
* ``dry``: ``--dry-run`` of it;
* ``start``: ``--help``, the least that any command can cost.

Printed is the processor time (user and system, of all processes) of the fastest of the repeats, and its ratio to
``start`` in the same run, which other work on the machine changes less than any time.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.console import OneLineParser, counted

#: What is measured, in the order of the first round.
KINDS = ("start", "cold", "report", "cached", "dry")

#: What is run: floors and zero-shot, which train nothing, so that the cost around the fits is what remains.
DEFAULT = ("--methods", "random,constant,raw_pixel,zero_shot", "--protocols", "ucdr,dazsl")


class FailedRunError(RuntimeError):
    """A measured command ended with an error; the message is its last line."""


def measure(
    arguments: Sequence[str] = DEFAULT,
    repeats: int = 3,
    progress: Callable[[str], None] = lambda kind: None,
) -> dict[str, Any]:
    """Seconds of each of `KINDS`, ``repeats`` times (``cold`` once), and their ratios to ``start``.

    Args:
        arguments: of ``benchmarks.run``, without ``--out`` and ``--dry-run``.
        repeats: of each measurement; the fastest counts.
        progress: called with each measurement's name before it starts.

    Returns:
        ``cells``, ``cpu_s`` and ``wall_s`` (lists by name), ``ratios`` (by name), and where it ran.

    Raises:
        FailedRunError: a run failed.
    """
    cpu: dict[str, list[float]] = {kind: [] for kind in KINDS}
    wall: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="ucdr-bench-speed-") as folder:
        out = Path(folder) / "results"
        command = (*arguments, "--out", str(out))
        for number in range(repeats):
            for kind in KINDS:
                if kind == "cold" and number:
                    continue
                if kind == "report":
                    shutil.rmtree(out / "report", ignore_errors=True)
                progress(kind)
                more = {"start": ("--help",), "dry": (*command, "--dry-run")}
                spent, passed = _seconds(more.get(kind, command))
                cpu[kind].append(spent)
                wall[kind].append(passed)
        cells = sum(1 for _ in (out / "cells").rglob("*.json"))
    least = min(cpu["start"])
    return {
        "arguments": list(arguments),
        "cells": cells,
        "cpu_s": cpu,
        "wall_s": wall,
        "ratios": {kind: min(times) / least for kind, times in cpu.items()},
        "cpu_count": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def _seconds(arguments: Sequence[str]) -> tuple[float, float]:
    """Processor and wall-clock seconds of one ``benchmarks.run`` and the processes that it started."""
    command = [sys.executable, "-m", "benchmarks.run", *arguments]
    before, begun = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    after, passed = os.times(), time.perf_counter() - begun
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise FailedRunError(said[-1])
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    return spent, passed


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; arguments it does not know are those of ``benchmarks.run``."""
    parser = OneLineParser(
        prog="python -m benchmarks.speed.run",
        description="Time cold, cached and dry runs of benchmarks.run, and their ratio to a bare --help.",
        epilog=f"other options are given to benchmarks.run (default: {' '.join(DEFAULT)})",
    )
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement but the cold run (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    args, given = parser.parse_known_args(argv)
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    for owned in ("--out", "--dry-run"):
        if any(one.partition("=")[0] == owned for one in given):
            parser.error(f"{owned} is set by this command; leave it out")
    try:
        result = measure(given or DEFAULT, args.repeats)
    except FailedRunError as error:
        parser.error(f"benchmarks.run failed: {error}")
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{counted(result['cells'], 'cell')}: {' '.join(result['arguments'])}")
    for kind in KINDS:
        print(
            f"{kind:8}{min(result['cpu_s'][kind]):8.2f} s of processor time{result['ratios'][kind]:8.2f} times a start"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
