"""Which rows a report's tables list."""

from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from benchmarks.reporting import grids
from benchmarks.reporting.method_comparison import ALL

ORDER = ["best", "second", "zero_shot", "fourth", "last"]


def entries() -> list[dict[str, Any]]:
    common = {
        "protocol": "ucdr", "gallery": "unseen", "metric": "map@all", "split": ALL, "difference": 0.1, "low": 0.0,
        "high": 0.2, "p": 0.01, "p_holm": 0.04, "classes": 3, "queries": 9, "same": False,
    }  # fmt: skip
    return [{"a": a, "b": b, **common} for a, b in combinations(ORDER, 2)]


def listed() -> Any:
    comparison: Any = SimpleNamespace(
        pairs=pd.DataFrame(entries()), agreement=pd.DataFrame(), ranks=pd.DataFrame(), inflation=pd.DataFrame()
    )
    table: Any = SimpleNamespace(
        protocol="ucdr", gallery="unseen", metric="map@all", leads=True, setting=SimpleNamespace(select="val")
    )
    (grid,) = grids.tests([table], comparison)
    return grid


def test_few_pairs_are_all_listed() -> None:
    grid = listed()
    assert grid.caption == "All pairs, on the mean over domains"
    assert [row.method for row in grid.rows] == [f"{one['a']} {one['b']}" for one in entries()]
    assert len(grid.notes) == 1


def test_of_many_pairs_those_with_the_baseline_or_the_best_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "LISTED_PAIRS", 9)
    grid = listed()
    assert [row.method for row in grid.rows] == [
        "best second", "best zero_shot", "best fourth", "best last", "second zero_shot", "zero_shot fourth",
        "zero_shot last",
    ]  # fmt: skip
    assert grid.notes[1] == "7 of 10 pairs; all are in pairs.csv, and corrected together."
