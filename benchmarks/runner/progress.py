"""What a person watching a run sees: a bar with rate and time left on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.console import EVERY, counted, duration, plain
from benchmarks.runner.estimate import relative_cost
from benchmarks.runner.plan import FitGroup
from benchmarks.store.records import CellId

#: Methods whose relative cost is this or more are trained.
TRAINS = 1.0

#: Workers named in the display; the others are counted.
SHOWN = 4


class RunProgress:
    """Progress over ``total`` cells: a bar, or a line every `EVERY` seconds where the console is not a terminal.

    Failures are always printed. ``methods`` names the method of each cell: the time left is estimated from the
    relative costs of their cells (:data:`benchmarks.runner.estimate.RELATIVE_COSTS`) and from how fast this run is.
    """

    def __init__(self, console: Console, total: int, methods: Sequence[str] = ()) -> None:
        self._console = console
        self._started = self._printed = time.monotonic()
        self._cached = 0
        self._left = Counter(methods)
        self._cost_done = self._largest_cost = 0.0
        self._images = 0
        self._workers: dict[int, str] = {}
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("cells, {task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("planning", total=total, rate="", left="")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def worker(self, number: int) -> WorkerProgress:
        """The progress of one of several workers; all show in this display."""
        return WorkerProgress(self, number)

    def working(self, number: int, what: str) -> None:
        """Show what a worker is doing."""
        self._workers[number] = what
        shown = [self._workers[n] for n in sorted(self._workers)]
        more = f", +{len(shown) - SHOWN}" if len(shown) > SHOWN else ""
        self._show(description=", ".join(shown[:SHOWN]) + more)

    def fitting(self, group: FitGroup) -> None:
        """Name the model being fitted."""
        self._show(description=f"{group.method} seed {group.seed}")

    def log(self, **numbers: Any) -> None:
        """Show the training step and its loss."""
        if "step" in numbers:
            loss = f" loss {numbers['loss']:.3g}" if isinstance(numbers.get("loss"), float) else ""
            self._show(rate=f"step {numbers['step']}{loss}")

    def images(self, count: int) -> None:
        """Show the rate of encoding since the start."""
        self._images += count
        rate = self._images / max(time.monotonic() - self._started, 1e-9)
        self._show(rate=f"{rate:.0f} images/s")

    def cell(self, cell: CellId, status: str, reason: str = "") -> None:
        """Advance; print what went wrong."""
        self._cached += status == "cached"
        counted = self._left[cell.method] > 0
        self._left[cell.method] -= counted
        if status == "ok" and counted:  # a cell without a score may have taken no time
            cost = relative_cost(cell.method)
            self._cost_done += cost
            self._largest_cost = max(self._largest_cost, cost)
        self._show(advance=1, left=self._time_left())
        if not self._workers:
            self._show(description=f"{cell.method} {cell.protocol}/{cell.split}")
        if status == "failed":
            place = f"{cell.method} on {cell.dataset}/{cell.protocol}/{cell.split}, seed {cell.seed}"
            line = f"failed: {place}: {plain(reason)}"
            self._bar.console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)

    def _time_left(self) -> str:
        """``about 3 min left``; "" where nothing is left, or nothing done so far allows an estimate.

        Cells of methods without training allow none for trained ones, whose share of the time depends on the preset.
        """
        elapsed = time.monotonic() - self._started
        task = self._bar.tasks[0]
        done, total = task.completed - self._cached, task.total or 0
        rest = sum(count * relative_cost(method) for method, count in self._left.items())
        trains = any(count and relative_cost(method) >= TRAINS for method, count in self._left.items())
        if trains and self._largest_cost < TRAINS and self._cost_done:
            return ""
        if self._cost_done and rest:
            return f"about {duration(elapsed / self._cost_done * rest)} left"
        if not self._left and done > 0 and task.completed < total:
            return f"about {duration(elapsed / done * (total - task.completed))} left"
        return ""

    def _show(self, **changes: Any) -> None:
        """Change the bar, or print a line of progress if the last one was long ago."""
        self._bar.update(self._task, **changes)
        now = time.monotonic()
        if self._console.is_terminal or now - self._printed < EVERY:
            return
        self._printed = now
        task = self._bar.tasks[0]
        done, total, elapsed = int(task.completed), int(task.total or 0), now - self._started
        time_left = self._time_left()
        left = f", {time_left}" if time_left else ""
        at = ", ".join(part for part in (task.description, task.fields["rate"]) if part)
        line = f"{done} of {counted(total, 'cell')} after {duration(elapsed)}{left}: {at}"
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


class WorkerProgress:
    """What one of several workers does, as a part of the common display."""

    def __init__(self, whole: RunProgress, number: int) -> None:
        self._whole = whole
        self._number = number
        self._name = ""

    def fitting(self, group: FitGroup) -> None:
        """Name the model being fitted."""
        self._name = f"{group.method} seed {group.seed}"
        self._whole.working(self._number, self._name)

    def log(self, **numbers: Any) -> None:
        """Show the training step and its loss."""
        if "step" in numbers:
            self._whole.working(self._number, f"{self._name} step {numbers['step']}")

    def images(self, count: int) -> None:
        """Count in the rate of encoding."""
        self._whole.images(count)

    def cell(self, cell: CellId, status: str, reason: str = "") -> None:
        """Advance the common bar."""
        self._whole.cell(cell, status, reason)
