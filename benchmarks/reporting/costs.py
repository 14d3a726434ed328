"""What each method cost, from the records of its cells: parameters, seconds by phase, speed and memory."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import pandas as pd

from benchmarks.reporting.tables import METHOD_COLUMNS
from benchmarks.reporting.types import MethodCost
from benchmarks.store.records import Record

#: Phases of training, and of answering a cell's questions.
TRAINING, ANSWERING = ("fit", "search"), ("encode", "rank", "classify")


def method_costs(rows: pd.DataFrame, labels: Mapping[Any, str], records: Mapping[str, Record]) -> list[MethodCost]:
    """One entry a method and config, from the records of its cells; a fit that several cells share counts once."""
    costs = []
    for configuration, of_method in rows.groupby(METHOD_COLUMNS, sort=False):
        keys = dict.fromkeys(of_method["key"])
        done = [records[key] for key in keys if key in records and records[key].status == "ok"]
        if not done:
            continue
        fits = {(record.fit.fit_id, record.cell.seed): record for record in done}
        seconds: dict[str, float] = {}
        for phases, counted in ((TRAINING, list(fits.values())), (ANSWERING, done)):
            for phase in phases:
                values = [record.cost.seconds[phase] for record in counted if phase in record.cost.seconds]
                if values:
                    seconds[phase] = statistics.fmean(values)
        cost = [record.cost for record in done]
        rates = [c.pictures_per_second for c in cost if c.pictures_per_second]
        costs.append(
            MethodCost(
                label=labels[configuration],
                method=str(configuration[0]),
                floor=bool(of_method["floor"].any()),
                trainable=max((n for c in cost if (n := c.trainable_parameters) is not None), default=None),
                total=max((n for c in cost if (n := c.total_parameters) is not None), default=None),
                seconds=seconds,
                images_per_second=statistics.median(rates) if rates else None,
                memory=max((mib for c in cost if (mib := c.peak_memory_mib) is not None), default=None),
                gpu_memory=max(
                    (mib for c in cost if (mib := c.peak_gpu_memory_mib) is not None),
                    default=None,
                ),
                fits=len(fits),
                cells=len(done),
            )
        )
    return costs
