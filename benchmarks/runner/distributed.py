"""A run by several processes that train together (``accelerate launch -m benchmarks.run ...``).

Each process plans and does the whole run; only inside a training do they share the work
(:mod:`methods.parts.parallel`). The first one writes and prints, the others only compute.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.runner.settings import Settings, SettingsError
from benchmarks.store.files import ResultStore
from benchmarks.store.records import CellId, Record, Search
from methods.parts import parallel

if TYPE_CHECKING:
    import pandas as pd


class ReadOnlyStore(ResultStore):
    """Reads a store and writes nothing."""

    read_only = True

    def write(self, record: Record, per_query: pd.DataFrame | None = None) -> Record:
        """The record as it is."""
        return record

    def write_search(self, dataset: str, method: str, key: str, inputs: Mapping[str, Any], search: Search) -> None:
        """Nothing."""

    def write_card(self, kind: str, name: str, card: Mapping[str, Any]) -> None:
        """Nothing."""

    def write_resolved(self, settings: Mapping[str, Any]) -> None:
        """Nothing."""

    def discard(self, cell: CellId, key: str) -> None:
        """Nothing."""

    def clean(self) -> int:
        """Nothing."""
        return 0


def join(settings: Settings) -> Settings:
    """Join the processes that this one was started with, if any; one fit at a time then.

    Raises :class:`~benchmarks.runner.settings.SettingsError` for settings that would start further processes.
    """
    if parallel.launched() == 1:
        return settings
    try:
        parallel.start(cpu=settings.device == "cpu")
    except parallel.ParallelError as error:
        raise SettingsError(str(error)) from error
    wrong = ""
    if settings.executor == "ray" or settings.jobs > 1:
        wrong = "accelerate launch spreads each fit over its processes: leave --executor and --jobs out"
    elif settings.device not in ("auto", "cuda", "cpu"):
        wrong = f"--device {settings.device}: under accelerate launch each process has its own; leave it out"
    if wrong and parallel.rank():
        raise SystemExit(2)  # the first process prints the reason
    if wrong:
        raise SettingsError(wrong)
    return dataclasses.replace(settings, jobs=1)
