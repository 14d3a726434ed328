"""What executors with several workers share: which worker has which group, and what follows when one is lost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from benchmarks.runner.executors.schedule import Schedule, Unit
from benchmarks.runner.outcome import Progress
from benchmarks.runner.plan import FitGroup
from benchmarks.store.records import Search


@dataclass(eq=False)
class Worker:
    """A worker and its current work; ``kept`` are the keys of its group's cells that are stored."""

    number: int
    progress: Progress
    unit: Unit | None = None
    group: FitGroup | None = None
    kept: set[str] = field(default_factory=set)


W = TypeVar("W", bound=Worker)


class Pool(ABC, Generic[W]):
    """Hands the groups of a schedule to workers; subclasses start, feed and end them."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.workers: list[W] = []

    @abstractmethod
    def limit(self) -> int:
        """Workers that there may be now."""

    @abstractmethod
    def start(self, number: int, progress: Progress) -> W:
        """A new worker."""

    @abstractmethod
    def send(self, worker: W, group: FitGroup, search: Search | None) -> bool:
        """Give a worker a group and, if it was made, its learning-rate search; False if the worker is gone."""

    @abstractmethod
    def end(self, worker: W) -> None:
        """End a worker at once, or clear up after one that is gone."""

    @abstractmethod
    def collect(self) -> None:
        """Wait for the next messages and handle them with :meth:`take_in`."""

    def run(self) -> None:
        """Hand out groups and collect results until nothing is left."""
        while True:
            self._hand_out()
            if all(worker.group is None for worker in self.workers):
                break
            self.collect()
        while (unit := self.schedule.take()) is not None:  # only where no worker can be started any more
            cells = [cell for group in unit.groups for cell in group.cells]
            self.schedule.lost(cells, "there is no machine left to run on; the same command goes on when there is one")

    def stop(self) -> None:
        """End all workers at once; their current work is lost, what is stored is whole."""
        while self.workers:
            self.end(self.workers.pop())

    def _hand_out(self) -> None:
        for worker in [worker for worker in self.workers if worker.group is None]:
            unit, worker.unit = worker.unit, None
            if unit is not None and unit.groups:
                self._give(worker, unit)
            elif unit is not None:
                self.schedule.give_back(unit)
        while True:
            idle = next((worker for worker in self.workers if worker.group is None), None)
            if idle is None and len(self.workers) >= self.limit():
                return
            taken = self.schedule.take()
            if taken is None:
                return
            self._give(idle or self._new(), taken)

    def _new(self) -> W:
        taken = {worker.number for worker in self.workers}
        number = next(n for n in range(len(taken) + 1) if n not in taken)
        view = getattr(self.schedule.progress, "worker", None)  # a display may have a line for each worker
        worker = self.start(number, view(number) if view else self.schedule.progress)
        self.workers.append(worker)
        return worker

    def _give(self, worker: W, unit: Unit) -> None:
        group = unit.groups[0]
        if not self.send(worker, group, self.schedule.search(group)):
            self.schedule.give_back(unit)
            self.dismiss(worker)
            return
        unit.groups.popleft()
        worker.unit, worker.group, worker.kept = unit, group, set()

    def take_in(self, worker: W, kind: str, *values: Any) -> None:
        """A message of a worker: a record, a search, weights, progress, or that its group is done or cannot be done."""
        if kind == "record":
            worker.kept.add(values[0].key)
            self.schedule.keep(*values)
        elif kind == "search":
            self.schedule.keep_search(*values)
        elif kind == "weights":
            self.schedule.keep_weights(*values)
        elif kind == "done":
            worker.group = None
        elif kind == "error":
            self._lose(worker, *values)
        elif kind == "log":
            worker.progress.log(**values[0])
        else:
            getattr(worker.progress, kind)(*values)

    def gone(self, worker: W, reason: str) -> None:
        """A worker has ended: its cells get a record each, the rest of its unit waits for another worker."""
        self.dismiss(worker)
        if worker.group is not None:
            self._lose(worker, reason)

    def dismiss(self, worker: W) -> None:
        """Remove a worker."""
        self.workers.remove(worker)
        self.end(worker)
        if worker.unit is not None:
            self.schedule.give_back(worker.unit)

    def _lose(self, worker: W, reason: str, trace: str = "") -> None:
        assert worker.group is not None
        cells = [cell for cell in worker.group.cells if cell.key not in worker.kept]
        worker.group = None
        self.schedule.lost(cells, reason, trace)
