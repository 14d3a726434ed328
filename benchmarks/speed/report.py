"""Cost of a report of many records: ``python -m benchmarks.speed.report`` measures time and memory, and compares.

A results folder of ``--records`` records is made from another one's: its records again with further seeds, each with
its per-query values. The report of that folder is then drawn by ``python -m benchmarks.report`` in another process,
without any file of an earlier report. With ``--before CHECKOUT`` the report of another checkout of this repository is
measured in the same run, in turn, and every table and the page of the two are compared: the same bytes, or this fails.

Printed is the processor time of all processes and the resident memory of the largest at its highest, of the best of the
repeats; beside another checkout also the ratios, which other work on the machine changes less than any time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.console import OneLineParser, command, counted
from benchmarks.store.files import ResultStore
from benchmarks.store.records import PerQuery, Record, content_key

#: Where the records come from.
SOURCE = Path("results/reference")

ROOT = Path(__file__).resolve().parents[2]

#: Files of a report that are compared; images are not, whose bytes name the time they were made.
COMPARED = (".md", ".csv", ".tex", ".html")


class FailedReportError(RuntimeError):
    """A report could not be made, or two of them differ; one line."""


def repeated(record: Record, seed: int) -> Record:
    """The record of the same cell with another seed, under the key of its inputs; its losses are its own."""
    inputs = {**record.inputs, "cell": {**record.inputs.get("cell", {}), "seed": seed}}
    losses = [one | {"loss": one["loss"] + 1e-6 * seed} if "loss" in one else one for one in record.fit.losses]
    name = record.fit.fit_id and f"{record.fit.fit_id[:-4]}{seed:04d}"
    fit = dataclasses.replace(record.fit, fit_id=name, losses=losses)
    cell = dataclasses.replace(record.cell, seed=seed)
    return dataclasses.replace(record, key=content_key(inputs), inputs=inputs, cell=cell, fit=fit)


def make_store(source: Path, folder: Path, count: int, per_query: bool = True) -> int:
    """Write ``count`` loose records made from those of ``source`` into ``folder``; returns the bytes written.

    The source's records come first, then the same again with seeds above all of theirs. Without ``per_query`` no record
    has per-query values.

    Raises:
        FailedReportError: ``source`` has no record.
    """
    store, target = ResultStore(source), ResultStore(folder)
    originals = list(store.records())
    if not originals:
        raise FailedReportError(f"{source} holds no readable record; choose another results folder with --source")
    step = max(record.cell.seed for record in originals) + 1
    written = 0
    sides = _sides(store, originals) if per_query else {}
    for place in range(count):
        number, original = divmod(place, len(originals))
        first = originals[original]
        record = first if number == 0 else repeated(first, first.cell.seed + number * step)
        path = target.path(record.cell, record.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        side, data, rows = path.with_suffix(".parquet"), sides.get(first.key), 0
        if data is not None and first.per_query is not None:
            side.write_bytes(data)
            rows = first.per_query.rows
        of = None if data is None else PerQuery(side.name, hashlib.sha256(data).hexdigest(), rows)
        text = dataclasses.replace(record, per_query=of).to_json().encode()
        path.write_bytes(text)
        written += len(text) + len(data or b"")
    return written


def _sides(store: ResultStore, records: Sequence[Record]) -> dict[str, bytes]:
    """The per-query files of some records by key, as Parquet."""
    import io

    from pyarrow import parquet

    sides = {}
    for record in records:
        if record.per_query is not None:
            buffer = io.BytesIO()
            parquet.write_table(store.per_query_table(record), buffer, compression="zstd", write_statistics=False)
            sides[record.key] = buffer.getvalue()
    return sides


def draw(checkout: Path, results: Path, out: Path, resamples: int | None = None) -> dict[str, float]:
    """Draw a report with the code of a checkout in another process: ``cpu_s``, ``wall_s`` and ``memory_mib``.

    Raises:
        FailedReportError: it ended with an error.
    """
    more = [] if resamples is None else ["--resamples", str(resamples)]
    arguments = [sys.executable, "-c", _CHILD, str(results), "--out", str(out), *more]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    begun = time.perf_counter()
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=checkout, env=environment)
    passed = time.perf_counter() - begun
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise FailedReportError(f"the report of {checkout} failed: {said[-1]}")
    cpu, memory = map(float, lines[-1].split())
    return {"cpu_s": cpu, "wall_s": passed, "memory_mib": memory}


#: Draws a report, then prints processor seconds and the memory of the largest process at its highest in MiB.
_CHILD = f"""
import resource, sys
from benchmarks.report import main
code = main(sys.argv[1:])
use = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
scale = {2**20 if sys.platform == "darwin" else 2**10}
print(sum(one.ru_utime + one.ru_stime for one in use), max(one.ru_maxrss for one in use) / scale)
sys.exit(code)
"""


def compared(first: Path, second: Path) -> list[str]:
    """Names of the text files that two reports do not have alike."""
    texts = [{path.name: path.read_bytes() for path in _texts(folder)} for folder in (first, second)]
    return sorted(name for name in {*texts[0], *texts[1]} if texts[0].get(name) != texts[1].get(name))


def _texts(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.suffix in COMPARED)


def measure(
    source: Path,
    count: int,
    *,
    before: Path | None = None,
    repeats: int = 1,
    per_query: bool = True,
    resamples: int | None = None,
) -> dict[str, Any]:
    """Cost of the report of ``count`` records made from ``source``, and of that of the checkout ``before``.

    Returns:
        ``records``, ``bytes``, ``files`` (compared), costs by ``now`` and ``before`` (lists of what `draw` returns),
        and where it ran.

    Raises:
        FailedReportError: a report could not be made, or a file of the two reports differs.
    """
    costs: dict[str, list[dict[str, float]]] = {}
    checkouts: Mapping[str, Path] = {"now": ROOT} if before is None else {"before": before.resolve(), "now": ROOT}
    with tempfile.TemporaryDirectory(prefix="ucdr-bench-speed-") as folder:
        results, out = Path(folder) / "results", Path(folder) / "report"
        written = make_store(source, results, count, per_query)
        kept: dict[str, Path] = {}
        for _ in range(repeats):
            for name, checkout in checkouts.items():
                shutil.rmtree(out, ignore_errors=True)
                costs.setdefault(name, []).append(draw(checkout, results, out, resamples))
                kept[name] = Path(folder) / name
                shutil.rmtree(kept[name], ignore_errors=True)
                shutil.copytree(out, kept[name])
        files = [path.name for path in _texts(kept["now"])]
        if before is not None and (different := compared(kept["before"], kept["now"])):
            raise FailedReportError(f"the two reports differ in {', '.join(different)}")
    return {
        "records": count,
        "bytes": written,
        "files": files,
        "per_query": per_query,
        **costs,
        "cpu_count": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def best(costs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The least of each cost over the repeats."""
    return {name: min(cost[name] for cost in costs) for name in costs[0]}


