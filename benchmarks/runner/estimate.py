"""How long the rest of a sweep may take, from the seconds that past records have for the same work."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.runner.plan import SEARCH_SEED, Cell, FitGroup, search_key
from benchmarks.store.files import ResultStore
from benchmarks.store.records import CellId, Record, content_key

#: Parts of a cell's work that it does not share with other cells of its fitted model.
OWN = ("encode", "rank", "classify")

#: What a cell of each method costs relative to the others': median seconds of all phases over the scored records of
#: ``results/reference`` (``sum(record.cost.seconds.values())``; preset standard, one thread on two cores). Only ratios
#: count.
RELATIVE_COSTS: Mapping[str, float] = {
    "constant": 0.1,
    "zero_shot_domain": 0.1,
    "zero_shot": 0.2,
    "random": 0.2,
    "raw_pixel": 0.3,
    "metric_head": 5.5,
    "linear_probe": 7.3,
    "clip_adapter": 8.4,
    "coop": 9.7,
    "maple": 10.9,
    "cocoop": 11.2,
    "ivlp": 11.3,
    "vpt_shallow": 16.4,
    "vpt_deep": 17.2,
    "bitfit": 18.5,
    "promptsrc": 19.3,
    "tip_adapter_f": 19.7,
    "dapl": 22.0,
    "ln_tuning": 22.1,
    "tip_adapter": 26.6,
    "lora": 29.0,
    "full_finetune": 29.4,
    "sre_clip": 31.2,
    "ucdr_adapter": 42.0,
    "sketch_lvm": 49.4,
    "pda": 56.4,
    "cmkd": 60.7,
    "ad_clip": 156.9,
    "pros": 229.8,
}


def relative_cost(method: str) -> float:
    """A method's entry in :data:`RELATIVE_COSTS`; the median for a method without an entry."""
    return RELATIVE_COSTS.get(method, statistics.median(RELATIVE_COSTS.values()))


@dataclass
class MethodEstimate:
    """The work left for one method: ``seconds`` on one job; ``unknown`` counts the cells without a similar record."""

    method: str
    cells: int = 0
    fits: int = 0
    seconds: float = 0.0
    unknown: int = 0


@dataclass
class PastCosts:
    """Median seconds of each phase of past records, looked up by what the work was.

    Two cells are taken for the same work if method, backbone, data set, limit and protocol agree and so do the config
    and the number of learning rates; if there is no such record, the steps may stand for the whole config and, where
    nothing is searched, for the learning rates.
    """

    _seconds: dict[tuple[Any, ...], dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )

    @classmethod
    def of(cls, records: Iterable[Record]) -> PastCosts:
        """Costs of all records with scores."""
        past = cls()
        for record in records:
            if record.status == "ok":
                kinds = _kinds(record.cell, _trials(record.inputs.get("method", {})))
                for kind in (*kinds, _alike(record.cell)):
                    for phase, seconds in record.cost.seconds.items():
                        past._seconds[kind][phase].append(seconds)
        return past

    def seconds(self, cell: Cell) -> Mapping[str, float] | None:
        """Median seconds by phase of the records most like this cell; None if there is none."""
        trials = _trials(cell.inputs["method"])
        kinds = _kinds(cell.id, trials)
        for kind in kinds if trials > 1 else [*kinds, _alike(cell.id)]:
            if kind in self._seconds:
                return {phase: statistics.median(values) for phase, values in self._seconds[kind].items()}
        return None


def _alike(cell: CellId) -> tuple[Any, ...]:
    """The same for cells whose fits have as many steps, however their learning rates were found."""
    return (cell.method, cell.backbone, cell.dataset, cell.protocol, cell.limit, cell.config.get("steps"))


def _trials(method: Mapping[str, Any]) -> int:
    """How many learning rates a cell's inputs have tried or set."""
    search = method.get("search")
    return int(search["trials"]) if search else len(method.get("learning_rates") or ())


def _kinds(cell: CellId, rates: int) -> list[tuple[Any, ...]]:
    where = (cell.method, cell.backbone, cell.dataset, cell.protocol, cell.limit, rates)
    return [(*where, content_key(cell.config)), (*where, "steps", cell.config.get("steps"))]


def estimate(groups: Sequence[FitGroup], past: PastCosts, store: ResultStore | None) -> list[MethodEstimate]:
    """The work of groups that hold only unfinished cells, by method in their order.

    A fit counts once a group; a learning-rate search once for all seeds, and not if the store has it (None: under
    ``--force`` all are repeated).
    """
    totals: dict[str, MethodEstimate] = {}
    searched: set[str] = set()
    for group in groups:
        total = totals.setdefault(group.method, MethodEstimate(group.method))
        total.cells += len(group.cells)
        total.fits += 1
        past_seconds = [seconds for cell in group.cells if (seconds := past.seconds(cell)) is not None]
        total.unknown += len(group.cells) - len(past_seconds)
        if not past_seconds:
            continue
        total.seconds += sum(seconds.get(phase, 0.0) for seconds in past_seconds for phase in OWN)
        key = search_key(group)
        search = key is not None and key not in searched
        if search and key is not None:
            searched.add(key)
            search = store is None or store.read_search(group.dataset, group.method, key) is None
        if search:
            total.seconds += past_seconds[0].get("search", 0.0)
        if not search or group.seed != SEARCH_SEED:  # with the search's seed the fit is one of its trainings
            total.seconds += past_seconds[0].get("fit", 0.0)
    return list(totals.values())
