"""What ``--dry-run`` prints: the cells, which of them are cached, and how long the others may take."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.console import counted, duration, plain
from benchmarks.runner.estimate import PastCosts, estimate
from benchmarks.runner.plan import Broken, Cell, FitGroup, Plan
from benchmarks.runner.settings import Settings
from benchmarks.runner.sizing import ALL_NAMES, Towers, steps_of
from benchmarks.store.files import ResultStore
from methods.registry import METHODS

if TYPE_CHECKING:
    from benchmarks.runner.resources import Resources

#: The records that the reference run committed; a dry run uses their seconds too.
REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"


def list_plan(plan: Plan, settings: Settings, store: ResultStore, resources: Resources | None = None) -> Iterator[str]:
    """A line for each cell, then the counts, then the time that is left, then what does not fit the device's memory."""
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
    cells, fits = counted(len(plan.cells), "cell"), counted(len(unfinished), "fit")
    yield f"{cells}, {cached} cached, {fits} to do, {len(plan.broken)} cannot be planned"
    yield from time_lines(unfinished, settings, store)
    if settings.gpu_hours_each_fit and settings.preset == "full" and settings.limit is None:
        hours = settings.gpu_hours_each_fit
        fits = sum(METHODS.get(group.method).trained for group in unfinished)
        each = f"{counted(fits, 'fit')} of {hours:g}"
        yield f"expected: {hours * fits:.3g} GPU hours ({each}); {settings.gpu_hours_basis}"
    if resources is not None:
        yield from memory_lines(unfinished, settings, resources)


def memory_lines(groups: Sequence[FitGroup], settings: Settings, resources: Resources) -> Iterator[str]:
    """A line for each method and data set whose training is expected not to fit the memory of the device.

    The expectation is that of :mod:`benchmarks.runner.sizing`; what it does not know (a method of another
    distribution, a backbone that is no pair of transformers, a cluster) gets no line.
    """
    facts, room = resources.backbone_facts, device_gib(resources.device, settings)
    if facts.towers is None or room is None or settings.executor == "ray":
        return
    towers, needs = Towers(**facts.towers), dict[tuple[str, str], tuple[float, str]]()
    for group in groups:
        task, table = resources.task(group.dataset, *_where(group)), resources.dataset(group.dataset).table
        trained = table.iloc[task.train]
        classes = len(task.class_names) if group.method in ALL_NAMES else trained["class"].nunique()
        domains = trained["domain"].nunique()
        target = task.target is not None
        steps = steps_of(group.method, group.config, towers, classes, domains, facts.weights_mib, target=target)
        for step in steps or ():
            need = step.gib(facts.weights_mib, facts.precision)
            key = group.method, group.dataset
            if need > max(room, needs.get(key, (0.0, ""))[0]):
                needs[key] = need, f"{step.stage}, {counted(classes, 'class')}, {facts.precision}"
    for (method, dataset), (need, what) in needs.items():
        smaller = [f"--set {method}.batch_size=N", *[f"{method}.stage1_batch_size=N"] * (method in TWO_STAGES)]
        rounded = "" if facts.precision == "bf16" else " or --precision bf16"
        yield (
            f"memory  {method} on {dataset} takes about {_digits(need)} GiB in training ({what}), {resources.device}"
            f" has {_digits(room)} GiB: a smaller batch ({', '.join(smaller)}){rounded}"
        )


#: Methods whose first stage has a batch size of its own.
TWO_STAGES = ("pros", "ucdr_adapter")


def _digits(gib: float) -> str:
    return f"{gib:,.0f}" if gib >= 100 else f"{gib:.3g}"


def _where(group: FitGroup) -> tuple[str, str]:
    return group.cells[0].id.protocol, group.cells[0].id.split


def device_gib(device: str, settings: Settings) -> float | None:
    """Memory for one fit: the GPU's, or a job's share of the machine's; None for another device."""
    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.get_device_properties(torch.device(device)).total_memory / 2**30)
    if device == "cpu":
        import psutil

        return float(psutil.virtual_memory().total / 2**30 / max(1, settings.jobs))
    return None


def cell_line(cell: Cell) -> str:
    """A cell's data set, protocol, split, method, ablation, seed and fit."""
    name = cell.id
    seed, fit = f"s{name.seed}", f"fit {cell.fit_id}"
    parts = (name.dataset, name.protocol, name.split, name.method, name.ablation, seed, fit)
    return "  ".join(" ".join(part.split()) for part in parts if part)


def broken_line(broken: Broken) -> str:
    """What cannot be planned, and why."""
    name = broken.cell.id
    return f"broken  {name.dataset}  {name.protocol}  *  {name.method}: {plain(broken.reason)}"


def time_lines(groups: Sequence[FitGroup], settings: Settings, store: ResultStore) -> Iterator[str]:
    """The time that groups of unfinished cells may take: a line a method, and one for all."""
    if not groups:
        return
    stores = [store] if store.root.resolve() == REFERENCE else [store, ResultStore(REFERENCE)]
    past = PastCosts.of(record for source in stores for record in source.records())
    methods = estimate(groups, past, None if settings.force else store)
    for method in methods:
        known = duration(method.seconds) if method.unknown < method.cells else "unknown"
        some = f", {counted(method.unknown, 'cell')} unknown" if 0 < method.unknown < method.cells else ""
        yield f"time    {method.method}: {known} ({counted(method.fits, 'fit')}, {counted(method.cells, 'cell')}{some})"
    seconds, unknown = sum(method.seconds for method in methods), sum(method.unknown for method in methods)
    if unknown == sum(method.cells for method in methods):
        yield "time: unknown, there is no record of such work yet"
        return
    jobs = max(1, min(settings.jobs, len(groups)))
    rest = f", and {counted(unknown, 'cell')} of unknown length" if unknown else ""
    yield f"time: about {duration(seconds / jobs)} with --jobs {max(1, settings.jobs)}, as past records say{rest}"