@command
def main(argv: Sequence[str] | None = None, prog: str = "python -m benchmarks.speed.report") -> int:
    """Command line; exit code 0, 2 if a report cannot be made or differs from the other checkout's."""
    parser = OneLineParser(prog=prog, description="Time and memory of a report of many records.")
    parser.add_argument("--records", metavar="N", type=int, default=20_000, help="records (default: 20000)")
    parser.add_argument("--source", metavar="FOLDER", type=Path, default=SOURCE, help=f"made from (default: {SOURCE})")
    parser.add_argument("--before", metavar="CHECKOUT", type=Path, help="another checkout, measured and compared too")
    parser.add_argument("--repeats", metavar="N", type=int, default=1, help="of each report (default: 1)")
    parser.add_argument("--no-per-query", action="store_true", help="records without per-query values: no tests")
    parser.add_argument("--resamples", metavar="N", type=int, help="of the tests between methods, as for report")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write every number to FILE")
    args = parser.parse_args(argv)
    for option in ("records", "repeats"):
        if getattr(args, option) < 1:
            parser.error(f"--{option} must be at least 1")
    if args.before is not None and not (args.before / "benchmarks" / "report.py").is_file():
        parser.error(f"--before {args.before}: not a checkout of this repository (it has no benchmarks/report.py)")
    try:
        result = measure(
            args.source,
            args.records,
            before=args.before,
            repeats=args.repeats,
            per_query=not args.no_per_query,
            resamples=args.resamples,
        )
    except FailedReportError as error:
        parser.error(str(error))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    size = f"{counted(result['records'], 'record')} of {result['bytes'] / 2**20:.0f} MiB"
    print(f"{size}; the report: {', '.join(result['files'])}")
    costs = {name: best(result[name]) for name in ("before", "now") if name in result}
    for name, cost in costs.items():
        seconds = f"{cost['cpu_s']:8.1f} s of processor time{cost['wall_s']:8.1f} s"
        print(f"{name:8}{seconds}{cost['memory_mib']:8.0f} MiB of memory")
    if "before" in costs:
        ratios = {name: costs["now"][name] / costs["before"][name] for name in costs["now"]}
        print(f"{'ratio':8}{ratios['cpu_s']:8.2f}{ratios['wall_s']:30.2f}{ratios['memory_mib']:10.2f}; the same files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
