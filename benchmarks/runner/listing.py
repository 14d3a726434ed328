"""What ``--dry-run`` prints: the cells, which of them are cached, and how long the others may take."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.console import duration
from benchmarks.runner.estimate import PastCosts, estimate
from benchmarks.runner.plan import Broken, Cell, FitGroup, Plan
from benchmarks.runner.settings import Settings
from benchmarks.store.files import ResultStore
from methods.registry import METHODS

#: The records that the reference run committed; a dry run uses their seconds too.
REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"


def list_plan(plan: Plan, settings: Settings, store: ResultStore) -> Iterator[str]:
    """A line for each cell, then the counts, then the time that is left."""
    cached = 0
    unfinished = []
    for group in plan.groups:
        to_run = []
        for cell in group.cells:
            finished = not settings.force and store.finished(cell.id, cell.key, set_aside=False) is not None
            cached += finished
            if not finished:
                to_run.append(cell)
            state = "n/a   " if group.unfit else "cached" if finished else "to run"
            yield f"{state}  {cell_line(cell)}"
        if to_run and not group.unfit:
            unfinished.append(dataclasses.replace(group, cells=tuple(to_run)))
    for broken in plan.broken:
        yield broken_line(broken)
    yield (
        f"{len(plan.cells)} cells, {cached} cached, {len(unfinished)} fits to do, {len(plan.broken)} cannot be planned"
    )
    yield from time_lines(unfinished, settings, store)
    if settings.gpu_hours_each_fit and settings.preset == "full" and settings.limit is None:
        hours = settings.gpu_hours_each_fit
        fits = sum(METHODS.get(group.method).trained for group in unfinished)
        yield f"expected: {hours * fits:.3g} GPU hours ({fits} fits of {hours:g}); {settings.gpu_hours_basis}"


def cell_line(cell: Cell) -> str:
    """A cell's data set, protocol, split, method, ablation, seed and fit."""
    name = cell.id
    seed, fit = f"s{name.seed}", f"fit {cell.fit_id}"
    parts = (name.dataset, name.protocol, name.split, name.method, name.ablation, seed, fit)
    return "  ".join(" ".join(part.split()) for part in parts if part)


def broken_line(broken: Broken) -> str:
    """What cannot be planned, and why."""
    name = broken.cell.id
    return f"broken  {name.dataset}  {name.protocol}  *  {name.method}: {broken.reason}"


def time_lines(groups: Sequence[FitGroup], settings: Settings, store: ResultStore) -> Iterator[str]:
    """The time that groups of unfinished cells may take: a line a method, and one for all."""
    if not groups:
        return
    stores = [store] if store.root.resolve() == REFERENCE else [store, ResultStore(REFERENCE)]
    past = PastCosts.of(record for source in stores for record in source.records())
    methods = estimate(groups, past, None if settings.force else store)
    for method in methods:
        known = duration(method.seconds) if method.unknown < method.cells else "unknown"
        some = f", {method.unknown} cells unknown" if 0 < method.unknown < method.cells else ""
        yield f"time    {method.method}: {known} ({method.fits} fits, {method.cells} cells{some})"
    seconds, unknown = sum(method.seconds for method in methods), sum(method.unknown for method in methods)
    if unknown == sum(method.cells for method in methods):
        yield "time: unknown, there is no record of such work yet"
        return
    jobs = max(1, min(settings.jobs, len(groups)))
    rest = f", and {unknown} cells of unknown length" if unknown else ""
    yield f"time: about {duration(seconds / jobs)} with --jobs {max(1, settings.jobs)}, as past records say{rest}"
