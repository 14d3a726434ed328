"""Which plots a setting's results allow, and drawing them: in other processes, and only where their data changed.

Each plot is drawn by itself; one that fails leaves a notice in its place. A plot is a function of
`benchmarks.reporting.plots` and its arguments. A digest of both, kept in the report's folder
(`benchmarks.reporting.files`), says whether its files are up to date.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reporting import plots
from benchmarks.reporting.data import ReportData, SettingData
from benchmarks.reporting.digests import PlotDigests, digest
from benchmarks.reporting.error_analysis import distances
from benchmarks.reporting.types import Plot, ScoreTable, SettingPlots, is_transfer, protocol_title
from benchmarks.store.records import Record

#: Points of a fit's loss curve at most: losses of single batches hide each other.
LOSS_POINTS = 20


class PlotPool:
    """Draws plots in ``workers`` other processes; with 0 in this one, when a plot is asked for.

    Where a process dies (killed for memory, say), the plots that were lost with it are drawn again, one at a time in
    another process: the plot whose process dies then is left out, the others are kept.
    """

    def __init__(self, workers: int = 0) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._single: ProcessPoolExecutor | None = None

    def draw(self, function: str, arguments: tuple[Any, ...], folder: Path) -> Callable[[], tuple[list[Path], str]]:
        """Begin to draw a plot; returns a function that waits for its result."""
        if not self._workers:
            result = plots.draw_plot(function, arguments, folder)
            return lambda: result
        try:
            if self._pool is None:
                self._pool = _processes(self._workers)
            future: Future[tuple[list[Path], str]] = self._pool.submit(plots.draw_plot, function, arguments, folder)
        except (BrokenProcessPool, OSError):
            return lambda: self._again(function, arguments, folder)
        return lambda: self._result(future, function, arguments, folder)

    def _result(
        self, future: Future[tuple[list[Path], str]], function: str, arguments: tuple[Any, ...], folder: Path
    ) -> tuple[list[Path], str]:
        try:
            return future.result()
        except (BrokenProcessPool, OSError):
            return self._again(function, arguments, folder)

    def _again(self, function: str, arguments: tuple[Any, ...], folder: Path) -> tuple[list[Path], str]:
        """Draw a plot that was lost, alone in a process."""
        try:
            if self._single is None:
                self._single = _processes(1)
            return self._single.submit(plots.draw_plot, function, arguments, folder).result()
        except BrokenProcessPool:
            self._single = None
            return [], "the process that drew it died"
        except OSError:  # no process can be started
            return plots.draw_plot(function, arguments, folder)

    def close(self) -> None:
        """End the processes."""
        for pool in (self._pool, self._single):
            if pool is not None:
                pool.shutdown(cancel_futures=True)


def _processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))


@dataclass
class PlotCollector:
    """Draws plots one by one and keeps the result of each, in the order in which they were added.

    ``report`` gets a line for each plot that failed; ``digests`` names the plots whose files are up to date.
    """

    folder: Path
    report: Callable[[str], None]
    pool: PlotPool = field(default_factory=PlotPool)
    digests: PlotDigests | None = None
    _pending: list[tuple[Plot, str, Callable[[], tuple[list[Path], str]]]] = field(default_factory=list)

    def add(self, function: str, *arguments: Any, kind: str, title: str, caption: str = "", protocol: str = "") -> None:
        """Draw a plot by a function of `benchmarks.reporting.plots`."""
        plot = Plot(title, caption, kind, protocol)
        key = digest(function, arguments, self.folder.name)
        known = None if self.digests is None else self.digests.files(key)
        if known is not None:
            files = known
            self._pending.append((plot, key, lambda: (files, "")))
        else:
            self._pending.append((plot, key, self.pool.draw(function, arguments, self.folder)))

    def plots(self) -> tuple[Plot, ...]:
        """All plots added, drawn; those without files had nothing to draw and are left out."""
        drawn = []
        for plot, key, result in self._pending:
            files, failed = result()
            if failed:
                self.report(f"plot of {plot.title} left out: {failed}")
                drawn.append(replace(plot, failed=failed))
                continue
            if self.digests is not None:
                self.digests.keep(key, files)
            if files:
                drawn.append(replace(plot, files=tuple(files)))
        return tuple(drawn)


@dataclass
class PlannedPlots:
    """A setting's plots on their way, with notes on what cannot be drawn."""

    collector: PlotCollector
    notes: tuple[str, ...] = ()

    def finished(self) -> SettingPlots:
        """All plots, when they are drawn."""
        return SettingPlots(self.collector.plots(), self.notes)


