"""What of a sweep is left to do, which part may start now, and the way of every result into the store."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from dataclasses import dataclass

import pandas as pd

from benchmarks.runner.model_cards import scored_card
from benchmarks.runner.outcome import FailFast, Outcome, Progress
from benchmarks.runner.plan import Cell, FitGroup, Plan, search_inputs, search_key, unit_key
from benchmarks.runner.records import make_record
from benchmarks.runner.resources import Resources
from benchmarks.store.files import ResultStore
from benchmarks.store.records import Record, Search
from benchmarks.store.weights import FitWeights, WeightStore, fit_key
from methods.registry import METHODS


@dataclass
class Unit:
    """Groups that one worker does one after the other: a fit, or all of a method that shares its encoded images."""

    groups: deque[FitGroup]
    search: str | None


class Schedule:
    """Hands out the unfinished groups of a plan in its order and keeps what comes back.

    Groups that wait for a learning-rate search that is being made are passed over until it is done, so no search is
    made twice. Everything is stored from here: a record is in the store before :meth:`keep` returns.
    """

    def __init__(self, plan: Plan, resources: Resources, store: ResultStore, progress: Progress) -> None:
        self.plan = plan
        self.resources = resources
        self.settings = resources.settings
        self.store = store
        self.progress = progress
        self.outcome = Outcome()
        self._waiting: list[Unit] = []
        self._searches: dict[str, Search] = {}
        self._searching: set[str] = set()
        self.weights = WeightStore(store.root, read_only=store.read_only)
        self._cells_of: dict[str, list[Cell]] = {}  # by fit, where weights are kept
        if self.settings.keep_weights is not None:
            for cell in plan.cells:
                self._cells_of.setdefault(fit_key(cell.inputs), []).append(cell)

    def begin(self) -> None:
        """Store what could not be planned or does not apply, count what is finished already, and queue the rest."""
        for broken in self.plan.broken:
            values = {"reason": broken.reason, "traceback": broken.traceback}
            self.keep(make_record(self.resources, broken.cell, "failed", **values))
        units: dict[str, Unit] = {}
        for group in self.plan.groups:
            if group.tuning and self._tuned(group):
                continue
            left = tuple(cell for cell in group.cells if group.tuning or not self._finished(cell))
            if not left:
                continue
            if group.unfit:
                for cell in left:
                    self.keep(make_record(self.resources, cell, "not_applicable", reason=group.unfit))
                continue
            search = search_key(group)
            key = f"{unit_key(group)} {group.fit_id} {group.seed}" if METHODS.get(group.method).trained else ""
            unit = units.setdefault(key or unit_key(group), Unit(deque(), search))
            unit.groups.append(dataclasses.replace(group, cells=left))
        self._waiting = list(units.values())

    def _finished(self, cell: Cell) -> bool:
        if self.settings.force or (record := self.store.finished(cell.id, cell.key)) is None:
            return False
        self.outcome.add("cached")
        self.progress.cell(record.cell, "cached")
        return True

    def _tuned(self, group: FitGroup) -> bool:
        """Whether the search of a group that is only searched is finished already."""
        if (search := self.search(group)) is None or search.learning_rate is None:
            return False
        self.outcome.add("cached")
        self.progress.cell(group.cells[0].id, "cached")
        return True

    @property
    def waiting(self) -> int:
        """Number of units that no worker has taken."""
        return len(self._waiting)

    def take(self) -> Unit | None:
        """The next unit that may start now; None if there is none, or if all wait for a search."""
        for place, unit in enumerate(self._waiting):
            if unit.search is None or unit.search not in self._searching:
                if unit.search is not None:
                    made = self.search(unit.groups[0])
                    if made is None or made.learning_rate is None:
                        self._searching.add(unit.search)
                return self._waiting.pop(place)
        return None

    def give_back(self, unit: Unit) -> None:
        """A unit is done, or its worker is gone: what is left of it goes to the front of the queue."""
        if unit.search is not None:
            self._searching.discard(unit.search)
        if unit.groups:
            self._waiting.insert(0, unit)

    def search(self, group: FitGroup) -> Search | None:
        """What is known of a group's learning-rate search, from this run or, without ``--force``, from before.

        Without a rate: the trials of one that was stopped.
        """
        key = search_key(group)
        if key is None:
            return None
        if key not in self._searches and not self.settings.force:
            stored = self.store.read_search(group.dataset, group.method, key)
            if stored is not None:
                self._searches[key] = stored
        return self._searches.get(key)

    def keep_search(self, group: FitGroup, search: Search) -> None:
        """Store what a search has found so far; if it is finished, the groups that wait for it may start."""
        key = search_key(group)
        assert key is not None
        self._searches[key] = search
        if search.learning_rate is not None:
            self._searching.discard(key)
            if group.tuning:
                self.outcome.add("tuned")
                self.progress.cell(group.cells[0].id, "ok")
        with contextlib.suppress(OSError):  # disk full: the failed records name it
            self.store.write_search(group.dataset, group.method, key, search_inputs(group), search)

    def keep_weights(self, group: FitGroup, weights: FitWeights) -> None:
        """Store the weights of a fit; where that fails, the outcome says so and the records are kept all the same."""
        assert self.settings.keep_weights is not None
        problem = weights.problem
        try:
            if not problem:
                for inputs in {fit_key(cell.inputs): cell.inputs for cell in group.cells}.values():
                    self.weights.write(inputs, weights, self.settings.keep_weights)
        except OSError as error:
            problem = f"{self.settings.out}: {error.strerror or error}; free space there, then --force"
        if problem:
            where = f"{group.method} on {group.dataset}, seed {group.seed}"
            self.outcome.problems.append(f"{where}: the weights are not kept ({problem})")

    def _card(self, record: Record) -> None:
        """Write the model card of a record's fit again, with the scores of all records that the fit has by now."""
        cells = self._cells_of.get(fit_key(record.inputs), ()) if "task" in record.inputs else ()
        if record.status != "ok" or not cells or not self.weights.of_record(record):
            return
        others = (self.store.finished(cell.id, cell.key, set_aside=False) for cell in cells if cell.key != record.key)
        scored = sorted((record, *filter(None, others)), key=lambda one: (one.cell.protocol, one.cell.split))
        with contextlib.suppress(OSError):  # the card of before stays
            self.weights.write_card(record.inputs, scored_card(scored))

    def keep(self, record: Record, per_query: pd.DataFrame | None = None) -> None:
        """Store a record; raises :class:`FailFast` if that is asked for and the cell failed."""
        try:
            self.store.write(record, per_query)
        except OSError as error:  # disk full, folder gone: the sweep goes on, and the next run tries this cell again
            place = self.settings.out
            reason = f"{place}: the record cannot be written ({error.strerror or error}); free space there"
            record = dataclasses.replace(record, status="failed", reason=reason, scores={}, per_query=None)
            with contextlib.suppress(OSError):  # the row without its per-query values may still fit
                self.store.write(record)
        if self._cells_of:
            self._card(record)
        self.outcome.add(record.status)
        self.progress.cell(record.cell, record.status, record.reason)
        if record.status == "failed" and self.settings.fail_fast:
            raise FailFast

    def lost(self, cells: list[Cell], reason: str, trace: str = "") -> None:
        """Cells whose worker is gone: a failed record each."""
        for cell in cells:
            self.keep(make_record(self.resources, cell, "failed", reason=reason, traceback=trace))
