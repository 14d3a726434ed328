"""The cards of a plan's methods and data sets, written beside its records."""

from __future__ import annotations

import dataclasses

from benchmarks.datasets.registry import DATASETS
from benchmarks.runner.plan import Plan
from benchmarks.store.files import ResultStore
from methods.registry import METHODS


def write_cards(plan: Plan, store: ResultStore) -> None:
    """Write the card of every method and data set that has a cell in the plan."""
    for kind, registry, names in (
        ("methods", METHODS, {cell.id.method for cell in plan.cells}),
        ("datasets", DATASETS, {cell.id.dataset for cell in plan.cells}),
    ):
        for name in sorted(names):
            store.write_card(kind, name, dataclasses.asdict(registry.get(name).card))