def draw_setting(of_setting: SettingData, collector: PlotCollector) -> PlannedPlots:
    """Add all plots of one setting that its results allow to ``collector``.

    None of them needs the tests between methods, which can be computed meanwhile.
    """
    setting = of_setting.setting
    for table in of_setting.leading:
        collector.add(
            "bars", table, kind="scores", title=f"{table.question()}: {table.metric}", protocol=table.protocol
        )
    if setting.limit is not None:
        note = "A limited run proves that it runs; its scores mean nothing, so no more is drawn of them."
        return PlannedPlots(collector, (note,))
    for table in of_setting.leading:
        if len(table.columns) > 1:
            what = "transfer" if is_transfer(table.protocol) else "query domain"
            collector.add(
                "heat_map", table, kind="methods by domains", title=f"{table.question()}: method by {what}",
                caption=f"{table.metric}, darker is better", protocol=table.protocol,
            )  # fmt: skip
    first: dict[str, ScoreTable] = {}
    for table in of_setting.leading:
        first.setdefault(table.protocol, table)
    for table in first.values():
        collector.add(
            "cost_against_score", table, of_setting.costs, kind="cost",
            title=f"{table.question()}: accuracy against the cost of training",
            caption="What trains nothing is at the left; no floors; scores do not begin at zero.",
            protocol=table.protocol,
        )  # fmt: skip
    collector.add(
        "seconds_by_phase", of_setting.costs, kind="cost", title="Seconds by phase",
        caption="What trains is counted once for all cells that share it.",
    )  # fmt: skip
    by_metric = {(table.protocol, table.metric): table for table in of_setting.tables}
    for (protocol, metric), table in by_metric.items():
        unseen = by_metric.get((protocol, metric.replace("seen[", "unseen[", 1)))
        if metric.startswith("seen[") and unseen is not None:
            collector.add(
                "seen_against_unseen", table, unseen, kind="seen and unseen",
                title=f"{protocol_title(protocol)}: seen against unseen classes",
                caption="Grey lines: equal harmonic mean; dotted: as good on unseen as on seen classes.",
                protocol=protocol,
            )  # fmt: skip
    notes = _draw_errors(of_setting, collector)
    losses = {
        label: curves
        for label, records in of_setting.fits.items()
        if (curves := [curve for record in records if (curve := mean_losses(record))])
    }
    collector.add(
        "loss_curves", losses, kind="training", title="Training loss",
        caption="A line a fit, in the order of its steps; stages of one fit follow each other.",
    )  # fmt: skip
    for protocol, by_label in of_setting.validations.items():
        collector.add(
            "convergence_curves", protocol, by_label, kind="training",
            title=f"{protocol_title(protocol)}: convergence",
            caption="Best validation score so far by step, mean over the fits of each method (splits and seeds): where "
            "a line is flat at its end, more steps would not have helped.",
            protocol=protocol,
        )  # fmt: skip
    for ablation in of_setting.ablations:
        collector.add(
            "ablation_bars", ablation, kind="ablations", title=f"{ablation.method}: one factor switched",
            caption="Percentage points that each switched factor adds to the default or takes from it, in each "
            "question.",
        )  # fmt: skip
    return PlannedPlots(collector, tuple(notes))


def _draw_errors(of_setting: SettingData, collector: PlotCollector) -> Iterator[str] | list[str]:
    """Add the plots of precision, recall and errors; returns notes on what is missing."""
    errors = of_setting.errors
    if errors.problem:
        return [f"Errors could not be read: {errors.problem}"]
    notes = []
    for question in errors.questions:
        if question.problem:
            notes.append(f"{question.title}: no curves and no errors, because {question.problem}.")
            continue
        if any(method.curve is not None for method in question.methods):
            collector.add(
                "precision_curves", question, kind="precision and recall",
                title=f"{question.title}: precision@k, precision against recall",
                caption="From the stored lists of best images; the store keeps no whole rankings, so the curves end "
                "there.",
                protocol=question.protocol,
            )  # fmt: skip
        collector.add(
            "error_distances", question, {one.label: distances(one, errors.wordnet) for one in question.methods},
            kind="errors", title=f"{question.title}: errors by WordNet distance",
            caption="How many queries are answered wrongly, by how far the answer is from the truth.",
            protocol=question.protocol,
        )  # fmt: skip
    if not errors.has_curves:
        notes.append("No precision and recall curves: the store has no lists of best images for this setting.")
    return notes


def mean_losses(record: Record) -> list[tuple[float, float]]:
    """A fit's losses in the order made, ``(step, loss)`` from step 1; none for fewer than two.

    Of more than `LOSS_POINTS` steps neighbours are averaged.
    """
    values = [
        float(v) for one in record.fit.losses if isinstance(v := one.get("loss"), int | float) and math.isfinite(v)
    ]
    if len(values) < 2:
        return []
    steps, parts = np.arange(1, len(values) + 1), min(LOSS_POINTS, len(values))
    pairs = zip(np.array_split(steps, parts), np.array_split(np.array(values), parts), strict=True)
    return [(float(step.mean()), float(loss.mean())) for step, loss in pairs]


def draw_report(data: ReportData, folder: Path, pool: PlotPool, digests: PlotDigests | None) -> list[PlannedPlots]:
    """Begin to draw the plots of all settings below ``folder``; one entry a setting, in the report's order."""
    planned = []
    for number, of_setting in enumerate(data.settings, start=1):
        place = folder if len(data.settings) == 1 else folder / f"setting-{number}"
        planned.append(draw_setting(of_setting, PlotCollector(place, data.warn, pool, digests)))
    return planned
