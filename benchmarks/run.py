"""``python -m benchmarks.run``: plan, run and store a sweep, print its leaderboard and where the files lie."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.console import OneLineParser, command, consoles
from benchmarks.runner.presets import PRESETS
from benchmarks.runner.settings import recipes

if TYPE_CHECKING:
    from rich.console import Console

    from benchmarks.runner.ablation_plan import Ablation
    from benchmarks.runner.plan import FitGroup, Plan
    from benchmarks.runner.settings import Settings
    from benchmarks.store.files import ResultStore

EXAMPLES = """examples:
  python -m benchmarks.run --methods all
  python -m benchmarks.run --methods zero_shot,random --protocols ucdr --seeds 0,1,2 --preset standard
  python -m benchmarks.run --methods zero_shot --set zero_shot.template="a drawing of a {}"
  python -m benchmarks.run --methods all --backbone openai/clip-vit-base-patch32 --device cuda --dry-run

exit code: 0 all cells have a score, 1 some failed, 2 a wrong option, 130 stopped (the same command goes on)
"""


def build_parser(prog: str = "benchmarks.run") -> argparse.ArgumentParser:
    """The options; each is absent from the result unless given, so that a file can fill it."""
    parser = OneLineParser(
        prog=prog,
        description="Run methods on protocols and data sets; finished cells are never run twice.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to run")
    what.add_argument("--methods", metavar="LIST", help="comma list, or all (default: all)")
    what.add_argument("--datasets", metavar="LIST", help="comma list, or all = those found (default: picto_domains)")
    what.add_argument("--data-root", metavar="FOLDER", help="where data sets lie: FOLDER/NAME or FOLDER/NAME.parquet")
    what.add_argument("--protocols", metavar="LIST", help="comma list, or all (default: all)")
    what.add_argument("--seeds", metavar="LIST", help="comma list (default: 0)")
    how = parser.add_argument_group("how")
    how.add_argument("--preset", metavar="NAME", help="; ".join(f"{p.name}: {p.summary}" for p in PRESETS.values()))
    how.add_argument("--backbone", metavar="NAME", help="picto-clip (default), a Hub name, or a folder")
    how.add_argument(
        "--rules", metavar="NAME", help="clean (default), or official: as the released code, flaws included"
    )
    how.add_argument("--variant", metavar="NAME", help="named settings of the methods that have them (default: paper)")
    how.add_argument("--select", metavar="NAME", help="which step's weights: last, val (default), or oracle (marked)")
    how.add_argument("--set", metavar="KEY=VALUE", action="append", help="[method.]field=value; may be repeated")
    how.add_argument("--limit", metavar="N", type=int, help="at most N training, query and gallery images each")
    how.add_argument("--device", metavar="NAME", help="auto (default), cpu, cuda, cuda:1, ...")
    how.add_argument("--precision", metavar="NAME", help="float32 (default) or bf16")
    how.add_argument(
        "--threads",
        metavar="N",
        type=int,
        help="CPU threads of each fit (default: OMP_NUM_THREADS, or cores / jobs); changes last digits",
    )
    files = how.add_mutually_exclusive_group()
    files.add_argument(
        "--config", metavar="FILE", type=Path, help="TOML file with these options; the command line wins"
    )
    files.add_argument("--recipe", metavar="NAME", help=f"a paper's table, as --config: {', '.join(recipes())}")
    run = parser.add_argument_group("the run")
    run.add_argument("--out", metavar="FOLDER", help="results folder (default: results/run)")
    run.add_argument("--jobs", metavar="N", type=int, help="fits at the same time (default: the cores, or GPUs, allow)")
    run.add_argument(
        "--executor", metavar="NAME", help="local (default), ray (--jobs workers on a cluster), or a plugin's"
    )
    run.add_argument(
        "--shard", metavar="I/N", help="part I (from 1) of N; the parts may share --out or be copied together"
    )
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="list the cells, which are cached and how long the rest may take; write nothing",
    )
    run.add_argument("--force", action="store_true", help="run cells again that are finished")
    run.add_argument("--fail-fast", action="store_true", help="stop at the first failure")
    return parser


@command
def main(argv: Sequence[str] | None = None, prog: str = "benchmarks.run") -> int:
    """Run the command; returns the exit code."""
    arguments = vars(build_parser(prog).parse_args(argv))
    given = sys.argv[1:] if argv is None else argv
    return perform(arguments, prog, shlex.join(["python", "-m", "benchmarks.run", *given]))


def perform(
    arguments: dict[str, Any], prog: str, command: str, choose: Callable[[Settings], Ablation] | None = None
) -> int:
    """Resolve the options, plan, run and report; returns the exit code.

    ``choose`` makes the run an ablation; ``command`` is what the report says it was made by.
    """
    from benchmarks.runner.settings import SettingsError, parse_set, recipe_file, resolve
    from methods.registry import UnknownNameError

    out, err = consoles()
    if os.environ.get("WORLD_SIZE", "1") != "1":  # processes that train together: the first one speaks
        out.quiet = err.quiet = os.environ.get("RANK", "0") != "0"
    file, recipe = arguments.pop("config", None), arguments.pop("recipe", None)
    try:
        if recipe is not None:
            file = recipe_file(recipe)
        if "set" in arguments:
            arguments["set"] = parse_set(arguments["set"])
        settings = resolve(arguments, file)
        return _run(settings, out, err, command, choose(settings) if choose else None)
    except (SettingsError, UnknownNameError) as error:
        err.print(f"{prog}: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        err.print("stopped; finished cells are kept, the same command goes on")
        return 130


def _run(settings: Settings, out: Console, err: Console, command: str, ablation: Ablation | None) -> int:
    from benchmarks.runner.distributed import join
    from benchmarks.runner.resources import settled_cache

    def warn(line: str) -> None:
        err.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)

    settings = join(settings)
    with settled_cache(warn):
        return _settled(settings, out, err, warn, command, ablation)


def _settled(
    settings: Settings,
    out: Console,
    err: Console,
    warn: Callable[[str], None],
    command: str,
    ablation: Ablation | None,
) -> int:
    from benchmarks.reporting.data import ReportData
    from benchmarks.reporting.files import PAGE, write_report
    from benchmarks.reporting.terminal import print_ablations, print_failures, print_tables
    from benchmarks.runner.distributed import ReadOnlyStore
    from benchmarks.runner.execution import execute
    from benchmarks.runner.plan import plan, shard, unplanned_cells, validation_notes
    from benchmarks.runner.progress import RunProgress
    from benchmarks.runner.resources import Resources
    from benchmarks.runner.settings import SettingsError
    from benchmarks.store.files import ResultStore
    from benchmarks.store.frame import load_results
    from methods.parts.parallel import rank

    resources = Resources(settings)
    whole = plan(settings, resources, ablation.arms if ablation else None)
    planned = whole if settings.shard is None else shard(whole, *settings.shard)
    resources.settings = settings = resources.spread()
    resolved = settings.as_dict() | {"backbone": resources.backbone.name, "device": resources.device}
    told = {key: value for key, value in resolved.items() if key != "gpu_hours_basis"}  # a dry run prints that
    shown = ", ".join(f"{key}={_short(value)}" for key, value in told.items() if value not in (None, False, [], {}))
    out.print(shown, style="dim", markup=False, highlight=False, soft_wrap=True)
    for name in dict.fromkeys(cell.id.dataset for cell in whole.cells):
        data = resources.dataset(name)
        if data.facts:
            out.print(f"{name}: {'; '.join(data.facts)}", style="dim", markup=False, highlight=False, soft_wrap=True)
        if data.left_out:
            warn(f"left out of {name}: {data.left_out} ({_verify(settings, name)} names them)")
        for note in data.name_notes:
            warn(f"{name}: {note}")
    for name, reason in {**planned.skipped, **(ablation.skipped if ablation else {})}.items():
        warn(f"skipped: {name}: {reason}")
    for note in validation_notes(planned, settings, resources):
        warn(f"note: {note}")
    if not (whole.cells or whole.broken):
        raise SettingsError("nothing to run: choose other --protocols, --datasets or --methods")
    store = (ReadOnlyStore if rank() else ResultStore)(settings.out, warn)
    if settings.dry_run:
        _list(planned, settings, store, out)
        return 0
    try:
        store.clean()
        store.write_resolved(resolved | {"command": command})
        _write_cards(planned, store)
    except OSError as error:
        raise SettingsError(f"--out {settings.out}: cannot be written ({error.strerror or error})") from error
    for cell in unplanned_cells(settings, planned):
        store.discard(cell.id, cell.key)
    methods = [cell.id.method for cell in planned.cells]
    with RunProgress(err, len(planned.cells) + len(planned.broken), methods) as progress:
        outcome = execute(planned, resources, store, progress)
    if rank():  # the first process reports
        return 1 if outcome.failed else 0
    keys = {cell.key for cell in planned.cells} | {broken.cell.key for broken in planned.broken}
    frame = load_results(settings.out, warn)
    mine = frame[frame["key"].isin(keys)] if len(frame) else frame
    if ablation:
        print_ablations(out, ReportData(mine))
        print_failures(out, mine)
    else:
        print_tables(out, ReportData(mine))
    folder = Path(settings.out) / "report"
    counts = ", ".join(f"{count} {status}" for status, count in sorted(outcome.counts.items())) or "no cells"
    lines = [f"cells: {counts}", f"records: {Path(settings.out) / 'cells'}"]
    code = 1 if outcome.failed else 0
    try:
        files = write_report(ReportData(frame, store=store, command=command, report=warn), folder)
        lines += [f"leaderboard: {files[0]}, {files[1]}", f"plots: {folder / 'plots'}"]
        lines += [f"page: {path}" for path in files if path.name == PAGE]
    except OSError as error:
        warn(f"{folder}: cannot be written ({error.strerror or error}); free space there, then the same command again")
        code = 1
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    return code


def _verify(settings: Settings, name: str) -> str:
    root = f" --data-root {shlex.quote(settings.data_root)}" if settings.data_root else ""
    return f"python -m benchmarks.data verify {name}{root}"


def _write_cards(planned: Plan, store: ResultStore) -> None:
    import dataclasses

    from benchmarks.datasets.registry import DATASETS
    from methods.registry import METHODS

    for kind, registry, names in (
        ("methods", METHODS, {cell.id.method for cell in planned.cells}),
        ("datasets", DATASETS, {cell.id.dataset for cell in planned.cells}),
    ):
        for name in sorted(names):
            store.write_card(kind, name, dataclasses.asdict(registry.get(name).card))


#: Where the records lie that the reference run committed; a dry run takes their seconds too.
REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference"


def _list(planned: Plan, settings: Settings, store: ResultStore, out: Console) -> None:
    import dataclasses

    from methods.registry import METHODS

    cached = 0
    left = []
    for group in planned.groups:
        to_run = []
        for cell in group.cells:
            done = not settings.force and store.finished(cell.id, cell.key, set_aside=False) is not None
            cached += done
            to_run += [] if done else [cell]
            one = cell.id
            where = (
                one.dataset,
                one.protocol,
                one.split,
                one.method,
                one.ablation,
                f"s{one.seed}",
                f"fit {cell.fit_id}",
            )
            line = "  ".join(" ".join(part.split()) for part in where if part)
            out.print(f"{'cached' if done else 'to run'}  {line}", markup=False, highlight=False, soft_wrap=True)
        if to_run:
            left.append(dataclasses.replace(group, cells=tuple(to_run)))
    for broken in planned.broken:
        one = broken.cell.id
        line = f"broken  {one.dataset}  {one.protocol}  *  {one.method}: {broken.reason}"
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    out.print(
        f"{len(planned.cells)} cells, {cached} cached, {len(left)} fits to do, {len(planned.broken)} cannot be planned"
    )
    for line in _estimated(left, settings, store):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    if settings.gpu_hours_each_fit and settings.preset == "full" and settings.limit is None:
        hours = settings.gpu_hours_each_fit
        fits = sum(METHODS.get(group.method).trained for group in left)
        line = f"expected: {hours * fits:.3g} GPU hours ({fits} fits of {hours:g}); {settings.gpu_hours_basis}"
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _estimated(left: list[FitGroup], settings: Settings, store: ResultStore) -> Iterator[str]:
    """The time that the rest may take: a line a method, and one for all."""
    from benchmarks.console import duration
    from benchmarks.runner.estimate import PastCosts, estimate
    from benchmarks.store.files import ResultStore

    if not left:
        return
    stores = [store] if store.root.resolve() == REFERENCE else [store, ResultStore(REFERENCE)]
    past = PastCosts.of(record for one in stores for record in one.records())
    methods = estimate(left, past, None if settings.force else store)
    for one in methods:
        known = duration(one.seconds) if one.unknown < one.cells else "unknown"
        some = f", {one.unknown} cells unknown" if 0 < one.unknown < one.cells else ""
        yield f"time    {one.method}: {known} ({one.fits} fits, {one.cells} cells{some})"
    seconds, unknown = sum(one.seconds for one in methods), sum(one.unknown for one in methods)
    if unknown == sum(one.cells for one in methods):
        yield "time: unknown, there is no record of such work yet"
        return
    jobs = max(1, min(settings.jobs, len(left)))
    rest = f", and {unknown} cells of unknown length" if unknown else ""
    yield f"time: about {duration(seconds / jobs)} with --jobs {max(1, settings.jobs)}, as past records say{rest}"


def _short(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
